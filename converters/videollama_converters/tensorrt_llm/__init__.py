"""The language model on TensorRT-LLM 1.2.1: commands, what its builder takes, its backend's config. May import `gpus`."""
