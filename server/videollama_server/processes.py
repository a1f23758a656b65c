"""What Linux says about processes: the stages of a running server, and how they get on."""

import os
import select
import time
from collections.abc import Iterable
from contextlib import ExitStack, suppress
from pathlib import Path

from videollama_core.protocol import contract

_PROC = Path("/proc")
_TICKS = os.sysconf("SC_CLK_TCK")
_LOOK_SECONDS = 0.05  # where the kernel tells nothing of an end


def stage_processes(server_pid: int, proc: Path = _PROC) -> dict[int, str]:
    """Process id -> stage, of every living stub of a server. Other processes of the machine may be named anything."""
    stages = {}
    for folder in proc.glob("[0-9]*"):
        status = _status(folder)
        if status is None or status[1] != server_pid:
            continue
        stage = stage_of(int(folder.name), proc)
        if stage is not None:
            stages[int(folder.name)] = stage
    return stages


def stage_of(pid: int, proc: Path = _PROC) -> str | None:
    """The stage that a living process runs; None for any other process, or none."""
    folder = proc / str(pid)
    try:
        words = (folder / "cmdline").read_bytes().split(b"\0")
    except OSError:
        return None
    script = next((Path(os.fsdecode(word)) for word in words if word.endswith(b"/1/model.py")), None)
    if script is None or script.parts[-3] not in contract.STAGES or not is_alive(pid, proc):
        return None
    return script.parts[-3]


def is_alive(pid: int, proc: Path = _PROC) -> bool:
    """False too for a process that ended and was not waited for."""
    status = _status(proc / str(pid))
    return status is not None and status[0] not in b"ZX"


def wait_for_an_end(pids: Iterable[int], seconds: float) -> bool:
    """Until one of the processes has ended, and at most `seconds`; whether one may have ended.

    The kernel wakes who waits (pidfd, Linux 5.3); where it cannot, the answer is True after a short while.
    """
    poller = select.poll()
    with ExitStack() as opened:
        try:
            for pid in pids:
                descriptor = os.pidfd_open(pid)
                opened.callback(os.close, descriptor)
                poller.register(descriptor, select.POLLIN)
        except ProcessLookupError:
            return True
        except OSError:
            time.sleep(_LOOK_SECONDS)
            return True
        return bool(poller.poll(1000 * seconds))


def threads_of(pid: int, proc: Path = _PROC) -> int:
    """0 for a process that is gone."""
    try:
        return len(list((proc / str(pid) / "task").iterdir()))
    except OSError:
        return 0


def with_descendants(pids: Iterable[int], proc: Path = _PROC) -> set[int]:
    """The processes, and all that they and their children have started."""
    children: dict[int, list[int]] = {}
    for folder in proc.glob("[0-9]*"):
        status = _status(folder)
        if status is not None:
            children.setdefault(status[1], []).append(int(folder.name))
    found: set[int] = set()
    left = list(pids)
    while left:
        pid = left.pop()
        if pid not in found:
            found.add(pid)
            left += children.get(pid, [])
    return found


def work_of(pids: Iterable[int], proc: Path = _PROC) -> dict[int, float]:
    """Of each process the processor seconds that it has used, and one more for each 10 MB that it has read: they grow while it gets on."""
    found: dict[int, float] = {}
    for pid in pids:
        with suppress(OSError, ValueError, IndexError):  # it ended meanwhile, or the kernel does not count what is read
            times = (proc / str(pid) / "stat").read_bytes().rpartition(b")")[2].split()[11:13]
            found[pid] = sum(map(int, times)) / _TICKS
            words = (proc / str(pid) / "io").read_bytes().split()
            # rchar: by calls, what came from memory included; read_bytes: from the disk, and of mapped files that alone counts
            found[pid] += max(int(words[1]), int(words[9])) / 1e7
    return found


def is_stopped(pid: int, proc: Path = _PROC) -> bool:
    """True for a process that was stopped by a signal or a debugger."""
    status = _status(proc / str(pid))
    return status is not None and status[0] in b"Tt"


def _status(folder: Path) -> tuple[bytes, int] | None:
    """State and parent, from "PID (name) state parent ...": the name is the program's own and may hold any byte."""
    try:
        state, parent = (folder / "stat").read_bytes().rpartition(b")")[2].split()[:2]
        return state, int(parent)
    except (OSError, ValueError):  # it ended meanwhile
        return None


class StageProcess:
    """A stage's process on the server that this process is a stage of, too; all processes are looked through only when the known one is gone."""

    def __init__(self, stage: str) -> None:
        self._stage, self._known = stage, -1

    def find(self) -> int | None:
        """Its process id; None where it has none (a C++ backend) or it cannot be seen."""
        if self._known < 0 or not is_alive(self._known):
            found = stage_processes(os.getppid())
            self._known = next((pid for pid, stage in found.items() if stage == self._stage), -1)
        return None if self._known < 0 else self._known
