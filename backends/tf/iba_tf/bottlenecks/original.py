"""The model that a bottleneck copies, with the feature map and the outputs in it."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from os import PathLike, fspath
from pathlib import Path
from typing import Any

import keras
import tensorflow as tf
from tensorflow.core.framework.graph_pb2 import GraphDef

from iba_core.errors import InputError, StateError
from iba_tf.adapter import TensorFlowAdapter
from iba_tf.framework import eagerly, forgotten_if_interrupted
from iba_tf.graphs.calls import function_to
from iba_tf.graphs.calls import node_of as keras_call_of
from iba_tf.graphs.dataflow import TensorName
from iba_tf.graphs.operations import OperationGraph, canonical, node_of
from iba_tf.models.graph_model import GraphModel
from iba_tf.models.origins import value_of

v1 = tf.compat.v1


class Original:
    """A model over variables of its own, some outputs of which are wanted.

    `of` makes it.

    A copy, also by pickle, is independent. If the model was made of a Keras model, that is copied as well,
    and `GraphModel.update_variables` follows the copied one. Otherwise the values of the variables stay as
    they are.

    Args:
        model: the model.
        feature: the feature map, see `OperationGraph.find`.
        outputs: the outputs, likewise; None for all outputs of the model.
        graph: the v1 graph that the model was taken from; None if it is none.
        session: the session of that graph.
        keras_model: the Keras model that the model was made of; None if it is none.
    """

    def __init__(
        self,
        model: GraphModel,
        feature: Any,
        outputs: list[Any] | None,
        graph: tf.Graph | None = None,
        session: tf.compat.v1.Session | None = None,
        keras_model: Any = None,
    ) -> None:
        self.model = model.giving(outputs)
        self.feature = feature
        self.outputs = outputs
        self.v1_graph = graph
        self.session = session
        self._keras_model = keras_model

    @classmethod
    def of(cls, feature: Any, outputs: Any, graph: Any, session: tf.compat.v1.Session | None) -> Original:
        """Find the model that tensors and names belong to, see `IBACopy`.

        Raises:
            InputError: the arguments do not tell which model is meant, or there is no session for a v1 graph.
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
        cls,
        feature: Any,
        outputs: list[Any] | None,
        graph: tf.Graph | None,
        session: tf.compat.v1.Session | None,
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
        if session is None:
            raise InputError(
                "session=None, and there is no default session; give the one that holds the variables' values"
            )
        if session.graph is not graph:
            raise InputError("session runs another graph than the one that feature and outputs are in")
        model = GraphModel.from_session(graph, session, outputs=_names(outputs))
        return cls(model, feature, outputs, graph, session)

    @classmethod
    def _of_keras(cls, feature: Any, outputs: list[Any] | None, graph: Any, session: Any) -> Original:
        model: Any = graph if _is_keras(graph) else None
        if model is None and outputs is None:
            raise InputError("outputs=None stands for all outputs of a model; give the model as graph=")
        given = [feature, *(outputs or [])]
        old = old_output(model, given)
        if old is not None:
            feature, *named = [_tensor_of_layer(x, model) for x in given]
            outputs = model.outputs if outputs is None else named
            return cls._of_session(feature, outputs, old.graph, session)
        if model is not None:
            feature, *named = [_symbol_of_name(x, model) for x in given]
            outputs = None if outputs is None else named
            given = [feature, *named]
        elif outputs is not None:
            given = [feature, *(_symbol_after(feature, x) for x in outputs)]
        # A subclassed model has no symbolic outputs.
        known = given[1:] if model is None else getattr(model, "outputs", None) or []
        feature, *named = (_in_graph_of(known, x) for x in given)
        outputs = None if outputs is None else named
        given = [feature, *named]
        symbols = list({id(x): x for x in given if _is_symbolic(x)}.values())
        if not symbols:
            if model is None:
                raise InputError(
                    "outputs do not tell which model feature is a layer of; give the model as graph="
                )
            return cls(GraphModel.from_keras(model).copy(), feature, outputs, keras_model=model)
        library = _library_of(symbols[0])
        if model is not None:
            # All of the model, because names may refer to other places.
            symbols += [x for x in model.outputs if not any(x is symbol for symbol in symbols)]
        if outputs is None:
            outputs = list(model.outputs)
        inputs = list(model.inputs) if model is not None else _source_inputs(symbols, library)
        # The model's own calls, with the tensors in question as outputs.
        wider = library.Model(inputs, symbols, name="model" if model is None else model.name)
        copied = GraphModel.from_keras(wider).copy()
        assert copied.graph is not None
        names = {
            id(x): _place_of(name, copied.graph)
            for x, name in zip(symbols, copied.graph.flat_outputs, strict=True)
        }
        feature, *outputs = (names.get(id(x), x) for x in [feature, *outputs])
        return cls(copied, feature, outputs, keras_model=wider if model is None else model)

    # -- copies -----------------------------------------------------------------------------------

    def __getstate__(self) -> dict[str, Any]:
        graph = self.model.graph
        places = [self.feature, *(self.outputs or [])]
        if graph is not None:
            # Layers and tensors belong to the model that is copied.
            places = [x if isinstance(x, str) else graph.find(x)[0] for x in places]
        state = {"feature": places[0], "outputs": None if self.outputs is None else places[1:]}
        if self._keras_model is not None:
            values = {name: value_of(variable) for name, variable in self.model.variables.items()}
            return {**state, "keras_model": self._keras_model, "values": values}
        if graph is None:
            raise InputError(
                "the bottleneck cannot be copied, because its model has no graph before it is called; give a "
                "concrete function"
            )
        return {**state, "graph": graph}

    @forgotten_if_interrupted
    def __setstate__(self, state: dict[str, Any]) -> None:
        feature, outputs = state["feature"], state["outputs"]
        with tf.init_scope(), eagerly():
            if "graph" in state:
                vars(self).update(vars(Original(GraphModel.from_operations(state["graph"]), feature, None)))
                self.outputs = outputs  # which the graph gives already
                return
            vars(self).update(vars(Original.of(feature, outputs, state["keras_model"], None)))
            values, own = state["values"], self.model.variables
            # A subclassed model gets another name when it is copied, and its name is part of the variables'.
            names = list(own if own.keys() <= values.keys() else values)
            if [values[name].shape for name in names] != [value_of(x).shape for x in own.values()]:
                raise StateError("the copied model has other variables than the original")
            for name, variable in zip(names, own.values(), strict=True):
                variable.assign(values[name])


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


def _place_of(name: TensorName, graph: OperationGraph) -> str:
    """Name of the layer, or else the tensor, that is the result of a traced function."""
    of_layers = {
        tensor: layer.named(index) for layer in graph.layers for index, tensor in enumerate(layer.tensors)
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


def _default_graph(session: tf.compat.v1.Session | None) -> tf.Graph:
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
    """The symbolic tensor of a name in a model, unless a layer has that name."""
    layers = getattr(model, "layers", [])
    if not isinstance(x, str) or any(layer.name == x for layer in layers):
        return x
    nodes = [node for layer in layers for node in getattr(layer, "_inbound_nodes", [])]
    tensors = [tensor for node in nodes for tensor in tf.nest.flatten(node.outputs)]
    return next((tensor for tensor in tensors if tensor.name == x), x)


def _symbol_after(feature: Any, x: Any) -> Any:
    """The symbolic tensor of a name among those that follow a symbolic feature map, in whatever model."""
    if not isinstance(x, str) or not _is_symbolic(feature):
        return x
    seen: dict[int, Any] = {}
    queue = [feature._keras_history[0]]
    while queue:
        operation = queue.pop()
        if id(operation) in seen:
            continue
        seen[id(operation)] = operation
        for node in operation._outbound_nodes:
            for tensor in tf.nest.flatten(node.outputs):
                if tensor.name == x:
                    return tensor
                queue.append(tensor._keras_history[0])
    return x


def _in_graph_of(outputs: Any, x: Any) -> Any:
    """A symbolic tensor, or the one in its place among those that some outputs depend on.

    A sequential model calls its layers anew whenever another one is added, so that `layer.output` may be of
    a call that is in no model any more.
    """
    if not _is_symbolic(x) or _library_of(x) is not keras:
        return x
    seen: dict[int, Any] = {}
    queue = [tensor for tensor in outputs or [] if _is_symbolic(tensor)]
    while queue:
        tensor = queue.pop()
        if id(tensor) not in seen:
            seen[id(tensor)] = tensor
            queue.extend(keras_call_of(tensor).arguments.keras_tensors)
    if id(x) in seen:
        return x
    owner, _, index = x._keras_history
    found = [y for y in seen.values() if y._keras_history[0] is owner and y._keras_history[2] == index]
    return found[0] if len(found) == 1 else x


def _library_of(symbol: Any) -> Any:
    module = type(symbol).__module__.partition(".")[0]
    return next(library for library in _libraries() if library.__name__ == module)


def _source_inputs(symbols: list[Any], library: Any) -> list[Any]:
    """The inputs that symbolic tensors depend on."""
    find = (lambda x: function_to(x).inputs) if library is keras else library.utils.get_source_inputs
    return list({id(source): source for symbol in symbols for source in find(symbol)}.values())


def old_output(model: Any, given: list[Any]) -> tf.Tensor | None:
    """A tensor of the v1 graph in which Keras 2 built a model; None if it built none."""
    legacy = sys.modules.get("tf_keras")
    layers = [] if legacy is None else [x for x in (model, *given) if isinstance(x, legacy.layers.Layer)]
    outputs = [getattr(model, "outputs", None), *(node.outputs for x in layers for node in x.inbound_nodes)]
    return next((x for x in tf.nest.flatten(outputs) if isinstance(x, tf.Tensor)), None)


def _tensor_of_layer(x: Any, model: Any) -> Any:
    if isinstance(x, str) and model is not None and any(layer.name == x for layer in model.layers):
        x = model.get_layer(x)
    return getattr(x, "output", x)
