"""What Linux says about processes: the stages of a running server, read from /proc."""

import ctypes
import os
import signal
from pathlib import Path

from videollama_core.protocol import contract

_PR_SET_PDEATHSIG = 1  # linux/prctl.h


def stage_processes(server_pid: int, proc: Path = Path("/proc")) -> dict[int, str]:
    """Process id -> stage, of every living stub of a server. Other processes of the machine may be named anything."""
    stages = {}
    for stat in proc.glob("[0-9]*/stat"):
        try:
            # "PID (name) state parent ...": the name is the program's own and may hold any byte.
            state, parent = stat.read_bytes().rpartition(b")")[2].split()[:2]
            command = (stat.parent / "cmdline").read_bytes().split(b"\0")
        except (OSError, ValueError):  # it ended meanwhile
            continue
        if int(parent) != server_pid or state in b"ZX":
            continue
        script = next((Path(os.fsdecode(part)) for part in command if part.endswith(b"/1/model.py")), None)
        if script is not None and script.parts[-3] in contract.STAGES:
            stages[int(stat.parent.name)] = script.parts[-3]
    return stages


def end_with_parent() -> None:
    """In a child, before it runs its program: it gets SIGTERM when its parent is gone, however that went."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
