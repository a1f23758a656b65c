"""One thread that looks which callers have left, for all requests of a stage.

To look is a round trip to the server's process (0.05 ms), so that looking with each token and for each request by itself took a
fifth of the entry.
"""

import logging
import threading
from collections.abc import Callable
from typing import Protocol

logger = logging.getLogger(__name__)
_EACH_SECONDS = 0.002  # a round takes this for each request at least: at most 500 looks a second


class Watched(Protocol):
    @property
    def ended(self) -> bool: ...

    def look(self) -> None:
        """Ask the server whether the caller has left, and act on it."""
        ...


class CallerWatch:
    """
    Args:
        seconds: between two looks at one request, while there are few.
        tell: is called once a round, and once more when the last request has ended.
    """

    def __init__(self, seconds: float, tell: Callable[[], None] = lambda: None) -> None:
        self._seconds, self._tell = seconds, tell
        self._watched: list[Watched] = []
        self._lock = threading.Lock()
        self._changed, self._closing = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._run, name="callers", daemon=True)
        self._thread.start()

    def add(self, one: Watched) -> None:
        with self._lock:
            self._watched.append(one)
        self._changed.set()

    def wake(self) -> None:
        """One has ended."""
        self._changed.set()

    def _run(self) -> None:
        while True:
            self._changed.wait()
            # First of all a pause: whoever has just come is not held up by a look, nor by the gauge.
            if self._closing.wait(max(self._seconds, _EACH_SECONDS * len(self._watched))):
                return
            with self._lock:
                watched = self._watched = [one for one in self._watched if not one.ended]
                if not watched:
                    self._changed.clear()
            for look in (self._tell, *(one.look for one in watched)):
                try:
                    look()
                except Exception:  # of this one alone
                    logger.exception("looking whether callers have left")

    def close(self) -> None:
        self._closing.set()
        self._changed.set()
        self._thread.join()
