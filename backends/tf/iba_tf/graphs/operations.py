"""A graph of TensorFlow's operations that can be cut anywhere.

It stands for any model that is no graph of Keras layers: what a call of the model leaves in a traced
function, a SavedModel, a frozen GraphDef, a v1 graph with its session. Function calls are inlined; a part
of the graph runs by being imported into a `tf.function`, so that nothing is ever added to the graph that a
user holds, nor to a default one.

Tensors are called by name, ``"conv/Relu:0"``, operations likewise without the number.
"""

from __future__ import annotations

import weakref
from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from threading import RLock
from typing import Any, ClassVar

import tensorflow as tf
from tensorflow.core.framework.function_pb2 import FunctionDefLibrary
from tensorflow.core.framework.graph_pb2 import GraphDef
from tensorflow.core.framework.node_def_pb2 import NodeDef
from tensorflow.python.eager import context  # nothing public registers the functions of a graph

from iba_core.errors import InputError, LayerError, closest
from iba_core.framework.layout import DataFormat
from iba_tf.framework import runs_eagerly, traced
from iba_tf.graphs.inlining import inline_calls, output_count
from iba_tf.graphs.place_names import matching, split_index

TensorName = str
"""Such as ``"conv/Relu:0"``."""

Binding = tf.Variable | tf.Tensor
"""What a tensor of a graph stands for, where no operation of the graph computes it."""

SIZES = ("Shape", "ShapeN", "Size", "Rank")
"""Operations that look at the shape of a tensor only."""

REFERENCES = ("Variable", "VariableV2", "TemporaryVariable")
"""Variables of TensorFlow 1, whose output is the variable itself."""

_HANDS_ON = ("Identity", "IdentityN", "StopGradient", "Snapshot", "EnsureShape", "PlaceholderWithDefault")
_FORMATS: dict[str, DataFormat] = {
    "NHWC": "channels_last",
    "NDHWC": "channels_last",
    "NCHW": "channels_first",
    "NCDHW": "channels_first",
}
_SWAPS = {(0, 2, 1), (0, 3, 1, 2), (0, 2, 3, 1), (0, 4, 1, 2, 3), (0, 2, 3, 4, 1)}
_KEEPS_CHANNELS = ("ExpandDims", "Squeeze", "Transpose")


@dataclass(frozen=True)
class GraphInput:
    """An input of a graph.

    Attributes:
        name: by which users give it.
        tensor: the placeholder's tensor.
        dtype: of the placeholder.
        shape: with the batch axis; None where the rank is open.
        default: value where none is given; None where one must be.
    """

    name: str
    tensor: TensorName
    dtype: tf.DType
    shape: tuple[int | None, ...] | None
    default: Any = None


@dataclass(frozen=True, eq=False)
class Layer:
    """A place in a graph that has a name for users.

    Attributes:
        name: path of layers' names, such as ``"block/conv"``; calls of a layer that runs several times are
            told apart by ``":0"``, ``":1"``, ... For an operation its name.
        kind: name of the layer's class, or the type of the operation.
        tensors: its results.
        object: the layer; None for an operation.
    """

    name: str
    kind: str
    tensors: tuple[TensorName, ...]
    object: Any = None


class OperationGraph:
    """Operations between some inputs and outputs, and what they need to run.

    Args:
        graph_def: the operations, and perhaps many others.
        inputs: what the graph takes.
        outputs: names of the tensors that it gives, nested as the results shall be.
        bindings: what stands for tensors that the graph does not compute itself: variables (for their
            handles, or for the v1 variables themselves) and tensors that it closes over.
        layers: gives the places that have names beside those of the operations, of the names of all
            operations.

    Raises:
        InputError: there is no operation of a name, or the operations cannot be imported.
    """

    @runs_eagerly
    def __init__(
        self,
        graph_def: GraphDef,
        inputs: Sequence[GraphInput],
        outputs: Any,
        bindings: Mapping[TensorName, Binding],
        layers: Callable[[Iterable[str]], Sequence[Layer]] | None = None,
    ) -> None:
        inlined, followed = inline_calls(graph_def)
        self.inputs = tuple(replace(entry, tensor=canonical(entry.tensor)) for entry in inputs)
        self.outputs = tf.nest.map_structure(lambda name: canonical(followed(canonical(name))), outputs)
        self.bindings = {canonical(name): value for name, value in bindings.items()}
        self._definitions = inlined.library
        self._functions = _Functions(inlined.library)
        self._versions = inlined.versions
        self._nodes = {node.name: node for node in inlined.node}
        self.all_names = tuple(self._nodes)
        given = {*self.bindings, *(entry.tensor for entry in self.inputs)}
        for name in (*given, *self.flat_outputs):
            if node_of(name) not in self._nodes:
                raise InputError(
                    f"the graph has no operation {node_of(name)!r}; {closest(node_of(name), self._nodes)}"
                )
        self._read = frozenset(name for name in self.bindings if self._nodes[node_of(name)].op in REFERENCES)
        needed = self.needed_for(self.flat_outputs, given)
        self._nodes = {name: node for name, node in self._nodes.items() if name in needed}
        self._require_no_v1_loop()
        used = {source for node in self._nodes.values() for source in data_inputs(node)} | set(
            self.flat_outputs
        )
        self.bindings = {name: value for name, value in self.bindings.items() if name in used}
        self.unused_inputs = frozenset(entry.name for entry in self.inputs if entry.tensor not in used)
        self._tensors = self._assemble()
        self.order = self._topological_order()
        self.layers = tuple(
            layer
            for layer in (layers(self.all_names) if layers is not None else ())
            if any(tensor in self._tensors for tensor in layer.tensors)
        )

    def _require_no_v1_loop(self) -> None:
        loop = next((node for node in self._nodes.values() if node.op in ("Enter", "RefEnter")), None)
        if loop is not None:
            frame = loop.attr["frame_name"].s.decode()
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

    # -- structure --------------------------------------------------------------------------------

    @property
    def flat_outputs(self) -> list[TensorName]:
        """Names of the outputs, in order."""
        return tf.nest.flatten(self.outputs)

    @property
    def versions(self) -> Any:
        """Versions of the graph definition, as a GraphDef holds them."""
        return self._versions

    @property
    def definitions(self) -> Any:
        """The functions that loops and branches of the graph call, as a GraphDef holds them."""
        return self._definitions

    @property
    def nodes(self) -> Mapping[str, NodeDef]:
        """The operations that the outputs depend on, by name."""
        return self._nodes

    def tensor(self, name: TensorName) -> tf.Tensor:
        """Symbolic tensor of a name: its dtype, and its shape as far as it is known for any batch."""
        return self._tensors[name]

    @property
    def known(self) -> Mapping[TensorName, tf.Tensor]:
        """Symbolic tensors by name."""
        return self._tensors

    def results(self, node: str) -> list[TensorName]:
        """Names of all results of an operation."""
        return self._results.get(node, [])

    def needed_for(self, tensors: Iterable[TensorName], given: Iterable[TensorName] = ()) -> set[str]:
        """Names of the operations that lead to some tensors, from tensors that are given.

        What an operation merely waits for is left out, and so is all that changes a variable. Within v1
        branches an operation is told by what it waits for whether it runs, so that stays.
        """
        given = {*given, *self.bindings}
        found: set[str] = set()
        queue = [node_of(tensor) for tensor in tensors if tensor not in given]
        while queue:
            name = queue.pop()
            if name in found:
                continue
            found.add(name)
            node = self._nodes.get(name)
            if node is None:
                raise InputError(f"the graph refers to an operation {name!r} that it does not hold")
            queue.extend(node_of(source) for source in data_inputs(node) if source not in given)
            queue.extend(source for source in control_inputs(node) if self.decides(source))
        return found

    def decides(self, name: str) -> bool:
        """Whether an operation is a v1 branch's own mark of being taken."""
        node = self._nodes.get(name)
        while node is not None and node.op == "Identity":
            node = self._nodes.get(node_of(data_inputs(node)[0]))
        return node is not None and node.op in ("Switch", "RefSwitch", "Merge", "RefMerge")

    @cached_property
    def _results(self) -> dict[str, list[TensorName]]:
        results: dict[str, list[TensorName]] = {}
        for name in self._tensors:
            results.setdefault(node_of(name), []).append(name)
        return results

    @cached_property
    def _consumers(self) -> dict[TensorName, list[str]]:
        consumers: dict[TensorName, list[str]] = {}
        for name, node in self._nodes.items():
            for source in dict.fromkeys(data_inputs(node)):
                consumers.setdefault(source, []).append(name)
        return consumers

    def consumers(self, tensor: TensorName) -> list[str]:
        """Names of the operations that take a tensor."""
        return self._consumers.get(tensor, [])

    def dependents(self, tensors: Iterable[TensorName]) -> set[TensorName]:
        """The tensors whose values depend on those of some tensors, these among them."""
        found = set(tensors)
        queue = list(found)
        while queue:
            for node in self.consumers(queue.pop()):
                new = [result for result in self.results(node) if result not in found]
                found.update(new)
                queue.extend(new)
        return found

    @cached_property
    def moving(self) -> set[TensorName]:
        """The tensors that depend on the inputs."""
        return self.dependents(entry.tensor for entry in self.inputs)

    @cached_property
    def of_sizes(self) -> set[TensorName]:
        """The tensors that depend on the inputs by the inputs' shapes alone."""
        found: set[TensorName] = set()
        for name in self.order:
            node = self._nodes[name]
            moving = [source for source in data_inputs(node) if source in self.moving]
            if moving and (node.op in SIZES or all(source in found for source in moving)):
                found.update(self.results(name))
        return found

    @cached_property
    def within_control_flow(self) -> set[str]:
        """Names of the operations inside v1 branches, which run only if theirs is taken."""
        depth: dict[str, int] = {}
        for name in self.order:
            node = self._nodes[name]
            before = [*map(node_of, data_inputs(node)), *control_inputs(node)]
            entered = max((depth.get(source, 0) for source in before), default=0)
            entered += (node.op in ("Switch", "RefSwitch")) - (node.op in ("Merge", "RefMerge"))
            depth[name] = max(entered, 0)
        return {name for name, entered in depth.items() if entered}

    def _topological_order(self) -> list[str]:
        order: list[str] = []
        state: dict[str, bool] = {}
        for start in self._nodes:
            stack = [(start, False)]
            while stack:
                name, done = stack.pop()
                if done:
                    order.append(name)
                    continue
                if name in state or name not in self._nodes:
                    continue
                state[name] = True
                stack.append((name, True))
                node = self._nodes[name]
                stack.extend((node_of(source), False) for source in data_inputs(node))
                stack.extend((source, False) for source in control_inputs(node))
        return order

    # -- running ----------------------------------------------------------------------------------

    def run(
        self, nodes: Iterable[str], values: Mapping[TensorName, Any], fetched: Sequence[TensorName]
    ) -> list[tf.Tensor]:
        """Import operations into the function that is being traced.

        Args:
            nodes: names of the operations.
            values: of the tensors that they take from elsewhere.
            fetched: the tensors to return.
        """
        nodes = set(nodes)
        part = GraphDef(versions=self._versions, library=self._definitions)
        for name in self._nodes:
            if name not in nodes:
                continue
            node = part.node.add()
            node.CopyFrom(self._nodes[name])
            kept = [
                reference
                for reference in node.input
                if not reference.startswith("^") or reference[1:] in nodes
            ]
            del node.input[:]
            node.input.extend(kept)
        taken = {source for node in part.node for source in data_inputs(node)}
        replaced = {name: value for name, value in values.items() if name in taken}
        for name in taken:
            if name not in replaced and name in self.bindings:
                replaced[name] = self._bound(name)
        wanted = [name for name in dict.fromkeys(fetched) if name not in values and name not in self.bindings]
        imported = tf.compat.v1.import_graph_def(part, input_map=replaced, return_elements=wanted, name="")
        found = dict(zip(wanted, imported, strict=True))
        found.update({name: values[name] for name in fetched if name in values})
        return [found[name] if name in found else self._bound(name) for name in fetched]

    def _bound(self, name: TensorName) -> tf.Tensor:
        """What a binding is within the function that is being traced."""
        binding = self.bindings[name]
        if isinstance(binding, tf.Variable):
            if name in self._read:
                return tf.convert_to_tensor(binding)
            binding = binding.handle
        return tf.compat.v1.get_default_graph().capture(binding)

    def _assemble(self) -> dict[TensorName, tf.Tensor]:
        """Every tensor, symbolic, for inputs of any batch size."""
        fetched = {
            name: [f"{name}:{index}" for index in range(output_count(node))]
            for name, node in self._nodes.items()
        }
        given = {*self.bindings, *(entry.tensor for entry in self.inputs)}
        computed = [tensor for tensors in fetched.values() for tensor in tensors if tensor not in given]
        nodes = {node_of(tensor) for tensor in computed}
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

    def _trace(self, trace: Any, shapes: Sequence[tuple[int | None, ...] | None]) -> None:
        specs = (tf.TensorSpec(shape, entry.dtype) for shape, entry in zip(shapes, self.inputs, strict=True))
        self._assembled = traced(trace).get_concrete_function(*specs)

    # -- places -----------------------------------------------------------------------------------

    @cached_property
    def operations(self) -> tuple[Layer, ...]:
        """The operations at which the graph can be cut, in order."""
        return tuple(
            Layer(name, self._nodes[name].op, tuple(filter(self._is_place, self.results(name))))
            for name in self.order
            if self._nodes[name].op not in _HANDS_ON and self._is_place(f"{name}:0")
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
    def places(self) -> tuple[Layer, ...]:
        """What a user sees as layers: those that have names of their own, else the operations."""
        return self.layers or self.operations

    def find(self, layer: Any) -> tuple[str, TensorName]:
        """The name and the tensor of the place that a layer, a name, an operation or a tensor stands for.

        Args:
            layer: a layer's name or object, or a symbolic tensor that Keras made; a tensor or operation of
                the graph, or its name; or a scope, if one tensor leaves it. Of a layer with several
                results the first is meant; ``"name[1]"`` is the second one.

        Raises:
            LayerError: there is no such place, or there are several.
        """
        if isinstance(layer, (tf.Tensor, tf.Operation)):
            layer = layer.name
        if not isinstance(layer, str):
            # A symbolic tensor of Keras knows the layer that gives it, and the number of the result.
            owner, _, index = getattr(layer, "_keras_history", (layer, 0, 0))
            found = [place for place in self.layers if place.object is owner]
            return self._only(found, getattr(owner, "name", type(owner).__name__), index)
        name, index = split_index(layer)
        return self._only(self._by_name(name), layer, index)

    def _by_name(self, name: str) -> list[Layer]:
        if found := matching(name, self.layers):
            return found
        if name in self._nodes and self.results(name):
            return [Layer(name, self._nodes[name].op, tuple(self.results(name)))]
        if canonical(name) in self._tensors:
            return [Layer(name, "tensor", (canonical(name),))]
        leaving = self._leaving(name)
        if len(leaving) > 1:
            raise LayerError(
                f"layer {name!r} is a scope that {len(leaving)} tensors leave; name one of them: "
                + " or ".join(repr(node_of(tensor)) for tensor in leaving)
            )
        return [Layer(name, "scope", tuple(leaving))] if leaving else []

    def _leaving(self, scope: str) -> list[TensorName]:
        """The features that are computed within a scope and taken elsewhere."""
        scope = f"{scope.rstrip('/')}/"
        inside = [place.tensors[0] for place in self.operations if place.name.startswith(scope)]
        outputs = set(self.flat_outputs)
        return [
            tensor
            for tensor in inside
            if tensor in outputs or not all(user.startswith(scope) for user in self._users(tensor))
        ]

    def _users(self, tensor: TensorName) -> Iterable[str]:
        """The operations that take a tensor, behind those that only hand it on or look at its shape."""
        for user in self.consumers(tensor):
            if self._nodes[user].op in _HANDS_ON:
                handed = f"{user}:{data_inputs(self._nodes[user]).index(tensor)}"
                if handed in self.flat_outputs:
                    yield user
                yield from self._users(handed)
            elif self._nodes[user].op not in SIZES:
                yield user

    def _only(self, found: Sequence[Layer], shown: str, index: int) -> tuple[str, TensorName]:
        if len(found) == 1:
            place = found[0]
            if index >= len(place.tensors):
                raise LayerError(f"layer {shown!r}: {place.name!r} has {len(place.tensors)} result(s)")
            return f"{place.name}[{index}]" if index else place.name, place.tensors[index]
        if found:
            names = " or ".join(f"'{place.name}'" for place in found)
            raise LayerError(
                f"layer {shown!r} runs {len(found)} times in the model; name one of its calls: {names}"
            )
        if node_of(shown) in self.all_names:
            raise LayerError(
                f"no output of the model depends on layer {shown!r}, so there is nothing to explain"
            )
        names = [place.name for place in self.layers] or [place.name for place in self.operations]
        raise LayerError(f"the model runs no layer {shown!r}; {closest(str(shown), names)}")

    def data_format(self, tensor: TensorName) -> DataFormat:
        """Where the channels are, by the nearest operations that say so, those before the tensor first.

        Operations that change the number of axes break the connection, but for those that only add or
        drop an axis; a transposition turns the format around. Where none says so, the channels are last.
        """
        for backwards in (True, False):
            queue = deque([(tensor, False)])
            seen = {tensor}
            while queue:
                current, swapped = queue.popleft()
                users = [node_of(current)] if backwards else self.consumers(current)
                for user in users:
                    node = self._nodes.get(user)
                    if node is None:
                        continue
                    stated = (
                        _FORMATS.get(node.attr["data_format"].s.decode())
                        if "data_format" in node.attr
                        else None
                    )
                    if stated is not None:
                        return _swapped(stated) if swapped else stated
                    turned = swapped ^ (node.op == "Transpose" and self._swaps(node))
                    beyond = data_inputs(node) if backwards else self.results(user)
                    for near in beyond:
                        if near not in seen and self._same_axes(node, current, near):
                            seen.add(near)
                            queue.append((near, turned))
        return "channels_last"

    def _same_axes(self, node: NodeDef, one: TensorName, other: TensorName) -> bool:
        if other not in self.moving:
            return False
        ranks = [self._tensors[name].shape.rank if name in self._tensors else None for name in (one, other)]
        return ranks[0] == ranks[1] or node.op in _KEEPS_CHANNELS

    def _swaps(self, node: NodeDef) -> bool:
        """Whether a transposition moves the channels to the other end."""
        permutation = tf.get_static_value(self._tensors[data_inputs(node)[1]])
        return permutation is not None and tuple(int(axis) for axis in permutation) in _SWAPS


class _Functions:
    """The bodies of loops and branches, known to the runtime as long as this object lives.

    TensorFlow adds what definitions hold to the graph that they are imported into, but does not make it known
    to the runtime that runs the graph as a function.
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


def _swapped(data_format: DataFormat) -> DataFormat:
    return "channels_first" if data_format == "channels_last" else "channels_last"
