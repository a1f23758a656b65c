"""The language model's stage outside TensorRT-LLM: one scheduler over a small runner interface."""
