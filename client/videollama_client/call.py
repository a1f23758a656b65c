"""One gRPC call of the synchronous client, made and read in its own thread."""

import os
import queue
import threading
import time
from collections.abc import Callable
from typing import Any

from videollama_client import transport

MESSAGES_AHEAD = 256  # read-ahead limit; beyond it, a slow caller slows the server down
_POLL_SECONDS = 0.01
_IDLE_THREADS = 8


class _Threads:
    """Threads that read calls. Up to _IDLE_THREADS are kept for later calls: to start one takes 0.1 ms, to wake one 0.01 ms."""

    def __init__(self) -> None:
        self._idle: list[queue.SimpleQueue[Callable[[], None]]] = []  # the inboxes of threads without work
        self._lock = threading.Lock()
        if hasattr(os, "register_at_fork"):  # not on Windows, which has no forks
            os.register_at_fork(after_in_child=self._forget)

    def _forget(self) -> None:
        """In a child process, which has only the thread that forked."""
        self._idle, self._lock = [], threading.Lock()

    def run(self, work: Callable[[], None]) -> None:
        """Run `work` in one of the threads."""
        try:
            inbox = self._idle.pop()
        except IndexError:
            inbox = queue.SimpleQueue()
            threading.Thread(target=self._serve, args=(inbox,), daemon=True).start()
        inbox.put(work)

    def _serve(self, inbox: "queue.SimpleQueue[Callable[[], None]]") -> None:
        while True:
            inbox.get()()
            with self._lock:
                if len(self._idle) >= _IDLE_THREADS:
                    return
                self._idle.append(inbox)


_THREADS = _Threads()


class Call:
    """A response stream that a background thread reads into a queue.

    Ctrl-C interrupts the main thread; inside gRPC's code it would leave a channel that never closes, so the main thread
    only ever waits on the queue. The reading thread refers to this object, not to the stream, which may be dropped.
    """

    def __init__(self, make: Callable[[], Any], address: str) -> None:
        self._make, self._address = make, address
        self._messages: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._call: Any = None
        self._unwanted = False
        _THREADS.run(self._run)

    def _run(self) -> None:
        end: Exception | None = None
        try:
            with transport.translated(self._address):
                self._call = call = self._make()
                if self._unwanted:
                    call.cancel()
                for message in call:
                    while self._messages.qsize() >= MESSAGES_AHEAD and not self._unwanted:
                        time.sleep(_POLL_SECONDS)
                    self._messages.put(message)
        except Exception as error:
            end = error
        self._messages.put(end)

    def get(self, seconds: float) -> Any:
        """Return the next message, None at the end.

        Raises: queue.Empty after `seconds` without a message; the VideoLlamaError that ended the call.
        """
        message = self._messages.get(timeout=seconds)
        if message is None or isinstance(message, Exception):
            self._messages.put(message)  # for the next caller of get
        if isinstance(message, Exception):
            raise message
        return message

    def cancel(self) -> None:
        self._unwanted = True  # the reading thread checks this once it has made the call
        call = self._call
        if call is not None:
            call.cancel()
