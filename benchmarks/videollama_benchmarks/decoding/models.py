"""Decoders to measure: tiny-shapes, and larger ones with random weights."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from videollama_benchmarks.recording import TREE
from videollama_converters.export.graphs import build_module, export_graph
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


def with_language(bundle_config: Any, change: dict[str, Any]) -> Any:
    language: LanguageConfig = replace(
        bundle_config.language, vocab_size=8000, max_positions=4096, rope_theta=1e6, **change
    )
    return replace(bundle_config, language=language)


def random_bundle(config: Any, folder: Path) -> tuple[Bundle, dict[str, torch.Tensor]]:
    """The graphs of a decoder with random weights, and the weights."""
    torch.manual_seed(0)
    weights = {
        name: torch.randn(value.shape) * 0.02 if value.dim() > 1 else torch.ones(value.shape)
        for name, value in build_module(DECODER, config).state_dict().items()
    }
    weights |= {name: torch.zeros_like(value) for name, value in weights.items() if name.endswith(".bias")}
    sources = {name: _reader(value) for name, value in weights.items()}
    for graph in (DECODER, EMBEDDING):
        export_graph(graph, config, sources, folder / graph_path(graph.name), lambda: None)
    return Bundle(folder, config, {"max_seq_len": 2048}), weights


def shapes_bundle(folder: Path) -> tuple[Bundle, dict[str, torch.Tensor]]:
    """tiny-shapes' decoder."""
    parts = open_checkpoint(TREE / "training/checkpoints/tiny-shapes")
    weights = {name: read().float() for name, read in parts.language_sources().items()}
    sources = {name: _reader(value) for name, value in weights.items()}
    for graph in (DECODER, EMBEDDING):
        export_graph(graph, parts.config, sources, folder / graph_path(graph.name), lambda: None)
    return Bundle(folder, parts.config, {"max_seq_len": 1024}), weights
