"""The published layouts of a checkpoint: which files tell them apart, and where the parts lie."""

import fnmatch
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

CONNECTOR_FILE = "mm_projector.bin"  # all that a Base folder adds to its language model and tower
NON_LORA_FILE = "non_lora_trainables.bin"  # what was trained beside the adapters: the connector


@dataclass(frozen=True)
class Folders:
    """Where the parts of a checkpoint lie."""

    layout: str  # chat | base | lora; fresh: a language model and a tower alone, before training
    checkpoint: Path
    tower: Path | None
    language: Path  # of the language model and its tokenizer: the checkpoint itself, or the base model


def find_layout(folder: Path) -> str:
    """chat, base or lora, by the files that are there."""
    return layout_of({path.name for path in folder.iterdir()})


def layout_of(names: Collection[str]) -> str:
    """chat, base or lora, by the names of a folder's files."""
    if "adapter_config.json" in names:
        return "lora"
    whole = any(fnmatch.filter(names, pattern) for pattern in ("model*.safetensors*", "pytorch_model*.bin*"))
    return "base" if CONNECTOR_FILE in names and not whole else "chat"
