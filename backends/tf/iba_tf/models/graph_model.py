"""Models of TensorFlow as graphs of operations: v1 sessions, frozen graphs, SavedModels, functions, Keras.

A user makes a `GraphModel` of such a model and gives it to an `Explainer`, or to anything else that works on
models. The operations themselves are an `OperationGraph`, and an `Origin` knows where they come from.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import tensorflow as tf
from tensorflow.core.framework.graph_pb2 import GraphDef

from iba_core.errors import InputError
from iba_core.framework.adapter import Inputs
from iba_core.framework.cache import Cache
from iba_core.framework.layout import DataFormat
from iba_tf.framework import eagerly, runs_eagerly
from iba_tf.graphs.dataflow import TensorName
from iba_tf.graphs.graph_inputs import Fed
from iba_tf.graphs.operations import Binding, OperationGraph
from iba_tf.graphs.split import input_format_of
from iba_tf.models.layer_tracing import layer_classes
from iba_tf.models.network import Network
from iba_tf.models.origins import FixedOrigin, Origin, function_origin, keras_origin, value_of
from iba_tf.models.saved_model import open_saved_model
from iba_tf.models.v1_graphs import SessionOrigin, frozen_graph, read_graph_def

_KEPT = 16
"""How many graphs, one for each shape of inputs, a copy keeps."""

_COUNTED = re.compile(rb"_\d+")
"""What tells functions of one name from each other, by how many a process has made."""

_NUMBERED = re.compile(r"output_(\d+)")
"""Names of the outputs that a SavedModel gives in order."""


def is_graph_model(model: Any) -> bool:
    """Whether a model is one of TensorFlow, as `GraphModel.of` takes it."""
    kinds = (
        GraphModel,
        GraphDef,
        tf.types.experimental.Callable,
        tf.types.experimental.GenericFunction,
        *layer_classes(),
    )
    return isinstance(model, kinds) or (isinstance(model, tf.Module) and callable(model))


class GraphModel(Network):
    """Any model of TensorFlow, as a graph of operations.

    It is made by one of the ``from_`` methods, and explained like any other model, by
    ``Explainer(model, layer="conv2/Relu")``. A layer is named by its operation, ``"conv2/Relu"``, by a
    tensor, ``"conv2/Relu:0"``, or by a scope that one tensor leaves, ``"conv2"``; where Keras layers made the
    graph, by their names and paths, ``"block/conv"``, too. Of a layer with several results the first is
    meant; ``"lstm[1]"`` is the second.

    The values of the variables are those of the model that it was made of: a Keras model, a function or a
    module is read whenever the model runs; the variables of a session are read when the model is made, and
    again by `update_variables`. That model itself is never altered.

    Example:
        >>> model = GraphModel.from_function(lambda x: tf.tanh(x, name="feature"), tf.TensorSpec((None, 3)))
        >>> model.predict(np.zeros((1, 3))).numpy().tolist()
        [[0.0, 0.0, 0.0]]
        >>> [info.name for info in model.layers(np.zeros((1, 3)))]
        ['feature']
    """

    def __init__(
        self,
        origin: Origin,
        replaced: Mapping[Any, tf.Variable] | None = None,
        outputs: Sequence[Any] | None = None,
    ) -> None:
        super().__init__()
        self._origin = origin
        self._replaced = dict(replaced or {})
        self._is_copy = replaced is not None
        self._outputs = outputs
        self._graphs: Cache[OperationGraph] = Cache(_KEPT)

    # -- where models come from -------------------------------------------------------------------

    @classmethod
    @runs_eagerly
    def from_session(
        cls,
        graph: tf.Graph | None,
        session: tf.compat.v1.Session,
        *,
        outputs: Any,
        inputs: Any = None,
        defaults: Mapping[Any, npt.ArrayLike] | None = None,
    ) -> GraphModel:
        """Model in a graph of TensorFlow 1, with the variables' values of a session.

        Args:
            graph: the graph; None for that of the session.
            session: in which the variables have been initialised or restored.
            outputs: what the model gives: a tensor, an operation or the name of one; or several, nested
                as the results are to be.
            inputs: the placeholders to be fed, likewise, in order. If None, those that the outputs
                depend on, those without a default first.
            defaults: values of placeholders, by tensor or name, for calls that do not give them, such as
                ``{"keep_prob:0": 1.0}``. What ``tf.compat.v1.placeholder_with_default`` made has one.

        Raises:
            InputError: there is no such tensor, or a variable has no value in the session.
        """
        graph = session.graph if graph is None else graph
        origin = SessionOrigin(graph, session, outputs, inputs, defaults)
        return cls(origin)

    @classmethod
    @runs_eagerly
    def from_graph_def(
        cls,
        graph_def: GraphDef | str | PathLike[str],
        *,
        outputs: Any = None,
        inputs: Any = None,
        defaults: Mapping[Any, npt.ArrayLike] | None = None,
    ) -> GraphModel:
        """Model in a frozen graph, whose variables have been made constants.

        Args:
            graph_def: the graph, or the ``.pb`` file that holds it.
            outputs: names of tensors or operations, nested as the results are to be. If None, the
                operations that depend on the inputs and that no other takes.
            inputs: names of the placeholders, see `from_session`.
            defaults: see `from_session`.

        Raises:
            StateError: the file is missing or holds no graph.
            InputError: there is no such tensor, no output is found, or the graph is not frozen.
        """
        if not isinstance(graph_def, GraphDef):
            graph_def = read_graph_def(Path(graph_def))
        return cls(FixedOrigin(frozen_graph(graph_def, outputs, inputs, defaults)))

    @classmethod
    @runs_eagerly
    def from_saved_model(
        cls,
        path: str | PathLike[str],
        *,
        signature: str | None = None,
        tags: str | Sequence[str] | None = None,
    ) -> GraphModel:
        """Model in a SavedModel folder, written by any version of TensorFlow or Keras.

        Args:
            path: the folder.
            signature: name of the signature to call. If None, ``"serving_default"``, or the only one.
            tags: of the graph in the folder; by default ``"serve"``, or those of the only graph.

        Raises:
            StateError: the folder is missing or holds no SavedModel.
            InputError: it has no such signature or tags.
        """
        return cls(open_saved_model(Path(path), signature, tags))

    @classmethod
    @runs_eagerly
    def from_function(cls, function: Callable[..., Any], *specs: Any) -> GraphModel:
        """Model that is a function of tensors.

        Args:
            function: a `tf.function`, one of its concrete functions, a `tf.Module` or any other callable of
                tensors.
            *specs: a `tf.TensorSpec` for each argument, with an open batch axis. If left out, those of the
                function's own signature; where it has none, it is traced for the inputs that come.
        """
        return cls(function_origin(function, specs))

    @classmethod
    @runs_eagerly
    def from_keras(cls, model: Any) -> GraphModel:
        """A Keras 3 or Keras 2 model of any kind, subclassed ones too.

        It is traced in inference mode, for the inputs that come where it does not declare its inputs.

        Raises:
            LayerError: the model is not built.
        """
        return cls(keras_origin(model))

    @classmethod
    def from_operations(cls, graph: OperationGraph) -> GraphModel:
        """A graph of operations over the variables that it is bound to."""
        return cls(FixedOrigin(graph))

    @classmethod
    def of(cls, model: Any) -> GraphModel:
        """The graph model of anything for which `is_graph_model` is true."""
        if isinstance(model, cls):
            return model
        if isinstance(model, GraphDef):
            return cls.from_graph_def(model)
        if isinstance(model, tuple(layer_classes())):
            return cls.from_keras(model)
        return cls.from_function(model)

    # -- copies -----------------------------------------------------------------------------------

    def __deepcopy__(self, memo: dict[int, Any]) -> GraphModel:
        return self.copy()

    def __reduce__(self) -> tuple[Any, ...]:
        if self._origin.why_not_stored is not None or self.graph is None:
            raise InputError(f"this GraphModel cannot be pickled: {self._origin.why_not_stored}")
        names = {variable.ref(): name for name, variable in self.variables.items()}
        tensors = {
            tensor: names[binding.ref()]
            for tensor, binding in self.graph.bindings.items()
            if isinstance(binding, tf.Variable)
        }
        return _stored_model, (self.graph, tensors)

    def described(self) -> tuple[str, Iterable[npt.NDArray[Any]]]:
        """See `ModelAdapter.described`: the operations, and the values that they are bound to.

        Where the graph follows from the inputs, it is that of the last.
        """
        graph = self._origin.graph or self._origin.latest
        if graph is None:
            raise InputError("the model has no graph before it has run; predict once")
        graph = self._own(graph)
        # Names of what is bound and of functions differ between processes; the order does not.
        numbers: dict[str, int] = {}

        def number(tensor: TensorName) -> tuple[int, str]:
            name, _, output = tensor.partition(":")
            return numbers.setdefault(name, len(numbers)), output

        operations = [
            (
                node.op,
                [number(source) for source in node.inputs],
                sorted((key, _stored(value)) for key, value in node.definition.attr.items()),
                number(node.name),
            )
            for node in graph.nodes.values()
        ]
        functions = sorted(_COUNTED.sub(b"", _stored(each)) for each in graph.definitions.function)
        outputs = [number(output) for output in graph.flat_outputs]
        text = _COUNTED.sub(b"", f"{operations} {outputs}".encode()).decode() + f"{functions}"
        bound = sorted(graph.bindings.items(), key=lambda item: number(item[0]))
        return text, (np.asarray(binding.numpy()) for _, binding in bound)

    # -- variables --------------------------------------------------------------------------------

    @property
    def graph(self) -> OperationGraph | None:
        """The graph, if it is the same for all inputs."""
        return None if self._origin.graph is None else self._own(self._origin.graph)

    @property
    def input_names(self) -> list[str] | None:
        """Names of the inputs; None where they follow from what is given."""
        return None if self.graph is None else [entry.name for entry in self.graph.inputs]

    @property
    def input_shape(self) -> tuple[int | None, ...] | None:
        """Shape of the first input with the batch axis, None where it is open."""
        return None if self.graph is None else self.graph.inputs[0].shape

    @property
    def variables(self) -> dict[str, tf.Variable]:
        """The variables that the model reads, by name: its own where it is a copy."""
        return {
            name: self._replaced.get(variable.ref(), variable)
            for name, variable in self._origin.variables().items()
        }

    @runs_eagerly
    def copy(self) -> GraphModel:
        """The same model over variables of its own, which have the present values."""
        replaced = {
            variable.ref(): tf.Variable(self._replaced.get(variable.ref(), variable), trainable=False)
            for variable in self._origin.variables().values()
        }
        return GraphModel(self._origin, replaced, self._outputs)

    def giving(self, outputs: Sequence[Any] | None) -> GraphModel:
        """The same model over the same variables, which gives only some outputs, or other places of it.

        Args:
            outputs: keys of its results, or places, see `OperationGraph.find`; None for all outputs.
        """
        return GraphModel(self._origin, self._replaced if self._is_copy else None, outputs)

    @runs_eagerly
    def update_variables(self) -> None:
        """Give the model's own variables the values that the original's have now."""
        values = self._origin.values()
        for name, variable in self.variables.items():
            variable.assign(values[name])

    @runs_eagerly
    def changed_variables(self) -> list[str]:
        """Names of the variables whose values in the original are others than the model's own."""
        values = self._origin.values()
        return [
            name
            for name, variable in self.variables.items()
            if not np.array_equal(value_of(variable), values[name], equal_nan=values[name].dtype.kind in "fc")
        ]

    def _own(self, graph: OperationGraph) -> OperationGraph:
        """A graph of the origin, over the model's own variables, to the outputs that it gives."""
        is_own = self._is_copy or self._outputs is not None
        return self._graphs.get(graph, lambda: self._made_own(graph)) if is_own else graph

    def _made_own(self, graph: OperationGraph) -> OperationGraph:
        own = graph.with_bindings(self._bindings(graph) if self._is_copy else {})
        if self._outputs is not None:
            own.outputs = [_output(graph, output) for output in self._outputs]
        return own

    def _bindings(self, graph: OperationGraph) -> dict[TensorName, Binding]:
        bindings: dict[TensorName, Binding] = {}
        for name, binding in graph.bindings.items():
            if isinstance(binding, tf.Variable):
                if binding.ref() not in self._replaced:  # met only now, when the model was traced
                    self._replaced[binding.ref()] = tf.Variable(binding, trainable=False)
                bindings[name] = self._replaced[binding.ref()]
        return bindings

    # -- running ----------------------------------------------------------------------------------

    @property
    def data_format(self) -> DataFormat:
        """See `Source.data_format`; before a model without declared inputs has run, what its layers say."""
        graph = self.graph or (self._own(self._origin.latest) if self._origin.latest else None)
        return self._origin.data_format if graph is None else input_format_of(graph)

    @runs_eagerly
    def prepare(
        self, inputs: Inputs, needed: Callable[[Any], set[str]] | None = None
    ) -> tuple[OperationGraph, Fed]:
        """See `Source.prepare`."""
        if self.graph is None:
            graph, tensors = self._origin.traced_for(inputs)
            return self._own(graph), list(tensors)
        return self.graph, self.graph.prepare(inputs, None if needed is None else needed(self.graph))

    def to_inputs(self, inputs: Inputs) -> Inputs:
        """See `Network.to_inputs`."""
        if self.graph is None:
            with eagerly():
                return self._origin.to_inputs(inputs)
        return super().to_inputs(inputs)

    def check_layer(self, layer: Any) -> str:
        """See `Source.check_layer`."""
        return self._origin.check_layer(layer)


def _output(graph: OperationGraph, output: Any) -> TensorName:
    """Tensor of an output, by its key in the model's results or by the name of a place."""
    if isinstance(graph.outputs, Mapping) and isinstance(output, str) and output in graph.outputs:
        return str(tf.nest.flatten(graph.outputs[output])[0])
    numbered = _NUMBERED.fullmatch(output) if isinstance(output, str) else None
    if numbered and isinstance(graph.outputs, (list, tuple)) and int(numbered[1]) < len(graph.outputs):
        return str(tf.nest.flatten(graph.outputs[int(numbered[1])])[0])
    return graph.find(output)[1]


def _stored(message: Any) -> bytes:
    """A part of a graph as bytes, always the same."""
    found: bytes = message.SerializeToString(deterministic=True)
    return found


def _stored_model(graph: OperationGraph, names: Mapping[str, str]) -> GraphModel:
    """The model of a graph that was pickled; `names` are those of the variables, by tensor."""
    return GraphModel(
        FixedOrigin(graph, {graph.bindings[tensor].ref(): name for tensor, name in names.items()})
    )
