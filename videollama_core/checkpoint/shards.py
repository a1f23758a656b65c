"""Tensors on disk: read one at a time from any supported file, written in shards.

A whole model is never held in memory; `weight_files.py` defines which files are supported.
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
WEIGHT_FILES = ("model.safetensors", "pytorch_model.bin")  # in order of preference; shards have NAME.index.json
_SHARD = re.compile(r"[\w.-]{1,200}\.(safetensors|bin)", re.ASCII)
Sources = dict[str, Callable[[], Tensor]]  # name -> reader


class Shards:
    """The tensors of a folder by name, from one file or from shards."""

    def __init__(self, files: dict[str, Path], folder: Path) -> None:
        self._files = files
        self.folder = folder
        self._open_path: Path | None = None
        self._open_file: dict[str, Tensor] | object = {}

    @classmethod
    def open(cls, folder: Path) -> "Shards":
        """List the tensors of a folder: of a single file, or of the shards in its index. Raises: CheckpointMismatch."""
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
        raise CheckpointMismatch(
            f"{folder} has neither model.safetensors nor pytorch_model.bin, nor an index of either"
        )

    @classmethod
    def of_file(cls, path: Path) -> "Shards":
        """The tensors of one file. Raises: CheckpointMismatch."""
        need_file(path.parent, path.name)
        return cls(dict.fromkeys(names_in(path), path), path.parent)

    def _check_index(self, index: str) -> None:
        stored = {name: path for path in sorted(set(self._files.values())) for name in names_in(path)}
        wrong = sorted(set(stored) ^ set(self._files))
        if wrong:
            where = "is stored but not listed in" if wrong[0] in stored else "is not stored but listed in"
            raise CheckpointMismatch(
                f"{self.folder}: tensor {shown(wrong[0])} {where} {index} ({len(wrong)} such tensors)"
            )

    def __contains__(self, name: str) -> bool:
        return name in self._files

    def names(self) -> list[str]:
        return list(self._files)

    def paths(self) -> list[Path]:
        """Every file that holds a tensor, sorted."""
        return sorted(set(self._files.values()))

    def sources(self, prefix: str = "") -> Sources:
        """Readers of the tensors whose names begin with a prefix, by name without it."""
        return {name.removeprefix(prefix): partial(self.read, name) for name in self._files if name.startswith(prefix)}

    def read(self, name: str) -> Tensor:
        """One tensor in its stored dtype. Raises: CheckpointMismatch."""
        path = self._files[name]
        if path != self._open_path:
            self._open_file, self._open_path = open_tensors(path), path
        file = self._open_file
        if isinstance(file, dict):
            return file[name]
        try:
            return file.get_tensor(name)  # type: ignore[attr-defined, no-any-return]
        except (SafetensorError, RuntimeError, TypeError) as error:  # such as a dtype that torch does not have
            raise CheckpointMismatch(f"{path}: {shown(name)} cannot be read: {in_words(error)}") from error


def _read_index(index: Path) -> dict[str, Path]:
    """The file of each tensor. Raises: CheckpointMismatch unless all are files of the index's folder."""
    names, folder = read_json(index).get("weight_map"), index.parent
    if not isinstance(names, dict) or not all(isinstance(file, str) for file in names.values()):
        raise CheckpointMismatch(f"{index} has no weight_map that names a file for each tensor")
    files = sorted(set(names.values()))
    odd = [file for file in files if not _SHARD.fullmatch(file)]
    if odd:
        raise CheckpointMismatch(f"{index} names {shown(odd[0])}, which is not a weight file of its folder")
    missing = [file for file in files if find_file(folder, file) is None]
    if missing:
        raise CheckpointMismatch(f"{folder} lacks {len(missing)} shards listed in {index.name}: {missing[0]}, ...")
    return {name: folder / file for name, file in names.items()}


def names_in(path: Path) -> list[str]:
    """Names of the tensors in a file. Raises: CheckpointMismatch."""
    file = open_tensors(path)
    return list(file) if isinstance(file, dict) else list(file.keys())  # type: ignore[attr-defined]


def write_shards(
    sources: Sources, folder: Path, tick: Callable[[], None] = lambda: None, elements: dict[str, int] | None = None
) -> None:
    """Write tensors as model.safetensors, or as shards of at most 2 GiB with an index; holds one shard in memory at a time.

    Args:
        tick: called after each tensor.
        elements: number of elements by tensor, where known: a full shard is then written before the next tensor is read.
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
        num_bytes = tensor.numel() * element_size
        if batch and size + num_bytes > SHARD_BYTES:
            flush()
            size = 0
        # safetensors rejects tensors that share memory, so a view of a larger one is copied.
        batch[name] = tensor.clone() if tensor.untyped_storage().nbytes() != num_bytes else tensor
        del tensor
        size += num_bytes
        total += num_bytes
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
