"""What a bottleneck's copy is made of: a graph of any age, the feature map and the outputs in it."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Mapping
from copy import copy
from os import PathLike, fspath
from pathlib import Path
from typing import Any

import keras
import tensorflow as tf
from tensorflow.core.framework.graph_pb2 import GraphDef

from iba_core.errors import InputError
from iba_core.framework.adapter import Inputs
from iba_tf.adapter import TensorFlowAdapter
from iba_tf.graphs.calls import function_to
from iba_tf.graphs.dataflow import TensorName
from iba_tf.graphs.operations import OperationGraph, canonical, node_of
from iba_tf.graphs.split import GraphSplit
from iba_tf.models.graph_model import GraphModel

v1 = tf.compat.v1


class Original:
    """A model over variables of its own, of which some outputs are wanted.

    It is made by `of`, and is what a `GraphSplit` is made of.

    Args:
        model: the model.
        feature: what `OperationGraph.find` takes.
        outputs: likewise; None for all that the model gives.
        graph: the v1 graph that the model was taken from; None if it is none.
        session: the session of that graph.
    """

    def __init__(
        self,
        model: GraphModel,
        feature: Any,
        outputs: list[Any] | None,
        graph: tf.Graph | None = None,
        session: v1.Session | None = None,
    ) -> None:
        self.model = model
        self.feature = feature
        self.outputs = outputs
        self.v1_graph = graph
        self.session = session
        self._selected: dict[int, tuple[OperationGraph, OperationGraph]] = {}

    @classmethod
    def of(cls, feature: Any, outputs: Any, graph: Any, session: v1.Session | None) -> Original:
        """The model that tensors and names belong to, see `IBACopy`.

        Raises:
            InputError: it cannot be told which model they belong to, or there is no session for a v1 graph.
            StateError: a file is missing or holds no model.
        """
        wanted = (
            None if outputs is None else list(outputs) if isinstance(outputs, (list, tuple)) else [outputs]
        )
        if isinstance(graph, (str, PathLike)):
            if Path(graph).suffix == ".pb":
                return cls(GraphModel.from_graph_def(graph, outputs=_names(wanted)), feature, wanted)
            graph = _loaded(graph)
        if isinstance(graph, GraphDef):
            return cls(GraphModel.from_graph_def(graph, outputs=_names(wanted)), feature, wanted)
        if isinstance(graph, GraphModel):
            return cls(graph.copy(), feature, wanted)
        if _is_keras(graph) or any(map(_is_keras, [feature, *(wanted or [])])):
            return cls._of_keras(feature, wanted, graph, session)
        if graph is None or isinstance(graph, tf.Graph):
            return cls._of_session(feature, wanted, graph, session)
        return cls(GraphModel.from_function(graph).copy(), feature, wanted)

    @classmethod
    def _of_session(
        cls, feature: Any, outputs: list[Any] | None, graph: tf.Graph | None, session: v1.Session | None
    ) -> Original:
        if outputs is None:
            raise InputError(
                "outputs=None, but a v1 graph does not tell which of its tensors are outputs; name them"
            )
        given = [x for x in (feature, *outputs) if isinstance(x, (tf.Tensor, tf.Operation))]
        if any(not hasattr(x, "graph") for x in given):
            raise InputError(
                "feature and outputs are names or symbolic tensors, not tensors that hold values"
            )
        if graph is None:
            graph = next((x.graph for x in given), None) or _default_graph(session)
        strangers = [x.name for x in given if x.graph is not graph]
        if strangers:
            raise InputError(
                f"{strangers[0]!r} is in another graph than the one given by graph=, or by the others"
            )
        if getattr(graph, "captures", None) is not None:
            raise InputError("feature is a tensor of a function; give the concrete function as graph=")
        session = session or v1.get_default_session()
        if session is None:
            raise InputError(
                "session=None, and there is no default session; give the one that holds the variables' values"
            )
        model = GraphModel.from_session(graph, session, outputs=_names(outputs))
        return cls(model, feature, outputs, graph, session)

    @classmethod
    def _of_keras(cls, feature: Any, outputs: list[Any] | None, graph: Any, session: Any) -> Original:
        model = graph if _is_keras(graph) else None
        given = [feature, *(outputs or [])]
        old = _old_output(model, given)
        if old is not None:
            found = [_tensor_of_layer(x, model) for x in given]
            return cls._of_session(
                found[0], model.outputs if outputs is None else found[1:], old.graph, session
            )
        if model is not None:
            feature, *named = [_symbol_of_name(x, model) for x in given]
            outputs = None if outputs is None else named
            given = [feature, *named]
        symbols = list({id(x): x for x in given if _is_symbolic(x)}.values())
        if not symbols:
            if model is None:
                raise InputError("outputs tell no model that feature is a layer of; give the model as graph=")
            return cls(GraphModel.from_keras(model).copy(), feature, outputs)
        library = _library_of(symbols[0])
        if model is not None:
            # All of the model, since the other places may be named.
            symbols += [x for x in model.outputs if not any(x is symbol for symbol in symbols)]
        if outputs is None:
            outputs = list(model.outputs)
        inputs = list(model.inputs) if model is not None else _source_inputs(symbols, library)
        # The model's own calls, and nothing but a list of outputs that has the tensors in question.
        wider = library.Model(inputs, symbols, name="model" if model is None else model.name)
        copied = GraphModel.from_keras(wider).copy()
        assert copied.graph is not None
        names = {
            id(x): _place_of(name, copied.graph)
            for x, name in zip(symbols, copied.graph.flat_outputs, strict=True)
        }
        return cls(copied, names.get(id(feature), feature), [names.get(id(x), x) for x in outputs])

    # -- as the source of a cut -------------------------------------------------------------------

    @property
    def graph(self) -> OperationGraph | None:
        """The graph to the wanted outputs, if it is the same for all inputs."""
        return None if self.model.graph is None else self._select(self.model.graph)

    def prepare(
        self, inputs: Inputs, needed: Callable[[OperationGraph], set[str]] | None = None
    ) -> tuple[OperationGraph, list[tf.Tensor | None]]:
        """See `GraphModel.prepare`."""
        graph, tensors = self.model.prepare(
            inputs, None if needed is None else lambda graph: needed(self._select(graph))
        )
        return self._select(graph), tensors

    def check_layer(self, layer: Any) -> str:
        """See `GraphModel.check_layer`."""
        return self.model.check_layer(layer)

    def split(self) -> GraphSplit:
        """The model, split at the feature map."""
        return GraphSplit(self, self.feature)

    def _select(self, graph: OperationGraph) -> OperationGraph:
        if self.outputs is None:
            return graph
        if id(graph) not in self._selected:
            selected = copy(graph)
            selected.outputs = [_output(graph, output) for output in self.outputs]
            self._selected[id(graph)] = (graph, selected)
        return self._selected[id(graph)][1]


def _loaded(path: str | PathLike[str]) -> Any:
    if Path(path).is_dir():
        return GraphModel.from_saved_model(path)
    model = TensorFlowAdapter.load(fspath(path))
    if model is None:
        raise InputError(
            f"graph={fspath(path)!r} is no model that can be loaded; give a SavedModel folder or a file that "
            "ends in .pb, .keras or .h5"
        )
    return model


def _output(graph: OperationGraph, output: Any) -> TensorName:
    """Tensor of an output that is named as the model's results are, or as a place is."""
    if isinstance(graph.outputs, Mapping) and isinstance(output, str) and output in graph.outputs:
        return tf.nest.flatten(graph.outputs[output])[0]
    return graph.find(output)[1]


def _place_of(name: TensorName, graph: OperationGraph) -> str:
    """The layer, or else the tensor, that a traced function has made its result of."""
    of_layers = {
        tensor: layer.named(index)
        for layer in graph.layers
        for index, tensor in enumerate(layer.tensors)
    }
    while name not in of_layers and (node := graph.nodes.get(node_of(name))) and node.op == "Identity":
        (name,) = node.inputs
    return of_layers.get(name, name)


def _names(outputs: list[Any] | None) -> list[str] | None:
    if outputs is None:
        return None
    for output in outputs:
        if not isinstance(output, (str, tf.Tensor, tf.Operation)):
            raise InputError(
                f"outputs holds {type(output).__name__}; give tensors, operations or their names"
            )
    return [canonical(output if isinstance(output, str) else output.name) for output in outputs]


def _default_graph(session: v1.Session | None) -> tf.Graph:
    session = session or v1.get_default_session()
    graph = v1.get_default_graph() if session is None else session.graph
    if not graph.get_operations():
        raise InputError(
            "graph=None, and the default graph is empty; give the graph, model, function or file that "
            "feature and outputs are in"
        )
    return graph


# -- Keras, of either generation ------------------------------------------------------------------


def _libraries() -> Iterable[Any]:
    legacy = sys.modules.get("tf_keras")
    return [keras] if legacy is None else [keras, legacy]


def keras_library_of(model: Any) -> Any:
    """The Keras, 3 or 2, that a model is of; None if it is of neither."""
    return next((library for library in _libraries() if isinstance(model, library.Model)), None)


def _is_keras(x: Any) -> bool:
    return _is_symbolic(x) or isinstance(x, tuple(library.layers.Layer for library in _libraries()))


def _is_symbolic(x: Any) -> bool:
    """Whether it is a symbolic tensor of Keras, and not of a graph."""
    return hasattr(x, "_keras_history") and not isinstance(x, tf.Tensor)


def _symbol_of_name(x: Any, model: Any) -> Any:
    """The symbolic tensor of a model's layer that has a name, where no layer has it."""
    layers = getattr(model, "layers", [])
    if not isinstance(x, str) or any(layer.name == x for layer in layers):
        return x
    nodes = [node for layer in layers for node in getattr(layer, "_inbound_nodes", [])]
    tensors = [tensor for node in nodes for tensor in tf.nest.flatten(node.outputs)]
    return next((tensor for tensor in tensors if tensor.name == x), x)


def _library_of(symbol: Any) -> Any:
    module = type(symbol).__module__.partition(".")[0]
    return next(library for library in _libraries() if library.__name__ == module)


def _source_inputs(symbols: list[Any], library: Any) -> list[Any]:
    """The inputs that symbolic tensors depend on."""
    find = (lambda x: function_to(x).inputs) if library is keras else library.utils.get_source_inputs
    return list({id(source): source for symbol in symbols for source in find(symbol)}.values())


def _old_output(model: Any, given: list[Any]) -> tf.Tensor | None:
    """A tensor of the v1 graph that Keras 2 built a model in; None where it has built none."""
    legacy = sys.modules.get("tf_keras")
    layers = [] if legacy is None else [x for x in (model, *given) if isinstance(x, legacy.layers.Layer)]
    outputs = [getattr(model, "outputs", None), *(node.outputs for x in layers for node in x.inbound_nodes)]
    return next((x for x in tf.nest.flatten(outputs) if isinstance(x, tf.Tensor)), None)


def _tensor_of_layer(x: Any, model: Any) -> Any:
    if isinstance(x, str) and model is not None and any(layer.name == x for layer in model.layers):
        x = model.get_layer(x)
    return getattr(x, "output", x)
