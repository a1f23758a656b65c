"""What runs a converted checkpoint, and how: the choices of `vl2 convert`, checked before work begins."""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path

from videollama_converters.gpus import GPUS
from videollama_converters.tensorrt_llm import CALIBRATION_FILE, Recipe
from videollama_converters.tensorrt_llm_support import QUANTIZATIONS
from videollama_core.engines.specs import VISION_ENCODER, Graph
from videollama_core.model.config import ModelConfig
from videollama_core.protocol.contract import MAX_REQUESTS
from videollama_core.protocol.errors import InvalidRequest

# engine -> types in which it computes, the default first. On TensorRT this is the vision tower's: connector and audio encoder
# never go to bfloat16 (encoder_dtype), and the media tokens are float16, the language model's type there.
ENGINES = {
    "onnx": ("float32",),
    "torch": ("bfloat16", "float16", "float32"),
    "tensorrt": ("bfloat16", "float16", "float32"),
    "tensorrt-rtx": ("bfloat16", "float16", "float32"),
}
# engine of the encoders -> engines of the language model beside it, the default first
LLM_ENGINES = {
    "onnx": ("onnx", "vllm"),
    "torch": ("torch", "vllm"),
    "tensorrt": ("tensorrt-llm",),
    "tensorrt-rtx": ("torch", "vllm"),
}
FP8_ENGINES = ("tensorrt", "tensorrt-rtx")
MEDIA_TOKEN_MEMORIES = ("cpu", "gpu")
FP8_CAPABILITY = QUANTIZATIONS["fp8"][1]


def encoder_dtype(graph: Graph, dtype: str) -> str:
    """Type of one encoder's graph on TensorRT.

    bfloat16 suits the towers, whose activations can leave float16's range (SigLIP's are known for it); the connector's depthwise
    convolutions have no kernels in it everywhere.
    """
    return "float16" if dtype == "bfloat16" and graph is not VISION_ENCODER else dtype


@dataclass(frozen=True)
class EngineOptions:
    """None means the default of the engine or of the checkpoint."""

    engine: str = "onnx"
    dtype: str = "float32"
    max_seq_len: int | None = None  # positions of prompt and answer together
    slots: int | None = None  # requests that the language model answers at a time
    recipe: Recipe = field(default_factory=Recipe)  # of the language model on TensorRT-LLM
    media_token_memory: str = "cpu"  # where media tokens lie between the encoder and the language model
    fp8_media: tuple[Path, ...] = ()  # videos and pictures for the scales of a tower in fp8; none: no fp8
    llm_engine: str = ""  # what runs the language model; "": the default beside the engine

    def __post_init__(self) -> None:
        if self.engine not in ENGINES:
            raise InvalidRequest(f"engine is {self.engine!r}; it is one of {', '.join(ENGINES)}")
        if self.dtype not in ENGINES[self.engine]:
            raise InvalidRequest(
                f"engine {self.engine} cannot compute in {self.dtype}; it takes {', '.join(ENGINES[self.engine])}"
            )
        if not self.llm_engine:
            object.__setattr__(self, "llm_engine", LLM_ENGINES[self.engine][0])
        if self.llm_engine not in LLM_ENGINES[self.engine]:
            raise InvalidRequest(
                f"engine {self.engine} has no language model on {self.llm_engine} beside it; take "
                f"{' or '.join(LLM_ENGINES[self.engine])}"
            )
        if self.fp8_media and self.engine not in FP8_ENGINES:
            raise InvalidRequest(f"fp8 is TensorRT's; engine {self.engine} takes {', '.join(ENGINES[self.engine])}")
        if self.media_token_memory not in MEDIA_TOKEN_MEMORIES:
            raise InvalidRequest(
                f"media-token-memory is {self.media_token_memory!r}; it is one of {', '.join(MEDIA_TOKEN_MEMORIES)}"
            )
        if self.media_token_memory == "gpu" and self.engine != "tensorrt":
            raise InvalidRequest(
                f"engine {self.engine} hands media tokens to the language model over gRPC, from the CPU's memory: "
                "leave out --media-token-memory gpu, or take --engine tensorrt"
            )
        if self.slots is not None and not 1 <= self.slots <= 1024:
            raise InvalidRequest(f"slots is {self.slots}; it takes 1 to 1024")

    def check(self, config: ModelConfig) -> None:
        """Raises: InvalidRequest where the checkpoint cannot be run so."""
        missing = [path for path in self.fp8_media if not path.is_file()]
        if missing:
            raise InvalidRequest(f"{missing[0]} is not a file; --fp8-tower wants videos or pictures")
        if self.engine == "tensorrt":
            self.recipe.check(config)
            gpu = GPUS[self.recipe.gpu]
            if self.fp8_media and gpu.capability < FP8_CAPABILITY:
                raise InvalidRequest(
                    f"a tower in fp8 needs compute capability {FP8_CAPABILITY}, and {self.recipe.gpu} has {gpu.capability}: "
                    "leave out --fp8-tower, or take another GPU"
                )
            self._check_calibration()
            if self.recipe.dtype != "float16":  # the type of the media tokens that the encoder's stage sends
                raise InvalidRequest(
                    f"the language model's dtype is {self.recipe.dtype}; the media tokens it is given are float16: take float16"
                )
            return
        limit = config.language.max_positions
        media = Recipe.media_tokens(config)
        if self.max_seq_len is None:
            return
        if self.max_seq_len > limit:
            raise InvalidRequest(
                f"max_seq_len is {self.max_seq_len}, but the checkpoint was made for {limit} positions; name at most those"
            )
        if self.max_seq_len < media + 64:
            raise InvalidRequest(
                f"max_seq_len is {self.max_seq_len}, but media alone takes {media} positions; name at least {media + 64}"
            )

    def _check_calibration(self) -> None:
        """quantize.py reads the texts only after it has loaded the model."""
        if not self.recipe.calibration:
            return
        path = Path(self.recipe.calibration) / CALIBRATION_FILE
        try:
            with path.open(encoding="utf-8") as file:
                texts = [json.loads(line)["text"] for line in file if line.strip()]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InvalidRequest(
                f'{path} cannot be read ({error!r}); --calibration wants a folder with that file, a JSON object {{"text": ...}} '
                "a line"
            ) from error
        if not texts or not all(isinstance(text, str) and text.strip() for text in texts):
            raise InvalidRequest(
                f"{path} has {len(texts)} lines, and wants at least one, each with a text that is not empty"
            )

    def positions(self, config: ModelConfig) -> int:
        """Of prompt and answer together."""
        return (
            self.recipe.max_seq_len if self.engine == "tensorrt" else self.max_seq_len or config.language.max_positions
        )

    def of_repository(self) -> dict[str, object]:
        """What decides the model repository."""
        recipe = asdict(self.recipe) if self.engine == "tensorrt" else None
        return {
            "engine": self.engine,
            "parameters": self.parameters(),
            "recipe": recipe,
            "media_token_memory": self.media_token_memory,
        }

    def pool_bytes(self, config: ModelConfig) -> int:
        """Of the server's GPU memory for the tables of every question at a time; 0 where they go by the CPU."""
        size = Recipe.media_tokens(config) * config.language.width * 2  # float16
        return MAX_REQUESTS * size if self.media_token_memory == "gpu" else 0

    def parameters(self) -> dict[str, str]:
        """Entries of the language model stage's config.pbtxt that differ from the tracked ones."""
        found = {"max_num_sequences": str(self.slots)} if self.slots else {}
        if self.llm_engine == "torch":  # a GPU is not busy with a chunk that suits a CPU
            found |= {"max_num_sequences": str(self.slots or 16), "prefill_chunk_len": "4096"}
        return found
