"""Confinement: a decoding process gives up files, programs, the network and other processes; its resources are limited.

Each part is used if the kernel supports it, and verified by attempting what it forbids (`tried`).
"""

import ctypes
import json
import math
import os
import resource
import signal
import socket
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from videollama_core.media.video_decoders import DECODER_VARIABLE
from videollama_server.sandbox.syscalls import build_filter

# linux/prctl.h, linux/landlock.h; Landlock's syscall numbers are the same on every machine.
_PR_SET_PDEATHSIG, _PR_SET_NAME, _PR_SET_SECCOMP, _PR_SET_NO_NEW_PRIVS, _SECCOMP_MODE_FILTER = 1, 15, 22, 38, 2
_CREATE_RULESET, _RESTRICT_SELF, _RULESET_VERSION = 444, 446, 1
_FILE_RIGHTS = {1: 13, 2: 14, 3: 15, 5: 16}  # Landlock ABI -> number of file rights that it has
_TCP_ABI, _TCP_RIGHTS = 4, 0b11  # bind, connect
_SCOPE_ABI, _SCOPES = 6, 0b11  # abstract Unix sockets, signals
PARTS = ("landlock", "seccomp")
IN_FORCE = "in force"

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long


def data_bytes(pid: int) -> int:
    """Data and stack of a process, in bytes."""
    return int(Path(f"/proc/{pid}/statm").read_bytes().split()[5]) * resource.getpagesize()


def processor_seconds(pid: int) -> float:
    """Processor time of all threads of a process that has not been reaped yet."""
    # From field 3 of proc(5) on; the name before it may contain any characters.
    fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def name_process(name: str) -> None:
    """Set the name of this process that `ps` and `top` show."""
    _libc.prctl(_PR_SET_NAME, name.encode())


def set_limits(pid: int, cpu_seconds: int, memory: int, mapped: int, file_bytes: int, for_good: bool) -> None:
    """Limit the resources of a process.

    Args:
        cpu_seconds: processor time from now until SIGXCPU ends it.
        memory: bytes of data and stack, including what it already has.
        mapped: bytes of address space, the only limit on shared, read-only and growing-down mappings; -1 for no limit.
        file_bytes: the size of its answer, which is in memory, too.
        for_good: lower the hard limits, too, so that neither it nor its parent can raise them; without this, only seccomp
            keeps it from doing so.
    """
    limits = {
        resource.RLIMIT_CPU: math.ceil(processor_seconds(pid)) + cpu_seconds,
        resource.RLIMIT_DATA: memory,
        resource.RLIMIT_AS: mapped,
        resource.RLIMIT_FSIZE: file_bytes,
        resource.RLIMIT_CORE: 0,
    }
    for name, limit in limits.items():
        most = resource.prlimit(pid, name)[1]
        if most != resource.RLIM_INFINITY:
            limit = most if limit == resource.RLIM_INFINITY else min(limit, most)
        resource.prlimit(pid, name, (limit, limit if for_good else most))


def die_with_parent() -> None:
    """Be killed when the parent ends. The parent must be single-threaded: the signal follows the thread that forked."""
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def enter(parts: tuple[str, ...] = PARTS) -> None:
    """Give up opening files, starting programs and reaching anything else. Raises: OSError if a part is unavailable."""
    _check(_libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))
    if "landlock" in parts:
        _enter_landlock()
    if "seccomp" in parts:
        _enter_seccomp()


def _enter_landlock() -> None:
    """Forbid everything that the kernel's Landlock can forbid."""
    abi = _check(_libc.syscall(_CREATE_RULESET, None, 0, _RULESET_VERSION))
    files = (1 << max(count for since, count in _FILE_RIGHTS.items() if since <= abi)) - 1
    rights = [files]
    if abi >= _TCP_ABI:
        rights.append(_TCP_RIGHTS)
    if abi >= _SCOPE_ABI:
        rights.append(_SCOPES)
    attributes = struct.pack(f"={len(rights)}Q", *rights)
    ruleset = _check(_libc.syscall(_CREATE_RULESET, attributes, ctypes.c_size_t(len(attributes)), 0))
    try:
        _check(_libc.syscall(_RESTRICT_SELF, ruleset, 0))
    finally:
        os.close(ruleset)


def _enter_seccomp() -> None:
    program = build_filter()
    if program is None:
        raise OSError("there is no seccomp filter for this machine")
    buffer = ctypes.create_string_buffer(program, len(program))
    head = struct.pack("=HxxxxxxQ", len(program) // 8, ctypes.addressof(buffer))  # struct sock_fprog
    _check(_libc.prctl(_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, head, 0, 0))


def _check(result: int) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result


# --- checking what is in force ----------------------------------------------------------------------------------------------------


def examine() -> dict[str, str]:
    """Call `tried` in a separate process, for callers with threads."""
    done = subprocess.run([sys.executable, "-m", __name__], capture_output=True, text=True, timeout=30, check=False)
    states: dict[str, str] = json.loads(done.stdout) if done.returncode == 0 else dict.fromkeys(PARTS, "not tried")
    return states


def opens_devices(decoder: str | None = None) -> bool:
    """Whether video files are decoded on a GPU, which neither part allows; `decoder` defaults to the environment's."""
    return (decoder or os.environ.get(DECODER_VARIABLE)) == "nvdec"


def for_video_files(states: dict[str, str], decoder: str | None = None) -> dict[str, str]:
    """Turn the result of `tried` into what is in force while a video file is decoded."""
    if not opens_devices(decoder):
        return states
    left_out = "not in force for video files: nvdec needs devices"
    return {part: left_out if state == IN_FORCE else state for part, state in states.items()}


def tried() -> dict[str, str]:
    """Return "in force", or what is missing, for each part: a forked process enters it and attempts what it forbids.

    Only for single-threaded callers.
    """
    return {part: _tried(part) for part in PARTS}


def _tried(part: str) -> str:
    reading, writing = os.pipe()
    pid = os.fork()
    if not pid:
        try:
            os.write(writing, _try(part).encode())
        finally:
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as file:
        state = file.read().decode()
    os.waitpid(pid, 0)
    return state or "the process that tried it died"


def _try(part: str) -> str:
    try:
        enter((part,))
    except OSError as error:
        return f"not available here: {error.strerror or error}"
    forbidden: dict[str, Callable[[], object]] = {"a file was opened": lambda: os.open("/etc/passwd", os.O_RDONLY)}
    if part == "seccomp":
        forbidden |= {"a socket was opened": socket.socket, "a process was started": os.fork}
    for effect, attempt in forbidden.items():
        try:
            attempt()
        except OSError:
            continue
        return f"entered without effect: {effect}"
    return IN_FORCE


if __name__ == "__main__":
    print(json.dumps(tried()))
