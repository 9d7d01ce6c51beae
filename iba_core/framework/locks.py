"""Locks that a forked child can take."""

from __future__ import annotations

import os
from threading import RLock
from typing import Any
from weakref import WeakSet

_locks: WeakSet[Any] = WeakSet()


def fork_safe_lock() -> Any:
    """Make a lock that one thread may take several times, and that is free in a forked child.

    A child has only the thread that has forked. An ordinary lock that another thread held at that moment
    would never become free.

    Example:
        >>> with fork_safe_lock():
        ...     "one thread at a time"
        'one thread at a time'
    """
    lock = RLock()
    _locks.add(lock)
    return lock


def _free() -> None:
    for lock in _locks:
        # What the standard library does with its own locks.
        lock._at_fork_reinit()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_free)
