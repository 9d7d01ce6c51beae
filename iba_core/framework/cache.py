"""A few results that are expensive to make again, such as compiled steps."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Any, Generic, TypeVar

from iba_core.framework.locks import fork_safe_lock

V = TypeVar("V")


class Cache(Generic[V]):
    """The results used last, by key. Threads may share it; a copy or a pickle of it is empty.

    Args:
        size: how many results to keep.

    Example:
        >>> squares = Cache(size=2)
        >>> squares.get(3, lambda: 3 * 3)
        9
    """

    def __init__(self, size: int) -> None:
        self._size = size
        self._lock = fork_safe_lock()
        self._known: OrderedDict[Hashable, V] = OrderedDict()

    def get(self, key: Hashable, make: Callable[[], V]) -> V:
        """Return the result for `key`, made by `make` unless it is known."""
        with self._lock:
            if key not in self._known:
                self._known[key] = make()
                if len(self._known) > self._size:
                    self._known.popitem(last=False)
            self._known.move_to_end(key)
            return self._known[key]

    def clear(self) -> None:
        """Forget all results."""
        with self._lock:
            self._known.clear()

    def __deepcopy__(self, memo: dict[int, Any]) -> Cache[V]:
        return Cache(self._size)

    def __reduce__(self) -> tuple[type[Cache[V]], tuple[int]]:
        return Cache, (self._size,)
