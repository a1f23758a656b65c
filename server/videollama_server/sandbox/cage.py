"""What a process gives up before it decodes: files, programs, the network, other processes; and how much it may take.

Each part is asked for where the kernel has it, and proved by trying what it forbids (`tried`).
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

# linux/prctl.h, linux/landlock.h; the numbers of Landlock's calls are the same on every machine.
_PR_SET_PDEATHSIG, _PR_SET_NAME, _PR_SET_SECCOMP, _PR_SET_NO_NEW_PRIVS, _SECCOMP_MODE_FILTER = 1, 15, 22, 38, 2
_CREATE_RULESET, _RESTRICT_SELF, _RULESET_VERSION = 444, 446, 1
_FILE_RIGHTS = {1: 13, 2: 14, 3: 15, 5: 16}  # ABI -> rights over files that it knows
_TCP_ABI, _TCP_RIGHTS = 4, 0b11  # bind, connect
_SCOPE_ABI, _SCOPES = 6, 0b11  # sockets without a path, signals
PARTS = ("landlock", "seccomp")
IN_FORCE = "in force"

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long


def data_bytes(pid: int) -> int:
    """Data and stack of a process."""
    return int(Path(f"/proc/{pid}/statm").read_bytes().split()[5]) * resource.getpagesize()


def processor_seconds(pid: int) -> float:
    """Of all threads of a process that was not waited for yet."""
    # From field 3 of proc(5) on: the name before it may hold anything.
    fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def name_process(name: str) -> None:
    """As `ps` and `top` show it."""
    _libc.prctl(_PR_SET_NAME, name.encode())


def set_limits(pid: int, cpu_seconds: int, memory: int, mapped: int, file_bytes: int, for_good: bool) -> None:
    """Bound what a process takes.

    Args:
        cpu_seconds: of processor time beside what it has taken, until SIGXCPU ends it.
        memory: bytes of data and stack, with what it holds already.
        mapped: bytes of all its memory: what is shared, made read-only or grows down counts in nothing else. -1 is no limit.
        file_bytes: of what it answers, which lies in memory too.
        for_good: it could not raise them again, nor could its parent; without it, seccomp alone keeps it from that.
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
    """For a process whose parent has one thread: the signal comes when that ends."""
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def enter(parts: tuple[str, ...] = PARTS) -> None:
    """No file can be opened and nothing be started or reached any more. Raises: OSError where a part is not to be had."""
    _check(_libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))
    if "landlock" in parts:
        _enter_landlock()
    if "seccomp" in parts:
        _enter_seccomp()


def _enter_landlock() -> None:
    """Of everything that the kernel's Landlock knows, nothing is allowed."""
    abi = _check(_libc.syscall(_CREATE_RULESET, None, 0, _RULESET_VERSION))
    files = (1 << max(count for known, count in _FILE_RIGHTS.items() if known <= abi)) - 1
    words = [files]
    if abi >= _TCP_ABI:
        words.append(_TCP_RIGHTS)
    if abi >= _SCOPE_ABI:
        words.append(_SCOPES)
    attributes = struct.pack(f"={len(words)}Q", *words)
    ruleset = _check(_libc.syscall(_CREATE_RULESET, attributes, ctypes.c_size_t(len(attributes)), 0))
    try:
        _check(_libc.syscall(_RESTRICT_SELF, ruleset, 0))
    finally:
        os.close(ruleset)


def _enter_seccomp() -> None:
    program = build_filter()
    if program is None:
        raise OSError("no filter is known for this machine")
    buffer = ctypes.create_string_buffer(program, len(program))
    head = struct.pack("=HxxxxxxQ", len(program) // 8, ctypes.addressof(buffer))  # struct sock_fprog
    _check(_libc.prctl(_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, head, 0, 0))


def _check(result: int) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result


# --- what is in force ----------------------------------------------------------------------------------------------------


def examine() -> dict[str, str]:
    """As `tried`, from a process of its own: for one with threads."""
    done = subprocess.run([sys.executable, "-m", __name__], capture_output=True, text=True, timeout=30, check=False)
    found: dict[str, str] = json.loads(done.stdout) if done.returncode == 0 else dict.fromkeys(PARTS, "not tried")
    return found


def opens_devices(decoder: str | None = None) -> bool:
    """Whether video files are decoded on a GPU, which neither part leaves within reach; without a name, of the decoder that the environment names."""
    return (decoder or os.environ.get(DECODER_VARIABLE)) == "nvdec"


def for_video_files(found: dict[str, str], decoder: str | None = None) -> dict[str, str]:
    """What was `tried` -> what is in force while a video file is decoded."""
    if not opens_devices(decoder):
        return found
    left_out = "not in force for video files: nvdec needs devices"
    return {part: left_out if state == IN_FORCE else state for part, state in found.items()}


def tried() -> dict[str, str]:
    """Part -> "in force", or what is missing: each is entered in a process of its own, and what it forbids is tried there.

    For a process with one thread.
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
        told = file.read().decode()
    os.waitpid(pid, 0)
    return told or "the process that tried it died"


def _try(part: str) -> str:
    try:
        enter((part,))
    except OSError as error:
        return f"not to be had here: {error.strerror or error}"
    forbidden: dict[str, Callable[[], object]] = {"a file was opened": lambda: os.open("/etc/passwd", os.O_RDONLY)}
    if part == "seccomp":
        forbidden |= {"a socket was made": socket.socket, "a process was started": os.fork}
    for what, attempt in forbidden.items():
        try:
            attempt()
        except OSError:
            continue
        return f"entered without effect: {what}"
    return IN_FORCE


if __name__ == "__main__":
    print(json.dumps(tried()))
