"""The errors this library raises on purpose, each with one sentence that says what would be right."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches

import numpy as np


class IBAError(Exception):
    """Base of every error raised on purpose; the command line prints its message alone."""


class InputError(IBAError, ValueError):
    """An argument has the wrong type, shape, range or content."""


class LayerError(IBAError, ValueError):
    """A layer does not exist, never runs, or cannot be cut."""


class NotEstimatedError(IBAError, RuntimeError):
    """Mean and standard deviation of the features are needed and not there."""


class StateError(IBAError, ValueError):
    """A state file is missing, truncated, or of another kind."""


class OptimizationError(IBAError, ArithmeticError):
    """The bottleneck's objective turned non-finite."""


class MissingDependencyError(IBAError, ImportError):
    """An optional package is needed; the message names the extra that brings it."""


def is_whole_number(value: object, least: int = 0, most: int | None = None) -> bool:
    """Whether `value` is an integer, of Python or NumPy and no boolean, from `least` to `most`."""
    return (
        isinstance(value, (int, np.integer))
        and not isinstance(value, bool)
        and bool(least <= value)
        and (most is None or bool(value <= most))
    )


def closest(name: str, known: Iterable[str], n: int = 3) -> str:
    """Phrase offering the known names closest to `name`, for the end of an error message.

    Args:
        name: what the caller asked for.
        known: the names that exist.
        n: how many to offer at most.

    Returns:
        Such as ``"the closest names are 'features.16', 'features.17'"``, or, where nothing is close,
        the first names there are.
    """
    names = list(known)
    if not names:
        return "there are none"
    near = get_close_matches(name, names, n=n, cutoff=0.4)
    if near:
        return f"the closest {'name is' if len(near) == 1 else 'names are'} {_quote(near)}"
    more = "" if len(names) <= n else f" and {len(names) - n} more"
    return f"there are {_quote(names[:n])}{more}"


def _quote(names: list[str]) -> str:
    return ", ".join(f"'{name}'" for name in names)
