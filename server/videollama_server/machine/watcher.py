"""Clean up after a killed `vl2 serve`: Triton's processes, shared memory and the folder.

Runs as a separate process, from the path of this file and with only the standard library: python -I watcher.py GROUP LOCK
SECONDS. The death of `vl2 serve` sends Triton SIGTERM; SECONDS later follows SIGKILL. The watcher acts when its standard
input closes: a byte before means that everything ended in order, none that `vl2 serve` was killed.
"""

import os
import shutil
import signal
import sys
import time
from contextlib import suppress
from pathlib import Path


def remove(lock: Path) -> None:
    """Remove a server's shared memory and what its lock file lists: its folder, then empty folders of Triton's.

    The names are checked, because anyone may write to /dev/shm.
    """
    name = lock.stem
    for path in lock.parent.glob(f"{name}-*"):
        with suppress(OSError):
            path.unlink()
    with suppress(OSError):
        folder, *environments = map(Path, lock.read_text("utf-8").splitlines())
        if folder.name == name and folder.stat().st_uid == os.geteuid():
            shutil.rmtree(folder, ignore_errors=True)
        for environment in environments:
            if environment.parent == Path("/tmp") and environment.name.startswith("python_env_"):
                with suppress(OSError):
                    environment.rmdir()
    with suppress(OSError):
        lock.unlink()


def _group_lives(group: int) -> bool:
    """Whether the group's leader is running. It is not our child, so init soon reaps it if it is a zombie."""
    try:
        status = Path(f"/proc/{group}/stat").read_bytes().rpartition(b")")[2].split()
    except OSError:
        return False
    return status[0] not in (b"Z", b"X")


def main(group: int, lock: Path, seconds: float) -> None:
    """Wait for the end of standard input, then clean up unless everything ended in order."""
    if sys.stdin.buffer.read():
        return
    deadline = time.monotonic() + seconds
    while _group_lives(group) and time.monotonic() < deadline:
        time.sleep(0.1)
    with suppress(OSError):
        os.killpg(group, signal.SIGKILL)
    remove(lock)


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]), float(sys.argv[3]))
