"""The language model on TensorRT-LLM 1.2.1: build commands, supported options, its backend's config. May import `gpus`."""
