"""The Triton stages: tensors in, tensors out. The only modules that know Triton's Python backend or gRPC.

Every `model_repository/STAGE/1/model.py` imports only `load_stage`, so that a converted bundle, which holds a copy of that
file, does not depend on the layout of these modules.
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
    """Return the class that Triton's Python backend expects as `TritonPythonModel`. Imports only that stage."""
    module, class_name = _CLASSES[name].split(".")
    return getattr(import_module(f"{__name__}.{module}"), class_name)
