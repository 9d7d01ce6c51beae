"""What a model returns: the array that a target is about, and the comparison of two passes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from iba_core.errors import InputError
from iba_core.framework.inputs import arrays_of
from iba_core.framework.namespace import Array, full_precision, host_array


def main_output(outputs: Any, output: int | str | None = None) -> Any:
    """Find the array of a model's output that a target is about.

    Of several outputs it is the one called ``logits``, as attribute or key. Otherwise it is the only array of
    a mapping, or its only floating-point array with two axes. Of a tuple or list, it is the first entry.
    Entries that are None do not count. Outputs in half precision become float32, so that losses are computed
    in at least that.

    Args:
        outputs: what the model returns: an array, or a mapping, tuple, list or object of arrays.
        output: name or number of the output to use.

    Raises:
        InputError: there is no such output, or it is not clear which one is meant.

    Example:
        >>> main_output({"scores": [np.array([1.0, 2.0]), None]})
        array([1., 2.])
        >>> main_output({"hidden": np.zeros((1, 3, 2)), "scores": np.ones((1, 2))})
        array([[1., 1.]])
    """
    return full_precision(_main_array(outputs, output))


def _main_array(outputs: Any, output: int | str | None) -> Any:
    if output is not None:
        return _main_array(_entry(outputs, output), None)
    if hasattr(outputs, "logits"):
        return _main_array(outputs.logits, None)
    if isinstance(outputs, Mapping):
        return _main_array(_main_entry({key: x for key, x in outputs.items() if x is not None}), None)
    if isinstance(outputs, (tuple, list)):
        return _main_array(next((x for x in outputs if x is not None), None), None)
    if not hasattr(outputs, "shape"):
        raise InputError(
            f"the model returns {type(outputs).__name__}, in which no array is found; name one with output="
        )
    return outputs


def main_index(outputs: Any, output: int | str | None = None) -> int:
    """Number of the main output among the arrays of a model's output, in the order of `arrays_of`.

    Example:
        >>> main_index({"hidden": np.zeros((1, 3, 2)), "logits": np.ones((1, 2))})
        1
    """
    main = _main_array(outputs, output)
    return next((i for i, array in enumerate(arrays_of(outputs)) if array is main), 0)


def _main_entry(entries: dict[Any, Any]) -> Any:
    if "logits" in entries:
        return entries["logits"]
    if len(entries) == 1:
        return next(iter(entries.values()))
    flat = [
        x for x in entries.values() if hasattr(x, "shape") and len(x.shape) == 2 and "float" in str(x.dtype)
    ]
    if len(flat) != 1:
        raise InputError(f"the model has the outputs {list(entries)}; say which one is meant with output=")
    return flat[0]


def _entry(outputs: Any, output: int | str) -> Any:
    try:
        if isinstance(output, str) and not isinstance(outputs, Mapping):
            return getattr(outputs, output)
        if isinstance(output, int) and isinstance(outputs, Mapping):
            return list(outputs.values())[output]
        return outputs[output]
    except (AttributeError, IndexError, KeyError, TypeError):
        names = list(outputs) if isinstance(outputs, Mapping) else type(outputs).__name__
        raise InputError(f"output={output!r} is not among the model's outputs: {names}") from None


def first_output(outputs: Any, output: int | str | None = None) -> Any:
    """`main_output`, or the first array where it is not clear which one is meant.

    It is for targets that look at all outputs themselves.

    Example:
        >>> first_output({"a": np.zeros((1, 2)), "b": np.ones((1, 2))})
        array([[0., 0.]])
    """
    try:
        return main_output(outputs, output)
    except InputError:
        if output is not None or (first := next(arrays_of(outputs), None)) is None:
            raise
        return full_precision(first)


@dataclass(frozen=True)
class OfOutput:
    """A loss of one of several outputs.

    Attributes:
        loss: the loss; it gets that output alone.
        output: name or number of the output.

    Example:
        >>> loss = OfOutput(lambda outputs: outputs.sum(axis=1), "scores")
        >>> loss({"scores": np.ones((1, 2)), "hidden": np.zeros((1, 5))})
        array([2.])
    """

    loss: Any
    output: int | str

    def __call__(self, outputs: Any, *rows: Array) -> Array:
        """Compute the loss."""
        return self.loss(main_output(outputs, self.output), *rows)


# -- comparing -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class OwnOutputs:
    """What a model returns by itself, without anything of this library in it.

    Attributes:
        outputs: its outputs.
        images: the number of images that they are for.
        together: whether these are all images of the batch, as for a function that knows the batch as a
            whole. Otherwise only the first one is that of the batch.
    """

    outputs: Any
    images: int
    together: bool = False


def difference(own: OwnOutputs, found: Any, rows: int, epsilon: float) -> str | None:
    """Compare what a model returns for an image with what another pass gives for it.

    Args:
        own: outputs of the model, for one or more images.
        found: outputs for `rows` images, the first of which is the same.
        rows: see above.
        epsilon: smallest relative difference of numbers at the lowest precision in use, see `numpy.finfo`.

    Returns:
        What differs, as the end of a sentence; None if nothing does. Whole numbers, and arrays that have the
        same shape for any number of images, are not compared, unless nothing else is there.

    Example:
        >>> own = OwnOutputs(np.array([[1.0, 2.0]]), images=1)
        >>> difference(own, np.array([[1.0, 2.0], [5.0, 6.0]]), rows=2, epsilon=1e-16)
        >>> difference(own, np.array([[1.0, 4.0], [5.0, 6.0]]), rows=2, epsilon=1e-16)
        'its output is off by 100 %'
    """
    ours, theirs = list(arrays_of(own.outputs)), list(arrays_of(found))
    if len(ours) != len(theirs):
        return f"it gives {len(theirs)} arrays in place of {len(ours)}"
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
        if (off := _relative_difference(*blocks)) > _tolerance(expected, given, epsilon):
            return f"its output is off by {100 * off:.2g} %"
    return _other_shapes(ours[0], own.images, theirs[0], rows) if ours and not compared else None


def _other_shapes(expected: Array, images: int, given: Array, rows: int) -> str:
    return (
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
    with np.errstate(invalid="ignore", over="ignore"):
        off = np.abs(a - b)[~same].max()
    scale = np.abs(a[np.isfinite(a)]).max(initial=np.finfo(a.dtype).tiny)
    return float("inf") if np.isnan(off) else float(off / scale)


def _tolerance(a: npt.NDArray[Any], b: npt.NDArray[Any], epsilon: float) -> float:
    # Two kernels differ by a few hundred times the rounding of one number, and TF32 by a thousandth.
    return float(max(epsilon, np.finfo(a.dtype).eps, np.finfo(b.dtype).eps) ** 0.4)


_EPSILONS = {"bfloat16": 2.0**-8, "float16": 2.0**-10, "float32": 2.0**-23, "float64": 2.0**-52}


def epsilon_of(x: Array) -> float:
    """The smallest relative difference of the numbers of an array of any framework.

    Example:
        >>> epsilon_of(np.zeros(3, np.float32)) == np.finfo(np.float32).eps
        True
    """
    return next(epsilon for name, epsilon in _EPSILONS.items() if name in str(x.dtype))
