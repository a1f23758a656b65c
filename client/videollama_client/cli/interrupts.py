"""Ctrl-C while an answer is written: it stops the answer, and interrupts no line of code."""

import contextlib
import queue
import signal
import threading
from collections.abc import Callable, Iterator


class Interrupts:
    """Whether there were any."""

    def __init__(self) -> None:
        self.came = False


@contextlib.contextmanager
def interrupts_call(stop: Callable[[], object]) -> Iterator[Interrupts]:
    """Call `stop`, in a thread of its own, at each Ctrl-C, which raises no KeyboardInterrupt meanwhile.

    Only for the main thread. What the handler does must be possible wherever it interrupts, so it takes no lock:
    `SimpleQueue.put` is made for this.
    """
    interrupts, wanted = Interrupts(), queue.SimpleQueue[bool]()

    def note(*_: object) -> None:
        interrupts.came = True
        wanted.put(True)

    def stop_when_wanted() -> None:
        while wanted.get():
            stop()

    threading.Thread(target=stop_when_wanted, daemon=True).start()
    before = signal.signal(signal.SIGINT, note)
    try:
        yield interrupts
    finally:
        signal.signal(signal.SIGINT, before)
        wanted.put(False)
