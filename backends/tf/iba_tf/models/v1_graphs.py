"""TensorFlow 1 graphs, with a session or frozen, as graphs of operations."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import tensorflow as tf
from google.protobuf.message import DecodeError
from tensorflow.core.framework.graph_pb2 import GraphDef

from iba_core.errors import InputError, StateError, closest
from iba_tf.framework import is_eager_program, traced
from iba_tf.graphs.custom_gradients import graph_def_of
from iba_tf.graphs.dataflow import TensorName
from iba_tf.graphs.graph_inputs import GraphInput
from iba_tf.graphs.operations import (
    REFERENCES,
    Binding,
    OperationGraph,
    canonical,
    data_inputs,
    node_of,
)
from iba_tf.models.origins import FixedOrigin

_NO_OUTPUTS = ("Const", "NoOp", "Placeholder", "PlaceholderWithDefault", "Assert", "SaveV2", "RestoreV2")


def find_session(session: tf.compat.v1.Session | None = None) -> tf.compat.v1.Session | None:
    """The session given, else the default one, else that of Keras 2 where that builds graphs; None if none.

    Call it outside of `eagerly`, in which Keras 2 builds no graphs.
    """
    if session is None and "tf_keras" in sys.modules and not is_eager_program():
        # Only the names of TensorFlow 1 have it. It gives the default session if there is one, and
        # initialises the variables that Keras has made since.
        return import_module("tf_keras.api._v1.keras.backend").get_session()
    return session or tf.compat.v1.get_default_session()


def require_session(session: tf.compat.v1.Session | None) -> tf.compat.v1.Session:
    """See `find_session`.

    Raises:
        InputError: there is no session.
    """
    found = find_session(session)
    if found is None:
        raise InputError("session=None, and there is no default session to compute the features in")
    return found


class SessionOrigin(FixedOrigin):
    """A TensorFlow 1 graph with a session."""

    why_not_stored = "it reads a live session; freeze the graph, and pickle a GraphModel of the frozen one"

    def __init__(
        self,
        graph: tf.Graph,
        session: tf.compat.v1.Session,
        outputs: Any,
        inputs: Any,
        defaults: Mapping[Any, npt.ArrayLike] | None,
    ) -> None:
        self._session = session
        graph_def = graph_def_of(graph)
        outputs = tf.nest.map_structure(tensor_name, outputs)
        nodes = {node.name: node for node in graph_def.node}
        _require(nodes, tf.nest.flatten(outputs))
        needed = _ancestors(nodes, tf.nest.flatten(outputs))
        self._reads = {
            name: _value_tensor(graph, name)
            for name in nodes
            if name in needed and nodes[name].op in (*REFERENCES, "VarHandleOp")
        }
        values = self._read()
        names: dict[Any, str] = {}
        bindings: dict[TensorName, Binding] = {}
        for name, value in values.items():
            variable = tf.Variable(value, trainable=False)
            bindings[f"{name}:0"] = variable
            names[variable.ref()] = name
        entries = _graph_inputs(nodes, needed, inputs, defaults)
        super().__init__(OperationGraph(graph_def, entries, outputs, bindings), names)

    def without_session(self) -> FixedOrigin:
        """The graph, whose variables keep the values that they have now."""
        return FixedOrigin(self.graph, self._names)

    def _read(self) -> dict[str, npt.NDArray[Any]]:
        try:
            values: dict[str, npt.NDArray[Any]] = self._session.run(self._reads)
        except tf.errors.FailedPreconditionError as error:
            raise InputError(
                "a variable of the graph has no value in the session: "
                + " ".join(error.message.split())[:200]
            ) from error
        return values

    def values(self) -> dict[str, npt.NDArray[Any]]:
        """See `Origin.values`; read in the session."""
        return {name: np.asarray(value) for name, value in self._read().items()}


def read_graph_def(path: Path) -> GraphDef:
    """The graph in a ``.pb`` file.

    Raises:
        StateError: the file is missing or holds no graph.
    """
    if not path.is_file():
        raise StateError(f"there is no model file {str(path)!r}")
    graph_def = GraphDef()
    try:
        graph_def.ParseFromString(path.read_bytes())
    except DecodeError as error:
        raise StateError(f"{str(path)!r} is no frozen graph of TensorFlow: {error}") from error
    if not graph_def.node or not all(node.name and node.op for node in graph_def.node):
        raise StateError(f"{str(path)!r} is no frozen graph of TensorFlow: it holds no operations")
    return graph_def


def frozen_graph(
    graph_def: GraphDef, outputs: Any, inputs: Any, defaults: Mapping[Any, npt.ArrayLike] | None
) -> OperationGraph:
    """A graph without variables; arguments and errors as of `GraphModel.from_graph_def`."""
    nodes = {node.name: node for node in graph_def.node}
    if outputs is None:
        found = _found_outputs(nodes, inputs)
        outputs = found[0] if len(found) == 1 else found
    outputs = tf.nest.map_structure(tensor_name, outputs)
    _require(nodes, tf.nest.flatten(outputs))
    needed = _ancestors(nodes, tf.nest.flatten(outputs))
    variables = [name for name in needed if nodes[name].op in (*REFERENCES, "VarHandleOp")]
    if variables:
        raise InputError(
            f"graph_def is not frozen: it has variables, such as {variables[0]!r}; give from_session the "
            "session that holds their values"
        )
    entries = _graph_inputs(nodes, needed, inputs, defaults)
    return OperationGraph(graph_def, entries, outputs, {})


def _found_outputs(nodes: Mapping[str, Any], inputs: Any) -> list[TensorName]:
    """The operations that depend on the inputs and whose results no other operation takes."""
    taken = {node_of(source) for node in nodes.values() for source in data_inputs(node)}
    starts = [name for name, node in nodes.items() if node.op.startswith("Placeholder")]
    if inputs is not None:
        starts = [node_of(tensor_name(x)) for x in tf.nest.flatten(inputs)]
    ends = [name for name, node in nodes.items() if name not in taken and node.op not in _NO_OUTPUTS]
    found = [name for name in ends if not _ancestors(nodes, [f"{name}:0"]).isdisjoint(starts)]
    if not found:
        raise InputError("no output is found in the graph; name it by outputs=")
    return [f"{name}:0" for name in found]


def _ancestors(nodes: Mapping[str, Any], tensors: Iterable[TensorName]) -> set[str]:
    found: set[str] = set()
    queue = [node_of(tensor) for tensor in tensors]
    while queue:
        name = queue.pop()
        if name in nodes and name not in found:
            found.add(name)
            queue.extend(node_of(source) for source in data_inputs(nodes[name]))
    return found


def _require(nodes: Mapping[str, Any], tensors: Iterable[TensorName]) -> None:
    for tensor in tensors:
        if node_of(tensor) not in nodes:
            raise InputError(
                f"the graph has no operation {node_of(tensor)!r}; {closest(node_of(tensor), nodes)}"
            )


def _graph_inputs(
    nodes: Mapping[str, Any], needed: set[str], inputs: Any, defaults: Mapping[Any, npt.ArrayLike] | None
) -> list[GraphInput]:
    """The inputs of a graph: those named, or all placeholders that the outputs depend on."""
    given = {node_of(tensor_name(key)): value for key, value in (defaults or {}).items()}
    called = {}
    if isinstance(inputs, Mapping):
        called = {node_of(tensor_name(x)): name for name, x in inputs.items()}
        inputs = list(inputs.values())
    names = [] if inputs is None else [node_of(tensor_name(x)) for x in tf.nest.flatten(inputs)]
    _require(nodes, [*names, *given])
    rest = [
        name
        for name, node in nodes.items()
        if name in needed and name not in names and node.op.startswith("Placeholder")
    ]
    unfed = [name for name in rest if nodes[name].op != "PlaceholderWithDefault" and name not in given]
    if inputs is not None and unfed:
        raise InputError(
            f"inputs leaves out the placeholder {unfed[0]!r}, on which the outputs depend; name it, too, or "
            "give it a value by defaults="
        )
    if not names and not unfed:
        raise InputError("the outputs depend on no placeholder, so there is nothing to explain")
    entries = []
    for name in [*names, *unfed, *(name for name in rest if name not in unfed)]:
        node = nodes[name]
        dtype = tf.as_dtype(node.attr["dtype"].type or node.attr["T"].type)
        shape = tf.TensorShape(node.attr["shape"].shape)
        default = given.get(name)
        if default is not None:
            default = np.asarray(default, dtype.as_numpy_dtype)
        elif node.op == "PlaceholderWithDefault":
            default = _constant(nodes, name)
        entries.append(
            GraphInput(
                called.get(name, name),
                f"{name}:0",
                dtype,
                None if shape.rank is None else tuple(shape),
                default,
            )
        )
    return entries


def _constant(nodes: Mapping[str, Any], name: str) -> npt.NDArray[Any] | None:
    """What a placeholder gives by default; None where that is no constant."""
    source = data_inputs(nodes[name])[0]
    part = GraphDef(node=[nodes[ancestor] for ancestor in _ancestors(nodes, [source])])

    def run() -> tf.Tensor:
        return tf.compat.v1.import_graph_def(part, return_elements=[source])[0]

    try:
        value: npt.NDArray[Any] = traced(run)().numpy()
    except (ValueError, tf.errors.OpError):  # it is read from elsewhere, such as a data set
        return None
    return value


def _value_tensor(graph: tf.Graph, name: str) -> tf.Tensor:
    """A tensor of a graph that has the value of a variable; none is added."""
    tensor = graph.get_tensor_by_name(f"{name}:0")
    if tensor.dtype != tf.resource:
        return tensor
    readers = [operation for operation in tensor.consumers() if operation.type == "ReadVariableOp"]
    # What waits for another operation may wait for one that depends on a placeholder.
    for reader in sorted(readers, key=lambda reader: len(reader.control_inputs)):
        return reader.outputs[0]
    raise InputError(f"the graph has no operation that reads the variable {name!r}")


def tensor_name(x: Any) -> TensorName:
    """Name of the tensor that a tensor, an operation or a name stands for."""
    return canonical(x if isinstance(x, str) else x.name)
