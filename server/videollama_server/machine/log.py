"""The server's log file: for its owner alone, and never without end."""

import os
import shutil
import tempfile
from pathlib import Path
from typing import IO

from videollama_core.protocol.errors import ServerFailed

MOST_BYTES = 32 * 2**20  # of a log file, until it goes to FILE.1


def open_log(path: Path) -> IO[bytes]:
    """To append to. A log may tell what callers asked: its owner alone reads it.

    Raises: ServerFailed if it cannot be written.
    """
    try:
        return os.fdopen(os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600), "ab")
    except OSError as error:
        raise ServerFailed(f"the log {path} cannot be written: {error.strerror}; choose another with --log") from error


def rotate(log: Path, most_bytes: int = MOST_BYTES) -> None:
    """Move a log that has grown to FILE.1, in place of the last one; its writers, which append, go on with an empty file.

    What they write between copy and cut is lost.
    """
    if log.is_file() and log.stat().st_size > most_bytes:
        old = log.with_name(f"{log.name}.1")
        old.touch(0o600)
        shutil.copyfile(log, old)
        with log.open("r+b") as file:
            file.truncate()


def kept_copy(log: Path) -> Path:
    """A copy that outlives the run: it tells of a failure."""
    handle, name = tempfile.mkstemp(prefix="vl2-serve-", suffix=".log")
    os.close(handle)
    shutil.copyfile(log, name)
    return Path(name)
