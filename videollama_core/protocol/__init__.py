"""What crosses a process: tensors, errors, messages and limits. Standard library and numpy only; all that the client may import."""
