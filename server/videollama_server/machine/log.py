"""The server's log file: readable only by its owner, and rotated."""

import os
import shutil
import tempfile
from pathlib import Path
from typing import IO

from videollama_core.protocol.errors import ServerFailed

MOST_BYTES = 32 * 2**20  # the size at which a log file is rotated to FILE.1


def open_log(path: Path) -> IO[bytes]:
    """Open a log for appending. It may contain questions, so only its owner may read it.

    Raises: ServerFailed if it cannot be opened.
    """
    try:
        return os.fdopen(os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600), "ab")
    except OSError as error:
        raise ServerFailed(f"the log {path} cannot be written: {error.strerror}; choose another with --log") from error


def rotate(log: Path, most_bytes: int = MOST_BYTES) -> None:
    """Move a log that is too large to FILE.1, replacing the previous one; writers continue to append to the emptied file.

    What they write between the copy and the truncation is lost.
    """
    if log.is_file() and log.stat().st_size > most_bytes:
        old = log.with_name(f"{log.name}.1")
        old.touch(0o600)
        shutil.copyfile(log, old)
        with log.open("r+b") as file:
            file.truncate()


def kept_copy(log: Path) -> Path:
    """Copy the log of a failed run, so that it outlives the run's folder."""
    handle, name = tempfile.mkstemp(prefix="vl2-serve-", suffix=".log")
    os.close(handle)
    shutil.copyfile(log, name)
    return Path(name)
