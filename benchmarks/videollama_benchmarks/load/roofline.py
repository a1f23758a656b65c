"""The minimum time that a GPU's arithmetic and bandwidth allow, from published shapes. A multiply-add is two operations."""

import subprocess
from typing import Any

from videollama_converters.gpus import GPUS, Gpu
from videollama_converters.plan import count_parameters
from videollama_core.checkpoint.read_config import published_config

TEXT_TOKENS = 48  # of a short question in its chat template


def encoder_work(name: str) -> float:
    """Floating-point operations of tower and connector for one video."""
    config = published_config(name)
    vision, frames = config.vision, config.num_frames
    tokens, width = vision.tokens + vision.family.class_token, vision.width
    tower = 2 * tokens * 3 * vision.patch_size**2 * width + vision.used_layers * (
        8 * tokens * width**2 + 4 * tokens * width * vision.mlp_width + 4 * tokens**2 * width
    )
    wide, positions = config.language.width, frames * vision.grid**2
    media_tokens = config.media_tokens

    def stage(count: int, inputs: int) -> float:
        first = count * (2 * inputs * wide + 18 * wide + 2 * wide**2 + 2 * inputs * wide)
        return first + 3 * count * (4 * wide**2 + 18 * wide)

    connector = stage(positions, width) + 16 * media_tokens * wide**2
    connector += stage(media_tokens, wide) + 4 * media_tokens * wide**2
    return frames * tower + connector


def prefill_work(name: str, positions: int) -> float:
    """Floating-point operations of a prefill with this many positions."""
    language = published_config(name).language
    _, layers, _ = count_parameters(name)
    attention = language.layers * 2 * positions**2 * language.heads * language.head_dim
    return 2 * layers * positions + 2 * language.width * language.vocab_size + attention


def step_bytes(name: str, rows: int, context: int) -> float:
    """Bytes read by one decoding step with `rows` requests: weights of two bytes, and each request's KV cache."""
    language = published_config(name).language
    _, layers, rest = count_parameters(name)
    embedding = language.vocab_size * language.width
    cache_bytes = 2 * language.layers * language.kv_heads * language.head_dim * 2
    return 2 * (layers + rest - embedding) + rows * context * cache_bytes


def step_seconds(name: str, rows: int, context: int, card: Gpu) -> float:
    """Minimum seconds of one decoding step: the larger of its memory and its arithmetic time."""
    by_bytes = step_bytes(name, rows, context) / (card.bandwidth * 1e12)
    return max(by_bytes, 2 * rows * sum(count_parameters(name)[1:]) / (card.teraflops * 1e12))


def gpu_here() -> str | None:
    """This machine's GPU as `vl2 plan` names it; None without a GPU, or with one that the plan does not have."""
    try:
        command = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
        names = subprocess.run(command, capture_output=True, text=True, timeout=10).stdout
    except (OSError, subprocess.TimeoutExpired):
        return None
    return next((gpu for gpu in GPUS if gpu.split("-")[0] in names), None)


def bound(name: str, gpu: str, level: dict[str, Any]) -> dict[str, float]:
    """The maximum number of answers per second that one GPU allows for this mix, and the measured share of it.

    Args:
        level: from `numbers.summarise`. Concurrency in an open loop follows from Little's law.
    """
    card, config, answered = GPUS[gpu], published_config(name), max(1, level["answered"])
    new_media = (level["cache"]["with_media"] - level["cache"]["hits"]) / answered
    with_media = level["cache"]["with_media"] / answered
    tokens = level["tokens_per_second"] * level["seconds"] / answered
    whole = level["milliseconds"]["whole_answer"].get("p50", 0.0) / 1e3
    rows = level["load"]["concurrency"] or max(1, round(level["answers_per_second"] * whole))
    positions = TEXT_TOKENS + round(with_media * config.media_tokens)
    peak = card.teraflops * 1e12
    seconds = new_media * encoder_work(name) / peak + prefill_work(name, positions) / peak
    seconds += tokens * step_seconds(name, rows, positions + round(tokens / 2), card) / rows
    return {"answers_per_second": 1 / seconds, "share": level["answers_per_second"] * seconds}
