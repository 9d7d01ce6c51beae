"""The function that an output ends in: a softmax, a sigmoid or another one."""

from __future__ import annotations

from typing import Any

from iba_core.framework.adapter import Activation
from iba_tf.graphs.dataflow import DataflowGraph, TensorName

_PASSING = (
    "Cast",
    "EnsureShape",
    "ExpandDims",
    "Identity",
    "IdentityN",
    "Reshape",
    "Snapshot",
    "Squeeze",
    "StopGradient",
    "Transpose",
)
"""Operations whose numbers are those of their first argument."""

_PARTS = ("GatherV2", "Slice", "StridedSlice")
"""Operations that take some of the numbers of their first argument."""

_ENDINGS: dict[str, Activation] = {"Softmax": "softmax", "Sigmoid": "sigmoid"}


def ending(graph: DataflowGraph, tensor: TensorName) -> Activation | None:
    """The function that a tensor ends in; None where it cannot be told.

    Example:
        >>> import keras
        >>> from iba_tf.graphs.calls import CallGraph
        >>> dense = keras.layers.Dense(1, activation="sigmoid")
        >>> graph = CallGraph(keras.Sequential([keras.Input((4,)), dense]))
        >>> ending(graph, graph.flat_outputs[0])
        'sigmoid'
    """
    return _followed(graph, tensor)[0]


def before_softmax(graph: DataflowGraph, tensor: TensorName) -> TensorName | None:
    """The argument of the softmax that a tensor of a graph of operations ends in; None if there is none."""
    found, node, _ = _followed(graph, tensor)
    return str(node.inputs[0]) if found == "softmax" else None


def _followed(graph: DataflowGraph, tensor: TensorName) -> tuple[Activation | None, Any, TensorName]:
    """The function that a tensor ends in, its node, and the input of the graph that is reached instead."""
    is_part = False
    while not graph.is_end(tensor, backwards=True) and tensor not in graph.bindings:
        node: Any = graph.producer(tensor)
        inside = None if node is None else graph.inside(node)
        if inside is not None:
            result = inside.flat_outputs[node.outputs.index(tensor)]
            found, _, reached = _followed(inside, result)
            if found is not None or not reached:
                return (None if is_part and found == "softmax" else found), node, ""
            tensor = list(dict.fromkeys(node.inputs))[[x.tensor for x in inside.inputs].index(reached)]
            continue
        kind = getattr(node, "op", None)
        if kind in _ENDINGS:
            return ("other" if is_part and kind == "Softmax" else _ENDINGS[kind]), node, ""
        if kind not in (*_PASSING, *_PARTS):
            return ("other" if kind is not None else None), node, ""
        is_part = is_part or kind in _PARTS
        tensor = node.inputs[int(tensor.rpartition(":")[2]) if kind == "IdentityN" else 0]
    return None, None, tensor if graph.is_end(tensor, backwards=True) else ""
