"""What Linux says about processes: the stages of a running server. The one place that reads /proc."""

import ctypes
import os
import signal
from pathlib import Path

from videollama_core.protocol import contract

_PR_SET_PDEATHSIG = 1  # linux/prctl.h
_PROC = Path("/proc")


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


def _status(folder: Path) -> tuple[bytes, int] | None:
    """State and parent, from "PID (name) state parent ...": the name is the program's own and may hold any byte."""
    try:
        state, parent = (folder / "stat").read_bytes().rpartition(b")")[2].split()[:2]
        return state, int(parent)
    except (OSError, ValueError):  # it ended meanwhile
        return None


def end_with_parent() -> None:
    """In a child, before it runs its program: it gets SIGTERM when its parent is gone, however that went."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
