"""The engine options of `vl2 convert`, checked before work begins."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

from videollama_converters.gpus import GPUS
from videollama_converters.tensorrt_llm.recipe import CALIBRATION_FILE, Recipe
from videollama_converters.tensorrt_llm.support import QUANTIZATIONS
from videollama_core.engines.specs import VISION_ENCODER, Graph
from videollama_core.engines.table import ENCODER_ENGINES, LANGUAGE_ENGINES, EncoderEngine, LanguageEngine
from videollama_core.model.config import ModelConfig
from videollama_core.protocol.contract import MAX_REQUESTS
from videollama_core.protocol.errors import InvalidRequest

MEDIA_TOKEN_MEMORIES = ("cpu", "gpu")
FP8_CAPABILITY = QUANTIZATIONS["fp8"][1]
# Fields of the recipe: options of vl2 convert that only TensorRT-LLM has.
TENSORRT_LLM_OPTIONS = ("kv_dtype", "tp", "pp", "ep", "max_batch_size", "gpu", "calibration")


def encoder_dtype(graph: Graph, dtype: str) -> str:
    """Data type of one encoder's graph on TensorRT.

    bfloat16 suits the towers, whose activations can exceed float16's range (SigLIP's are known to); not every GPU has bfloat16
    kernels for the connector's depthwise convolutions.
    """
    return "float16" if dtype == "bfloat16" and graph is not VISION_ENCODER else dtype


@dataclass(frozen=True)
class EngineOptions:
    """How a checkpoint is converted; None stands for the default of the engine or of the checkpoint."""

    engine: str = "onnx"
    dtype: str = "float32"
    max_seq_len: int | None = None  # positions of prompt and answer together
    slots: int | None = None  # concurrent requests of the language model
    recipe: Recipe = field(default_factory=Recipe)  # of the language model on TensorRT-LLM
    media_token_memory: str = "cpu"  # memory in which the encoder hands media tokens to the language model
    fp8_media: tuple[Path, ...] = ()  # videos and images that calibrate a tower in fp8; none: no fp8
    llm_engine: str = ""  # runs the language model; "": the default for `engine`
    quantization: str = ""  # of the language model's weights on our own engines; TensorRT-LLM's is in the recipe

    def __post_init__(self) -> None:
        if self.engine not in ENCODER_ENGINES:
            raise InvalidRequest(f"engine is {self.engine!r}; it must be one of {', '.join(ENCODER_ENGINES)}")
        encoders = self.encoders
        if self.dtype not in encoders.dtypes:
            raise InvalidRequest(
                f"engine {self.engine} cannot compute in {self.dtype}; it supports {', '.join(encoders.dtypes)}"
            )
        if not self.llm_engine:
            object.__setattr__(self, "llm_engine", encoders.language_engines[0])
        if self.llm_engine not in encoders.language_engines:
            raise InvalidRequest(
                f"engine {self.engine} cannot be combined with a language model on {self.llm_engine}; use --llm-engine "
                f"{' or '.join(encoders.language_engines)}"
            )
        self._check_quantization()
        self._check_foreign_options()
        if self.fp8_media and not encoders.is_tensorrt:
            raise InvalidRequest(f"fp8 needs TensorRT; engine {self.engine} supports {', '.join(encoders.dtypes)}")
        if self.media_token_memory not in MEDIA_TOKEN_MEMORIES:
            raise InvalidRequest(
                f"media-token-memory is {self.media_token_memory!r}; it must be one of {', '.join(MEDIA_TOKEN_MEMORIES)}"
            )
        if self.media_token_memory == "gpu" and not encoders.can_keep_media_tokens_on_gpu:
            raise InvalidRequest(
                f"engine {self.engine} sends media tokens to the language model over gRPC, from CPU memory: "
                "leave out --media-token-memory gpu, or use --engine tensorrt"
            )
        if self.slots is not None and not 1 <= self.slots <= 1024:
            raise InvalidRequest(f"slots is {self.slots}; it must be from 1 to 1024")

    @property
    def encoders(self) -> EncoderEngine:
        """The encoder engine named by `engine`."""
        return ENCODER_ENGINES[self.engine]

    @property
    def language(self) -> LanguageEngine:
        """The language engine named by `llm_engine`."""
        return LANGUAGE_ENGINES[self.llm_engine]

    def check(self, config: ModelConfig) -> None:
        """Raises: InvalidRequest if these options cannot run the checkpoint."""
        missing = [path for path in self.fp8_media if not path.is_file()]
        if missing:
            raise InvalidRequest(f"{missing[0]} is not a file; --fp8-tower needs videos or images")
        if self.language.is_backend:
            self.recipe.check(config)
            gpu = GPUS[self.recipe.gpu]
            if self.fp8_media and gpu.capability < FP8_CAPABILITY:
                raise InvalidRequest(
                    f"a tower in fp8 needs compute capability {FP8_CAPABILITY}, and {self.recipe.gpu} has {gpu.capability}: "
                    "leave out --fp8-tower, or use another GPU"
                )
            self._check_calibration()
            if self.recipe.dtype != "float16":  # the type of the media tokens that the encoder stage sends
                raise InvalidRequest(
                    f"the language model's dtype is {self.recipe.dtype}, but its media tokens are float16: use float16"
                )
            return
        limit = config.language.max_positions
        media = Recipe.media_tokens(config)
        if self.max_seq_len is None:
            return
        if self.max_seq_len > limit:
            raise InvalidRequest(
                f"--max-seq-len is {self.max_seq_len}, but the checkpoint supports {limit} positions; use at most {limit}"
            )
        if self.max_seq_len < media + 64:
            raise InvalidRequest(
                f"--max-seq-len is {self.max_seq_len}, but media alone take {media} positions; use at least {media + 64}"
            )

    def check_machine(self, machine: Mapping[str, str]) -> None:
        """Raises: InvalidRequest if this machine's GPU, on which the engines are built, lacks these types, whatever --gpu names."""
        needed = max(
            self.recipe.needed_capability if self.language.is_backend else 0.0,
            FP8_CAPABILITY if self.fp8_media else 0.0,
        )
        if "capability" in machine and float(machine["capability"]) < needed:
            raise InvalidRequest(
                f"these options need compute capability {needed}, and this machine's {machine['gpu']} has "
                f"{machine['capability']}: convert on the GPU that will serve, or leave out fp8"
            )

    def _check_foreign_options(self) -> None:
        """An option of another engine is refused rather than silently ignored."""
        if self.language.is_backend:
            if self.slots is not None:
                raise InvalidRequest(f"{self.llm_engine} has no --slots: use --max-batch-size")
            return
        for name in TENSORRT_LLM_OPTIONS:
            if getattr(self.recipe, name) != getattr(Recipe, name):
                raise InvalidRequest(
                    f"--{name.replace('_', '-')} is an option of TensorRT-LLM, but {self.llm_engine} runs the language model "
                    "here: leave it out, or use --engine tensorrt"
                )

    def _check_quantization(self) -> None:
        requested, supported = self.quantization or self.recipe.quantization, self.language.quantizations
        if requested and requested not in supported:
            raise InvalidRequest(
                f"the language model on {self.llm_engine} does not support --quantize {requested}: use "
                f"{'one of ' + ', '.join(supported) if supported else 'no --quantize, or another --engine'}"
            )
        if self.quantization and self.recipe.calibration:
            raise InvalidRequest(
                f"--quantize {self.quantization} rounds weights without calibration: leave out --calibration"
            )

    def _check_calibration(self) -> None:
        """Read the texts now: quantize.py reads them only after it has loaded the model."""
        if not self.recipe.calibration:
            return
        path = Path(self.recipe.calibration) / CALIBRATION_FILE
        try:
            with path.open(encoding="utf-8") as file:
                texts = [json.loads(line)["text"] for line in file if line.strip()]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InvalidRequest(
                f'{path} cannot be read ({error!r}); --calibration needs a folder with this file, one JSON object {{"text": ...}} '
                "per line"
            ) from error
        if not texts or not all(isinstance(text, str) and text.strip() for text in texts):
            raise InvalidRequest(
                f"{path} has {len(texts)} lines; it needs at least one, each with a text that is not empty"
            )

    def positions(self, config: ModelConfig) -> int:
        """Maximum number of positions, prompt and answer together."""
        return (
            self.recipe.max_seq_len if self.language.is_backend else self.max_seq_len or config.language.max_positions
        )

    def of_repository(self) -> dict[str, object]:
        """Every option on which the model repository depends."""
        recipe = asdict(self.recipe) if self.language.is_backend else None
        return {
            "engine": self.engine,
            "parameters": self.parameters(),
            "recipe": recipe,
            "media_token_memory": self.media_token_memory,
        }

    def pool_bytes(self, config: ModelConfig) -> int:
        """GPU memory that the server reserves for the media tokens of all concurrent requests; 0 if they pass through the CPU."""
        size = Recipe.media_tokens(config) * config.language.width * 2  # float16
        return MAX_REQUESTS * size if self.media_token_memory == "gpu" else 0

    def parameters(self) -> dict[str, str]:
        """Parameters in the language model stage's config.pbtxt that differ from the tracked file's."""
        return self.language.parameters | ({"max_num_sequences": str(self.slots)} if self.slots else {})
