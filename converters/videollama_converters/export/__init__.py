"""Exports a checkpoint's parts: ONNX graphs, encoder weights and a plain Hugging Face decoder. May import `steps`."""
