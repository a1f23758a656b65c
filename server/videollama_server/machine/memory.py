"""Settings of glibc's malloc for returning freed memory to Linux. No effect with other C libraries."""

import ctypes

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h of glibc
_NEVER, _LARGE = 2**30, 2**16  # bytes


def keep_freed() -> None:
    """Reuse freed memory instead of returning it, in this process and those forked from it.

    For short-lived processes: a tenth of the time for a short clip went into fresh pages for large pictures.
    """
    _set({_M_TRIM_THRESHOLD: _NEVER, _M_MMAP_THRESHOLD: _NEVER})


def map_large_blocks() -> None:
    """Allocate blocks of 64 KiB and more as separate mappings, which return to Linux when they are freed.

    By default, glibc raises that threshold to the size of freed blocks; the cached media tokens then fragment the heap,
    which grows.
    """
    _set({_M_MMAP_THRESHOLD: _LARGE})


def _set(options: dict[int, int]) -> None:
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        for option, value in options.items():
            mallopt(option, value)
