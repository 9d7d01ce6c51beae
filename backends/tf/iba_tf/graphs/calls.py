"""A Keras model as a graph of its layers' calls.

Keras keeps, with every symbolic tensor, the call that made it. From these records the calls of a functional
or sequential model are listed in the order in which they run. The calls of a nested model stand in place of
the call of that model. Each call has a name of its own, so a nested model that is called twice is listed
twice, over the same layers. The layers are neither copied nor called symbolically: the model's own graph
stays as it is.
"""

from __future__ import annotations

import inspect
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, ClassVar

import keras
import numpy as np
import tensorflow as tf
from keras import KerasTensor

from iba_core.errors import LayerError
from iba_core.framework.cache import Cache
from iba_tf.framework import traced
from iba_tf.graphs.axis_sources import Known, Shapes, joined, traced_axes
from iba_tf.graphs.channels import Axes, Found, channels_of_layer, keeps_axes, nearest
from iba_tf.graphs.dataflow import DataflowGraph, Node, Place, Shape, TensorName, Values
from iba_tf.graphs.graph_inputs import GraphInput
from iba_tf.graphs.operations import OperationGraph

_MASK = "#mask"
"""What follows the name of a tensor in the name of its mask."""

_KEPT = 64
"""How many calls a graph keeps the operations of."""


@dataclass(frozen=True, eq=False)
class Call(Node):
    """One call of an operation of Keras.

    Attributes:
        name: path of names through the nested models, and the number of the call.
        operation: a Keras layer, or any other operation on symbolic tensors.
        record: Keras' record of the call, which holds the arguments.
        inputs: names of the symbolic tensors among the arguments.
        results: names of the results.
        takes_training: whether the operation distinguishes training from inference.
    """

    name: str
    operation: Any
    record: Any
    inputs: tuple[TensorName, ...]
    results: tuple[TensorName, ...]
    takes_training: bool

    @property
    def kind(self) -> str:  # type: ignore[override]  # derived here, where a node of operations stores it
        """See `Node.kind`."""
        return type(self.operation).__name__

    @property
    def outputs(self) -> tuple[TensorName, ...]:
        """See `Node.outputs`."""
        return self.results

    def run(self, values: dict[TensorName, Any]) -> None:
        """Add the results to `values`, which has the arguments."""
        tensors = zip(self.record.arguments.keras_tensors, self.inputs, strict=True)
        args, kwargs = self.record.arguments.fill_in({id(t): values[name] for t, name in tensors})
        if self.takes_training:
            kwargs = {**kwargs, "training": False}
        results = keras.tree.flatten(self.operation(*args, **kwargs))
        values.update(zip(self.results, results, strict=True))


class CallGraph(DataflowGraph):
    """Everything that a Keras model calls between its inputs and its outputs.

    A mask that Keras attaches to a tensor is the companion of that tensor.

    Args:
        model: a functional or sequential model, or a function of symbolic tensors.

    Attributes:
        symbols: Keras' symbolic tensors, by name.

    Raises:
        LayerError: the model has no graph: it is subclassed, or not yet built.

    Example:
        >>> model = keras.Sequential([keras.Input((8,), name="x"), keras.layers.Dense(4, name="dense")])
        >>> graph = CallGraph.of(model)
        >>> graph.find("dense")
        ('dense', 'dense:0')
        >>> [features] = graph.evaluate(["dense:0"], {"x:0": tf.ones((2, 8))})
        >>> tuple(features.shape)
        (2, 4)
    """

    runs_in_python: ClassVar[bool] = True

    def __init__(self, model: keras.Model | keras.Function) -> None:
        if not has_graph(model):
            raise LayerError(why_no_graph(model))
        builder = _Builder()
        names = [builder.add(tensor, tensor.name, 0) for tensor in model.inputs]
        self.inputs = tuple(
            GraphInput(tensor.name, name, tf.as_dtype(tensor.dtype), tuple(tensor.shape))
            for tensor, name in zip(model.inputs, names, strict=True)
        )
        flat = builder.inline(model, names, path="")
        self.outputs = keras.tree.pack_sequence_as(output_structure(model), flat)
        self.nodes: dict[str, Call] = builder.calls
        self.layers = tuple(builder.places)
        self.symbols = builder.symbols
        self._insides: Cache[OperationGraph | None] = Cache(_KEPT)
        self._producers = {name: call for call in self.nodes.values() for name in call.results}

    @classmethod
    def of(cls, model: keras.Model | keras.Function) -> CallGraph:
        """Graph of a model; arguments and errors as of the class."""
        return cls(model)

    def run(self, nodes: Iterable[Node], values: Values, fetched: Sequence[TensorName]) -> list[Any]:
        """See `DataflowGraph.run`."""
        known: dict[TensorName, Any] = {}
        for name, value in values.items():
            if name.endswith(_MASK):
                continue
            # The mask is an attribute of the tensor, and the tensor may be the caller's.
            known[name] = tf.identity(value)
            if (mask := values.get(name + _MASK)) is not None:
                known[name]._keras_mask = mask
        with keras.StatelessScope(self._seeds):
            for node in nodes:
                node.run(known)  # type: ignore[attr-defined]  # a `Call`, or a rewrite of some
        return [
            getattr(known[name.removesuffix(_MASK)], "_keras_mask", None)
            if name.endswith(_MASK)
            else known[name]
            for name in fetched
        ]

    def measure(self, names: Sequence[TensorName], batches: Sequence[Values]) -> list[list[Shape | None]]:
        """See `DataflowGraph.measure`."""
        return [
            [None if value is None else tuple(value.shape) for value in self.evaluate(names, batch)]
            for batch in batches
        ]

    def tensor(self, name: TensorName) -> tf.TensorSpec:
        """See `DataflowGraph.tensor`."""
        symbol = self.symbols[name]
        return tf.TensorSpec(symbol.shape, tf.as_dtype(symbol.dtype), symbol.name)

    def producer(self, tensor: TensorName) -> Node | None:
        """See `DataflowGraph.producer`."""
        return self._producers.get(tensor.removesuffix(_MASK))

    def companions(self, tensor: TensorName) -> tuple[TensorName, ...]:
        """See `DataflowGraph.companions`: the mask."""
        return (tensor + _MASK,)

    def draws_from_generator(self) -> str | None:
        """See `DataflowGraph.draws_from_generator`; only layers that keep a generator are looked into."""
        for call in self.nodes.values():
            if any(isinstance(kept, tf.random.Generator) for kept in _kept_by(call.operation)):
                inside = self.inside(call)
                if inside is None or inside.draws_from_generator() is not None:
                    return call.name
        return None

    @cached_property
    def _seeds(self) -> list[tuple[keras.Variable, Any]]:
        """The states of the layers' generators, each with the one that it began with.

        A pass of the model moves them on. Here every pass begins at the same numbers.
        """
        kept = (each for call in self.nodes.values() for each in _kept_by(call.operation))
        return [
            (each.state, np.array([each.get_config()["seed"] or 0, 0]))
            for each in kept
            if isinstance(each, keras.random.SeedGenerator)
        ]

    def where_instead(self, name: str) -> str | None:
        """See `DataflowGraph.where_instead`: a layer within another one that is no model."""
        last = name.rpartition("/")[2].partition(":")[0]
        for place in self.layers:
            inside = getattr(place.object, "_flatten_layers", lambda **_: ())(include_self=False)
            if any(layer.name == last for layer in inside):
                return (
                    f"it is inside layer {place.name!r}, whose calls Keras does not list: explain "
                    "GraphModel.from_keras(model) in place of the model, which names the layers inside, too"
                )
        return None

    # -- channels ---------------------------------------------------------------------------------

    def inside(self, node: Any) -> OperationGraph | None:
        """See `DataflowGraph.inside`."""
        return self._insides.get(node, lambda: _operations_of(node, self.symbols))

    def stated_channels(self, node: Any, tensor: TensorName) -> int | None:
        """See `DataflowGraph.stated_channels`."""
        axis, rank = channels_of_layer(node.operation), len(self.symbols[tensor].shape)
        return None if axis is None or not -rank <= axis < rank else axis % rank

    def axes_after(self, node: Any, known: Known, shapes: Shapes) -> Known:
        """See `DataflowGraph.axes_after`; what is not known to keep its axes is looked into."""
        taken = {name: known[name] for name in node.inputs if name in known}
        ranks = {len(self.symbols[name].shape) for name in (*taken, *node.results)}
        if keeps_axes(node.operation) and len(ranks) == 1:
            return {name: joined(taken.values(), self.symbols[name].shape) for name in node.results}
        inside = self.inside(node)
        if inside is None:
            return {}
        names = zip(dict.fromkeys(node.inputs), (entry.tensor for entry in inside.inputs), strict=True)
        start = {inner: taken[outer] for outer, inner in names if outer in taken}
        found = traced_axes(inside, start, inside.flat_outputs)
        given = zip(node.results, inside.flat_outputs, strict=True)
        within = {f"{node.results[0]}/{inner}": axes for inner, axes in found.items()}
        return {**within, **{outer: found[inner] for outer, inner in given if inner in found}}

    def carried(self, node: Any, tensor: TensorName, axes: Axes, backwards: bool) -> Found:
        """See `DataflowGraph.carried`: the operations of the call tell."""
        inside = self.inside(node)
        if inside is None:
            return None, []
        taken = dict(zip(dict.fromkeys(node.inputs), (entry.tensor for entry in inside.inputs), strict=True))
        given = dict(zip(node.results, inside.flat_outputs, strict=True))
        start, beyond = (given, taken) if backwards else (taken, given)
        found, ends = nearest(inside, [(start[tensor], axes)], backwards)
        names = {inner: outer for outer, inner in beyond.items()}
        return found, [(names[inner], moved) for inner, moved in ends]


def _kept_by(operation: Any) -> Iterator[Any]:
    """What a layer, and the layers inside it, keep as attributes."""
    for layer in getattr(operation, "_flatten_layers", lambda: ())():
        yield from vars(layer).values()


def _operations_of(call: Call, symbols: Mapping[TensorName, KerasTensor]) -> OperationGraph | None:
    """The operations that one call leaves in a function; None where it cannot be traced for any batch."""
    names = list(dict.fromkeys(call.inputs))

    def run(*tensors: tf.Tensor) -> list[tf.Tensor]:
        values = dict(zip(names, tensors, strict=True))
        with keras.StatelessScope():
            call.run(values)
        return [tf.identity(values[name]) for name in call.results]

    specs = [tf.TensorSpec(symbols[name].shape, tf.as_dtype(symbols[name].dtype)) for name in names]
    try:
        concrete = traced(run).get_concrete_function(*specs)
        return OperationGraph(
            concrete.graph.as_graph_def(),
            [GraphInput(x.name, x.name, x.dtype, tuple(x.shape)) for x in concrete.inputs[: len(names)]],
            [x.name for x in concrete.outputs],
            {
                x.name: value
                for x, value in zip(concrete.inputs[len(names) :], concrete.captured_inputs, strict=True)
            },
        )
    except Exception:  # the layer's own code may raise anything for open shapes
        return None


def function_to(output: KerasTensor) -> keras.Function:
    """The function from all inputs that a symbolic tensor depends on to that tensor."""
    inputs, seen, stack = [], set(), [output]
    while stack:
        tensor = stack.pop()
        if id(tensor) in seen:
            continue
        seen.add(id(tensor))
        arguments = node_of(tensor).arguments.keras_tensors
        stack.extend(arguments)
        if not arguments:
            inputs.append(tensor)
    return keras.Function(inputs, output)


def has_graph(operation: Any) -> bool:
    """Whether calling it does nothing but run a graph of symbolic tensors that it keeps."""
    if isinstance(operation, keras.Sequential):
        return bool(_graph_of_sequential(operation)) and _calls_as_keras_does(operation)
    return isinstance(operation, keras.Function) and _calls_as_keras_does(operation)


def _graph_of_sequential(model: keras.Sequential) -> Sequence[KerasTensor]:
    try:
        found: Sequence[KerasTensor] = model.outputs
    except AttributeError:
        return ()
    return found


def _calls_as_keras_does(operation: Any) -> bool:
    """Whether no subclass outside Keras has a `call` of its own."""
    caller = next(cls for cls in type(operation).__mro__ if "call" in vars(cls))
    return caller.__module__.partition(".")[0] == "keras"


def why_no_graph(model: Any) -> str:
    """The sentence that says why a model cannot be split."""
    if isinstance(model, keras.Sequential):
        return (
            f"the sequential model {model.name!r} is not built, so it has no graph to split: start it with "
            "keras.Input, or call it on a batch once"
        )
    return (
        f"{type(model).__name__} is neither a functional nor a sequential Keras model, so it has no graph of "
        "layers to split"
    )


def output_structure(model: keras.Model | keras.Function) -> Any:
    """The model's symbolic outputs, nested as its results are."""
    if isinstance(model, keras.Sequential):
        return model.outputs[0]
    structure = model._outputs_struct  # a Function offers no other way to its nesting
    # Keras unpacks a list of one output, too.
    if isinstance(structure, (list, tuple)) and len(structure) == 1:
        return structure[0]
    return structure


@dataclass
class _Builder:
    calls: dict[str, Call] = field(default_factory=dict)
    places: list[Place] = field(default_factory=list)
    symbols: dict[TensorName, KerasTensor] = field(default_factory=dict)

    def add(self, tensor: KerasTensor, node: str, index: int) -> TensorName:
        """Name a symbolic tensor, the result of a node with a number."""
        name = _unique(f"{node}:{index}", self.symbols)
        self.symbols[name] = tensor
        return name

    def inline(
        self, model: keras.Model | keras.Function, inputs: Sequence[TensorName], path: str
    ) -> list[TensorName]:
        """List what `model` calls, given the names of its inputs, and return those of its outputs."""
        known = {id(tensor): name for tensor, name in zip(model.inputs, inputs, strict=True)}
        records = list(_records_between(model.inputs, model.outputs))
        for record, name in zip(records, _names(records), strict=True):
            taken = tuple(known[id(tensor)] for tensor in record.arguments.keras_tensors)
            given = self._call(record, taken, path + name)
            known.update((id(tensor), name) for tensor, name in zip(record.outputs, given, strict=True))
            kind = type(record.operation).__name__
            self.places.append(
                Place(path + name, kind, given, record.operation, taken, tuple(record.outputs))
            )
        return [known[id(tensor)] for tensor in model.outputs]

    def _call(self, record: Any, taken: tuple[TensorName, ...], name: str) -> tuple[TensorName, ...]:
        operation = record.operation
        if has_graph(operation) and self._passes_plainly(record):
            return tuple(self.inline(operation, taken, f"{name}/"))
        name = _unique(name, self.calls)
        given = tuple(self.add(tensor, name, index) for index, tensor in enumerate(record.outputs))
        takes_training = "training" in inspect.signature(operation.call).parameters
        self.calls[name] = Call(name, operation, record, taken, given, takes_training)
        return given

    def _passes_plainly(self, record: Any) -> bool:
        """Whether the nested model's inputs are the call's arguments, one by one and unaltered."""
        outer, inner = record.arguments.keras_tensors, record.operation.inputs
        structure = getattr(record.operation, "_inputs_struct", record.operation.inputs)
        return (
            len(record.arguments.args) == 1
            and not any(isinstance(x, KerasTensor) for x in keras.tree.flatten(record.arguments.kwargs))
            and isinstance(structure, dict) == isinstance(record.arguments.args[0], dict)
            and len(outer) == len(inner)
            and all(
                a.dtype == b.dtype and len(a.shape) == len(b.shape) for a, b in zip(outer, inner, strict=True)
            )
        )


def _unique(name: str, taken: Iterable[str]) -> str:
    found, number = name, 0
    while found in taken:
        number += 1
        found = f"{name}~{number}"
    return found


def _records_between(inputs: Sequence[KerasTensor], outputs: Sequence[KerasTensor]) -> Iterator[Any]:
    """Keras' records of the calls that lead from inputs to outputs, each after those it depends on."""
    known = {id(tensor) for tensor in inputs}
    yielded: set[int] = set()
    # Deep models would exceed Python's recursion limit, hence the explicit stack.
    stack: list[tuple[KerasTensor, bool]] = [(tensor, False) for tensor in reversed(outputs)]
    while stack:
        tensor, ready = stack.pop()
        if id(tensor) in known:
            continue
        record = node_of(tensor)
        if ready:
            if id(record) not in yielded:
                yielded.add(id(record))
                known.update(id(output) for output in record.outputs)
                yield record
            continue
        stack.append((tensor, True))
        stack.extend((argument, False) for argument in reversed(record.arguments.keras_tensors))


def node_of(tensor: KerasTensor) -> Any:
    """Keras' record of the call that made a symbolic tensor."""
    operation, index, _ = tensor._keras_history
    return operation._inbound_nodes[index]


def _names(records: Sequence[Any]) -> Iterator[str]:
    counts = Counter(id(record.operation) for record in records)
    seen: Counter[int] = Counter()
    for record in records:
        operation = record.operation
        call = seen[id(operation)]
        seen[id(operation)] += 1
        yield f"{operation.name}:{call}" if counts[id(operation)] > 1 else operation.name
