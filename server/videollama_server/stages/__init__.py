"""The Triton stages: tensors in, tensors out. The only modules that know Triton's Python backend."""
