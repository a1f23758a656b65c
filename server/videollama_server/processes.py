"""What /proc shows about processes: the stages of a running server, and the work that they do."""

import os
import select
import time
from collections.abc import Iterable
from contextlib import ExitStack, suppress
from pathlib import Path

from videollama_core.protocol import contract

_PROC = Path("/proc")
_TICKS = os.sysconf("SC_CLK_TCK")
_POLL_SECONDS = 0.05  # used where the kernel cannot report the end of a process


def stage_processes(server_pid: int, proc: Path = _PROC) -> dict[int, str]:
    """Return process id -> stage for every running stub of a server. Tolerates any name of the machine's other processes."""
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
    """Return the stage that a running process serves; None for any other process, or if it does not exist."""
    folder = proc / str(pid)
    try:
        arguments = (folder / "cmdline").read_bytes().split(b"\0")
    except OSError:
        return None
    script = next((Path(os.fsdecode(argument)) for argument in arguments if argument.endswith(b"/1/model.py")), None)
    if script is None or script.parts[-3] not in contract.STAGES or not is_alive(pid, proc):
        return None
    return script.parts[-3]


def is_alive(pid: int, proc: Path = _PROC) -> bool:
    """Return whether a process is running; false also for a zombie."""
    status = _status(proc / str(pid))
    return status is not None and status[0] not in b"ZX"


def wait_for_an_end(pids: Iterable[int], seconds: float) -> bool:
    """Wait until one of the processes has ended, for at most `seconds`; return whether one may have ended.

    Uses pidfds (Linux 5.3); where they are unavailable, returns true after a short time.
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
            time.sleep(_POLL_SECONDS)
            return True
        return bool(poller.poll(1000 * seconds))


def threads_of(pid: int, proc: Path = _PROC) -> int:
    """Return the number of threads of a process; 0 if it has ended."""
    try:
        return len(list((proc / str(pid) / "task").iterdir()))
    except OSError:
        return 0


def with_descendants(pids: Iterable[int], proc: Path = _PROC) -> set[int]:
    """Return the processes and all their descendants."""
    children: dict[int, list[int]] = {}
    for folder in proc.glob("[0-9]*"):
        status = _status(folder)
        if status is not None:
            children.setdefault(status[1], []).append(int(folder.name))
    family: set[int] = set()
    pending = list(pids)
    while pending:
        pid = pending.pop()
        if pid not in family:
            family.add(pid)
            pending += children.get(pid, [])
    return family


def work_of(pids: Iterable[int], proc: Path = _PROC) -> dict[int, float]:
    """Return a measure of the work that each process has done, which grows while the process makes progress.

    It is the CPU time in seconds, plus 1 per 10 MB read. Processes that have ended are left out.
    """
    work: dict[int, float] = {}
    for pid in pids:
        with suppress(OSError, ValueError, IndexError):  # it has ended, or the kernel does not count reads
            times = (proc / str(pid) / "stat").read_bytes().rpartition(b")")[2].split()[11:13]
            work[pid] = sum(map(int, times)) / _TICKS
            counters = (proc / str(pid) / "io").read_bytes().split()
            # rchar counts read calls, also those served from the page cache; only read_bytes, from the disk, counts mapped files
            work[pid] += max(int(counters[1]), int(counters[9])) / 1e7
    return work


def is_stopped(pid: int, proc: Path = _PROC) -> bool:
    """Return whether a process is stopped by a signal or a debugger."""
    status = _status(proc / str(pid))
    return status is not None and status[0] in b"Tt"


def _status(folder: Path) -> tuple[bytes, int] | None:
    """Return state and parent id, from "PID (name) state parent ..."; the program chooses the name, which may hold any byte."""
    try:
        state, parent = (folder / "stat").read_bytes().rpartition(b")")[2].split()[:2]
        return state, int(parent)
    except (OSError, ValueError):  # it has ended
        return None


class StageProcess:
    """The process of another stage of this process's own server. /proc is searched only when the known process has ended."""

    def __init__(self, stage: str) -> None:
        self._stage, self._pid = stage, -1

    def find(self) -> int | None:
        """Return its process id; None if it has none (a C++ backend) or is not visible."""
        if self._pid < 0 or not is_alive(self._pid):
            processes = stage_processes(os.getppid())
            self._pid = next((pid for pid, stage in processes.items() if stage == self._stage), -1)
        return None if self._pid < 0 else self._pid
