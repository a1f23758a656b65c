"""A checkpoint's parts -> ONNX graphs, encoder weights, the plain Hugging Face decoder. May import `steps`."""
