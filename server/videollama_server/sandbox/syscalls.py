"""A seccomp filter of the system calls that decoding needs; every other one fails with EPERM.

None of them opens or creates a file, starts a program or a process, uses the network, or reaches another process. fcntl is
left out because it could have any process of the same user signalled.
"""

import errno
import os
import platform
import struct

_KILL, _ALLOW, _ERROR = 0x80000000, 0x7FFF0000, 0x00050000  # linux/seccomp.h: SECCOMP_RET_*
_LOAD, _EQUAL, _HAS_BITS, _RETURN = 0x20, 0x15, 0x45, 0x06  # linux/bpf_common.h: ld [k]; jeq k; jset k; ret k
# Offsets in struct seccomp_data; each argument has 8 bytes, low half first.
_NUMBER, _ARCHITECTURE, _ARGUMENTS = 0, 4, 16
_CLONE_THREAD = 0x00010000
_PR_SET_NAME = 15

# Machine -> linux/audit.h's AUDIT_ARCH_*, and its column in the table.
_MACHINES = {"x86_64": (0xC000003E, 0), "aarch64": (0xC00000B7, 1)}
_CALLS: dict[str, tuple[int, int]] = {  # x86-64, aarch64
    "read": (0, 63),
    "write": (1, 64),
    "readv": (19, 65),
    "writev": (20, 66),
    "pread64": (17, 67),
    "pwrite64": (18, 68),
    "lseek": (8, 62),
    "ftruncate": (77, 46),
    "fstat": (5, 80),
    # glibc implements fstat by it; for a path, it reveals no more than metadata such as the size.
    "newfstatat": (262, 79),
    "recvmsg": (47, 212),  # receives the next request from the only socket
    "close": (3, 57),
    "mmap": (9, 222),
    "munmap": (11, 215),
    "mremap": (25, 216),
    "mprotect": (10, 226),
    "madvise": (28, 233),
    "brk": (12, 214),
    "futex": (202, 98),
    "set_robust_list": (273, 99),
    "rseq": (334, 293),
    "membarrier": (324, 283),
    "rt_sigaction": (13, 134),
    "rt_sigprocmask": (14, 135),
    "rt_sigreturn": (15, 139),
    "sigaltstack": (131, 132),
    "restart_syscall": (219, 128),
    "exit": (60, 93),
    "exit_group": (231, 94),
    "getpid": (39, 172),
    "gettid": (186, 178),
    "getrandom": (318, 278),
    "clock_gettime": (228, 113),
    "clock_getres": (229, 114),
    "clock_nanosleep": (230, 115),
    "nanosleep": (35, 101),
    "gettimeofday": (96, 169),
    "getrusage": (98, 165),
    "sysinfo": (99, 179),
    "uname": (63, 160),
    "sched_yield": (24, 124),
    "sched_getaffinity": (204, 123),
    "getcpu": (309, 168),
}
_CLONE = (56, 220)  # only to start a thread
_CLONE3 = (435, 435)  # a filter cannot inspect its flags; without clone3, glibc uses clone
_TGKILL = (234, 131)  # only to its own process, for abort()
_PRCTL = (157, 167)  # only to name a thread


def build_filter(pid: int | None = None, machine: str | None = None) -> bytes | None:
    """Build the BPF program (struct sock_filter, 8 bytes each) for one process; None for an unsupported machine."""
    entry = _MACHINES.get(machine or platform.machine())
    if entry is None:
        return None
    architecture, column = entry
    pid = os.getpid() if pid is None else pid

    program = [_step(_LOAD, _ARCHITECTURE), _step(_EQUAL, architecture, 1, 0), _step(_RETURN, _KILL)]
    program.append(_step(_LOAD, _NUMBER))
    for call in _CALLS.values():
        program += [_step(_EQUAL, call[column], 0, 1), _step(_RETURN, _ALLOW)]
    program += [_step(_EQUAL, _CLONE3[column], 0, 1), _step(_RETURN, _ERROR | errno.ENOSYS)]
    for call, test, value in (
        (_CLONE, _HAS_BITS, _CLONE_THREAD),
        (_TGKILL, _EQUAL, pid),
        (_PRCTL, _EQUAL, _PR_SET_NAME),
    ):
        program += [
            _step(_EQUAL, call[column], 0, 4),
            _step(_LOAD, _ARGUMENTS),
            _step(test, value, 0, 1),
            _step(_RETURN, _ALLOW),
            _step(_RETURN, _ERROR | errno.EPERM),
        ]
    program.append(_step(_RETURN, _ERROR | errno.EPERM))
    return b"".join(program)


def _step(code: int, value: int, if_true: int = 0, if_false: int = 0) -> bytes:
    return struct.pack("=HBBI", code, if_true, if_false, value)
