"""Checks of arrays, with the name of the argument that its caller knows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from iba_core.arguments import given
from iba_core.errors import InputError
from iba_core.framework.framework import require_finite
from iba_core.framework.namespace import host_array


def as_array(name: str, value: Any) -> npt.NDArray[Any]:
    """Bring numbers of any framework to NumPy: an array, a tensor, a number, or nested lists of them.

    Returns:
        Array of booleans, integers or real numbers, in the byte order of the machine.

    Raises:
        InputError: it holds something else, or lists of different lengths.

    Example:
        >>> as_array("values", [[1, 2], [3, 4]]).shape
        (2, 2)
        >>> as_array("values", ["a", "b"])
        Traceback (most recent call last):
        iba_core.errors.InputError: values=['a', 'b'] must be an array of real numbers
    """
    try:
        array = host_array(value)
    # Whatever a user's object, or a tensor of a graph, raises when NumPy asks for its numbers.
    except Exception as error:
        raise InputError(f"{given(name, value)} must be an array of real numbers ({error})") from error
    if array.dtype.kind not in "biuf":
        raise InputError(f"{given(name, value)} must be an array of real numbers")
    return array if array.dtype.isnative else array.astype(array.dtype.newbyteorder("="))


def require_array(
    name: str,
    value: Any,
    *,
    ndim: int | Sequence[int] | None = None,
    shape: Sequence[int] | None = None,
    least: float | None = None,
    most: float | None = None,
    form: str | None = None,
) -> npt.NDArray[Any]:
    """Return an array of finite numbers as NumPy's.

    Args:
        name: name of the argument.
        value: the argument, see `as_array`.
        ndim: number of axes, or the numbers that are allowed; None for any.
        shape: exact shape; None for any.
        least: smallest value allowed.
        most: largest value allowed.
        form: shape that was expected, for the message, such as ``"one map (H, W)"``.

    Raises:
        InputError: it has another shape, an axis of length 0, or a value that is not finite or out of range.

    Example:
        >>> require_array("heatmap", [[0.5, 1.0]], ndim=2, least=0, most=1).shape
        (1, 2)
        >>> require_array("heatmap", [0.5, np.nan])
        Traceback (most recent call last):
        iba_core.errors.InputError: heatmap holds nan at index (1,); every value must be finite
    """
    array = as_array(name, value)
    ranks = (ndim,) if isinstance(ndim, int) else ndim
    if (ranks is not None and array.ndim not in ranks) or (shape is not None and array.shape != tuple(shape)):
        wanted = form or (
            f"shape {tuple(shape)}" if shape is not None else f"{' or '.join(map(str, ranks or ()))} axes"
        )
        raise InputError(f"{name} has shape {array.shape}; {wanted} was expected")
    if 0 in array.shape:
        raise InputError(f"{name} has shape {array.shape}; at least one value is needed")
    require_finite(array, name)
    if (least is not None and array.min() < least) or (most is not None and array.max() > most):
        wanted = " and ".join(
            f"{text} {bound:g}"
            for text, bound in (("at least", least), ("at most", most))
            if bound is not None
        )
        raise InputError(f"{name} has values from {array.min():g} to {array.max():g}; they must be {wanted}")
    return array


def require_mask(name: str, value: Any) -> npt.NDArray[np.bool_]:
    """Return a mask as an array of booleans.

    Args:
        name: name of the argument.
        value: booleans; or numbers that are all 0 or 1, or all 0 or 255 as in a picture.

    Raises:
        InputError: it holds anything else, such as texts, NaN or 0.5.

    Example:
        >>> require_mask("pass_mask", [[0, 1], [1, 1]])
        array([[False,  True],
               [ True,  True]])
        >>> require_mask("pass_mask", [0.5, 1.0])
        Traceback (most recent call last):
        iba_core.errors.InputError: pass_mask holds 0.5; a mask holds True and False, or 1 and 0
    """
    array = as_array(name, value)
    if array.dtype == bool:
        return array
    marked = array != 0
    top = array[marked].reshape(-1)
    strange = top[(top != 1) & (top != 255) | (top != top[:1])]
    if strange.size:
        raise InputError(f"{name} holds {strange[0]:g}; a mask holds True and False, or 1 and 0")
    return np.asarray(marked)
