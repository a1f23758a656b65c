"""Weights of the encoders in one file, for the engine that runs the modules themselves."""

from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import save_file

from videollama_core.checkpoint.parts import CheckpointParts
from videollama_core.checkpoint.shards import Sources
from videollama_core.engines.torch_device import pick_dtype


def encoder_sources(parts: CheckpointParts) -> Sources:
    """vision.*, connector.* and audio.*"""
    found = {f"vision.{name}": read for name, read in parts.vision_sources().items()}
    found |= {f"connector.{name}": read for name, read in parts.connector_sources().items()}
    if parts.config.audio is not None:
        found |= {f"audio.{name}": read for name, read in parts.audio_sources().items()}
    return found


def write_encoder_weights(parts: CheckpointParts, path: Path, dtype: str, tick: Callable[[], None]) -> None:
    """Write `path` in the type that will be computed in. The largest published encoders are 5 GB in bfloat16."""
    tensors: dict[str, torch.Tensor] = {}
    for name, read in encoder_sources(parts).items():
        # A copy: safetensors refuses tensors that share memory with the file they are read from.
        tensors[name] = read().to(pick_dtype(dtype), copy=True).contiguous()
        tick()
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, path, metadata={"format": "pt"})
