"""Batches of inputs: one array, or a tuple, list or dict of arrays.

An array has the images along its first axis. Where its first axis is of another size, or it is marked as
`Shared`, all images share it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from iba_core.arguments import given, require_iterable
from iba_core.errors import InputError
from iba_core.framework.arrays import as_array
from iba_core.framework.namespace import Array, host_array
from iba_core.utils import get_tqdm

InputShape = tuple[int | None, ...]
"""Sizes of the axes of one input, None for any."""


@dataclass(frozen=True, eq=False)
class Shared:
    """An input that all images of a batch share, such as the captions that a model compares each image with.

    Attributes:
        array: the input, which the model gets as it is for any number of images.

    Example:
        >>> take((np.zeros((2, 3)), Shared(np.ones((2, 4)))), 0, 1)[1].array.shape
        (2, 4)
    """

    array: Array


PADDING_MASKS = ("attention_mask", "padding_mask")
"""Names of the inputs that say where padding is, in Hugging Face's models and in those of Keras Hub."""

Path = tuple[Any, ...]
"""Where an array is in nested inputs: keys and indices, from outside in."""


def leaves_of(inputs: Any, path: Path = ()) -> Iterator[tuple[Path, Any]]:
    """Every array of `inputs` with its path, in order; what is shared as the `Shared` that marks it.

    Outputs of models may also be dataclasses, whose fields are looked through, or other objects with
    `logits`.
    """
    if not isinstance(inputs, (type, Shared, Mapping)) and not hasattr(inputs, "shape"):
        if is_dataclass(inputs):
            inputs = {field.name: getattr(inputs, field.name) for field in fields(inputs)}
        elif hasattr(inputs, "logits"):
            inputs = {"logits": inputs.logits}
    if isinstance(inputs, Mapping):
        for key, value in inputs.items():
            yield from leaves_of(value, (*path, key))
    elif isinstance(inputs, (tuple, list)):
        for index, value in enumerate(inputs):
            yield from leaves_of(value, (*path, index))
    elif isinstance(inputs, Shared) or hasattr(inputs, "shape"):
        yield path, inputs


def arrays_of(inputs: Any) -> Iterator[Array]:
    """Every array of `inputs`, in order. Other values, such as flags, are left out."""
    for _, leaf in leaves_of(inputs):
        yield leaf.array if isinstance(leaf, Shared) else leaf


def map_arrays(function: Callable[[Array], Any], inputs: Any) -> Any:
    """Apply `function` to every array of `inputs`. What is shared stays marked so."""

    def apply(_: Path, leaf: Any) -> Any:
        return Shared(function(leaf.array)) if isinstance(leaf, Shared) else function(leaf)

    return map_leaves(apply, inputs)


def map_leaves(function: Callable[[Path, Any], Any], inputs: Any, path: Path = ()) -> Any:
    """Apply `function` to every path and leaf of `inputs`, see `leaves_of`."""
    if isinstance(inputs, Mapping):
        return {key: map_leaves(function, value, (*path, key)) for key, value in inputs.items()}
    if isinstance(inputs, (tuple, list)):
        return tuple(map_leaves(function, value, (*path, i)) for i, value in enumerate(inputs))
    return function(path, inputs) if isinstance(inputs, Shared) or hasattr(inputs, "shape") else inputs


def batch_size(inputs: Any) -> int:
    """Length of the first axis of the first array that is not shared.

    Raises:
        InputError: there is no such array, or it has no axis.
    """
    first = next((leaf for _, leaf in leaves_of(inputs) if not isinstance(leaf, Shared)), None)
    if first is None or not len(first.shape):
        raise InputError(f"the input of type {type(inputs).__name__} holds no array with a batch axis")
    return int(first.shape[0])


def take(inputs: Any, start: int, stop: int) -> Any:
    """Take the samples from `start` to `stop` of every array that has the length of the batch."""
    return of_images(inputs, lambda array: array[start:stop])


def of_images(inputs: Any, function: Callable[[Array], Array]) -> Any:
    """Apply `function` to the arrays of `inputs` that have the images along their first axis."""
    size = batch_size(inputs)

    def apply(_: Path, leaf: Any) -> Any:
        shared = isinstance(leaf, Shared) or not len(leaf.shape) or leaf.shape[0] != size
        return leaf if shared else function(leaf)

    return map_leaves(apply, inputs)


def padding_of(inputs: Any) -> npt.NDArray[np.bool_] | None:
    """Where a batch of sequences is padding, (B, T); None if the inputs do not say so.

    Args:
        inputs: a dict that may have a mask (B, T), 0 where padding is, under a name in `PADDING_MASKS`.

    Example:
        >>> padding_of({"input_ids": np.array([[7, 8, 0]]), "attention_mask": np.array([[1, 1, 0]])})
        array([[False, False,  True]])
    """
    if not isinstance(inputs, Mapping):
        return None
    for name in PADDING_MASKS:
        mask = inputs.get(name)
        if mask is not None and not isinstance(mask, Shared) and len(getattr(mask, "shape", ())) == 2:
            return np.asarray(host_array(mask) == 0)
    return None


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
        converted = convert(array_of_lists(name, inputs))
        if not batch_size(converted):
            raise InputError(f"{name} is an empty batch")
    except InputError as error:
        raise error if str(error).startswith(name) else InputError(f"{name}: {error}") from error
    return converted


def array_of_lists(name: str, inputs: Any) -> Any:
    """An array in place of nested lists of numbers; other inputs, such as lists of arrays, as they are.

    Raises:
        InputError: the lists have different lengths.
    """
    first = inputs
    while isinstance(first, list) and first:
        first = first[0]
    return as_array(name, inputs) if inputs is not first and isinstance(first, (int, float)) else inputs


def require_batches(name: str, batches: Any) -> Iterable[Any]:
    """Return an iterable of batches. One array of samples, or a dict of arrays, is taken as a single batch.

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
    if isinstance(batches, Mapping) and next(arrays_of(batches), None) is not None:
        return [batches]
    what = "an iterable of batches, such as a data loader or a list of arrays"
    require_iterable(name, batches, what)
    if hasattr(batches, "shape"):
        raise InputError(f"{given(name, batches)} must be {what}")
    iterable: Iterable[Any] = batches
    return iterable


def samples_of(
    batches: Iterable[Any], n_samples: int | None, progbar: bool, name: str = "batches"
) -> Iterator[Any]:
    """The inputs of each batch of a data set, up to exactly `n_samples` samples.

    Empty batches are left out. No batch is asked for that is not needed.

    Args:
        batches: each the inputs or a tuple (inputs, ...).
        n_samples: stop after so many; None for all.
        progbar: show how many have been used.
        name: name of the argument that holds the batches.

    Raises:
        InputError: a batch holds no array.
    """
    seen = 0
    with get_tqdm()(total=n_samples, desc="Estimating", unit="img", disable=not progbar) as bar:
        for batch in batches:
            try:
                inputs = array_of_lists(name, inputs_of_batch(batch))
                inputs = inputs if n_samples is None else take(inputs, 0, n_samples - seen)
            except InputError as error:
                raise error if str(error).startswith(name) else InputError(f"{name}: {error}") from error
            if size := batch_size(inputs):
                yield inputs
                seen += size
                bar.update(size)
                if seen == n_samples:
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
