"""Threads that send for all requests: messages that arrive during a transmission leave together, and producers never wait."""

import logging
import queue
import threading
from collections.abc import Iterable, Sequence
from typing import Protocol

logger = logging.getLogger(__name__)


class Sender(Protocol):
    def flush(self) -> None:
        """Send everything that is ready."""
        ...


def flush_each(senders: Iterable[Sender]) -> None:
    for sender in senders:
        try:
            sender.flush()
        except Exception:  # must not stop the other senders
            logger.exception("could not send a response")


class Outbox:
    """Flushes each sender once, begun in the order of `put`.

    Args:
        threads: how many senders are flushed at the same time.
    """

    def __init__(self, name: str, threads: int = 1) -> None:
        self._waiting: queue.SimpleQueue[Sequence[Sender] | None] = queue.SimpleQueue()
        self._threads = [threading.Thread(target=self._run, name=name, daemon=True) for _ in range(threads)]
        for thread in self._threads:
            thread.start()

    def put(self, *senders: Sender) -> None:
        """Queue senders that have something to send, for one thread. None may be queued again before its `flush` is called."""
        self._waiting.put(senders)

    def _run(self) -> None:
        while (senders := self._waiting.get()) is not None:
            flush_each(senders)

    def close(self) -> None:
        """Send what is queued, then stop the threads."""
        for _ in self._threads:
            self._waiting.put(None)
        for thread in self._threads:
            thread.join()
