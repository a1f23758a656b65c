"""Makes a copy of the demo's checkpoint with a published tower; tower and connector have random weights."""

import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from videollama_benchmarks.recording import TREE
from videollama_converters.convert import convert
from videollama_core.checkpoint.read_config import read_model_config
from videollama_core.checkpoint.variants import TOWERS, VARIANTS
from videollama_core.engines.bundle import MANIFEST
from videollama_core.model import connector, vision
from videollama_core.model.connector import Connector
from videollama_core.model.vision import VisionEncoder

DEMO = TREE / "training/checkpoints/tiny-shapes"
PUBLISHED = "VideoLLaMA2-7B"  # its tower is CLIP-L/336
SCALE = 0.02  # of random weights


def make_bundle(folder: Path, layers: int | None = None) -> Path:
    """Write and convert the checkpoint in a folder, unless it is there; with the whole tower it takes 2.5 GB.

    Args:
        layers: number of the tower's layers, for a quick check; None for all.
    Returns: the bundle's folder.
    """
    source, tower = folder / "source", "towers/real"
    if (folder / "bundle" / MANIFEST).is_file():
        return folder / "bundle"
    shutil.copytree(DEMO, source, ignore=shutil.ignore_patterns("towers", "*.safetensors", "*.png", "*.md"))
    (source / tower).mkdir(parents=True)
    vision_content, pixel_content = TOWERS[VARIANTS[PUBLISHED].tower]
    if layers is not None:
        vision_content = vision_content | {"num_hidden_layers": layers}
    family = str(vision_content["model_type"]).removesuffix("_vision_model")
    _write(source / tower / "config.json", {"model_type": family, "vision_config": vision_content})
    _write(source / tower / "preprocessor_config.json", pixel_content)
    content = json.loads((source / "config.json").read_text("utf-8"))
    changes = {
        "mm_vision_tower": tower,
        "mm_hidden_size": vision_content["hidden_size"],
        "mm_projector_type": VARIANTS[PUBLISHED].connector,
        "max_position_embeddings": 4096,
    }
    _write(source / "config.json", content | changes)
    config = read_model_config(source)
    torch.manual_seed(0)
    demo = load_file(DEMO / "model.safetensors")
    tensors = {name: value for name, value in demo.items() if not name.startswith((vision.PREFIX, connector.PREFIX))}
    with torch.inference_mode():
        for prefix, module in (
            (vision.PREFIX, VisionEncoder(config.vision, config.pixels)),
            (connector.PREFIX, Connector(config)),
        ):
            for name, value in module.state_dict().items():
                tensors[prefix + name] = value.normal_(0.0, SCALE) if value.dim() > 1 else value
    save_file(tensors, source / "model.safetensors")
    return convert(source, folder / "bundle")


def _write(path: Path, content: object) -> None:
    path.write_text(json.dumps(content), "utf-8")
