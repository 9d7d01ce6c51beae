"""A TensorFlow 1 graph with a session, in which a model's outputs depend on a bottleneck."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import tensorflow as tf
from tensorflow.core.framework.graph_pb2 import GraphDef
from tensorflow.core.framework.node_def_pb2 import NodeDef

from iba_core.errors import InputError
from iba_tf.bottlenecks.flow import Flow, GraphFlow, Load, load_values
from iba_tf.framework import eagerly, forgotten_if_interrupted
from iba_tf.graphs.custom_gradients import graph_def_of
from iba_tf.graphs.dataflow import TensorName
from iba_tf.graphs.graph_inputs import GraphInput
from iba_tf.graphs.operations import REFERENCES, Binding, OperationGraph, canonical, node_of

v1 = tf.compat.v1

_PLACEHOLDERS = ("Placeholder", "PlaceholderWithDefault")
_VARIABLES = ("VarHandleOp", *REFERENCES)


class CopiedGraph:
    """A graph of operations as a `tf.Graph`, with a bottleneck in it, and a session of its own.

    All operations keep their names. Operations that take the features get the bottleneck's output instead:
    the features themselves, until the bottleneck restricts them.

    Args:
        source: the operations.
        feature: the tensor that the bottleneck comes after.
        flow: its state is that of the bottleneck in the session, see `load_flow`.
        name: scope of the bottleneck's own operations; a number is added if the source has the name already.
        config: configuration of the session. If None, TensorFlow chooses devices for operations whose own
            devices do not exist.

    Attributes:
        feature: name of that tensor.
        graph: the graph. Users may add operations to it, such as a loss.
        outputs: symbolic tensors, nested like the source's outputs.

    Raises:
        InputError: the graph closes over something that is neither a variable nor an array.
    """

    @forgotten_if_interrupted
    def __init__(
        self, source: OperationGraph, feature: TensorName, flow: Flow, name: str, config: Any = None
    ) -> None:
        self._source = source
        self._flow = flow
        self.feature = feature
        self._config = config or v1.ConfigProto(allow_soft_placement=True)
        self._session: tf.compat.v1.Session | None = None
        scope = _free(name, source.all_names)
        own, before, after = self._own_operations(scope)
        # One import for all: a second one would rename operations whose names begin like one of the first.
        whole = GraphDef(versions=source.versions, library=source.definitions)
        whole.library.MergeFrom(own.as_graph_def().library)
        whole.node.extend(node.definition for node in source.nodes.values())
        after_feature = {node_of(tensor) for tensor in source.dependents([feature])} - {node_of(feature)}
        for node in whole.node:
            if node.name in after_feature:
                _redirect(node, feature, after)
        for node in own.as_graph_def().node:
            if node.name != node_of(before):
                whole.node.append(node)
                _redirect(whole.node[-1], before, feature)
        present = {node.name for node in whole.node}
        for node in whole.node:
            kept = [x for x in node.input if not x.startswith("^") or x[1:] in present]
            del node.input[:]
            node.input.extend(kept)
        self.graph = tf.Graph()
        with self.graph.as_default():
            v1.import_graph_def(whole, name="")
        self._bottleneck = self.graph.get_tensor_by_name(after)
        self.outputs = tf.nest.map_structure(
            lambda x: self._bottleneck if x == feature else self.graph.get_tensor_by_name(x), source.outputs
        )

    def _own_operations(self, scope: str) -> tuple[tf.Graph, TensorName, TensorName]:
        """Operations of the graph that are not the source's.

        These are its inputs, its variables and constants, the bottleneck, and the loading of values.

        Returns:
            A graph, and the names of the bottleneck's input and output.
        """
        graph = tf.Graph()
        with graph.as_default():
            for entry in self._source.inputs:
                _placeholder(entry)
            for name, binding in self._source.bindings.items():
                self._bind(name, binding)
            with tf.name_scope(scope):
                before = v1.placeholder(self._source.tensor(self.feature).dtype, name="before")
                self._bottleneck_flow = GraphFlow(before, self._flow.dtype)
                after = tf.identity(self._bottleneck_flow.outputs, name="after")
                self._loads = {
                    name: Load(graph.get_tensor_by_name(name), binding.dtype)
                    for name, binding in self._source.bindings.items()
                    if isinstance(binding, tf.Variable)
                }
        return graph, before.name, after.name

    def _bind(self, name: TensorName, binding: Binding) -> None:
        """Make a variable or constant for one of the source's bindings."""
        if not isinstance(binding, tf.Variable):
            if binding.dtype in (tf.resource, tf.variant):
                raise InputError(
                    f"the graph closes over {name!r}, which is no variable but a table or the like, so it "
                    "cannot be a tf.Graph; set_classification_loss and analyze need none"
                )
            with eagerly():
                value = binding.numpy()
            tf.constant(value, name=node_of(name))
            return
        # The kind of variable that the operations of the source take.
        is_handle = self._source.tensor(name).dtype == tf.resource
        node = NodeDef(name=node_of(name), op="VarHandleOp" if is_handle else "VariableV2")
        node.attr["dtype"].type = binding.dtype.as_datatype_enum
        node.attr["shape"].shape.CopyFrom(binding.shape.as_proto())
        node.attr["shared_name"].s = node.name.encode()
        v1.import_graph_def(GraphDef(versions=self._source.versions, node=[node]), name="")

    # -- values -----------------------------------------------------------------------------------

    @property
    def session(self) -> tf.compat.v1.Session:
        """The session, with the values of the source's variables and the state of the flow."""
        if self._session is None:
            self._session = v1.Session(graph=self.graph, config=self._config)
            self.load_variables()
            self.load_flow(self._flow.is_open)
        return self._session

    def load_variables(self) -> None:
        """Copy the values of the source's variables into the session, if there is one yet."""
        if self._session is not None:
            bindings = self._source.bindings
            load_values({load: bindings[name] for name, load in self._loads.items()}, self._session)

    def load_flow(self, restricting: bool) -> None:
        """Copy the state of the flow into the session, if there is one yet, and restrict it or not."""
        if self._session is not None:
            self._bottleneck_flow.load(self._flow, self._session, restricting)

    # -- losses -----------------------------------------------------------------------------------

    def graph_to(self, tensor: tf.Tensor) -> OperationGraph:
        """The operations from the graph's placeholders to a tensor, without the bottleneck.

        They use the source's variables. Variables that users have added keep their present values.

        Raises:
            InputError: the tensor is not in the graph.
        """
        graph = getattr(tensor, "graph", None)
        if graph is None or graph is not self.graph:
            raise InputError(
                f"{getattr(tensor, 'name', tensor)!r} is no tensor of the copied graph; compute it within "
                "copied_session_and_graph_as_default(), from get_copied_outputs()"
            )
        operations = self._operations_for(tensor)
        whole = graph_def_of(graph)
        graph_def = GraphDef(versions=whole.versions, library=whole.library)
        for node in whole.node:
            if node.name in operations:
                graph_def.node.append(node)
                _redirect(graph_def.node[-1], self._bottleneck.name, self.feature)
        inputs = [_input(operation) for operation in operations.values() if operation.type in _PLACEHOLDERS]
        bindings: dict[TensorName, Binding] = {
            name: value for name, value in self._source.bindings.items() if node_of(name) in operations
        }
        for operation in operations.values():
            if operation.type in _VARIABLES and operation.outputs[0].name not in bindings:
                bindings[operation.outputs[0].name] = self._variable_with_value_of(operation)
        return OperationGraph(graph_def, inputs, tensor.name, bindings)

    def _operations_for(self, tensor: tf.Tensor) -> dict[str, tf.Operation]:
        """The operations that a tensor depends on, without the bottleneck, by name."""
        found: dict[str, tf.Operation] = {}
        queue = [tensor]
        while queue:
            current = queue.pop()
            if current is self._bottleneck:
                current = self.graph.get_tensor_by_name(self.feature)
            if current.op.name not in found:
                found[current.op.name] = current.op
                queue.extend(current.op.inputs)
                queue.extend(output for op in current.op.control_inputs for output in op.outputs[:1])
        return found

    @forgotten_if_interrupted
    def _variable_with_value_of(self, operation: tf.Operation) -> tf.Variable:
        """A variable with the present value of one that users have added to the graph."""
        with self.graph.as_default():
            value = _read(operation.outputs[0])
        try:
            array = self.session.run(value)
        except tf.errors.FailedPreconditionError as error:
            raise InputError(
                f"the variable {operation.name!r} of the model_loss is not initialized: run its initializer "
                "within copied_session_and_graph_as_default()"
            ) from error
        with eagerly():
            return tf.Variable(array, trainable=False, name=operation.name)


def _redirect(node: NodeDef, old: TensorName, new: TensorName) -> None:
    """Give a node one tensor in place of another, also as a control input."""
    references = [
        f"^{node_of(new)}"
        if reference == f"^{node_of(old)}"
        else new
        if not reference.startswith("^") and canonical(reference) == old
        else reference
        for reference in node.input
    ]
    del node.input[:]
    node.input.extend(references)


def _placeholder(entry: GraphInput) -> None:
    name = node_of(entry.tensor)
    if entry.default is None:
        v1.placeholder(entry.dtype, entry.shape, name=name)
    else:
        v1.placeholder_with_default(tf.constant(entry.default, entry.dtype), entry.shape, name=name)


def _read(variable: tf.Tensor) -> tf.Tensor:
    if variable.dtype != tf.resource:
        return tf.identity(variable)
    dtype = tf.as_dtype(variable.op.get_attr("dtype"))
    return tf.raw_ops.ReadVariableOp(resource=variable, dtype=dtype)


def _input(placeholder: tf.Operation) -> GraphInput:
    tensor = placeholder.outputs[0]
    shape = None if tensor.shape.rank is None else tuple(tensor.shape.as_list())
    default = None
    if placeholder.type == "PlaceholderWithDefault":
        default = tf.get_static_value(placeholder.inputs[0])
    return GraphInput(placeholder.name, tensor.name, tensor.dtype, shape, default)


def _free(name: str, taken: Iterable[str]) -> str:
    """`name`, with a number if an operation's name begins with it."""
    used = {node.partition("/")[0] for node in taken}
    return next(x for x in (name, *(f"{name}_{i}" for i in range(1, len(used) + 2))) if x not in used)
