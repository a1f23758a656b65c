"""How a process gives back to Linux what it frees: settings of glibc's malloc. Elsewhere nothing happens."""

import ctypes

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h of glibc
_NEVER, _LARGE = 2**30, 2**16  # bytes


def keep_freed() -> None:
    """Freed memory is taken again instead of being given back, for a process that ends with its answer: of a short clip's time a
    tenth went into fresh pages of large pictures. For this process and those forked from it.
    """
    _set({_M_TRIM_THRESHOLD: _NEVER, _M_MMAP_THRESHOLD: _NEVER})


def map_large_blocks() -> None:
    """Of this process each block of 64 KiB and more becomes a mapping of its own, which goes back to Linux when it is freed.

    glibc raises that size to what was freed last; the tables that are kept about media then leave holes in the heap, which grows.
    """
    _set({_M_MMAP_THRESHOLD: _LARGE})


def _set(options: dict[int, int]) -> None:
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        for option, value in options.items():
            mallopt(option, value)
