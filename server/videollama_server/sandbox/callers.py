"""Which requests still have a waiting caller, and who it is: the entry keeps a note (a file) for each request.

The preprocess stage checks the note, because Triton does not report a disconnected caller to a stage that was called by
another stage. The notes are in a folder that the server makes for its stages; without it, no request is ever cancelled.
"""

import hashlib
import os
import re
import secrets
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

FOLDER_VARIABLE = "VL2_CALLERS"
_POLL_SECONDS = 0.1
_NAME = re.compile(r"[0-9a-f]{32}")


def notes_environment(runtime: Path) -> dict[str, str]:
    """The environment variable that tells the stages of a server where its notes are."""
    return {FOLDER_VARIABLE: str(runtime / "callers")}


def server_name() -> str:
    """An id of the server that this stage belongs to; it differs for every start of `vl2 serve`."""
    return hashlib.sha256(os.environ.get(FOLDER_VARIABLE, "").encode()).hexdigest()[:16]


def is_waiting(name: str | None) -> bool:
    """Whether the note still exists; true for a request without a valid note."""
    note = _note(name)
    return note is None or note.exists()


def who_waits(name: str | None) -> str:
    """The caller that the note names; "" if it is unknown."""
    note = _note(name)
    try:
        return "" if note is None else note.read_text("ascii")
    except OSError:
        return ""


def _note(name: str | None) -> Path | None:
    folder = os.environ.get(FOLDER_VARIABLE)
    return Path(folder, name) if name and folder and _NAME.fullmatch(name) else None


class Callers:
    """The notes of this process. Those of an earlier process are removed, because its callers are gone."""

    def __init__(self) -> None:
        folder = os.environ.get(FOLDER_VARIABLE)
        self._folder = None if folder is None else Path(folder)
        self._waiting: dict[Path, Callable[[], bool]] = {}
        self._lock = threading.Lock()
        self._changed = threading.Event()
        if self._folder is not None:
            self._folder.mkdir(mode=0o700, exist_ok=True)
            for note in self._folder.iterdir():
                note.unlink(missing_ok=True)
            threading.Thread(target=self._watch, name="callers", daemon=True).start()

    @contextmanager
    def waiting(self, is_cancelled: Callable[[], bool], who: str = "") -> Iterator[str | None]:
        """Keep a note until the block ends or its caller disconnects.

        Args:
            is_cancelled: polled every 0.1 s.
            who: the caller, for `who_waits`.
        Yields: the name of the note; None without a folder, or if it cannot be written.
        """
        if self._folder is None:
            yield None
            return
        note = self._folder / secrets.token_hex(16)
        try:
            note.write_text(who, "ascii")
        except OSError:  # such as a full disk: its media are then decoded even if the caller leaves
            note.unlink(missing_ok=True)
            yield None
            return
        with self._lock:
            self._waiting[note] = is_cancelled
        self._changed.set()
        try:
            yield note.name
        finally:
            with self._lock:
                self._waiting.pop(note, None)
            note.unlink(missing_ok=True)

    def _watch(self) -> None:
        while True:
            self._changed.wait()
            with self._lock:
                waiting = list(self._waiting.items())
                if not waiting:
                    self._changed.clear()
            for note, is_cancelled in waiting:
                with self._lock:  # is_cancelled of a request that has ended may crash the server
                    if note in self._waiting and is_cancelled():
                        note.unlink(missing_ok=True)
            threading.Event().wait(_POLL_SECONDS)
