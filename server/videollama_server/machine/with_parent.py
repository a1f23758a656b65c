"""Run a program that receives SIGTERM when its parent dies, for whatever reason.

Started from the path of this file and with only the standard library: python -I -S with_parent.py PARENT PROGRAM ARGUMENTS.
A separate interpreter, because nothing may run between fork and exec in a process that uses gRPC: gRPC restarts its threads
in the child, which then finds its files closed and aborts.
"""

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1  # linux/prctl.h


def command(words: list[str]) -> list[str]:
    """The command line that runs a program this way.

    This process must start it, from a thread that outlives the program: Linux treats that thread as the parent.
    """
    return [sys.executable, "-I", "-S", __file__, str(os.getpid()), *words]


def main(parent: int, words: list[str]) -> None:
    """Become the program, or end if process `parent` is already gone. Raises: OSError if the program cannot run."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() == parent:  # otherwise it died before prctl
        os.execvp(words[0], words)


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2:])
