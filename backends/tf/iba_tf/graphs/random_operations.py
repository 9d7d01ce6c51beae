"""Operations of TensorFlow that draw random numbers."""

from __future__ import annotations

import re
from typing import Any

import tensorflow as tf
from tensorflow.python.eager import context  # nothing public gives the body of a function

OF_GENERATORS = frozenset(
    {
        "NonDeterministicInts",
        "RngReadAndSkip",
        "RngSkip",
        "StatefulRandomBinomial",
        "StatefulStandardNormal",
        "StatefulStandardNormalV2",
        "StatefulTruncatedNormal",
        "StatefulUniform",
        "StatefulUniformFullInt",
        "StatefulUniformInt",
    }
)
"""Types of operations that change the state of a `tf.random.Generator`."""

_DRAWING = re.compile(r"Multinomial|ParameterizedTruncatedNormal|Random(?!Dataset).*|TruncatedNormal")
"""Types of operations that take their numbers from a state that nothing outside of them can set."""


def draws_numbers(graph: tf.Graph) -> bool:
    """Whether a graph has operations that draw other random numbers each time.

    Those in the bodies of functions count, also where they run in one of several branches.

    Example:
        >>> with tf.Graph().as_default() as graph:
        ...     draws = tf.random.normal([2])
        >>> draws_numbers(graph)
        True
    """
    seen: set[str] = set()
    queue: list[Any] = []
    for operation in graph.get_operations():
        if _DRAWING.fullmatch(operation.type):
            return True
        if operation.type in _CALLING:
            queue += _called(operation.node_def)
    while queue:
        name = queue.pop()
        if name in seen:
            continue
        seen.add(name)
        for node in context.context().get_function_def(name).node_def:
            if _DRAWING.fullmatch(node.op):
                return True
            queue += _called(node)
    return False


_CALLING = frozenset({"PartitionedCall", "StatefulPartitionedCall", "StatelessWhile", "While"})


def _called(node: Any) -> list[str]:
    return [value.func.name for value in node.attr.values() if value.HasField("func")]
