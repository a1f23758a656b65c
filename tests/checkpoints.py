"""Checkpoints made for tests: the published layout with other shapes, or with something wrong."""

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from conftest import GOLDEN
from videollama_core.checkpoint.read_config import read_model_config
from videollama_core.model import connector, vision
from videollama_core.model.connector import Connector
from videollama_core.model.decoder import Decoder
from videollama_core.model.vision import VisionEncoder


def copy(variant: str, folder: Path) -> Path:
    """A writable copy of a golden variant; returns its checkpoint folder."""
    shutil.copytree(GOLDEN / variant, folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns("golden.*"))
    return folder / "checkpoint"


def edit_json(path: Path, **changes: Any) -> None:
    content = json.loads(path.read_text("utf-8"))
    content.update(changes)
    path.write_text(json.dumps(content), "utf-8")


def edit_tensors(checkpoint: Path, change) -> None:
    """Apply `change(tensors)` to a single-file checkpoint."""
    path = checkpoint / "model.safetensors"
    tensors = {name: tensor.clone() for name, tensor in load_file(path).items()}
    change(tensors)
    path.unlink()
    save_file(tensors, path)


def endless_checkpoint(folder: Path) -> Path:
    """A golden variant whose answers never end when tokens are drawn from the likeliest ones, on any processor."""
    checkpoint = copy("qwen2-clip-8f", folder)
    ends = json.loads((checkpoint / "generation_config.json").read_text("utf-8"))["eos_token_id"]
    weights = json.loads((checkpoint / "model.safetensors.index.json").read_text("utf-8"))["weight_map"]
    path = checkpoint / weights["lm_head.weight"]
    tensors = load_file(path)
    tensors["lm_head.weight"][ends] = 0  # of random weights some hundred others give more
    save_file(tensors, path)
    return checkpoint


def random_checkpoint(
    variant: str, folder: Path, tower: dict | None = None, pixels: dict | None = None, seed: int = 0, **config: Any
) -> Path:
    """A golden variant's folder with other sizes and seeded random weights, in one file.

    Args:
        tower: changes to the tower's vision_config.
        pixels: changes to its preprocessor_config.json.
        config: changes to config.json.
    """
    checkpoint = copy(variant, folder)
    for path in checkpoint.glob("model*"):
        path.unlink()
    tower_folder = next((folder / "towers").iterdir())
    content = json.loads((tower_folder / "config.json").read_text("utf-8"))
    content["vision_config"].update(tower or {})
    (tower_folder / "config.json").write_text(json.dumps(content), "utf-8")
    edit_json(tower_folder / "preprocessor_config.json", **(pixels or {}))
    edit_json(checkpoint / "config.json", **config)
    made = read_model_config(checkpoint)
    torch.manual_seed(seed)
    tensors = {}
    for prefix, module in (
        (vision.PREFIX, VisionEncoder(made.vision, made.pixels)),
        (connector.PREFIX, Connector(made)),
        ("", Decoder(made.language)),
    ):
        for name, tensor in module.state_dict().items():
            if made.language.tied and name == "lm_head.weight":
                continue
            tensors[prefix + name] = tensor.clone()
    save_file(tensors, checkpoint / "model.safetensors")
    return checkpoint
