"""Batches of inputs: one array, or a tuple, list or dict of arrays that share their leading axis."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from iba_core.arguments import given
from iba_core.errors import InputError
from iba_core.framework.namespace import Array
from iba_core.utils import get_tqdm

InputShape = tuple[int | None, ...]
"""Sizes of the axes of one input, None for any."""


def arrays_of(inputs: Any) -> Iterator[Array]:
    """Every array of `inputs`, in order. Other values, such as flags, are left out."""
    if isinstance(inputs, Mapping):
        for value in inputs.values():
            yield from arrays_of(value)
    elif isinstance(inputs, (tuple, list)):
        for value in inputs:
            yield from arrays_of(value)
    elif hasattr(inputs, "shape"):
        yield inputs


def map_arrays(function: Callable[[Array], Any], inputs: Any) -> Any:
    """Apply `function` to every array of `inputs`."""
    if isinstance(inputs, Mapping):
        return {key: map_arrays(function, value) for key, value in inputs.items()}
    if isinstance(inputs, (tuple, list)):
        return tuple(map_arrays(function, value) for value in inputs)
    return function(inputs) if hasattr(inputs, "shape") else inputs


def batch_size(inputs: Any) -> int:
    """Length of the first axis of the first array.

    Raises:
        InputError: there is no array, or it has no axis.
    """
    first = next(arrays_of(inputs), None)
    if first is None or not len(first.shape):
        raise InputError(f"the input of type {type(inputs).__name__} holds no array with a batch axis")
    return int(first.shape[0])


def take(inputs: Any, start: int, stop: int) -> Any:
    """Take the samples from `start` to `stop` of every array that has the length of the batch."""
    size = batch_size(inputs)
    return map_arrays(
        lambda array: array[start:stop] if len(array.shape) and array.shape[0] == size else array, inputs
    )


def inputs_of_batch(batch: Any) -> Any:
    """Inputs of a batch of a data set: the batch itself, or the first entry of (inputs, ...).

    Raises:
        InputError: the batch is an empty tuple.
    """
    if isinstance(batch, (tuple, list)):
        if not batch:
            raise InputError("a batch is an empty tuple; give arrays, or tuples (inputs, ...)")
        return batch[0]
    return batch


def require_inputs(name: str, inputs: Any, convert: Callable[[Any], Any]) -> Any:
    """Bring inputs to a model, under the name that the caller knows.

    Args:
        name: name of the argument.
        inputs: the argument.
        convert: makes tensors of the model of them, such as `ModelAdapter.to_inputs`.

    Raises:
        InputError: they hold no array of numbers, no row, or an array that the model does not take.
    """
    try:
        converted = convert(inputs)
        if not batch_size(converted):
            raise InputError("the batch is empty")
    except InputError as error:
        raise error if str(error).startswith(name) else InputError(f"{name}: {error}") from error
    return converted


def require_batches(name: str, batches: Any) -> Iterable[Any]:
    """Return an iterable of batches. One array of samples is taken as a single batch.

    Args:
        name: name of the argument.
        batches: the argument.

    Raises:
        InputError: it is no iterable of batches.

    Example:
        >>> import numpy as np
        >>> [batch.shape for batch in require_batches("batches", np.zeros((5, 3)))]
        [(5, 3)]
    """
    if hasattr(batches, "shape") and len(batches.shape) > 1 and hasattr(batches, "__getitem__"):
        return [batches]
    if (
        isinstance(batches, (str, bytes, Mapping))
        or not hasattr(batches, "__iter__")
        or hasattr(batches, "shape")
    ):
        raise InputError(
            f"{given(name, batches)} must be an iterable of batches, such as a data loader or a list of "
            "arrays"
        )
    iterable: Iterable[Any] = batches
    return iterable


def samples_of(batches: Iterable[Any], n_samples: int, progbar: bool) -> Iterator[Any]:
    """The inputs of each batch of a data set, up to exactly `n_samples` samples.

    Empty batches are left out. No batch is asked for that is not needed.

    Args:
        batches: each the inputs or a tuple (inputs, ...).
        n_samples: stop after so many.
        progbar: show how many have been used.
    """
    seen = 0
    with get_tqdm()(total=n_samples, desc="Estimating", unit="img", disable=not progbar) as bar:
        for batch in batches:
            inputs = take(inputs_of_batch(batch), 0, n_samples - seen)
            if size := batch_size(inputs):
                yield inputs
                seen += size
                bar.update(size)
                if seen >= n_samples:
                    break


def targets_of_batch(batch: Any) -> Any:
    """The second entry of a batch (inputs, targets, ...); None where there is none."""
    return batch[1] if isinstance(batch, (tuple, list)) and len(batch) > 1 else None


def common_shape(known: InputShape | None, shape: tuple[int, ...]) -> InputShape:
    """Shape of all inputs so far, with None for an axis that had several sizes.

    Args:
        known: shape of the inputs so far; None if there were none.
        shape: shape of one of the next inputs, without the batch axis.
    """
    if known is None or len(known) != len(shape):
        return shape
    return tuple(size if size == other else None for size, other in zip(shape, known, strict=True))


def check_shape(shape: tuple[int, ...], known: InputShape, channels_first: bool) -> None:
    """Check an input's shape against that of the inputs that the features were estimated on.

    Args:
        shape: shape of one input, without the batch axis.
        known: shape of the inputs of the estimate, likewise; None for an axis that had several sizes.
        channels_first: whether the model expects the channels first.

    Raises:
        InputError: the number of axes differs, the channels are at the wrong end, or an axis has a size that
            no input of the estimate had.
    """
    given, expected = (
        ", ".join(["batch", *("any" if size is None else str(size) for size in sizes)])
        for sizes in (shape, known)
    )
    if len(shape) != len(known):
        raise InputError(
            f"x has shape ({given}), but the features' distribution was estimated on inputs of shape "
            f"({expected}): the number of axes differs"
        )
    if all(size in (None, own) for own, size in zip(shape, known, strict=True)):
        return
    own, channels, swapped = (
        (shape[0], known[0], shape[-1]) if channels_first else (shape[-1], known[-1], shape[0])
    )
    if len(shape) > 2 and own != channels is not None:
        right = "first" if channels_first else "last"
        hint = f"; the channels must come {right}" if swapped == channels else ""
        raise InputError(
            f"x has shape ({given}), but the model takes {channels} channels, as in ({expected}){hint}"
        )
    raise InputError(
        f"x has shape ({given}), but the features' distribution was estimated on inputs of shape "
        f"({expected}): give inputs of that size, or estimate it on inputs of this one"
    )
