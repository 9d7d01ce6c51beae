"""Contexts that undo what they have done, also where an interrupt comes while they undo it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from iba_core.framework.locks import fork_safe_lock


@contextmanager
def undoing(undo: Callable[[], object]) -> Iterator[None]:
    """Context that calls a function at its end, however it ends.

    An interrupt may come while the function runs. Then it runs again.

    Args:
        undo: does no harm if it runs twice, or if nothing has been done yet.

    Example:
        >>> with undoing(lambda: print("as before")):
        ...     print("changed")
        changed
        as before
    """
    is_undone = False
    try:
        yield
    finally:
        try:
            undo()
            is_undone = True
        finally:
            if not is_undone:
                undo()


class WhileUsed(ABC):
    """A change of the whole process, there while at least one context is open."""

    def __init__(self) -> None:
        self._users: set[object] = set()
        self._lock = fork_safe_lock()

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Context, which may overlap with others, in which the change is there."""
        user = object()
        with undoing(lambda: self._leave(user)):
            with self._lock:
                self._users.add(user)
                self._begin()
            yield

    def _leave(self, user: object) -> None:
        with self._lock:
            self._users.discard(user)
            if not self._users:
                self._end()

    @abstractmethod
    def _begin(self) -> None:
        """Make the change, unless it is there."""

    @abstractmethod
    def _end(self) -> None:
        """Undo the change, if it is there."""
