"""Checkpoint -> ONNX graphs, engines, plain Hugging Face decoder, Triton model repository. May import the core and the server."""
