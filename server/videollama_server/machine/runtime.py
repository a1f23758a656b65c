"""The folder and the /dev/shm files of one server, which are removed however it ends."""

import fcntl
import os
import shutil
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from videollama_core.protocol.errors import ServerFailed
from videollama_server.machine.watcher import remove

SHARED = Path("/dev/shm")
ENVIRONMENTS = Path("/tmp/python_env_*")  # every Triton with a Python backend makes such an empty folder
_TURN_SECONDS = 5.0  # how long to wait for other servers that start
_FOLDER_SECONDS = 2.0  # how long to wait for Triton's folder
_POLL_SECONDS = 0.01
_NAME = "vl2-serve-"


class Runtime:
    """The folder and the shared memory of one server.

    A lock file beside the shared memory lists what belongs to this server. Every process of the server inherits the lock, so
    the next server, even in another container on the same /dev/shm, can tell what a killed one left from what is in use.

    Attributes:
        lock: file descriptor that the processes of the server must inherit.

    Args:
        shared: where shared memory is mounted.
        executable: whether programs must be able to run from the folder; Triton's stub is copied into it.
    Raises: ServerFailed if shared memory cannot be written, or neither TMPDIR nor /var/tmp is suitable for the folder.
    """

    def __init__(self, shared: Path = SHARED, executable: bool = True) -> None:
        remove_left_behind(shared)
        self.folder = Path(tempfile.mkdtemp(prefix=_NAME, dir=program_folder() if executable else None))
        self.prefix = f"{self.folder.name}-"  # of the name of every shared memory region
        self._shared, self.lock_path = shared, shared / f"{self.folder.name}.lock"
        draft = shared / f"{self.folder.name}.draft"  # renamed once locked, so that the lock file is never unlocked
        try:
            self.lock = os.open(draft, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
        except OSError as error:
            shutil.rmtree(self.folder)
            raise ServerFailed(
                f"{shared} cannot be written ({error.strerror}); the stages pass tensors through it: mount it writable (docker: --shm-size 2g)"
            ) from error
        fcntl.flock(self.lock, fcntl.LOCK_EX)
        os.write(self.lock, f"{self.folder}\n".encode())
        draft.rename(self.lock_path)

    def note_environment(self, start: Callable[[], None], is_running: Callable[[], bool]) -> None:
        """Start a Triton and record the folder that it makes in /tmp at startup, for removal.

        Servers take turns, because nothing tells which of several new folders is whose. The lock is on /tmp itself, which
        leaves no file behind.
        """
        temporary = os.open(ENVIRONMENTS.parent, os.O_RDONLY)
        try:
            self._wait_for_turn(temporary)
            before, deadline = environments(), time.monotonic() + _FOLDER_SECONDS
            start()
            while not (new := environments() - before) and is_running() and time.monotonic() < deadline:
                time.sleep(_POLL_SECONDS)
        finally:
            os.close(temporary)
        if len(new) == 1:
            os.write(self.lock, f"{new.pop()}\n".encode())

    def _wait_for_turn(self, temporary: int) -> None:
        """Lock /tmp, or give up after a few seconds: any process may hold such a lock."""
        deadline = time.monotonic() + _TURN_SECONDS
        while time.monotonic() < deadline:
            with suppress(BlockingIOError):
                fcntl.flock(temporary, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            time.sleep(_POLL_SECONDS)

    def remove_shared_memory(self) -> None:
        """Remove the shared memory; only after all processes of the server have ended."""
        for path in self._shared.glob(f"{self.prefix}*"):
            with suppress(OSError):
                path.unlink()

    def remove(self) -> None:
        """Remove everything; further calls have no effect."""
        if self.lock >= 0:
            remove(self.lock_path)
            os.close(self.lock)
            self.lock = -1


def environments() -> set[Path]:
    """The folders that Tritons have made in /tmp."""
    return set(ENVIRONMENTS.parent.glob(ENVIRONMENTS.name))


def remove_left_behind(shared: Path = SHARED) -> None:
    """Remove what dead servers have left, those without any running process."""
    for path in shared.glob(f"{_NAME}*.lock"):
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_NOFOLLOW)
        except OSError:  # it belongs to another user
            continue
        try:
            if os.fstat(descriptor).st_uid == os.geteuid():
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                remove(path)
        except BlockingIOError:
            pass  # the server is running
        finally:
            os.close(descriptor)


def allows_programs(folder: Path) -> bool:
    return not os.statvfs(folder).f_flag & os.ST_NOEXEC


def program_folder() -> Path:
    """TMPDIR, or /var/tmp if programs must not run from TMPDIR. Raises: ServerFailed if neither is suitable."""
    default = Path(tempfile.gettempdir())
    for folder in (default, Path("/var/tmp")):
        if folder.is_dir() and allows_programs(folder) and os.access(folder, os.W_OK | os.X_OK):
            return folder
    raise ServerFailed(
        f"{default} is mounted noexec, and Triton's Python stub must run from a folder there; mount it exec "
        "(docker: --tmpfs /tmp:exec), or set TMPDIR to a folder on another file system"
    )
