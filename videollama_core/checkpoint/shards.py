"""Tensors on disk: read one at a time wherever they are stored, written in shards.

Whole models are never held in memory; `weight_files.py` says what a file may be.
"""

import json
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from videollama_core.checkpoint.files import find_file, in_words, need_file, read_json, shown
from videollama_core.checkpoint.weight_files import open_tensors
from videollama_core.protocol.errors import CheckpointMismatch

SHARD_BYTES = 2 * 2**30
WEIGHT_FILES = ("model.safetensors", "pytorch_model.bin")  # the first that is there; of shards, NAME.index.json
_SHARD = re.compile(r"[\w.-]{1,200}\.(safetensors|bin)", re.ASCII)
Sources = dict[str, Callable[[], Tensor]]  # name -> reader


class Shards:
    """The tensors of a folder by name, wherever they are stored."""

    def __init__(self, files: dict[str, Path], folder: Path) -> None:
        self._files = files
        self.folder = folder
        self._open_path: Path | None = None
        self._open_file: dict[str, Tensor] | object = {}

    @classmethod
    def open(cls, folder: Path) -> "Shards":
        """Index the folder: a single file, or the shards that its index names. Raises: CheckpointMismatch."""
        if not folder.is_dir():
            raise CheckpointMismatch(f"{folder} is not a folder; name the folder of a checkpoint")
        for stem in WEIGHT_FILES:
            index = find_file(folder, f"{stem}.index.json")
            if index is not None:
                shards = cls(_read_index(index), folder)
                shards._check_index(index.name)
                return shards
            path = find_file(folder, stem)
            if path is not None:
                return cls.of_file(path)
        raise CheckpointMismatch(f"{folder} holds no model.safetensors, no pytorch_model.bin and no index of either")

    @classmethod
    def of_file(cls, path: Path) -> "Shards":
        need_file(path.parent, path.name)
        return cls(dict.fromkeys(names_in(path), path), path.parent)

    def _check_index(self, index: str) -> None:
        stored = {name: path for path in sorted(set(self._files.values())) for name in names_in(path)}
        wrong = sorted(set(stored) ^ set(self._files))
        if wrong:
            where = "is stored but not in" if wrong[0] in stored else "is not stored, but named by"
            raise CheckpointMismatch(
                f"{self.folder}: tensor {shown(wrong[0])} {where} {index} ({len(wrong)} such tensors)"
            )

    def __contains__(self, name: str) -> bool:
        return name in self._files

    def names(self) -> list[str]:
        return list(self._files)

    def paths(self) -> list[Path]:
        return sorted(set(self._files.values()))

    def sources(self, prefix: str = "") -> Sources:
        """Readers of the tensors below a prefix, named without it."""
        return {name.removeprefix(prefix): partial(self.read, name) for name in self._files if name.startswith(prefix)}

    def read(self, name: str) -> Tensor:
        """One tensor in its stored dtype."""
        path = self._files[name]
        if path != self._open_path:
            self._open_file, self._open_path = open_tensors(path), path
        file = self._open_file
        if isinstance(file, dict):
            return file[name]
        try:
            return file.get_tensor(name)  # type: ignore[attr-defined, no-any-return]
        except (SafetensorError, RuntimeError, TypeError) as error:  # a type that torch does not have
            raise CheckpointMismatch(f"{path}: {shown(name)} cannot be read: {in_words(error)}") from error


def _read_index(index: Path) -> dict[str, Path]:
    """The file of each tensor. Raises: CheckpointMismatch unless all are files of the index's folder."""
    names, folder = read_json(index).get("weight_map"), index.parent
    if not isinstance(names, dict) or not all(isinstance(file, str) for file in names.values()):
        raise CheckpointMismatch(f"{index} has no weight_map that names a file for each tensor")
    files = sorted(set(names.values()))
    odd = [file for file in files if not _SHARD.fullmatch(file)]
    if odd:
        raise CheckpointMismatch(f"{index} names {shown(odd[0])}, which is no weight file of its folder")
    missing = [file for file in files if find_file(folder, file) is None]
    if missing:
        raise CheckpointMismatch(f"{folder} lacks {len(missing)} shards that {index.name} names: {missing[0]}, ...")
    return {name: folder / file for name, file in names.items()}


def names_in(path: Path) -> list[str]:
    file = open_tensors(path)
    return list(file) if isinstance(file, dict) else list(file.keys())  # type: ignore[attr-defined]


def write_shards(
    sources: Sources, folder: Path, tick: Callable[[], None] = lambda: None, elements: dict[str, int] | None = None
) -> None:
    """Write tensors as model.safetensors, or as shards of at most 2 GiB with their index; one shard is held at a time.

    Args:
        elements: of each tensor, where known: then a full shard is written before the next tensor is read, and not after.
    """
    written: list[tuple[Path, list[str]]] = []
    total = size = 0
    element_size = 2
    batch: dict[str, Tensor] = {}

    def flush() -> None:
        path = folder / f"shard-{len(written)}"
        save_file(batch, path, metadata={"format": "pt"})
        written.append((path, list(batch)))
        batch.clear()

    for name, read in sources.items():
        if batch and size + (elements or {}).get(name, 0) * element_size > SHARD_BYTES:
            flush()
            size = 0
        tensor = read().contiguous()
        element_size = tensor.element_size()
        size_of = tensor.numel() * element_size
        if batch and size + size_of > SHARD_BYTES:
            flush()
            size = 0
        # safetensors refuses tensors that share memory: a part of a larger one is copied.
        batch[name] = tensor.clone() if tensor.untyped_storage().nbytes() != size_of else tensor
        del tensor
        size += size_of
        total += size_of
        tick()
    flush()
    if len(written) == 1:
        written[0][0].rename(folder / "model.safetensors")
        return
    weight_map = {}
    for number, (path, names) in enumerate(written, start=1):
        final = f"model-{number:05d}-of-{len(written):05d}.safetensors"
        path.rename(folder / final)
        weight_map.update(dict.fromkeys(names, final))
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2), "utf-8")
