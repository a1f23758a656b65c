"""Which GPUs each published checkpoint needs, and how many questions they hold: arithmetic from published shapes.

Weights are counted on modules without values. Nothing here was measured.
"""

from dataclasses import asdict, dataclass
from functools import cache

import torch

from videollama_converters.gpus import GPUS
from videollama_core.checkpoint.read_config import published_config
from videollama_core.checkpoint.variants import VARIANTS
from videollama_core.model.audio import AudioEncoder
from videollama_core.model.config import ModelConfig
from videollama_core.model.connector import Connector
from videollama_core.model.decoder import Decoder
from videollama_core.model.vision import VisionEncoder

USABLE = 0.9  # of a GPU's memory
RESERVE = 6e9  # bytes per GPU for activations, graphs and the CUDA context
TEXT_TOKENS = 190 + 256  # of the longest published system prompt with a question, and of an answer
LEAST_REQUESTS = 8  # a plan that holds fewer at a time takes more GPUs
TENSOR_PARALLEL = (1, 2, 4, 8)
# quantization -> (bytes per weight of the language model's matrices, bytes per value of keys and values)
BYTES = {
    "": (2.0, 2.0),
    "fp8": (1.0, 1.0),
    "int4_awq": (0.53125, 2.0),
}  # int4: a float16 scale and zero per 128 weights


@dataclass(frozen=True)
class Row:
    """One checkpoint on one kind of GPU."""

    checkpoint: str
    gpu: str
    dtype: str
    gpus: int  # 0: not even 8 hold it
    encoder_gigabytes: float
    language_gigabytes: float  # over all GPUs
    kv_tokens: int
    requests: int  # of a video each, at a time


@cache
def count_parameters(name: str) -> tuple[int, int, int]:
    """(encoders, matrices of the language model's layers, its embedding, head and norms), as they are served."""
    config = published_config(name)
    with torch.device("meta"):
        encoders: list[torch.nn.Module] = [VisionEncoder(config.vision, config.pixels), Connector(config)]
        if config.audio:
            encoders.append(AudioEncoder(config.audio, config.language.width))
        decoder = Decoder(config.language)
    layers = sum(value.numel() for key, value in decoder.named_parameters() if ".layers." in key and value.dim() == 2)
    return sum(map(_size, encoders)), layers, _size(decoder) - layers


def _size(module: torch.nn.Module) -> int:
    return sum(value.numel() for value in module.parameters())


def plan_row(name: str, gpu: str, quantization: str) -> Row:
    config, card = published_config(name), GPUS[gpu]
    encoders, layers, rest = count_parameters(name)
    weight_bytes, kv_bytes = BYTES[quantization]
    encoder_bytes, language_bytes = 2.0 * encoders, weight_bytes * layers + 2.0 * rest
    per_token = kv_bytes * 2 * config.language.layers * config.language.kv_heads * config.language.head_dim
    per_request = _media_tokens(config) + TEXT_TOKENS
    tokens, found = 0, 0
    for tp in TENSOR_PARALLEL:
        if config.language.heads % tp:
            continue
        room = (
            USABLE * card.gigabytes * 1e9 - RESERVE - encoder_bytes - language_bytes / tp
        )  # on the GPU of the encoders
        tokens = int(room / (per_token / min(tp, config.language.kv_heads)))
        if tokens >= LEAST_REQUESTS * per_request:
            found = tp
            break
    return Row(
        checkpoint=name,
        gpu=gpu,
        dtype=quantization or "float16",
        gpus=found,
        encoder_gigabytes=round(encoder_bytes / 1e9, 2),
        language_gigabytes=round(language_bytes / 1e9, 1),
        kv_tokens=tokens if found else 0,
        requests=tokens // per_request if found else 0,
    )


def _media_tokens(config: ModelConfig) -> int:
    return config.tokens_of("video_with_audio" if config.audio else "video")


def make_plan() -> list[Row]:
    """float16 and the smallest quantization that each GPU has kernels for."""
    rows = []
    for name in VARIANTS:
        for gpu, card in GPUS.items():
            for quantization in ("", "fp8" if card.capability >= 8.9 else "int4_awq"):
                rows.append(plan_row(name, gpu, quantization))
    return rows


def as_dicts(rows: list[Row]) -> list[dict[str, object]]:
    return [asdict(row) for row in rows]


def as_table(rows: list[Row]) -> str:
    """Markdown."""
    lines = [
        "| checkpoint | GPU | dtype | GPUs | encoders GB | language model GB | KV tokens | questions at a time |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        gpus = str(row.gpus) if row.gpus else "does not fit"
        lines.append(
            f"| {row.checkpoint} | {row.gpu} | {row.dtype} | {gpus} | {row.encoder_gigabytes} | {row.language_gigabytes} | "
            f"{row.kv_tokens:,} | {row.requests:,} |"
        )
    return "\n".join(lines)
