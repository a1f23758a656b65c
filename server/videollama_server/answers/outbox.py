"""One thread that sends for all requests: messages that arrive while it sends leave together, and producers never wait."""

import logging
import queue
import threading
from typing import Protocol

logger = logging.getLogger(__name__)


class Sender(Protocol):
    def flush(self) -> None:
        """Send everything that is ready."""
        ...


class Outbox:
    """Flushes each sender once, in the order of `put`."""

    def __init__(self, name: str) -> None:
        self._waiting: queue.SimpleQueue[Sender | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def put(self, sender: Sender) -> None:
        """Queue a sender that has something to send. It must not be queued again before its `flush` is called."""
        self._waiting.put(sender)

    def _run(self) -> None:
        while (sender := self._waiting.get()) is not None:
            try:
                sender.flush()
            except Exception:  # must not stop the other senders
                logger.exception("could not send a response")

    def close(self) -> None:
        """Send what is queued, then stop the thread."""
        self._waiting.put(None)
        self._thread.join()
