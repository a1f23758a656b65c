"""Writes the encoders' weights to one file, for the engine that runs the PyTorch modules themselves."""

from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import save_file

from videollama_core.checkpoint.parts import CheckpointParts
from videollama_core.checkpoint.shards import Sources
from videollama_core.engines.torch_device import pick_dtype


def encoder_sources(parts: CheckpointParts) -> Sources:
    """Readers of the encoders' tensors, named vision.*, connector.* and audio.*"""
    sources = {f"vision.{name}": read for name, read in parts.vision_sources().items()}
    sources |= {f"connector.{name}": read for name, read in parts.connector_sources().items()}
    if parts.config.audio is not None:
        sources |= {f"audio.{name}": read for name, read in parts.audio_sources().items()}
    return sources


def write_encoder_weights(parts: CheckpointParts, path: Path, dtype: str, tick: Callable[[], None]) -> None:
    """Write `path` in the compute type. The largest published encoders take 5 GB in bfloat16."""
    tensors: dict[str, torch.Tensor] = {}
    for name, read in encoder_sources(parts).items():
        # Copied: safetensors refuses tensors that share memory with the file they are read from.
        tensors[name] = read().to(pick_dtype(dtype), copy=True).contiguous()
        tick()
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, path, metadata={"format": "pt"})
