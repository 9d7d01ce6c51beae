"""Checks of arguments, one for each kind: numbers, whole numbers, seeds, booleans, choices, texts, paths.

Every public function calls them before it works, with the name that its caller used. Arrays have checks of
their own, in `iba_core.framework.arrays`. A check returns the value as the plain Python object that it means,
so that a NumPy number can be stored and compared like any other.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from math import isfinite
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from iba_core.errors import InputError, closest

T = TypeVar("T")

LARGEST_SEED = 2**64 - 1
"""The generators of noise take keys of 64 bits."""

LARGEST_COUNT = 10**6
"""Most steps, copies or epochs. With more, an explanation would fill any memory, or never end."""

LARGEST_NUMBER = 1e12
"""Largest weight or rate. The optimiser squares gradients, and in float32 a square above 3e38 is infinite."""

DATA_FORMATS = ("channels_first", "channels_last")

_SHOWN = 60
_FEW = 4
"""Choices that a message lists."""


def given(name: str, value: object) -> str:
    """Describe an argument for the start of an error message, in one short line.

    Example:
        >>> given("beta", "10"), given("beta", [1, 2]), given("beta", np.zeros((2, 3)))
        ("beta='10'", 'beta=[1, 2]', 'beta is a float64 array of shape (2, 3), and')
    """
    shape = getattr(value, "shape", None)
    if shape is not None and not isinstance(value, (np.generic, type)):
        dtype = str(getattr(value, "dtype", "")).rpartition(".")[2]
        return f"{name} is a {dtype} array of shape {_plain_shape(shape)}, and"
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or isinstance(
        value, (bool, int, float, complex, str, bytes, list, tuple, dict, set, Path)
    ):
        try:
            shown = repr(value)
        except RecursionError:
            shown = f"{type(value).__name__}(...)"
        if len(shown) <= _SHOWN and "array(" not in shown and "\n" not in shown:
            return f"{name}={shown}"
        return f"{name}={shown.splitlines()[0][: _SHOWN - 3]}..."
    return f"{name} is of type {type(value).__name__}, and"


def _plain_shape(shape: Any) -> Any:
    try:
        return tuple(shape)
    except (TypeError, ValueError):
        return shape


# -- numbers -------------------------------------------------------------------------------------------------


def require_number(
    name: str,
    value: Any,
    least: float | None = None,
    most: float | None = None,
    *,
    above: float | None = None,
    below: float | None = None,
) -> Any:
    """Return a finite real number of Python or NumPy as a number of Python.

    Args:
        name: name of the argument, as the caller knows it.
        value: the argument.
        least: smallest value allowed.
        most: largest value allowed.
        above: value that it must exceed.
        below: value that it must stay under.

    Raises:
        InputError: it is no such number.

    Example:
        >>> require_number("beta", np.float32(0.5), least=0)
        0.5
        >>> require_number("lr", -1, least=0)
        Traceback (most recent call last):
        iba_core.errors.InputError: lr=-1 must be a finite number, 0 or more
    """
    plain = value.item() if isinstance(value, np.generic) else value
    if (
        not isinstance(plain, (int, float))
        or isinstance(plain, bool)
        or not _is_finite(plain)
        or (least is not None and plain < least)
        or (most is not None and plain > most)
        or (above is not None and plain <= above)
        or (below is not None and plain >= below)
    ):
        within = _range(least, _worth_saying(most, plain), above, below)
        raise InputError(f"{given(name, value)} must be a finite number{within}")
    return plain


def _worth_saying(most: float | None, value: Any) -> float | None:
    """A limit that only keeps out what cannot be meant is named to those who have exceeded it."""
    exceeded = isinstance(value, (int, float)) and most is not None and value > most
    return most if exceeded or (most is not None and most < LARGEST_COUNT) else None


def _is_finite(number: float) -> bool:
    try:
        return isfinite(number)
    except OverflowError:  # an integer beyond the range of floating point
        return False


def _range(
    least: float | None, most: float | None, above: float | None = None, below: float | None = None
) -> str:
    if least is not None and most is not None:
        return f" from {least:g} to {most:g}"
    parts = [
        text
        for text in (
            None if least is None else f"{least:g} or more",
            None if above is None else f"above {above:g}",
            None if most is None else f"at most {most:g}",
            None if below is None else f"below {below:g}",
        )
        if text is not None
    ]
    return f", {' and '.join(parts)}" if parts else ""


def is_whole_number(value: object, least: int = 0, most: float | None = None) -> bool:
    """Whether `value` is an integer of Python or NumPy, not a boolean, from `least` to `most`.

    Example:
        >>> is_whole_number(3, least=1), is_whole_number(True), is_whole_number(2.0)
        (True, False, False)
    """
    return (
        isinstance(value, (int, np.integer))
        and not isinstance(value, bool)
        and bool(least <= value)
        and (most is None or bool(value <= most))
    )


def require_whole(name: str, value: Any, least: int = 0, most: int = sys.maxsize) -> int:
    """Return an integer of Python or NumPy within a range.

    Raises:
        InputError: it is none, or outside of the range.

    Example:
        >>> require_whole("steps", np.int64(10), least=1)
        10
        >>> require_whole("n_samples", "10", least=2)
        Traceback (most recent call last):
        iba_core.errors.InputError: n_samples='10' must be a whole number, 2 or more
    """
    if not is_whole_number(value, least, most):
        limit = _worth_saying(most, value)
        within = f", {least} or more" if limit is None else f" from {least} to {limit}"
        raise InputError(f"{given(name, value)} must be a whole number{within}")
    return int(value)


def require_seed(name: str, value: Any, most: int = LARGEST_SEED, optional: bool = True) -> None:
    """Check a seed: a whole number, or None for the framework's own random numbers.

    Args:
        name: name of the argument.
        value: the argument.
        most: largest seed.
        optional: whether None is allowed.

    Raises:
        InputError: it is neither.
    """
    if (value is None and optional) or is_whole_number(value, 0, most):
        return
    raise InputError(
        f"{given(name, value)} must be a whole number from 0 to 2**{most.bit_length()} - 1"
        + (", or None" if optional else "")
    )


def require_sizes(
    name: str, value: Any, count: int | None = 2, least: int = 1, most: int = 2**14
) -> tuple[int, ...]:
    """Return sizes of axes, such as (height, width), as a tuple of integers.

    Args:
        name: name of the argument.
        value: the argument, a sequence.
        count: number of sizes; None for any.
        least: smallest size.
        most: largest size.

    Raises:
        InputError: it has another length, or an entry is no whole number in the range.

    Example:
        >>> require_sizes("size", [224, 224])
        (224, 224)
        >>> require_sizes("size", 224)
        Traceback (most recent call last):
        iba_core.errors.InputError: size=224 must be (height, width), whole numbers from 1 to 16384
    """
    entries = _entries(value)
    if (
        entries is None
        or (count is not None and len(entries) != count)
        or not all(is_whole_number(entry, least, most) for entry in entries)
    ):
        form = "(height, width), " if count == 2 else "" if count is None else f"a list of {count} "
        raise InputError(f"{given(name, value)} must be {form}whole numbers from {least} to {most}")
    return tuple(int(entry) for entry in entries)


def require_numbers(
    name: str,
    value: Any,
    counts: Sequence[int] | None = None,
    least: float | None = None,
    most: float | None = None,
    *,
    above: float | None = None,
) -> tuple[float, ...]:
    """Return a sequence of finite numbers as a tuple of numbers of Python.

    Args:
        name: name of the argument.
        value: the argument, a sequence or a 1-D array.
        counts: numbers of entries that are allowed; None for any.
        least: smallest entry allowed.
        most: largest entry allowed.
        above: number that every entry must exceed.

    Raises:
        InputError: it has another length, or an entry is no such number.

    Example:
        >>> require_numbers("mean", (0.5, 0.5, 0.5), counts=(1, 3))
        (0.5, 0.5, 0.5)
    """
    entries = _entries(value)
    if entries is not None and (counts is None or len(entries) in counts):
        try:
            return tuple(require_number(name, entry, least, most, above=above) for entry in entries)
        except InputError:
            pass
    many = "" if counts is None else " or ".join(map(str, dict.fromkeys(counts))) + " "
    raise InputError(
        f"{given(name, value)} must be a sequence of {many}finite numbers{_range(least, most, above)}"
    )


def _entries(value: Any) -> list[Any] | None:
    """The entries of a list, tuple or 1-D array; None for anything else."""
    if isinstance(value, np.ndarray) and value.ndim == 1:
        return list(value)
    return list(value) if isinstance(value, (list, tuple, range)) else None


# -- booleans, choices and texts -----------------------------------------------------------------------------


def require_bool(name: str, value: Any) -> bool:
    """Return a boolean of Python or NumPy; a text such as ``"False"`` is none.

    Raises:
        InputError: it is something else.

    Example:
        >>> require_bool("normalize_beta", "False")
        Traceback (most recent call last):
        iba_core.errors.InputError: normalize_beta='False' must be True or False
    """
    if not isinstance(value, (bool, np.bool_)):
        raise InputError(f"{given(name, value)} must be True or False")
    return bool(value)


def require_choice(name: str, value: Any, choices: Iterable[T], what: str | None = None) -> T:
    """Return one of several values, most often texts.

    Args:
        name: name of the argument.
        value: the argument.
        choices: the values.
        what: what the choices are, such as ``"preset"``.

    Raises:
        InputError: it is none of them.

    Example:
        >>> require_choice("mode", "bits", ("saliency", "capacity"))
        Traceback (most recent call last):
        iba_core.errors.InputError: mode='bits' is neither 'saliency' nor 'capacity'
    """
    known = list(choices)
    for choice in known:
        if type(value) is type(choice) and value == choice:
            return choice
    shown = [repr(choice) for choice in known]
    if what is not None and isinstance(value, str):
        raise InputError(f"{given(name, value)} is no {what}; {closest(value, map(str, known), n=4)}")
    if len(shown) == 2:
        raise InputError(f"{given(name, value)} is neither {shown[0]} nor {shown[1]}")
    if isinstance(value, str) and len(known) > _FEW:
        raise InputError(f"{given(name, value)} is unknown; {closest(value, map(str, known), n=4)}")
    raise InputError(f"{given(name, value)} is none of {', '.join(shown)}")


def require_data_format(name: str, value: Any, optional: bool = False) -> None:
    """Check where the channels are said to be.

    Raises:
        InputError: it is neither ``"channels_first"`` nor ``"channels_last"`` (nor None where that is
            allowed).
    """
    if not (optional and value is None):
        require_choice(name, value, DATA_FORMATS)


def require_text(name: str, value: Any, what: str = "a text", *, optional: bool = False) -> None:
    """Check a text, which must not be empty.

    Args:
        name: name of the argument.
        value: the argument.
        what: what the text is.
        optional: whether None is allowed.

    Raises:
        InputError: it is no text, or empty.
    """
    if (value is None and optional) or (isinstance(value, str) and value):
        return
    raise InputError(f"{given(name, value)} must be {what}{', or None' if optional else ''}")


# -- objects -------------------------------------------------------------------------------------------------


def require_type(
    name: str, value: Any, kinds: type | tuple[type, ...], what: str, *, optional: bool = False
) -> None:
    """Check the type of an argument.

    Args:
        name: name of the argument.
        value: the argument.
        kinds: types allowed.
        what: what was expected, with its article.
        optional: whether None is allowed.

    Raises:
        InputError: it is of another type.

    Example:
        >>> require_type("estimator", 3, dict, "an estimator", optional=True)
        Traceback (most recent call last):
        iba_core.errors.InputError: estimator=3 must be an estimator, or None
    """
    if not (isinstance(value, kinds) or (optional and value is None)):
        raise InputError(f"{given(name, value)} must be {what}{', or None' if optional else ''}")


def require_layer(name: str, value: Any, *, optional: bool = False) -> None:
    """Check that an argument may be a layer: an object of a framework, or a name.

    Raises:
        InputError: it is a number, an array, or a collection.
    """
    if isinstance(value, str) or (optional and value is None):
        return
    plain = (bytes, int, float, complex, Mapping, Set, list, tuple, np.ndarray, np.generic)
    if value is None or isinstance(value, plain):
        raise InputError(f"{given(name, value)} must be a layer of the model, or its name")


def require_callable(
    name: str, value: Any, what: str = "a function", *, optional: bool = False
) -> Callable[..., Any]:
    """Return a function, or any object that can be called, except a class of numbers or texts.

    Raises:
        InputError: it cannot be called.
    """
    if not (callable(value) or (optional and value is None)):
        raise InputError(f"{given(name, value)} must be {what}{', or None' if optional else ''}")
    called: Callable[..., Any] = value
    return called


def require_sequence(name: str, value: Any, what: str, least: int = 1) -> None:
    """Check a sequence that is neither a text nor a mapping, such as a list, a tuple or an array.

    Args:
        name: name of the argument.
        value: the argument.
        what: what its entries are.
        least: smallest number of entries.

    Raises:
        InputError: it is none, or has too few entries.
    """
    try:
        count = -1 if isinstance(value, (str, bytes, Mapping, type, Path)) else len(value)
    except TypeError:
        count = -1
    if count < 0 or not hasattr(value, "__getitem__"):
        raise InputError(f"{given(name, value)} must be a list of {what}")
    if count < least:
        few = "is empty" if not count else f"has {count} entries"
        raise InputError(f"{name} {few}; it must be a list of {what}, {least} or more")


def require_iterable(name: str, value: Any, what: str) -> None:
    """Check what is gone through once, such as a list or a generator; neither a text nor a mapping.

    Args:
        name: name of the argument.
        value: the argument.
        what: what was expected.

    Raises:
        InputError: it is none.
    """
    if not is_iterable(value):
        raise InputError(f"{given(name, value)} must be {what}")


def is_iterable(value: Any) -> bool:
    """Whether a value can be gone through, and is neither a text nor a mapping.

    Example:
        >>> is_iterable([1]), is_iterable("ab"), is_iterable(np.array(1.0))
        (True, False, False)
    """
    # An array without axes has the method, but cannot be gone through.
    has_entries = hasattr(value, "__iter__") and getattr(value, "shape", None) != ()
    return has_entries and not isinstance(value, (str, bytes, Mapping, type))
