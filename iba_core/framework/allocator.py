"""What the C library does with memory that a pass of a model frees.

By itself, glibc may return it to the system and ask for it again in the next pass, or keep it. That depends
on what else happens to be in memory. On virtual machines, where fresh memory is slow to get, keeping it saves
up to a quarter of the time.
"""

from __future__ import annotations

import ctypes
import platform
import sys
from functools import cache

from iba_core.arguments import require_whole

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
"""Names of glibc's settings, from ``malloc.h``."""

_LARGEST_IN_HEAP = 2**25
"""Size in bytes of the largest block that glibc can keep, 32 MiB; larger ones always go back to the
system."""


def keep_freed_memory(limit: int = 2**30) -> bool:
    """Let the C library keep freed memory, so that the next explanation can use it.

    This setting is for the whole process and cannot be read, so it cannot be restored either. Nothing in the
    library calls it except the command line, whose process is its own.

    Args:
        limit: bytes of free memory at the end of the heap beyond which it is returned to the system.

    Returns:
        True if it has been set. False where the C library is not glibc, as on macOS and Windows.

    Example:
        >>> keep_freed_memory() in (True, False)
        True
    """
    require_whole("limit", limit, -sys.maxsize)
    mallopt = c_library_setting()
    trim = min(max(limit, 0), 2**31 - 1)
    # Setting one of the two ends glibc's own choice of both.
    return mallopt is not None and all(
        (mallopt(_MMAP_THRESHOLD, _LARGEST_IN_HEAP), mallopt(_TRIM_THRESHOLD, trim))
    )


@cache
def c_library_setting() -> ctypes._NamedFuncPointer | None:
    """The function of glibc that changes such a setting; None for another C library."""
    return ctypes.CDLL(None).mallopt if platform.libc_ver()[0] == "glibc" else None
