"""The flag by which Triton asks whether a stage's process lives, set as soon as a request has arrived.

While Triton's Python backend waits for an answer it clears a flag in memory that it shares with the stage's process, and a
second later takes the process for dead if the flag is still clear. A thread of Triton's own in that process sets it, but only
every 0.3 s: whoever stops for a second in between (a virtual machine that stands still, a laptop that sleeps) is taken for dead,
its request is freed under its hands, and both processes crash. Set from the first moment of a request on, the flag is still
there when the second is over, and the next second begins with both of them awake.

Source: `IPCControlShm` in pb_utils.h and `ReceiveMessageFromStub` in stub_launcher.cc of triton-inference-server/python_backend,
branches r24.10 to main of 2026. Where the process is none of theirs, or the memory does not look like it, nothing is written.
"""

import logging
import mmap
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

logger = logging.getLogger(__name__)
_REGION, _HANDLE, _WORDS = 2, 7, 10  # places in the stub's command line, and its length
_SECONDS, _LOOKS = 0.01, 100  # between two settings while the process works, and how many before the thread may sleep
_OWNERSHIP = 16  # bytes of `AllocatedShmOwnership` before what a handle stands for
_FLAGS = 4  # stub_health, parent_health, uses_env, decoupled: a byte each


class StubHealth:
    """The flag of this process, set while it works on requests.

    Args:
        decoupled: the stage's, by which the memory is recognised.
        command: this process' words, as Triton's launcher wrote them; None looks them up.
    """

    def __init__(self, decoupled: bool, command: list[str] | None = None) -> None:
        self._flag: memoryview | None = None
        self._works, self._awake = False, threading.Event()
        try:
            found = _flags(_own_command() if command is None else command)
        except (OSError, ValueError) as error:
            logger.debug("Triton's health flag cannot be set: %s", error)
            return
        if max(found) > 1 or found[3] != decoupled:
            logger.debug("Triton's health flag is not where it was: %s", bytes(found).hex())
            return
        self._flag = found[:1]
        threading.Thread(target=self._keep, args=(found,), name="health", daemon=True).start()

    @property
    def is_known(self) -> bool:
        return self._flag is not None

    @contextmanager
    def working(self) -> Iterator[None]:
        """While the stage works on what Triton has sent: its calls do not overlap."""
        if self._flag is not None:
            self._flag[0] = 1
            self._works = True
            if not self._awake.is_set():  # to wake the thread for each request would cost more than all else
                self._awake.set()
        try:
            yield
        finally:
            self._works = False

    def _keep(self, flag: memoryview) -> None:
        """Triton clears it just after it has sent a request, and once a second."""
        while True:
            self._awake.wait()
            for _ in range(_LOOKS):
                if self._works:
                    flag[0] = 1
                time.sleep(_SECONDS)
            self._awake.clear()
            if self._works:
                self._awake.set()


def _own_command() -> list[str]:
    return Path("/proc/self/cmdline").read_text().split("\0")[:-1]


def _flags(words: list[str]) -> memoryview:
    """The four flags at the head of what Triton shares. Raises: OSError, ValueError where it is not Triton's."""
    if len(words) != _WORDS:
        raise ValueError(f"the process has {len(words)} words, not {_WORDS}")
    start = int(words[_HANDLE]) + _OWNERSHIP
    page = start - start % mmap.ALLOCATIONGRANULARITY
    with (Path("/dev/shm") / words[_REGION].lstrip("/")).open("r+b") as region:
        shared = mmap.mmap(region.fileno(), start - page + _FLAGS, offset=page)
    return memoryview(shared)[start - page :]
