"""Decoders to measure: that of tiny-shapes, and larger ones with random weights."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from videollama_benchmarks.recording import TREE
from videollama_converters.export.graphs import build_module, export_graph, unchanged
from videollama_converters.export.int8_weights import store_in_int8
from videollama_core.checkpoint.parts import open_checkpoint
from videollama_core.engines.bundle import Bundle, graph_path
from videollama_core.engines.specs import DECODER, EMBEDDING
from videollama_core.model.config import LanguageConfig

SHAPES: dict[str, dict[str, Any]] = {
    "Qwen2-0.5B, 6 layers": {
        "width": 896,
        "mlp_width": 4864,
        "layers": 6,
        "heads": 14,
        "kv_heads": 2,
        "head_dim": 64,
    },
    "Mixtral, 8 experts": {
        "family": "mixtral",
        "width": 512,
        "mlp_width": 1792,
        "layers": 4,
        "heads": 8,
        "kv_heads": 2,
        "head_dim": 64,
        "qkv_bias": False,
        "experts": 8,
        "experts_per_token": 2,
    },
}


def _reader(value: torch.Tensor) -> Callable[[], torch.Tensor]:
    return lambda: value


def _with_language(bundle_config: Any, change: dict[str, Any]) -> Any:
    """The configuration with another language model, such as one of SHAPES."""
    language: LanguageConfig = replace(
        bundle_config.language, vocab_size=8000, max_positions=4096, rope_theta=1e6, **change
    )
    return replace(bundle_config, language=language)


def _random_bundle(config: Any, folder: Path) -> tuple[Bundle, dict[str, torch.Tensor]]:
    """Export a decoder with random weights. Returns: the bundle, and the weights."""
    torch.manual_seed(0)
    weights = {
        name: torch.randn(value.shape) * 0.02 if value.dim() > 1 else torch.ones(value.shape)
        for name, value in build_module(DECODER, config).state_dict().items()
    }
    weights |= {name: torch.zeros_like(value) for name, value in weights.items() if name.endswith(".bias")}
    return _bundle(config, weights, folder, 2048), weights


def _shapes_bundle(folder: Path) -> tuple[Bundle, dict[str, torch.Tensor]]:
    """Export tiny-shapes' decoder. Returns: the bundle, and the weights."""
    parts = open_checkpoint(TREE / "training/checkpoints/tiny-shapes")
    weights = {name: read().float() for name, read in parts.language_sources().items()}
    return _bundle(parts.config, weights, folder, 1024), weights


def all_bundles(folder: Path) -> dict[str, tuple[Bundle, dict[str, torch.Tensor]]]:
    """Export the decoders of tiny-shapes and of SHAPES below `folder`. Returns: name -> the bundle, and the weights."""
    bundles = {"tiny-shapes": _shapes_bundle(folder / "shapes")}
    for name, change in SHAPES.items():
        config = _with_language(bundles["tiny-shapes"][0].config, change)
        bundles[name] = _random_bundle(config, folder / name.split(",")[0])
    return bundles


def in_int8(bundle: Bundle, weights: dict[str, torch.Tensor], folder: Path) -> Bundle:
    """Export the same decoder with int8 matrices."""
    return _bundle(bundle.config, weights, folder, bundle.max_seq_len, in_int8=True)


def _bundle(
    config: Any, weights: dict[str, torch.Tensor], folder: Path, positions: int, in_int8: bool = False
) -> Bundle:
    sources = {name: _reader(value) for name, value in weights.items()}
    edit = partial(store_in_int8, sources=sources, tick=lambda: None) if in_int8 else unchanged
    export_graph(DECODER, config, sources, folder / graph_path(DECODER.name), lambda: None, edit=edit)
    export_graph(EMBEDDING, config, sources, folder / graph_path(EMBEDDING.name), lambda: None)
    return Bundle(folder, config, {"max_seq_len": positions})
