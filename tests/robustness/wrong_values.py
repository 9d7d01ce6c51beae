"""Values that nobody means, and what an argument may be: the material of the walk through all doors."""

from __future__ import annotations

import datetime
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

Accepts = Callable[[Any], bool]
"""Whether a value has a sensible meaning for an argument, so that the call may work."""


def _objects(*values: Any) -> np.ndarray:
    array = np.empty(len(values), object)
    array[:] = values
    return array


WRONG: dict[str, Callable[[], Any]] = {
    "None": lambda: None,
    "a text of a number": lambda: "10",
    "a text": lambda: "nonsense",
    "an empty text": lambda: "",
    "a text with a NUL": lambda: "a\0b",
    "a word for False": lambda: "False",
    "bytes": lambda: b"",
    "an empty list": list,
    "an empty dict": dict,
    "an empty tuple": tuple,
    "a dict": lambda: {"a": 1},
    "a set": lambda: {1, 2},
    "an object": object,
    "a class": lambda: int,
    "a function": lambda: lambda *arguments, **options: None,
    "a date": lambda: datetime.date(2020, 1, 1),
    "an iterator": lambda: iter([1]),
    "NaN": lambda: math.nan,
    "infinity": lambda: math.inf,
    "minus infinity": lambda: -math.inf,
    "-1": lambda: -1,
    "0": lambda: 0,
    "1.5": lambda: 1.5,
    "-0.5": lambda: -0.5,
    "10**9": lambda: 10**9,
    "10**30": lambda: 10**30,
    "10**400": lambda: 10**400,
    "1e300": lambda: 1e300,
    "True": lambda: True,
    "a complex number": lambda: 1 + 2j,
    "a list of a text": lambda: ["a"],
    "a list of None": lambda: [None],
    "a list of lists": lambda: [[1.0, 2.0], [3.0, 4.0]],
    "a ragged list": lambda: [[1.0], [2.0, 3.0]],
    "an array of one axis": lambda: np.arange(3.0),
    "an array without axes": lambda: np.array(2.0),
    "an array of seven axes": lambda: np.zeros((1,) * 7),
    "an array of texts": lambda: np.array(["a", "b"]),
    "an array of objects": lambda: _objects(object(), None),
    "a complex array": lambda: np.zeros((2, 2), complex),
    "an empty array": lambda: np.zeros((0, 3)),
    "an array of NaN": lambda: np.full((2, 2), np.nan),
    "an array of dates": lambda: np.array(["2020-01-01"], "datetime64[D]"),
}
"""Wrong for nearly every argument, by a name. Each call makes a new one."""


def variants(valid: np.ndarray) -> dict[str, Callable[[], Any]]:
    """An array that is right, made wrong in one way; also forms that mean the same."""

    def with_entry(value: float) -> np.ndarray:
        changed = np.array(valid, dtype=np.float64)
        changed.flat[0] = value
        return changed

    return {
        "with NaN": lambda: with_entry(math.nan),
        "with infinity": lambda: with_entry(math.inf),
        "of another byte order": lambda: valid.astype(valid.dtype.newbyteorder()),
        "of int64": lambda: np.rint(valid).astype(np.int64),
        "of float16": lambda: valid.astype(np.float16),
        "of texts": lambda: valid.astype(str),
        "complex": lambda: valid.astype(complex),
        "of objects": lambda: valid.astype(object),
        "with one axis more": lambda: valid[None, None],
        "with one axis less": lambda: valid[0],
        "without rows": lambda: valid[:0],
        "as nested lists": valid.tolist,
        "in Fortran's order": lambda: np.asfortranarray(valid),
        "that must not be written": lambda: _read_only(valid),
        "with each axis longer": lambda: np.pad(valid, [(0, 1)] * valid.ndim),
    }


def _read_only(valid: np.ndarray) -> np.ndarray:
    copy = valid.copy()
    copy.flags.writeable = False
    return copy


# -- what an argument may be -----------------------------------------------------------------------------


def nothing(value: Any) -> bool:
    """No other value has a meaning."""
    return False


def anything(value: Any) -> bool:
    """Every value has a meaning."""
    return True


def optional(accepts: Accepts) -> Accepts:
    """None, or what another rule says."""
    return lambda value: value is None or accepts(value)


def either(*rules: Accepts) -> Accepts:
    """What one of several rules says."""
    return lambda value: any(rule(value) for rule in rules)


def number(
    least: float = -math.inf, most: float = math.inf, *, above: float = -math.inf, below: float = math.inf
) -> Accepts:
    """A finite real number of a range."""

    def accepts(value: Any) -> bool:
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            return False
        try:
            return math.isfinite(value) and least <= value <= most and above < value < below
        except OverflowError:
            return False

    return accepts


def whole(least: int = 0, most: float = math.inf) -> Accepts:
    """A whole number of a range, no boolean."""
    return lambda value: isinstance(value, int) and not isinstance(value, bool) and least <= value <= most


def boolean(value: Any) -> bool:
    """True or False."""
    return isinstance(value, bool)


def text(value: Any) -> bool:
    """Any text."""
    return isinstance(value, str)


def name(value: Any) -> bool:
    """A text that is not empty."""
    return isinstance(value, str) and value != ""


def function(value: Any) -> bool:
    """Something that can be called."""
    return callable(value)


def numbers(counts: Sequence[int] | None = None, each: Accepts | None = None) -> Accepts:
    """A sequence of numbers."""
    rule = each or number()

    def accepts(value: Any) -> bool:
        if isinstance(value, np.ndarray):
            value = value.tolist() if value.ndim == 1 else None
        if not isinstance(value, (list, tuple)):
            return False
        return (counts is None or len(value) in counts) and all(rule(entry) for entry in value)

    return accepts


def array(
    ndim: Sequence[int] | None = None, shape: Sequence[int] | None = None, *, finite: bool = True
) -> Accepts:
    """Real numbers that NumPy can read, of a number of axes or of a shape, none of them empty."""

    def accepts(value: Any) -> bool:
        if isinstance(value, (str, bytes, dict, set)) or value is None or callable(value):
            return False
        try:
            found = np.asarray(value)
        except (ValueError, TypeError, RecursionError):
            return False
        if found.dtype.kind not in "biuf" or 0 in found.shape or (finite and not np.isfinite(found).all()):
            return False
        if shape is not None:
            return found.shape == tuple(shape)
        return ndim is None or found.ndim in ndim

    return accepts


@dataclass(frozen=True)
class Argument:
    """One argument of a door.

    Attributes:
        valid: makes a value that is right.
        accepts: which other values may work, because they mean something.
        called: further words by which a message may name the argument.
        passes_on: wrong values at which the model itself fails; its own error passes unchanged.
        why: the reason for an unusual rule.
    """

    valid: Callable[[], Any]
    accepts: Accepts = nothing
    called: tuple[str, ...] = ()
    passes_on: tuple[str, ...] = ()
    why: str = ""

    def values(self) -> Iterator[tuple[str, Callable[[], Any]]]:
        """All wrong values for it, by a name."""
        valid = self.valid()
        known = WRONG | (variants(valid) if isinstance(valid, np.ndarray) and valid.ndim else {})
        yield from ((label, make) for label, make in known.items() if label not in self.passes_on)


def given(
    value: Any,
    accepts: Accepts = nothing,
    called: tuple[str, ...] = (),
    passes_on: tuple[str, ...] = (),
    why: str = "",
) -> Argument:
    """An argument that is right with a value, the same each time; the rest as for `Argument`."""
    return Argument(lambda: value, accepts, called, passes_on, why)
