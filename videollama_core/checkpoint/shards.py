"""Tensors on disk: read one at a time wherever they are stored, written in shards.

safetensors files are read lazily; `.bin` pickles only with weights_only. Whole models are never held in memory.
"""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from videollama_core.checkpoint.read_config import read_json
from videollama_core.protocol.errors import CheckpointMismatch

SHARD_BYTES = 2 * 2**30
WEIGHT_FILES = ("model.safetensors", "pytorch_model.bin")  # the first that is there; of shards, NAME.index.json
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
            index = folder / f"{stem}.index.json"
            if index.is_file():
                names = read_json(index).get("weight_map")
                if not isinstance(names, dict):
                    raise CheckpointMismatch(f"{index} has no weight_map")
                missing = sorted({file for file in names.values() if not (folder / file).is_file()})
                if missing:
                    raise CheckpointMismatch(
                        f"{folder} lacks {len(missing)} shards that {index.name} names: {missing[0]}, ..."
                    )
                shards = cls({name: folder / file for name, file in names.items()}, folder)
                shards._check_index(index.name)
                return shards
            if (folder / stem).is_file():
                return cls({name: folder / stem for name in names_in(folder / stem)}, folder)
        raise CheckpointMismatch(f"{folder} holds no model.safetensors, no pytorch_model.bin and no index of either")

    @classmethod
    def of_file(cls, path: Path) -> "Shards":
        return cls(dict.fromkeys(names_in(path), path), path.parent)

    def _check_index(self, index: str) -> None:
        stored = {name: path for path in sorted(set(self._files.values())) for name in names_in(path)}
        wrong = sorted(set(stored) ^ set(self._files))
        if wrong:
            where = "is stored but not in" if wrong[0] in stored else "is not stored, but named by"
            raise CheckpointMismatch(f"{self.folder}: tensor {wrong[0]} {where} {index} ({len(wrong)} such tensors)")

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
        return file[name] if isinstance(file, dict) else file.get_tensor(name)  # type: ignore[attr-defined]


def open_tensors(path: Path) -> "dict[str, Tensor] | object":
    try:
        if path.suffix == ".safetensors":
            return safe_open(path, framework="pt")
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except (SafetensorError, RuntimeError, OSError, EOFError, ValueError) as error:
        raise CheckpointMismatch(f"{path} cannot be read: {error}") from error
    except Exception as error:  # pickle's own errors have no common root
        raise CheckpointMismatch(f"{path} is not a plain file of tensors, so it is not opened: {error}") from error
    if not isinstance(content, dict) or not all(isinstance(value, Tensor) for value in content.values()):
        raise CheckpointMismatch(f"{path} holds something else than tensors by name")
    return content


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
