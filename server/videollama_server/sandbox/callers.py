"""Whether somebody still waits for a request, and who: the entry keeps a note (a file) for each, the preprocess stage looks for it.

Triton tells a stage nothing of a caller that leaves when the request came from another stage. Notes lie in a folder that the
server makes for its stages; without one nothing is ever given up.
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
_LOOK_SECONDS = 0.1
_NAME = re.compile(r"[0-9a-f]{32}")


def notes_environment(runtime: Path) -> dict[str, str]:
    """What tells the stages of one server where its notes lie."""
    return {FOLDER_VARIABLE: str(runtime / "callers")}


def server_name() -> str:
    """Of the server that this stage belongs to, another one for every start of `vl2 serve`."""
    return hashlib.sha256(os.environ.get(FOLDER_VARIABLE, "").encode()).hexdigest()[:16]


def is_waiting(name: str | None) -> bool:
    """False once the note is gone; a request without a note (or one by a stranger) is always waited for."""
    note = _note(name)
    return note is None or note.exists()


def who_waits(name: str | None) -> str:
    """What the note says: "" where that is nobody known."""
    note = _note(name)
    try:
        return "" if note is None else note.read_text("ascii")
    except OSError:
        return ""


def _note(name: str | None) -> Path | None:
    folder = os.environ.get(FOLDER_VARIABLE)
    return Path(folder, name) if name and folder and _NAME.fullmatch(name) else None


class Callers:
    """The notes of this process. One that ran before it may have left some: its callers are gone, and so they go."""

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
        """The name of a note that lasts as long as the block and its caller do; None without a folder."""
        if self._folder is None:
            yield None
            return
        note = self._folder / secrets.token_hex(16)
        note.write_text(who, "ascii")
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
                with self._lock:  # never of a request that has ended: that may crash the server
                    if note in self._waiting and is_cancelled():
                        note.unlink(missing_ok=True)
            threading.Event().wait(_LOOK_SECONDS)
