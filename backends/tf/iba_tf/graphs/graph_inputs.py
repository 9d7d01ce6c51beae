"""What users feed to a graph, as the tensors of its inputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorflow as tf

from iba_core.errors import InputError
from iba_core.framework.adapter import Inputs
from iba_core.framework.inputs import Shared


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


Fed = list[Any]
"""A tensor for each input of a graph, `Shared` where all images share it; None for those that are missing."""


def tensors_for(entries: Sequence[GraphInput], inputs: Inputs, needed: set[str] | None = None) -> Fed:
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


def _fitting(entry: GraphInput, value: Any) -> tf.Tensor | Shared:
    if isinstance(value, Shared):
        return Shared(_fitting(entry, value.array))
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
    if tensor.dtype == entry.dtype:
        return tensor
    if not (tensor.dtype.is_floating or tensor.dtype.is_integer or tensor.dtype.is_bool):
        raise InputError(
            f"input {entry.name!r} holds {tensor.dtype.name}; the model takes {tf.as_dtype(entry.dtype).name}"
        )
    return tf.cast(tensor, entry.dtype)


def as_tensor(name: Any, value: Any, floating: tf.DType | None) -> Any:
    """Make a tensor of an input's value; floating-point NumPy arrays take the dtype `floating`."""
    if isinstance(value, Shared):
        return Shared(as_tensor(name, value.array, floating))
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


def plain(fed: Fed) -> list[tf.Tensor | None]:
    """The tensors without marks."""
    return [x.array if isinstance(x, Shared) else x for x in fed]


def batched_inputs(entries: Sequence[GraphInput], fed: Fed) -> list[bool]:
    """Tell which inputs have a row for each image.

    These are the inputs that are not marked as shared, whose first axis has the length of that of the first
    such input, and which the model declares like that one.

    Args:
        entries: the inputs of a graph.
        fed: a tensor for each.

    Raises:
        InputError: no input has a row for each image.
    """
    own = [(entry, x) for entry, x in zip(entries, fed, strict=True) if _has_axes(x)]
    if not own:
        raise InputError("no input has a batch axis")
    reference, example = own[0]
    return [
        _has_axes(x) and x.shape[0] == example.shape[0] and _declared_alike(entry, reference)
        for entry, x in zip(entries, fed, strict=True)
    ]


def _has_axes(x: Any) -> bool:
    return bool(tf.is_tensor(x) and x.shape.rank)


def _declared_alike(entry: GraphInput, reference: GraphInput) -> bool:
    if entry.shape is None or reference.shape is None:
        return True
    return entry.shape[:1] == reference.shape[:1]


def is_several(inputs: Any) -> bool:
    """Whether inputs may be several, in order."""
    return isinstance(inputs, (list, tuple))


def _is_array(value: Any) -> bool:
    return isinstance(value, Shared) or (hasattr(value, "shape") and hasattr(value, "dtype"))
