"""What processes exchange: tensors, errors, messages and limits. Standard library and numpy only; the client imports nothing else."""
