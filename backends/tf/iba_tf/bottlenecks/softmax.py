"""Classifiers without the softmax at their end."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

import keras
import tensorflow as tf

from iba_core.errors import LayerError
from iba_core.targets import main_index
from iba_tf.adapter import require_tensorflow
from iba_tf.bottlenecks.original import keras_library_of
from iba_tf.graphs.calls import has_graph, node_of, output_structure, why_no_graph
from iba_tf.graphs.dataflow import DataflowGraph, TensorName, in_order
from iba_tf.graphs.endings import before_softmax


def model_wo_softmax(model: Any) -> Any:
    """Make a model that gives the logits of a classifier.

    The softmax at the end of each output is removed: a layer or operation of its own, the activation of the
    last layer, or either at the end of a nested model. The new model shares the layers of `model`, which is
    not changed. Only a last layer with a softmax inside is replaced by a new layer, with a copy of its
    weights.

    Args:
        model: a functional or sequential model of Keras 3 or 2. Outputs without a softmax stay as they are.

    Returns:
        A functional model of the same Keras with the inputs of `model`, and its outputs before the softmax.

    Raises:
        LayerError: the model is subclassed, or not built.

    Example:
        >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3, activation="softmax")])
        >>> model_wo_softmax(model).layers[-1].activation.__name__
        'linear'
    """
    require_tensorflow()
    package = keras_library_of(model)
    dialect = _Keras3() if package in (keras, None) else _Keras2(package)
    if not dialect.has_graph(model):
        raise LayerError(why_no_graph(model))
    return _without_softmax(model, model.name, dialect)


def _without_softmax(model: Any, name: str, dialect: _Dialect) -> Any:
    structure = dialect.outputs(model)
    finals = tf.nest.flatten(structure)
    ending = {id(dialect.node_of(tensor)) for tensor in finals if _ends_in_softmax(tensor, dialect)}
    rebuilt = _Rebuilt(dialect)
    outputs = [rebuilt.of(tensor) if id(dialect.node_of(tensor)) in ending else tensor for tensor in finals]
    packed = tf.nest.pack_sequence_as(structure, outputs)
    return dialect.package.Model(dialect.inputs(model), packed, name=name)


def _applies_softmax(operation: Any, dialect: _Dialect) -> bool:
    softmax = dialect.package.activations.softmax
    return _is_softmax(operation, dialect) or getattr(operation, "activation", None) is softmax


def _is_softmax(operation: Any, dialect: _Dialect) -> bool:
    """Whether an operation is a softmax and nothing else."""
    layers = dialect.package.layers
    if isinstance(operation, layers.Activation):
        return operation.activation is dialect.package.activations.softmax
    # The operation that `keras.ops.softmax` makes has no public name.
    return isinstance(operation, layers.Softmax) or type(operation).__name__ == "Softmax"


def _ends_in_softmax(tensor: Any, dialect: _Dialect) -> bool:
    operation, _, index = tensor._keras_history
    if dialect.has_graph(operation):
        return _ends_in_softmax(tf.nest.flatten(dialect.outputs(operation))[index], dialect)
    return _applies_softmax(operation, dialect)


def first_output(graph: DataflowGraph) -> TensorName:
    """Name of the output that a classification uses, see `main_output`.

    Raises:
        InputError: it is not clear which of several outputs that is.
    """
    names = list(in_order(graph.outputs))
    return names[main_index(named_as(graph.outputs, graph.tensor))]


def named_as(outputs: Any, tensor: Callable[[TensorName], Any]) -> Any:
    """Nested names of tensors with the tensors in their places."""
    if isinstance(outputs, str):
        return tensor(outputs)
    if isinstance(outputs, Mapping):
        return {key: named_as(value, tensor) for key, value in outputs.items()}
    return [named_as(value, tensor) for value in outputs]


def logits_of(graph: DataflowGraph) -> TensorName | None:
    """Name of the input of the softmax at the end of the first output; None if there is no softmax."""
    return before_softmax(graph, first_output(graph))


class _Rebuilt:
    """The last calls of a model, repeated with operations without a softmax, one for each old one."""

    def __init__(self, dialect: _Dialect) -> None:
        self._dialect = dialect
        self._operations: dict[int, Any] = {}
        self._calls: dict[int, list[Any]] = {}

    def of(self, tensor: Any) -> Any:
        """The tensor that replaces `tensor`, a result of a call with a softmax at its end."""
        operation, _, index = tensor._keras_history
        node = self._dialect.node_of(tensor)
        args, kwargs = self._dialect.arguments(node)
        if _is_softmax(operation, self._dialect):
            return tf.nest.flatten(args)[0]
        if id(node) not in self._calls:
            results = self._without_softmax(operation)(*args, **kwargs)
            self._calls[id(node)] = tf.nest.flatten(results)
        if not self._dialect.has_graph(operation):
            self._operations[id(operation)].set_weights(operation.get_weights())
        return self._calls[id(node)][index]

    def _without_softmax(self, operation: Any) -> Any:
        if id(operation) not in self._operations:
            # A new name, because the old operation may also be elsewhere in the model.
            name = f"{operation.name}_logits"
            if self._dialect.has_graph(operation):
                self._operations[id(operation)] = _without_softmax(operation, name, self._dialect)
            else:
                config = {**operation.get_config(), "activation": "linear", "name": name}
                self._operations[id(operation)] = type(operation).from_config(config)
        return self._operations[id(operation)]


class _Dialect(Protocol):
    """How a version of Keras stores the calls of its layers."""

    package: Any

    def has_graph(self, operation: Any) -> bool:
        """Whether calling it only runs a graph of symbolic tensors that it keeps."""

    def node_of(self, tensor: Any) -> Any:
        """The record of the call that made a symbolic tensor."""

    def arguments(self, node: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Positional and keyword arguments of a call."""

    def inputs(self, model: Any) -> Any:
        """A model's symbolic inputs, nested like its arguments."""

    def outputs(self, model: Any) -> Any:
        """A model's symbolic outputs, nested like its results."""


class _Keras3:
    package = keras

    def has_graph(self, operation: Any) -> bool:
        return has_graph(operation)

    def node_of(self, tensor: Any) -> Any:
        return node_of(tensor)

    def arguments(self, node: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
        return node.arguments.args, node.arguments.kwargs

    def inputs(self, model: Any) -> Any:
        return model.inputs[0] if isinstance(model, keras.Sequential) else model.input

    def outputs(self, model: Any) -> Any:
        return output_structure(model)


class _Keras2:
    def __init__(self, package: Any) -> None:
        self.package = package

    def has_graph(self, operation: Any) -> bool:
        return isinstance(operation, self.package.Model) and bool(operation.outputs)

    def node_of(self, tensor: Any) -> Any:
        operation, index, _ = tensor._keras_history
        return operation.inbound_nodes[index]

    def arguments(self, node: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
        return node.call_args, node.call_kwargs

    def inputs(self, model: Any) -> Any:
        return model.input

    def outputs(self, model: Any) -> Any:
        return model.output
