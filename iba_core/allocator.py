"""What the C library does with memory that is given back to it."""

from __future__ import annotations

import ctypes
import platform

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
"""Names of glibc's settings, of ``malloc.h``."""

_LARGEST_IN_HEAP = 2**25
"""Bytes of the largest block that glibc lets be kept, 32 MiB; larger ones are always given back."""


def keep_freed_memory(limit: int = 2**30) -> bool:
    """Let the C library keep memory that a pass has freed, for the next pass to have it.

    By itself, glibc may give it back to the system and ask for it again in the next pass, or may not; that
    depends on what else happens to lie in memory. Where fresh memory is slow to come by, as on virtual
    machines, the difference is up to a quarter of the time. The setting is the process's, for good, and so
    are up to `limit` bytes that are free but not the system's.

    Args:
        limit: bytes of free memory at the end of the heap beyond which it is given back.

    Returns:
        Whether that has been set: not where the C library is another one, as on macOS and Windows.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    # Each of the two ends glibc's own choice of both.
    limit = min(max(limit, 0), 2**31 - 1)
    return bool(mallopt(_MMAP_THRESHOLD, _LARGEST_IN_HEAP)) and bool(mallopt(_TRIM_THRESHOLD, limit))
