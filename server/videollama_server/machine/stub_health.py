"""Keep setting the flag by which Triton checks that a stage's process is alive, from the arrival of a request on.

While Triton's Python backend waits for a response, it clears a flag in memory shared with the stage's process, and a second
later declares the process dead if the flag is still clear. Triton's own thread in that process sets it, but only every 0.3 s:
a process that stops for a second in between (a paused virtual machine, a sleeping laptop) is declared dead, its request is
freed while in use, and both processes crash. A flag set from the first moment of a request is still set when that second is
over, and the next one begins with both processes awake.

Source: `IPCControlShm` in pb_utils.h and `ReceiveMessageFromStub` in stub_launcher.cc of triton-inference-server/python_backend,
branches r24.10 to main of 2026. Nothing is written if this is not a stub process, or the memory does not look as expected.
"""

import logging
import mmap
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

logger = logging.getLogger(__name__)
_REGION, _HANDLE, _ARGUMENTS = 2, 7, 10  # indices in the stub's command line, and its length
_SECONDS = 0.01  # between two writes while the process works
_ROUNDS = 100  # writes before the thread may sleep
_OWNERSHIP = 16  # bytes of `AllocatedShmOwnership` before the data that a handle refers to
_FLAGS = 4  # stub_health, parent_health, uses_env, decoupled: a byte each


class StubHealth:
    """The health flag of this process, kept set while it works on requests.

    Args:
        decoupled: whether the stage is; the memory must agree, or it is not used.
        command: the command line of this process, as Triton's launcher made it; None looks it up.
    """

    def __init__(self, decoupled: bool, command: list[str] | None = None) -> None:
        self._flag: memoryview | None = None
        self._works, self._awake = False, threading.Event()
        try:
            flags = _flags(_own_command() if command is None else command)
        except (OSError, ValueError) as error:
            logger.debug("Triton's health flag cannot be set: %s", error)
            return
        if max(flags) > 1 or flags[3] != decoupled:
            logger.debug("Triton's health flag is not at the expected place: %s", bytes(flags).hex())
            return
        self._flag = flags[:1]
        threading.Thread(target=self._keep, args=(flags,), name="health", daemon=True).start()

    @property
    def is_known(self) -> bool:
        """Whether the flag is accessible."""
        return self._flag is not None

    @contextmanager
    def working(self) -> Iterator[None]:
        """Keep the flag set during the block. Blocks must not overlap."""
        if self._flag is not None:
            self._flag[0] = 1
            self._works = True
            if not self._awake.is_set():  # waking the thread for each request would be the main cost
                self._awake.set()
        try:
            yield
        finally:
            self._works = False

    def _keep(self, flag: memoryview) -> None:
        """Set the flag again and again: Triton clears it after sending a request, and once a second."""
        while True:
            self._awake.wait()
            for _ in range(_ROUNDS):
                if self._works:
                    flag[0] = 1
                time.sleep(_SECONDS)
            self._awake.clear()
            if self._works:
                self._awake.set()


def _own_command() -> list[str]:
    return Path("/proc/self/cmdline").read_text().split("\0")[:-1]


def _flags(arguments: list[str]) -> memoryview:
    """Map the four flags at the start of Triton's control block. Raises: OSError, ValueError if this is not a stub."""
    if len(arguments) != _ARGUMENTS:
        raise ValueError(f"the command line has {len(arguments)} arguments, not {_ARGUMENTS}")
    start = int(arguments[_HANDLE]) + _OWNERSHIP
    page = start - start % mmap.ALLOCATIONGRANULARITY
    with (Path("/dev/shm") / arguments[_REGION].lstrip("/")).open("r+b") as region:
        shared = mmap.mmap(region.fileno(), start - page + _FLAGS, offset=page)
    return memoryview(shared)[start - page :]
