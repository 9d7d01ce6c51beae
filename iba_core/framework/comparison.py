"""Comparison of what a model returns in two passes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from iba_core.framework.inputs import arrays_of
from iba_core.framework.namespace import Array, host_array


@dataclass(frozen=True)
class OwnOutputs:
    """What a model returns by itself, without anything of this library in it.

    Attributes:
        outputs: its outputs.
        images: the number of images that they are for.
        together: whether these are all images of the batch, as for a function that knows the batch as a
            whole. Otherwise only the first one is that of the batch.
        features: the feature maps on the way, (images, *feature map); None where they are not known.
    """

    outputs: Any
    images: int
    together: bool = False
    features: Any = None


@dataclass(frozen=True)
class Difference:
    """How the outputs of two passes differ.

    Attributes:
        text: the end of a sentence.
        is_of_shapes: whether arrays are missing, or have shapes that do not fit.
    """

    text: str
    is_of_shapes: bool = True


def difference(
    own: OwnOutputs, found: Any, rows: int, epsilon: float, exactly: bool = False
) -> Difference | None:
    """Compare the outputs of a model for an image with those of another pass.

    Args:
        own: outputs of the model, for one or more images.
        found: outputs for `rows` images, the first of which is the same.
        rows: see above.
        epsilon: smallest relative difference of numbers at the lowest precision in use, see `numpy.finfo`.
        exactly: whether rounding is a difference, too.

    Returns:
        What differs; None if nothing does. Whole numbers, and arrays that have the
        same shape for any number of images, are not compared, unless nothing else is there.

    Example:
        >>> own = OwnOutputs(np.array([[1.0, 2.0]]), images=1)
        >>> difference(own, np.array([[1.0, 2.0], [5.0, 6.0]]), rows=2, epsilon=1e-16)
        >>> difference(own, np.array([[1.0, 4.0], [5.0, 6.0]]), rows=2, epsilon=1e-16)
        Difference(text='its output is off by 100 %', is_of_shapes=False)
    """
    ours, theirs = list(arrays_of(own.outputs)), list(arrays_of(found))
    if not ours:
        return Difference(f"it gives a {type(found).__name__}, in which no array is found")
    if len(ours) != len(theirs):
        return Difference(f"it gives {len(theirs)} arrays in place of {len(ours)}")
    compared = 0
    for expected, given in zip(map(host_array, ours), map(host_array, theirs), strict=True):
        if not np.issubdtype(expected.dtype, np.inexact) or not np.issubdtype(given.dtype, np.inexact):
            continue
        blocks = _first_image(expected, own.images, given, rows)
        if blocks is None and own.together and expected.shape == given.shape:
            blocks = expected, given
        if blocks is None:
            if expected.shape != given.shape:
                return _other_shapes(expected, own.images, given, rows)
            continue
        compared += 1
        allowed = 0.0 if exactly else _tolerance(expected, given, epsilon)
        if (off := _relative_difference(*blocks)) > allowed:
            return Difference(f"its output is off by {100 * off:.3g} %", is_of_shapes=False)
    return _other_shapes(ours[0], own.images, theirs[0], rows) if not compared else None


def _other_shapes(expected: Array, images: int, given: Array, rows: int) -> Difference:
    return Difference(
        f"it gives an output of shape {tuple(given.shape)} for {rows} images, where the model gives "
        f"{tuple(expected.shape)} for {images}"
    )


def _first_image(
    a: npt.NDArray[Any], of: int, b: npt.NDArray[Any], rows: int
) -> tuple[npt.NDArray[Any], npt.NDArray[Any]] | None:
    """The parts of two arrays, for `of` and for `rows` images, that belong to the first image."""
    if a.ndim != b.ndim:
        return None
    if of == rows:
        return (a, b) if a.shape == b.shape else None
    grown = [axis for axis in range(a.ndim) if a.shape[axis] != b.shape[axis]]
    if len(grown) != 1:
        return None
    (axis,) = grown
    size, left = divmod(a.shape[axis], of)
    if left or b.shape[axis] != size * rows:
        return None
    return a.take(range(size), axis), b.take(range(size), axis)


def _relative_difference(a: npt.NDArray[Any], b: npt.NDArray[Any]) -> float:
    same = (a == b) | (np.isnan(a) & np.isnan(b))
    if same.all():
        return 0.0
    a_off, b_off = a[~same], b[~same]
    if not (np.isfinite(a_off).all() and np.isfinite(b_off).all()):
        return float("inf")
    scale = float(np.abs(a[np.isfinite(a)]).max(initial=np.finfo(a.dtype).tiny))
    # The difference of two finite numbers may be too large for their type, that of their halves is not.
    return 2 * float(np.abs(a_off / 2 - b_off / 2).max()) / scale


def all_close(a: npt.ArrayLike, b: npt.ArrayLike, rtol: float = 1e-5, atol: float = 1e-8) -> bool:
    """Whether finite numbers are equal up to ``atol + rtol * abs(b)``; arrays with others are not close.

    `numpy.allclose` switches warnings of NumPy off for a while, and an interrupt can leave them off.

    Args:
        a: any shape.
        b: a shape that broadcasts with it.
        rtol: relative tolerance.
        atol: absolute tolerance.

    Example:
        >>> all_close([1.0, 2.0], [1.0, 2.00001]), all_close([1.0, 2.0], [1.0, 2.1])
        (True, False)
    """
    x, y = np.asarray(a, np.float64), np.asarray(b, np.float64)
    if not (np.isfinite(x).all() and np.isfinite(y).all()):
        return False
    return bool(np.all(np.abs(x / 2 - y / 2) <= (atol + rtol * np.abs(y)) / 2))


def _tolerance(a: npt.NDArray[Any], b: npt.NDArray[Any], epsilon: float) -> float:
    # Two kernels differ by a few hundred times the rounding of one number, and TF32 by a thousandth.
    return float(max(epsilon, np.finfo(a.dtype).eps, np.finfo(b.dtype).eps) ** 0.4)


_EPSILONS = {"bfloat16": 2.0**-8, "float16": 2.0**-10, "float32": 2.0**-23, "float64": 2.0**-52}


def epsilon_of(x: Array) -> float:
    """The smallest relative difference of the numbers of an array of any framework.

    Example:
        >>> epsilon_of(np.zeros(3, np.float32)) == 2.0**-23
        True
    """
    return next(epsilon for name, epsilon in _EPSILONS.items() if name in str(x.dtype))
