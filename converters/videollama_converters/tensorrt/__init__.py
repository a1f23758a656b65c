"""ONNX graphs -> engines of TensorRT and TensorRT-RTX. May import `steps`, `export` and `engine_options`."""
