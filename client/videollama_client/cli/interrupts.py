"""Ctrl-C during an answer: it stops the answer without interrupting running code."""

import contextlib
import queue
import signal
import threading
from collections.abc import Callable, Iterator


class Interrupts:
    """Whether Ctrl-C has been pressed."""

    def __init__(self) -> None:
        self.came = False


@contextlib.contextmanager
def interrupts_call(stop: Callable[[], object]) -> Iterator[Interrupts]:
    """Call `stop` in a separate thread at each Ctrl-C, instead of raising KeyboardInterrupt.

    Only for the main thread. The handler may run at any point of the code, so it must not take a lock:
    `SimpleQueue.put` is reentrant.
    """
    interrupts, stops = Interrupts(), queue.SimpleQueue[bool]()

    def note(*_: object) -> None:
        interrupts.came = True
        stops.put(True)

    def stop_on_interrupt() -> None:
        while stops.get():
            stop()

    threading.Thread(target=stop_on_interrupt, daemon=True).start()
    before = signal.signal(signal.SIGINT, note)
    try:
        yield interrupts
    finally:
        signal.signal(signal.SIGINT, before)
        stops.put(False)
