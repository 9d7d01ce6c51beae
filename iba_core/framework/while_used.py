"""Changes of the whole process that are there only while someone needs them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager

from iba_core.framework.locks import fork_safe_lock
from iba_core.undo import undoing


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
