"""A model as a graph of TensorFlow's operations.

It stands for any model that is no graph of Keras layers: what a call of the model leaves in a traced
function, a SavedModel, a frozen GraphDef, a TensorFlow 1 graph with its session. Function calls are inlined.
A part of the graph runs by being imported into a `tf.function`, so that nothing is ever added to a graph that
a user holds, nor to a default one.

Tensors are called by name, ``"conv/Relu:0"``, operations likewise without the number.
"""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from threading import RLock
from typing import Any, ClassVar, TypeAlias

import tensorflow as tf
from tensorflow.core.framework.function_pb2 import FunctionDefLibrary
from tensorflow.core.framework.graph_pb2 import GraphDef
from tensorflow.core.framework.node_def_pb2 import NodeDef
from tensorflow.python.eager import context  # nothing public registers the functions of a graph

from iba_core.errors import InputError, LayerError, closest
from iba_tf.framework import eagerly, runs_eagerly, traced
from iba_tf.graphs.axis_sources import Known, Shapes
from iba_tf.graphs.branches import pass_values_into_branches
from iba_tf.graphs.channels import Axes, Found
from iba_tf.graphs.dataflow import DataflowGraph, Node, Place, Shape, TensorName, Values
from iba_tf.graphs.graph_inputs import GraphInput
from iba_tf.graphs.inlining import LOST, inline_calls, output_count
from iba_tf.graphs.operation_axes import OperationAxes
from iba_tf.graphs.random_operations import OF_GENERATORS

Binding: TypeAlias = tf.Variable | tf.Tensor
"""What a tensor of a graph stands for, where no operation of the graph computes it."""

REFERENCES = ("Variable", "VariableV2", "TemporaryVariable")
"""Variables of TensorFlow 1, whose output is the variable itself."""

_SIZES = ("Shape", "ShapeN", "Size", "Rank")
_PASS_ON = ("Identity", "IdentityN", "StopGradient", "Snapshot", "EnsureShape", "PlaceholderWithDefault")


class Operation(Node):
    """An operation of TensorFlow.

    Args:
        definition: what a GraphDef holds.

    Attributes:
        definition: the same.
        op: its type, such as ``"Conv2D"``.
    """

    def __init__(self, definition: NodeDef) -> None:
        self.definition = definition
        self.name = definition.name
        self.kind = self.op = definition.op
        self.inputs = tuple(data_inputs(definition))
        self.controls = tuple(control_inputs(definition))

    @cached_property
    def outputs(self) -> tuple[TensorName, ...]:
        """See `Node.outputs`."""
        return tuple(f"{self.name}:{index}" for index in range(output_count(self.definition)))

    @property
    def reads_sizes(self) -> bool:
        """See `Node.reads_sizes`."""
        return self.op in _SIZES

    @property
    def passes_on(self) -> bool:
        """Whether its results are its inputs."""
        return self.op in _PASS_ON


class OperationGraph(DataflowGraph):
    """Operations between some inputs and outputs, and what they need to run.

    Args:
        graph_def: the operations, and perhaps many others.
        inputs: what the graph takes.
        outputs: names of the tensors that it gives, nested as the results are to be.
        bindings: what stands for tensors that the graph does not compute itself: variables (for their
            handles, or for TensorFlow 1 variables themselves) and tensors that it closes over.
        layers: gives the places that have names besides those of the operations, from the names of all
            operations.

    Raises:
        InputError: there is no operation of a name, or the operations cannot be imported.
    """

    runs_in_python: ClassVar[bool] = False

    @runs_eagerly
    def __init__(
        self,
        graph_def: GraphDef,
        inputs: Sequence[GraphInput],
        outputs: Any,
        bindings: Mapping[TensorName, Binding],
        layers: Callable[[Iterable[str]], Sequence[Place]] | None = None,
    ) -> None:
        inlined, followed = inline_calls(graph_def)
        pass_values_into_branches(inlined)
        self.inputs = tuple(replace(entry, tensor=canonical(entry.tensor)) for entry in inputs)
        self.outputs = tf.nest.map_structure(lambda name: canonical(followed(canonical(name))), outputs)
        self.bindings = {canonical(name): value for name, value in bindings.items()}
        self.definitions = inlined.library
        self.versions = inlined.versions
        self._functions = _Functions(inlined.library)
        self.nodes: dict[str, Operation] = {node.name: Operation(node) for node in inlined.node}
        self.all_names = tuple(self.nodes)
        self._require_operations(self.bindings, (entry.tensor for entry in self.inputs), self.flat_outputs)
        self._read = frozenset(name for name in self.bindings if self.nodes[node_of(name)].op in REFERENCES)
        self.nodes = _in_order(
            node for node in self.needed_for(self.flat_outputs) if isinstance(node, Operation)
        )
        self._require_no_v1_loop()
        used = {source for node in self.nodes.values() for source in node.inputs} | set(self.flat_outputs)
        self.bindings = {name: value for name, value in self.bindings.items() if name in used}
        self._tensors = self._assemble()
        self.layers = tuple(
            layer
            for layer in (layers(self.all_names) if layers is not None else ())
            if any(tensor in self._tensors for tensor in layer.tensors)
        )

    def _require_operations(self, *tensors: Iterable[TensorName]) -> None:
        for name in (name for names in tensors for name in names):
            if node_of(name) not in self.nodes:
                raise InputError(
                    f"the graph has no operation {node_of(name)!r}; {closest(node_of(name), self.nodes)}"
                )

    def _require_no_v1_loop(self) -> None:
        loop = next((node for node in self.nodes.values() if node.op in ("Enter", "RefEnter")), None)
        if loop is not None:
            frame = loop.definition.attr["frame_name"].s.decode()
            raise InputError(
                f"the graph has a loop of TensorFlow 1, {frame!r}, which TensorFlow 2 can neither run in a "
                "function nor differentiate: build the graph anew after "
                "tf.compat.v1.enable_control_flow_v2()"
            )

    def with_bindings(self, bindings: Mapping[TensorName, Binding]) -> OperationGraph:
        """The same graph over other variables."""
        other = object.__new__(OperationGraph)
        other.__dict__.update(self.__dict__)
        other.bindings = {**self.bindings, **bindings}
        return other

    def __reduce__(self) -> tuple[Any, ...]:
        """A graph over variables of its own, which have the present values. Layers lose their objects."""
        part = GraphDef(versions=self.versions, library=self.definitions)
        # What stands in for an input or a binding; it never runs.
        for name in (*(entry.tensor for entry in self.inputs), *self.bindings):
            op = REFERENCES[0] if name in self._read else "Placeholder"
            part.node.add(name=node_of(name), op=op)
        part.node.extend(node.definition for node in self.nodes.values())
        layers = [replace(layer, object=None, symbols=()) for layer in self.layers]
        with eagerly():
            values = {name: _stored(name, binding) for name, binding in self.bindings.items()}
        return _restored, (part.SerializeToString(), self.inputs, self.outputs, values, layers)

    # -- structure --------------------------------------------------------------------------------

    def tensor(self, name: TensorName) -> tf.Tensor:
        """See `DataflowGraph.tensor`: a symbolic tensor."""
        return self._tensors[name]

    def producer(self, tensor: TensorName) -> Node | None:
        """See `DataflowGraph.producer`."""
        node = self.nodes.get(node_of(tensor))
        if node is None:
            raise InputError(f"the graph refers to an operation {node_of(tensor)!r} that it does not hold")
        return node

    def has_lost_gradient(self, node: Any) -> bool:
        """See `DataflowGraph.has_lost_gradient`; that of `tf.nn.silu` is the derivative of what it does."""
        if LOST not in node.definition.attr or not node.definition.attr[LOST].b:
            return False
        made = self.nodes.get(node_of(node.inputs[0]))
        factors = [self.nodes.get(node_of(source)) for source in (made.inputs if made else ())]
        is_silu = made is not None and made.op == "Mul" and any(x and x.op == "Sigmoid" for x in factors)
        return not is_silu

    def draws_from_generator(self) -> str | None:
        """See `DataflowGraph.draws_from_generator`."""
        running = self.needed_for(self.flat_outputs)
        return next((node.name for node in running if node.kind in OF_GENERATORS), None)

    def decides(self, name: str) -> bool:
        """See `DataflowGraph.decides`: whether an operation is a v1 branch's own mark of being taken."""
        node = self.nodes.get(name)
        while node is not None and node.op == "Identity":
            node = self.nodes.get(node_of(node.inputs[0]))
        return node is not None and node.op in ("Switch", "RefSwitch", "Merge", "RefMerge")

    @cached_property
    def within_control_flow(self) -> frozenset[str]:
        """See `DataflowGraph.within_control_flow`: the operations inside v1 branches."""
        depth: dict[str, int] = {}
        for node in self.nodes.values():
            before = [*map(node_of, node.inputs), *node.controls]
            entered = max((depth.get(source, 0) for source in before), default=0)
            entered += (node.op in ("Switch", "RefSwitch")) - (node.op in ("Merge", "RefMerge"))
            depth[node.name] = max(entered, 0)
        return frozenset(name for name, entered in depth.items() if entered)

    # -- running ----------------------------------------------------------------------------------

    def run(self, nodes: Iterable[Node], values: Values, fetched: Sequence[TensorName]) -> list[Any]:
        """See `DataflowGraph.run`: the operations are imported into the function that is being traced."""
        kept = {node.name: node for node in nodes if isinstance(node, Operation)}
        part = GraphDef(versions=self.versions, library=self.definitions)
        for node in kept.values():
            copied = part.node.add()
            copied.CopyFrom(node.definition)
            references = [
                reference
                for reference in copied.input
                if not reference.startswith("^") or reference[1:] in kept
            ]
            del copied.input[:]
            copied.input.extend(references)
        taken = {source for node in kept.values() for source in node.inputs}
        replaced = {name: value for name, value in values.items() if name in taken}
        for name in taken:
            if name not in replaced and name in self.bindings:
                replaced[name] = self._bound(name)
        wanted = [name for name in dict.fromkeys(fetched) if name not in values and name not in self.bindings]
        imported = tf.compat.v1.import_graph_def(part, input_map=replaced, return_elements=wanted, name="")
        found = dict(zip(wanted, imported, strict=True))
        found.update({name: values[name] for name in fetched if name in values})
        return [found[name] if name in found else self._bound(name) for name in fetched]

    def measure(self, names: Sequence[TensorName], batches: Sequence[Values]) -> list[list[Shape | None]]:
        """See `DataflowGraph.measure`."""
        given = list(batches[0])

        def shapes(*tensors: tf.Tensor) -> list[tf.Tensor]:
            return [tf.shape(x) for x in self.evaluate(names, dict(zip(given, tensors, strict=True)))]

        function = traced(shapes, reduce_retracing=True)
        return [
            [tuple(map(int, shape)) for shape in function(*(batch[name] for name in given))]
            for batch in batches
        ]

    def _bound(self, name: TensorName) -> tf.Tensor:
        """What a binding is inside the function that is being traced."""
        binding = self.bindings[name]
        if isinstance(binding, tf.Variable):
            if name in self._read:
                return tf.convert_to_tensor(binding)
            binding = binding.handle
        return tf.compat.v1.get_default_graph().capture(binding)

    def _assemble(self) -> dict[TensorName, tf.Tensor]:
        """Every tensor, symbolic, for inputs of any batch size."""
        given = {*self.bindings, *(entry.tensor for entry in self.inputs)}
        computed = [name for node in self.nodes.values() for name in node.outputs if name not in given]
        nodes = [self.nodes[name] for name in dict.fromkeys(map(node_of, computed))]
        tensors: dict[TensorName, tf.Tensor] = {}

        def trace(*inputs: tf.Tensor) -> None:
            values = {entry.tensor: x for entry, x in zip(self.inputs, inputs, strict=True)}
            tensors.update(values)
            tensors.update(zip(computed, self.run(nodes, values, computed), strict=True))
            tensors.update((name, self._bound(name)) for name in self.bindings)

        shapes = [entry.shape for entry in self.inputs]
        try:
            self._trace(trace, [opened(shape) for shape in shapes])
        except ValueError:
            tensors.clear()
            self._trace(trace, shapes)
        return tensors

    def _trace(self, trace: Callable[..., None], shapes: Sequence[tuple[int | None, ...] | None]) -> None:
        specs = (tf.TensorSpec(shape, entry.dtype) for shape, entry in zip(shapes, self.inputs, strict=True))
        self._assembled = traced(trace).get_concrete_function(*specs)

    # -- places -----------------------------------------------------------------------------------

    @cached_property
    def operations(self) -> tuple[Place, ...]:
        """The operations at which the graph can be split, in order."""
        return tuple(
            Place(node.name, node.op, tuple(filter(self._is_place, node.outputs)))
            for node in self.nodes.values()
            if not node.passes_on and self._is_place(f"{node.name}:0")
        )

    def _is_place(self, tensor: TensorName) -> bool:
        symbol = self._tensors.get(tensor)
        return (
            symbol is not None
            and symbol.dtype.is_floating
            and (symbol.shape.rank is None or symbol.shape.rank >= 2)
            and tensor in self.moving
            and tensor not in self.of_sizes
            and node_of(tensor) not in self.within_control_flow
            and all(tensor != entry.tensor for entry in self.inputs)
        )

    @property
    def places(self) -> tuple[Place, ...]:
        """See `DataflowGraph.places`: the layers that have names of their own, else the operations."""
        return self.layers or self.operations

    def find_place(self, layer: Any) -> tuple[Place, int]:
        """See `DataflowGraph.find_place`."""
        return super().find_place(layer.name if isinstance(layer, (tf.Tensor, tf.Operation)) else layer)

    def _otherwise_named(self, name: str) -> list[Place]:
        """The operation, the tensor or the scope of a name."""
        if name in self.nodes and self.nodes[name].outputs:
            return [Place(name, self.nodes[name].op, self.nodes[name].outputs)]
        if canonical(name) in self._tensors:
            return [Place(name, "tensor", (canonical(name),))]
        leaving = self._leaving(name)
        if len(leaving) > 1:
            raise LayerError(
                f"layer {name!r} is a scope that {len(leaving)} tensors leave; name one of them: "
                + " or ".join(repr(node_of(tensor)) for tensor in leaving)
            )
        return [Place(name, "scope", tuple(leaving))] if leaving else []

    def _leaving(self, scope: str) -> list[TensorName]:
        """The features that are computed in a scope and taken elsewhere."""
        scope = f"{scope.rstrip('/')}/"
        inside = [place.tensors[0] for place in self.operations if place.name.startswith(scope)]
        outputs = set(self.flat_outputs)
        return [
            tensor
            for tensor in inside
            if tensor in outputs or not all(user.startswith(scope) for user in self._users(tensor))
        ]

    def _users(self, tensor: TensorName) -> Iterable[str]:
        """The operations that take a tensor, after those that only pass it on or read its shape."""
        for user in self.consumers(tensor):
            if isinstance(user, Operation) and user.passes_on:
                passed = f"{user.name}:{user.inputs.index(tensor)}"
                if passed in self.flat_outputs:
                    yield user.name
                yield from self._users(passed)
            elif not user.reads_sizes:
                yield user.name

    # -- channels ---------------------------------------------------------------------------------

    @cached_property
    def _axes(self) -> OperationAxes:
        return OperationAxes(self.tensor, self.moving.__contains__)

    @cached_property
    def _channels_of_layers(self) -> dict[TensorName, int]:
        return {
            name: place.channels
            for place in self.layers
            for name in place.tensors
            if place.channels is not None
        }

    def stated_channels(self, node: Any, tensor: TensorName) -> int | None:
        """See `DataflowGraph.stated_channels`; a layer of Keras speaks for its operations."""
        axis, rank = self._channels_of_layers.get(tensor), self.rank(tensor)
        if axis is not None and rank is not None and -rank <= axis < rank and tensor in node.outputs:
            return axis % rank
        return self._axes.stated(node, tensor)

    def axes_after(self, node: Any, known: Known, shapes: Shapes) -> Known:
        """See `DataflowGraph.axes_after`."""
        return self._axes.results(node, known, shapes)

    def reshaped_for(self, tensor: TensorName) -> list[TensorName]:
        """See `DataflowGraph.reshaped_for`."""
        return [
            node.outputs[0]
            for node in self.needed_for([tensor])
            if node.kind == "Reshape"
            and node.name not in self.within_control_flow
            and node.outputs[0] in self.moving
            and node.outputs[0] not in self.of_sizes
            and None
            in (self.tensor(node.outputs[0]).shape.as_list() if self.rank(node.outputs[0]) else [None])
        ]

    def carried(self, node: Any, tensor: TensorName, axes: Axes, backwards: bool) -> Found:
        """See `DataflowGraph.carried`."""
        reached: list[tuple[TensorName, Axes]] = []
        for near in node.inputs if backwards else node.outputs:
            if near not in self.moving or near in self.of_sizes:
                continue
            sources = self._axes.sources(node, *((near, tensor) if backwards else (tensor, near)))
            if sources is None:
                continue
            if backwards:
                own = {source: axes[axis] for axis, source in enumerate(sources) if source is not None}
                moved = tuple(own.get(axis) for axis in range(self.rank(near) or 0))
            else:
                moved = tuple(None if source is None else axes[source] for source in sources)
            reached.append((near, moved))
        return None, reached


def _in_order(nodes: Iterable[Operation]) -> dict[str, Operation]:
    """Operations by name, each after those that it depends on or waits for."""
    known = {node.name: node for node in nodes}
    order: dict[str, Operation] = {}
    seen: set[str] = set()
    for start in known:
        stack = [(start, False)]
        while stack:
            name, done = stack.pop()
            if done:
                order[name] = known[name]
                continue
            if name in seen or name not in known:
                continue
            seen.add(name)
            stack.append((name, True))
            stack.extend((node_of(source), False) for source in known[name].inputs)
            stack.extend((source, False) for source in known[name].controls)
    return order


class _Functions:
    """The bodies of loops and branches, which the runtime knows as long as this object lives.

    TensorFlow adds the definitions to the graph that they are imported into, but does not register them with
    the runtime that runs the graph as a function.
    """

    _users: ClassVar[Counter[str]] = Counter()
    _lock: ClassVar[RLock] = RLock()

    def __init__(self, definitions: FunctionDefLibrary) -> None:
        names = [function.signature.name for function in definitions.function]
        with self._lock:
            for name, function in zip(names, definitions.function, strict=True):
                if not self._users[name]:
                    context.context().add_function_def(function)
                self._users[name] += 1
        weakref.finalize(self, self._forget, names)

    @classmethod
    def _forget(cls, names: Sequence[str]) -> None:
        with cls._lock:
            for name in names:
                cls._users[name] -= 1
                if not cls._users[name]:
                    context.context().remove_function(name)


def _stored(name: TensorName, binding: Binding) -> tuple[bool, Any]:
    """Whether a binding is a variable, and its value."""
    is_variable = isinstance(binding, tf.Variable)
    if not is_variable and binding.dtype in (tf.resource, tf.variant):
        raise InputError(f"this graph cannot be pickled: {name!r} is neither a variable nor an array")
    return is_variable, binding.numpy()


@runs_eagerly
def _restored(
    serialized: bytes,
    inputs: Sequence[GraphInput],
    outputs: Any,
    values: Mapping[TensorName, tuple[bool, Any]],
    layers: Sequence[Place],
) -> OperationGraph:
    bindings = {
        name: tf.Variable(value, trainable=False) if is_variable else tf.constant(value)
        for name, (is_variable, value) in values.items()
    }
    return OperationGraph(GraphDef.FromString(serialized), inputs, outputs, bindings, lambda names: layers)


def canonical(name: str) -> TensorName:
    """Name of a tensor with its number, which is 0 where it is left out."""
    return name if ":" in name else f"{name}:0"


def node_of(tensor: TensorName) -> str:
    """Name of the operation that gives a tensor."""
    return tensor.partition(":")[0]


def data_inputs(node: NodeDef) -> list[TensorName]:
    """Names of the tensors that an operation takes."""
    return [canonical(reference) for reference in node.input if not reference.startswith("^")]


def control_inputs(node: NodeDef) -> list[str]:
    """Names of the operations that an operation waits for."""
    return [reference[1:] for reference in node.input if reference.startswith("^")]


def opened(shape: tuple[int | None, ...] | None) -> tuple[int | None, ...] | None:
    """A shape with its batch axis open."""
    return (None, *shape[1:]) if shape else shape
