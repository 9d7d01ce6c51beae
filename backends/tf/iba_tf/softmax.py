"""Classifiers without the softmax at their end."""

from __future__ import annotations

from typing import Any

import keras
from keras import KerasTensor

from iba_core.errors import LayerError
from iba_tf.adapter import require_tensorflow
from iba_tf.graph import has_graph, node_of, output_structure, why_no_graph


def model_wo_softmax(model: keras.Model) -> keras.Model:
    """Model that gives the logits of a classifier.

    A softmax is taken away from the end of every output: one that is a layer or an operation of its own,
    the activation of the last layer, or either at the end of a nested model. The new model shares the
    layers of `model`, which stays as it is; only a last layer with a softmax in it is replaced, and
    starts with a copy of its weights.

    Args:
        model: a functional or sequential Keras model. Outputs without a softmax stay as they are.

    Returns:
        A functional model with the inputs of `model`, and its outputs before the softmax.

    Raises:
        LayerError: the model is subclassed, or not built.

    Example:
        >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3, activation="softmax")])
        >>> model_wo_softmax(model).layers[-1].activation.__name__
        'linear'
    """
    require_tensorflow()
    if not has_graph(model):
        raise LayerError(why_no_graph(model))
    return _without_softmax(model, model.name)


def _without_softmax(model: keras.Model, name: str) -> keras.Model:
    structure = output_structure(model)
    finals = keras.tree.flatten(structure)
    ending = {id(node_of(tensor)) for tensor in finals if _ends_in_softmax(tensor)}
    rebuilt = _Rebuilt()
    outputs = [rebuilt.of(tensor) if id(node_of(tensor)) in ending else tensor for tensor in finals]
    return keras.Model(_input_structure(model), keras.tree.pack_sequence_as(structure, outputs), name=name)


def applies_softmax(operation: keras.Operation) -> bool:
    """Whether a softmax is the last thing an operation does, the end of a nested model not counted."""
    return _is_softmax(operation) or getattr(operation, "activation", None) is keras.activations.softmax


def _is_softmax(operation: keras.Operation) -> bool:
    """Whether an operation is a softmax and nothing else."""
    if isinstance(operation, keras.layers.Activation):
        return operation.activation is keras.activations.softmax
    # The operation behind `keras.ops.softmax` has no public name.
    return isinstance(operation, keras.layers.Softmax) or type(operation).__name__ == "Softmax"


class _Rebuilt:
    """The last calls of a model, made anew by operations without a softmax, one for each old one."""

    def __init__(self) -> None:
        self._operations: dict[int, keras.Operation] = {}
        self._calls: dict[int, list[KerasTensor]] = {}

    def of(self, tensor: KerasTensor) -> KerasTensor:
        """What stands for `tensor`, a result of a call with a softmax at its end."""
        operation, _, index = tensor._keras_history
        node = node_of(tensor)
        if _is_softmax(operation):
            return node.arguments.keras_tensors[0]
        if id(node) not in self._calls:
            results = self._without_softmax(operation)(*node.arguments.args, **node.arguments.kwargs)
            self._calls[id(node)] = keras.tree.flatten(results)
        if not has_graph(operation):
            self._operations[id(operation)].set_weights(operation.get_weights())
        return self._calls[id(node)][index]

    def _without_softmax(self, operation: keras.Operation) -> keras.Operation:
        if id(operation) not in self._operations:
            # A name of its own, since the old operation may still stand elsewhere in the model.
            name = f"{operation.name}_logits"
            if has_graph(operation):
                self._operations[id(operation)] = _without_softmax(operation, name)
            else:
                config = {**operation.get_config(), "activation": "linear", "name": name}
                self._operations[id(operation)] = type(operation).from_config(config)
        return self._operations[id(operation)]


def _ends_in_softmax(tensor: KerasTensor) -> bool:
    operation, _, index = tensor._keras_history
    return applies_softmax(operation) or (has_graph(operation) and _ends_in_softmax(operation.outputs[index]))


def _input_structure(model: keras.Model) -> Any:
    return model.inputs[0] if isinstance(model, keras.Sequential) else model.input
