"""The published layouts of a checkpoint: which files distinguish them, and where the parts are."""

import fnmatch
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

CONNECTOR_FILE = "mm_projector.bin"  # the only weights of a Base folder
NON_LORA_FILE = "non_lora_trainables.bin"  # trained weights other than the adapters: the connector


@dataclass(frozen=True)
class Folders:
    """Where the parts of a checkpoint are stored."""

    layout: str  # chat | base | lora | fresh (only a language model and a tower, before training)
    checkpoint: Path
    tower: Path | None
    language: Path  # of the language model and its tokenizer: the checkpoint itself, or the base model


def find_layout(folder: Path) -> str:
    """chat, base or lora, by the folder's files."""
    return layout_of({path.name for path in folder.iterdir()})


def layout_of(names: Collection[str]) -> str:
    """chat, base or lora, by a folder's file names."""
    if "adapter_config.json" in names:
        return "lora"
    whole = any(fnmatch.filter(names, pattern) for pattern in ("model*.safetensors*", "pytorch_model*.bin*"))
    return "base" if CONNECTOR_FILE in names and not whole else "chat"
