"""What the C library does with memory that is given back to it.

By itself, glibc may give it back to the system and ask for it again in the next pass of a model, or may not;
that depends on what else happens to lie in memory. Where fresh memory is slow to come by, as on virtual
machines, the difference is up to a quarter of the time.
"""

from __future__ import annotations

import ctypes
import os
import platform
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
"""Names of glibc's settings, of ``malloc.h``."""

_LARGEST_IN_HEAP = 2**25
"""Bytes of the largest block that glibc lets be kept, 32 MiB; larger ones are always given back."""

_LIMIT = 2**30
"""Bytes of free memory at the end of the heap beyond which it is given back, where it is to be kept."""


class _State:
    """Who wants what of the allocator, which is the process's."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.contexts = 0
        self.chosen = False

    @property
    def is_decided(self) -> bool:
        """Whether the user has decided already what is done with freed memory."""
        settings = any(name.startswith("MALLOC_") for name in os.environ)
        return self.chosen or settings or "glibc.malloc" in os.environ.get("GLIBC_TUNABLES", "")

    def count(self, change: int, trim: int) -> None:
        """Another context, or one less; the first and the last set the threshold."""
        with self.lock:
            if not (self.contexts and self.contexts + change) and not self.is_decided:
                _set_thresholds(trim)
            self.contexts += change


_state = _State()


def keep_freed_memory(limit: int = _LIMIT) -> bool:
    """Let the C library keep memory that an explanation has freed, for the next one to have it.

    The setting is the process's, for good, and so are up to `limit` bytes that are free but not the system's.

    Args:
        limit: bytes of free memory at the end of the heap beyond which it is given back.

    Returns:
        Whether that has been set: not where the C library is another one, as on macOS and Windows.
    """
    with _state.lock:
        was_set = _set_thresholds(min(max(limit, 0), 2**31 - 1))
        _state.chosen |= was_set
    return was_set


@contextmanager
def memory_kept() -> Iterator[None]:
    """Context in which the C library keeps freed memory; on leaving it may give it back.

    It then does as in any program that has once freed a block of 32 MiB: what is free beyond 64 MiB at the
    end of the heap goes back with the next large block that is freed there. Where the user has decided what
    it does, by `keep_freed_memory` or in the environment, nothing is changed. Contexts may overlap.
    """
    _state.count(+1, _LIMIT)
    try:
        yield
    finally:
        _state.count(-1, 2 * _LARGEST_IN_HEAP)


def _set_thresholds(trim: int) -> bool:
    """Keep all blocks that can be kept, and up to `trim` free bytes at the end of the heap."""
    mallopt = _mallopt()
    # Each of the two ends glibc's own choice of both.
    return mallopt is not None and all(
        (mallopt(_MMAP_THRESHOLD, _LARGEST_IN_HEAP), mallopt(_TRIM_THRESHOLD, trim))
    )


@cache
def _mallopt() -> ctypes._NamedFuncPointer | None:
    return ctypes.CDLL(None).mallopt if platform.libc_ver()[0] == "glibc" else None
