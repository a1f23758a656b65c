"""Checkpoint -> ONNX graphs, plain Hugging Face decoder, Triton model repository. One verb per file."""
