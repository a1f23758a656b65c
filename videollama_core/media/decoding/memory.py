"""How a process that ends with its answer treats the memory that it frees."""

import ctypes

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h of glibc
_NEVER = 2**30  # bytes


def keep_freed() -> None:
    """Freed memory is taken again instead of being given back: of a short clip's time a tenth went into fresh pages of large pictures.

    For this process and those forked from it. Nothing happens where the C library is not glibc.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        for setting in (_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD):
            mallopt(setting, _NEVER)
