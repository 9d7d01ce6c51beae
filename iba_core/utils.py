"""Two small helpers, for compatibility with code written for the reference implementation."""

from __future__ import annotations

from typing import Any, TypeVar

A = TypeVar("A")
B = TypeVar("B")


def ifnone(a: A | None, b: B) -> A | B:
    """Return `b` if `a` is None, else `a`, even if `a` is 0 or False.

    Example:
        >>> ifnone(None, 5), ifnone(0, 5)
        (5, 0)
    """
    return b if a is None else a


def get_tqdm() -> Any:
    """Return the progress bar ``tqdm``: a widget in a notebook that supports it, else text.

    Example:
        >>> tqdm = get_tqdm()
        >>> sum(tqdm([1, 2, 3], disable=True))
        6
    """
    try:
        from tqdm.auto import tqdm
    except ImportError:
        from tqdm import tqdm
    return tqdm
