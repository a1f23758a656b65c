"""One thread that sends for everybody: what comes while it sends goes out together, and whoever makes it never waits."""

import logging
import threading
from typing import Protocol

logger = logging.getLogger(__name__)


class Sends(Protocol):
    def flush(self) -> None:
        """Send what there is now."""
        ...


class Outbox:
    """First come, first served: each flushes once in turn."""

    def __init__(self, name: str) -> None:
        self._waiting: list[Sends] = []
        self._changed = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def put(self, one: Sends) -> None:
        """It has something to send. To be told once, until its `flush` is called."""
        with self._changed:
            self._waiting.append(one)
            self._changed.notify()

    def _run(self) -> None:
        while True:
            with self._changed:
                while not self._waiting and not self._closed:
                    self._changed.wait()
                waiting, self._waiting = self._waiting, []
            if not waiting:
                return
            for one in waiting:
                try:
                    one.flush()
                except Exception:  # of this one alone; the others go on
                    logger.exception("what was said could not be sent")

    def close(self) -> None:
        """What waits is sent first."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join()
