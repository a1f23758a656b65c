"""Runs a program that gets SIGTERM when its parent is gone, however that went.

A process of its own until then, by the path of this file and with the standard library alone:
python -I -S with_parent.py PARENT PROGRAM ARGUMENTS. Between fork and exec of a process that speaks gRPC nothing may run: gRPC
starts its threads anew in the child, which then finds its files closed and aborts.
"""

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1  # linux/prctl.h


def command(words: list[str]) -> list[str]:
    """The words that run a program, given by its own words, so.

    To be started by this process, in a thread that lives as long as the program may: Linux counts that thread as its parent.
    """
    return [sys.executable, "-I", "-S", __file__, str(os.getpid()), *words]


def main(parent: int, words: list[str]) -> None:
    """Become the program; end where the process with the id `parent` is gone already. Raises: OSError where it cannot run."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() == parent:  # else it was gone before
        os.execvp(words[0], words)


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2:])
