"""Computes which GPUs each published checkpoint needs, and how many concurrent requests they hold, from published shapes.

Weights are counted on modules without values. Nothing here is measured.
"""

from dataclasses import asdict, dataclass
from functools import cache

import torch

from videollama_converters.gpus import GPUS
from videollama_converters.tensorrt_llm.recipe import Recipe
from videollama_converters.tensorrt_llm.support import QUANTIZATIONS
from videollama_core.checkpoint.read_config import published_config
from videollama_core.checkpoint.variants import VARIANTS
from videollama_core.model.audio import AudioEncoder
from videollama_core.model.config import ModelConfig
from videollama_core.model.connector import Connector
from videollama_core.model.decoder import Decoder
from videollama_core.model.vision import VisionEncoder
from videollama_core.protocol.errors import InvalidRequest

USABLE = 0.9  # of a GPU's memory
RESERVE = 6e9  # bytes per GPU for activations, graphs and the CUDA context
TEXT_TOKENS = 190 + 256  # of the longest published system prompt with a question, and of an answer
LEAST_REQUESTS = 8  # concurrent; a plan that holds fewer uses more GPUs
TENSOR_PARALLEL = (1, 2, 4, 8)
# quantization -> bytes per weight of the language model's matrices; int4: a float16 scale and zero point per 128 weights
WEIGHT_BYTES = {"": 2.0, "fp8": 1.0, "int4_awq": 0.53125, "int8_sq": 1.0}
KV_BYTES = {"auto": 2.0, "fp8": 1.0}  # cache -> bytes per value
# Planned (quantization, cache) pairs: unquantized, and the smallest for which each GPU has kernels.
PAIRS = (("", "auto"), ("fp8", "auto"), ("fp8", "fp8"), ("int4_awq", "auto"))


@dataclass(frozen=True)
class Row:
    """One checkpoint on one kind of GPU."""

    checkpoint: str
    gpu: str
    weights: str  # float16, or the quantization
    cache: str
    gpus: int  # 0: not even 8 hold it
    encoder_gigabytes: float
    language_gigabytes: float  # over all GPUs
    table_gigabytes: float  # on each GPU: the prompt tables of Recipe.max_batch_size requests
    kv_tokens: int
    requests: int  # concurrent, each with one video


@cache
def count_parameters(name: str) -> tuple[int, int, int]:
    """Numbers of served parameters: (encoders, matrices of the language model's layers, its embedding, head and norms)."""
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


def plan_row(name: str, gpu: str, quantization: str, kv_dtype: str) -> Row | None:
    """The row of one checkpoint and kind of GPU; None if Recipe.check refuses every number of GPUs."""
    config, card = published_config(name), GPUS[gpu]
    recipes = [_recipe(config, gpu, quantization, kv_dtype, tp) for tp in TENSOR_PARALLEL]
    if not any(recipes):
        return None
    encoders, layers, rest = count_parameters(name)
    encoder_bytes, language_bytes = 2.0 * encoders, WEIGHT_BYTES[quantization] * layers + 2.0 * rest
    table_bytes = float(Recipe().table_bytes(config))
    per_token = KV_BYTES[kv_dtype] * 2 * config.language.layers * config.language.kv_heads * config.language.head_dim
    per_request = Recipe.media_tokens(config) + TEXT_TOKENS
    tokens, gpus = 0, 0
    for recipe in filter(None, recipes):
        room = (
            USABLE * card.gigabytes * 1e9 - RESERVE - encoder_bytes - table_bytes - language_bytes / recipe.tp
        )  # on the GPU that also holds the encoders
        tokens = int(room / (per_token / min(recipe.tp, config.language.kv_heads)))
        if tokens >= LEAST_REQUESTS * per_request:
            gpus = recipe.tp
            break
    return Row(
        checkpoint=name,
        gpu=gpu,
        weights=quantization or "float16",
        cache="float16" if kv_dtype == "auto" else kv_dtype,
        gpus=gpus,
        encoder_gigabytes=round(encoder_bytes / 1e9, 2),
        language_gigabytes=round(language_bytes / 1e9, 1),
        table_gigabytes=round(table_bytes / 1e9, 1),
        kv_tokens=tokens if gpus else 0,
        requests=tokens // per_request if gpus else 0,
    )


def _recipe(config: ModelConfig, gpu: str, quantization: str, kv_dtype: str, tp: int) -> Recipe | None:
    texts = "texts" if quantization else ""
    recipe = Recipe("float16", quantization, kv_dtype, tp=tp, gpu=gpu, calibration=texts)
    try:
        recipe.check(config)
    except InvalidRequest:
        return None
    return recipe


def make_plan() -> list[Row]:
    """Rows for float16 and the smaller types for which each GPU has kernels; int4 only where it has none for fp8."""
    rows = []
    for name in VARIANTS:
        for gpu, card in GPUS.items():
            has_fp8 = card.capability >= QUANTIZATIONS["fp8"][1]
            for quantization, kv_dtype in PAIRS:
                if quantization != "int4_awq" or not has_fp8:
                    rows.append(plan_row(name, gpu, quantization, kv_dtype))
    return [row for row in rows if row is not None]


def as_dicts(rows: list[Row]) -> list[dict[str, object]]:
    return [asdict(row) for row in rows]


def as_table(rows: list[Row]) -> str:
    """Markdown: a cell is "GPUs: concurrent requests"; checkpoints with the same numbers share a line."""
    cells: dict[tuple[str, ...], dict[str, str]] = {}
    for row in rows:
        sizes = (row.encoder_gigabytes, row.language_gigabytes, row.table_gigabytes)
        line = (row.checkpoint, row.weights, row.cache, *map(str, sizes))
        fits = f"{row.gpus}: {row.requests:,}" if row.gpus else "does not fit"
        cells.setdefault(line, {})[row.gpu] = fits
    names: dict[tuple[str, ...], list[str]] = {}
    for (name, *facts), cells_by_gpu in cells.items():
        names.setdefault((*facts, *(cells_by_gpu.get(gpu, "") for gpu in GPUS)), []).append(name)
    header = ["checkpoint", "weights", "cache", "encoders GB", "language model GB", "tables GB", *GPUS]
    table = [header, ["---"] * len(header), *([", ".join(equal), *facts] for facts, equal in names.items())]
    return "\n".join("| " + " | ".join(line) + " |" for line in table)
