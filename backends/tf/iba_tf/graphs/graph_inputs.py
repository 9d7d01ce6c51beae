"""What users feed to a graph, as the tensors of its inputs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import tensorflow as tf

from iba_core.errors import InputError
from iba_core.framework.adapter import Inputs
from iba_tf.graphs.operations import GraphInput, OperationGraph, node_of


def tensors_for(graph: OperationGraph, inputs: Inputs, needed: set[str] | None) -> list[tf.Tensor | None]:
    """A user's inputs as tensors, one for each input of a graph; None for those that are missing.

    Args:
        graph: what takes them.
        inputs: one array, a list or tuple, or a dict, see `name_of`.
        needed: names of the inputs that must be there; all without a default if None.

    Raises:
        InputError: an input is missing, unknown, no array, or of the wrong shape.
    """
    given = _by_name(graph, inputs)
    names = [entry.name for entry in graph.inputs]
    unknown = [name for name in given if name not in names]
    missing = [
        entry.name
        for entry in graph.inputs
        if entry.name not in given and entry.default is None and (needed is None or entry.name in needed)
    ]
    if unknown or missing:
        raise InputError(f"inputs are given for {sorted(map(str, given))}; the model takes {names}")
    tensors = []
    for entry in graph.inputs:
        value = given.get(entry.name, entry.default)
        tensors.append(None if value is None else _fitting(entry, value))
    return tensors


def _by_name(graph: OperationGraph, inputs: Inputs) -> dict[str, Any]:
    names = [entry.name for entry in graph.inputs]
    if isinstance(inputs, Mapping):
        return {name_of(graph, key): value for key, value in inputs.items()}
    required = [entry.name for entry in graph.inputs if entry.default is None] or names[:1]
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
    """A value of some input as a tensor; floating-point arrays of NumPy take the dtype `floating`."""
    try:
        tensor = tf.convert_to_tensor(value if tf.is_tensor(value) else np.asarray(value))
    except (TypeError, ValueError) as error:
        raise InputError(
            f"input {name!r} of type {type(value).__name__} cannot be made an array: {error}"
        ) from error
    cast = floating is not None and tensor.dtype.is_floating and not tf.is_tensor(value)
    return tf.cast(tensor, floating) if cast else tensor


def name_of(graph: OperationGraph, key: Any) -> str:
    """Name of the input that a key of a dict stands for: its name, its placeholder, or the name of that."""
    name = key if isinstance(key, str) else getattr(key, "name", str(key))
    for entry in graph.inputs:
        if name in (entry.name, entry.tensor, node_of(entry.tensor), f"{entry.name}:0"):
            return entry.name
    return name


def is_several(inputs: Any) -> bool:
    """Whether inputs may be several, in order."""
    return isinstance(inputs, (list, tuple))


def _is_array(value: Any) -> bool:
    return hasattr(value, "shape") and hasattr(value, "dtype")
