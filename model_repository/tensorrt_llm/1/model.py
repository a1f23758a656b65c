"""The language model outside the C++ backend, behind TensorRT-LLM's own tensors."""

from videollama_server.stages import load_stage

TritonPythonModel = load_stage("tensorrt_llm")
