"""What users feed to a graph, as the tensors of its inputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorflow as tf

from iba_core.errors import InputError
from iba_core.framework.adapter import Inputs


@dataclass(frozen=True)
class GraphInput:
    """An input of a graph.

    Attributes:
        name: the name by which users give it.
        tensor: name of its tensor in the graph.
        dtype: dtype of that tensor.
        shape: shape with the batch axis, None for a size that is open; None if the rank is open.
        default: value where none is given; None where one must be given.
    """

    name: str
    tensor: str
    dtype: tf.DType
    shape: tuple[int | None, ...] | None
    default: Any = None


def tensors_for(
    entries: Sequence[GraphInput], inputs: Inputs, needed: set[str] | None = None
) -> list[tf.Tensor | None]:
    """Make tensors of a user's inputs, one for each input of a graph; None for those that are missing.

    Args:
        entries: the inputs of the graph.
        inputs: one array, a list or tuple, or a dict, see `name_of`.
        needed: names of the inputs that must be there; all without a default if None.

    Raises:
        InputError: an input is missing, unknown, no array, or of the wrong shape.
    """
    given = _by_name(entries, inputs)
    names = [entry.name for entry in entries]
    unknown = [name for name in given if name not in names]
    missing = [
        entry.name
        for entry in entries
        if entry.name not in given and entry.default is None and (needed is None or entry.name in needed)
    ]
    if unknown or missing:
        raise InputError(f"inputs are given for {sorted(map(str, given))}; the model takes {names}")
    values = [given.get(entry.name, entry.default) for entry in entries]
    return [
        None if value is None else _fitting(entry, value)
        for entry, value in zip(entries, values, strict=True)
    ]


def _by_name(entries: Sequence[GraphInput], inputs: Inputs) -> dict[str, Any]:
    names = [entry.name for entry in entries]
    if isinstance(inputs, Mapping):
        return {name_of(entries, key): value for key, value in inputs.items()}
    required = [entry.name for entry in entries if entry.default is None] or names[:1]
    if is_several(inputs) and (len(required) > 1 or any(map(_is_array, inputs))):
        if not len(required) <= len(inputs) <= len(names):
            raise InputError(f"{len(inputs)} inputs are given; the model takes {len(required)}: {required}")
        ordered = [*required, *(name for name in names if name not in required)]
        return dict(zip(ordered, inputs, strict=False))
    if len(required) > 1:
        raise InputError(f"one input is given; the model takes {len(required)}: {required}")
    return {required[0]: inputs}


def _fitting(entry: GraphInput, value: Any) -> tf.Tensor:
    tensor = as_tensor(entry.name, value, None)
    shape = entry.shape
    if shape is not None:
        fits = len(tensor.shape) == len(shape) and all(
            size in (None, given) for size, given in zip(shape[1:], tensor.shape[1:], strict=True)
        )
        if not fits:
            wanted = ", ".join(["batch", *("any" if size is None else str(size) for size in shape[1:])])
            raise InputError(
                f"input {entry.name!r} has shape {tuple(tensor.shape)}; the model takes "
                f"{f'({wanted})' if shape else 'a single value'}"
            )
    return tf.cast(tensor, entry.dtype) if tensor.dtype != entry.dtype else tensor


def as_tensor(name: Any, value: Any, floating: tf.DType | None) -> tf.Tensor:
    """Make a tensor of an input's value; floating-point NumPy arrays take the dtype `floating`."""
    try:
        tensor = tf.convert_to_tensor(value if tf.is_tensor(value) else np.asarray(value))
    except (TypeError, ValueError) as error:
        raise InputError(
            f"input {name!r} of type {type(value).__name__} cannot be made an array: {error}"
        ) from error
    cast = floating is not None and tensor.dtype.is_floating and not tf.is_tensor(value)
    return tf.cast(tensor, floating) if cast else tensor


def name_of(entries: Sequence[GraphInput], key: Any) -> str:
    """Name of the input that a dict's key stands for: its name, its symbolic tensor, or the tensor's name."""
    name = key if isinstance(key, str) else getattr(key, "name", str(key))
    for entry in entries:
        if name in (entry.name, entry.tensor, entry.tensor.partition(":")[0], f"{entry.name}:0"):
            return entry.name
    return str(name)


def batched_inputs(entries: Sequence[GraphInput], tensors: Sequence[tf.Tensor | None]) -> list[bool]:
    """Tell which inputs have a row for each image.

    These are the inputs whose first axis is that of the first input that has axes.

    Args:
        entries: the inputs of a graph.
        tensors: a tensor for each; None for those that are missing.

    Raises:
        InputError: no input has axes.
    """
    pairs = [(entry, x) for entry, x in zip(entries, tensors, strict=True) if x is not None]
    first = next((pair for pair in pairs if pair[1].shape.rank), None)
    if first is None:
        raise InputError("no input has a batch axis")
    reference, example = first[0].shape, first[1]

    def is_batched(entry: GraphInput, x: tf.Tensor | None) -> bool:
        if x is None or not x.shape.rank:
            return False
        if entry.shape is None or reference is None:
            return bool(x.shape[0] == example.shape[0])
        return entry.shape[0] == reference[0]

    return [is_batched(entry, x) for entry, x in zip(entries, tensors, strict=True)]


def is_several(inputs: Any) -> bool:
    """Whether inputs may be several, in order."""
    return isinstance(inputs, (list, tuple))


def _is_array(value: Any) -> bool:
    return hasattr(value, "shape") and hasattr(value, "dtype")
