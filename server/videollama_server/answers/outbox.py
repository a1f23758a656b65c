"""One thread that sends for everybody: what comes while it sends goes out together, and whoever makes it never waits."""

import logging
import queue
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
        self._waiting: queue.SimpleQueue[Sends | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def put(self, one: Sends) -> None:
        """It has something to send. To be told once, until its `flush` is called."""
        self._waiting.put(one)

    def _run(self) -> None:
        while (one := self._waiting.get()) is not None:
            try:
                one.flush()
            except Exception:  # of this one alone; the others go on
                logger.exception("what was said could not be sent")

    def close(self) -> None:
        """What waits is sent first."""
        self._waiting.put(None)
        self._thread.join()
