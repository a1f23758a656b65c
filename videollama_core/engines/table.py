"""The engines: what each one supports, and where its code is.

A new engine is one entry here and one in the converter (`ENCODER_STEPS`), with the modules that they name. A bundle names
two: the engine of its encoders, and the engine of its language model. Modules are named rather than imported: torch takes
seconds to import, and the packages of other engines may not be installed.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any

from videollama_core.protocol.errors import ArtifactMismatch

_FLOATS = ("bfloat16", "float16", "float32")


@dataclass(frozen=True)
class EncoderEngine:
    """An engine of the vision encoder, the connector and the audio encoder."""

    name: str
    dtypes: tuple[str, ...]  # in which it can compute, the default first
    language_engines: tuple[str, ...]  # with which it can be combined, the default first
    encoders: str  # "module:name" of (Bundle) -> Encoders (media_encoder.py)
    package: str  # the Python package that it requires
    machine_check: str  # "module:name" of (Bundle, bytes of the bundle) -> list[Finding] (machine_checks.py)
    is_tensorrt: bool = False  # it runs typed graphs that are built into engines; the tower can be fp8
    takes_noise: bool = True  # whether it takes the float32 pixels of contrastive decoding
    can_keep_media_tokens_on_gpu: bool = False  # between the encoder and the language model

    def load_encoders(self) -> Callable[..., Any]:
        """Import the function (Bundle) -> Encoders."""
        return _named(self.encoders)

    def load_machine_check(self) -> Callable[..., Any]:
        """Import the function (Bundle, bytes of the bundle) -> list[Finding]."""
        return _named(self.machine_check)


@dataclass(frozen=True)
class LanguageEngine:
    """An engine of the language model. Those in a stage of ours are loaded by generation/language_models.py."""

    name: str
    package: str
    is_backend: bool = False  # a Triton backend in C++, with a config.pbtxt and an engine of its own
    quantizations: tuple[str, ...] = ()  # of the weights, as offered by `vl2 convert --quantize`
    parameters: dict[str, str] = field(default_factory=dict)  # overrides of the parameters in the stage's config.pbtxt


ENCODER_ENGINES = {
    engine.name: engine
    for engine in (
        EncoderEngine(
            "onnx",
            ("float32",),
            ("onnx", "vllm"),
            "videollama_core.engines.onnx_runtime:OnnxEncoders",
            "onnxruntime",
            "videollama_core.engines.machine_checks:check_memory",
        ),
        EncoderEngine(
            "torch",
            _FLOATS,
            ("torch", "vllm"),
            "videollama_core.engines.torch_encoders:load_torch_encoders",
            "torch",
            "videollama_core.engines.machine_checks:check_torch",
        ),
        # The types of both TensorRT engines are the vision tower's: connector and audio encoder are never bfloat16
        # (engine_options.encoder_dtype in the converter). Media tokens for TensorRT-LLM are float16, its own type.
        EncoderEngine(
            "tensorrt",
            _FLOATS,
            ("tensorrt-llm",),
            "videollama_core.engines.tensorrt_encoders:TensorRtEncoders",
            "tensorrt",
            "videollama_core.engines.machine_checks:check_tensorrt",
            is_tensorrt=True,
            takes_noise=False,
            can_keep_media_tokens_on_gpu=True,
        ),
        EncoderEngine(
            "tensorrt-rtx",
            _FLOATS,
            ("torch", "vllm"),
            "videollama_core.engines.tensorrt_rtx_encoders:RtxEncoders",
            "tensorrt_rtx",
            "videollama_core.engines.machine_checks:check_tensorrt_rtx",
            is_tensorrt=True,
            takes_noise=False,
        ),
    )
}
LANGUAGE_ENGINES = {
    engine.name: engine
    for engine in (
        LanguageEngine("onnx", "onnxruntime", quantizations=("int8",)),
        # Prefill chunks sized for a CPU are too small to occupy a GPU.
        LanguageEngine("torch", "torch", parameters={"max_num_sequences": "16", "prefill_chunk_len": "4096"}),
        LanguageEngine("vllm", "vllm"),
        LanguageEngine("tensorrt-llm", "tensorrt_llm", is_backend=True, quantizations=("fp8", "int4_awq", "int8_sq")),
    )
}


def encoder_engine(name: str) -> EncoderEngine:
    """Raises: ArtifactMismatch for a name that is not in the table."""
    if name not in ENCODER_ENGINES:
        raise ArtifactMismatch(f"the engine {name!r} is unknown; expected one of {', '.join(ENCODER_ENGINES)}")
    return ENCODER_ENGINES[name]


def language_engine(name: str) -> LanguageEngine:
    """Raises: ArtifactMismatch for a name that is not in the table."""
    if name not in LANGUAGE_ENGINES:
        raise ArtifactMismatch(
            f"the language model's engine {name!r} is unknown; expected one of {', '.join(LANGUAGE_ENGINES)}"
        )
    return LANGUAGE_ENGINES[name]


def _named(place: str) -> Callable[..., Any]:
    module, name = place.split(":")
    function: Callable[..., Any] = getattr(import_module(module), name)
    return function
