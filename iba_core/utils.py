"""Two small helpers that code written for the reference implementation imports."""

from __future__ import annotations

from typing import Any, TypeVar

A = TypeVar("A")
B = TypeVar("B")


def ifnone(a: A | None, b: B) -> A | B:
    """`b` if `a` is None, else `a`, also where `a` is 0 or False."""
    return b if a is None else a


def get_tqdm() -> Any:
    """The progress bar ``tqdm``: a widget in a notebook that can show one, else text in the terminal."""
    try:
        from tqdm.auto import tqdm
    except ImportError:
        from tqdm import tqdm
    return tqdm
