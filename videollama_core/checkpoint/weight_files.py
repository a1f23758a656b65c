"""One untrusted file of tensors, opened without executing code from it and with every claim in it checked.

safetensors files are read lazily. `.bin` files must have the zip format (which `torch.save` has written since 2020): the
pickle may refer only to what builds plain tensors, and every tensor must lie within the bytes that are stored for it.
"""

import json
import os
import pickletools
import zipfile
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from videollama_core.checkpoint.files import in_words, shown
from videollama_core.protocol.errors import CheckpointMismatch
from videollama_core.protocol.limits import HEADER_BYTES

DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)  # of weights
# Globals that a pickle of tensors needs. torch's own list (`weights_only`) has more, some of which can allocate any amount of memory.
_NAMES = {"collections OrderedDict", "torch._utils _rebuild_tensor_v2", "torch._utils _rebuild_parameter"}
_STORAGES = ("torch ", "Storage")
_NAMING = ("GLOBAL", "STACK_GLOBAL", "INST", "EXT1", "EXT2", "EXT4")  # opcodes


def open_tensors(path: Path) -> "dict[str, Tensor] | object":
    """Open a file of tensors: a dict by name, or a lazy file with `keys` and `get_tensor`. Raises: CheckpointMismatch."""
    try:
        if path.suffix == ".safetensors":
            _check_header(path)
            return safe_open(path, framework="pt")
        _check_pickle(path)
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except CheckpointMismatch:
        raise
    except (SafetensorError, RuntimeError, OSError, EOFError, ValueError, zipfile.BadZipFile) as error:
        raise CheckpointMismatch(f"{path} cannot be read: {in_words(error)}") from error
    except Exception as error:  # pickle's own errors have no common root
        raise CheckpointMismatch(
            f"{path} is not a plain file of tensors, so it is not opened: {in_words(error)}"
        ) from error
    if not isinstance(content, dict):
        raise CheckpointMismatch(f"{path} contains something other than tensors by name")
    for name, value in content.items():
        _check_stored(path, name, value)
    return content


def _check_header(path: Path) -> None:
    """Check the list of tensors in the header; safetensors itself checks that their bytes exist and do not overlap."""
    with path.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        HEADER_BYTES.check(size, f"the list of tensors of {path}", CheckpointMismatch)
        data = file.read(size)
    try:
        json.loads(data, object_pairs_hook=_without_repeats)
    except (ValueError, RecursionError) as error:
        raise CheckpointMismatch(
            f"{path} cannot be read: its list of tensors is damaged ({in_words(error)})"
        ) from error


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    entries = dict(pairs)
    if len(entries) < len(pairs):
        raise ValueError("a name occurs twice")
    return entries


def _check_pickle(path: Path) -> None:
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
        compressed = [entry.filename for entry in entries if entry.compress_type != zipfile.ZIP_STORED]
        if compressed:
            raise CheckpointMismatch(
                f"{path} holds {shown(compressed[0])} compressed; torch.save stores tensors uncompressed"
            )
        if sum(entry.file_size for entry in entries) > os.path.getsize(path):
            raise CheckpointMismatch(f"{path} declares more bytes than it has: the file is damaged")
        pickles = [entry for entry in entries if entry.filename.endswith(".pkl")]
        if len(pickles) != 1:
            raise CheckpointMismatch(f"{path} cannot be read: it holds {len(pickles)} pickles; torch.save writes one")
        (pickled,) = pickles
        HEADER_BYTES.check(pickled.file_size, f"the list of tensors of {path}", CheckpointMismatch)
        data = archive.read(pickled)
    for operation, name, _ in pickletools.genops(data):
        if operation.name in _NAMING and not _makes_tensors(name):
            raise CheckpointMismatch(
                f"{path} is not a plain file of tensors, so it is not opened: it names {shown(name)}"
            )


def _makes_tensors(name: object) -> bool:
    return name in _NAMES or (isinstance(name, str) and name.startswith(_STORAGES[0]) and name.endswith(_STORAGES[1]))


def _check_stored(path: Path, name: object, value: object) -> None:
    """Raises: CheckpointMismatch unless this is a plain tensor with all its elements in the file."""
    if not isinstance(name, str) or not isinstance(value, Tensor):
        raise CheckpointMismatch(f"{path} contains something other than tensors by name: {shown(name)}")
    if value.layout is not torch.strided or value.device.type != "cpu" or value.is_quantized:
        raise CheckpointMismatch(f"{path}: {shown(name)} is not a plain tensor")
    if value.numel() * value.element_size() > value.untyped_storage().nbytes():
        raise CheckpointMismatch(
            f"{path}: {shown(name)} is {list(value.shape)}, but only {value.untyped_storage().nbytes()} bytes are stored for it"
        )
