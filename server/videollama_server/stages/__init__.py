"""The Triton stages: tensors in, tensors out. The only modules that know Triton's Python backend or gRPC.

Every `model_repository/STAGE/1/model.py` imports `load_stage` and nothing else, so that a converted bundle, which holds
a copy of that file, does not depend on how these modules are arranged.
"""

from importlib import import_module
from typing import Any

_CLASSES = {
    "videollama2": "entry_stage.EntryStage",
    "preprocess": "preprocess.PreprocessStage",
    "encoder": "encoder.EncoderStage",
    "tensorrt_llm": "language_model.LanguageModelStage",
    "prompt": "prompt.PromptStage",
    "detokenize": "detokenize.DetokenizeStage",
}


def load_stage(name: str) -> Any:
    """The class that Triton's Python backend looks for as `TritonPythonModel`. Imports that stage alone."""
    module, class_name = _CLASSES[name].split(".")
    return getattr(import_module(f"{__name__}.{module}"), class_name)
