"""The language model on a CPU, behind TensorRT-LLM's own tensors."""

from videollama_core.generation.stage import LanguageModelStage


class TritonPythonModel(LanguageModelStage):
    pass
