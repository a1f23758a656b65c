"""The language model on a CPU, behind TensorRT-LLM's own tensors."""

from videollama_server.stages.language_model import LanguageModelStage


class TritonPythonModel(LanguageModelStage):
    pass
