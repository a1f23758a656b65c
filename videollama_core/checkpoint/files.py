"""Files of an untrusted folder: only regular files inside it are opened, and JSON is bounded in size.

A link is followed if it stays inside the folder. In the Hugging Face hub's cache every file of a snapshot is a link to a
blob beside the snapshots, so there (`models--OWNER--NAME/snapshots/COMMIT`) the repository's own `blobs` count as inside.
"""

import json
import os
import reprlib
import stat
from pathlib import Path
from typing import Any

from videollama_core.protocol.errors import CheckpointMismatch
from videollama_core.protocol.limits import JSON_BYTES

_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = 80
_MOST_CHARACTERS = 300  # of another library's error message that are passed on


def shown(value: object) -> str:
    """A value from such a file as one short line."""
    return _SHORT.repr(value)


def named(name: str) -> str:
    """An untrusted tensor name for an error message: unchanged if it is short and printable."""
    return name if len(name) < 200 and name.isprintable() else shown(name)


def in_words(error: BaseException) -> str:
    """The message of another library's error as one short line."""
    return " ".join(str(error).split())[:_MOST_CHARACTERS] or type(error).__name__


def find_file(folder: Path, name: str) -> Path | None:
    """The path of a regular file in the folder; None if there is nothing of that name.

    Raises: CheckpointMismatch for anything else: a name or link that leads out of the folder, a folder, a device, a pipe.
    """
    path = folder / name
    try:
        if not os.path.lexists(path):
            return None
        real = path.resolve(strict=True)
        kind = real.stat().st_mode
        roots = _roots(folder.resolve())
    except (OSError, ValueError, RuntimeError) as error:
        raise CheckpointMismatch(
            f"{folder} holds {shown(name)}, which leads to no file ({in_words(error)}): put the file itself there"
        ) from error
    if not any(real.is_relative_to(root) for root in roots):
        raise CheckpointMismatch(
            f"{folder} holds {shown(name)}, which leads out of the folder: put the file itself there, not a link"
        )
    if not stat.S_ISREG(kind):
        raise CheckpointMismatch(f"{path} is a folder, a device or a pipe, not a regular file: put the file there")
    return path


def need_file(folder: Path, name: str) -> Path:
    """Like `find_file`, for a required file. Raises: CheckpointMismatch, also if there is nothing of that name."""
    path = find_file(folder, name)
    if path is None:
        raise CheckpointMismatch(f"{folder / name} is missing")
    return path


def _roots(folder: Path) -> list[Path]:
    """The folders whose files count as inside `folder`."""
    around = folder.parent
    in_cache = around.name == "snapshots" and around.parent.name.startswith("models--")
    return [folder, around.parent / "blobs"] if in_cache else [folder]


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object. Raises: CheckpointMismatch if the file is missing, too large, or not a JSON object."""
    need_file(path.parent, path.name)
    try:
        with open(path, "rb", opener=_open_at_once) as file:
            JSON_BYTES.check(os.fstat(file.fileno()).st_size, str(path), CheckpointMismatch)
            content = parse_json(file.read(JSON_BYTES.value))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointMismatch(f"{path} cannot be read as JSON: {in_words(error)}") from error
    if not isinstance(content, dict):
        raise CheckpointMismatch(f"{path} holds {type(content).__name__}; expected a JSON object")
    return content


def parse_json(data: bytes) -> Any:
    """Parse JSON strictly by RFC 8259, without NaN and infinity. Raises: ValueError, RecursionError."""
    return json.loads(data.decode("utf-8"), parse_constant=_refuse_constant)


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def _open_at_once(path: str, flags: int) -> int:
    """Open without blocking: opening a pipe would wait for its writer."""
    return os.open(path, flags | os.O_NONBLOCK)
