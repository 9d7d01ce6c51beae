"""The graph of symbolic tensors behind a Keras model, as a list of calls that can be cut anywhere.

Keras keeps, with every symbolic tensor, the call that made it. From there the calls of a functional or
sequential model are listed in the order in which they run, those of nested models in place of the call of
the nested model. Each tensor gets a number, its *slot*, so that a nested model that is called twice is
listed twice over the same layers. The layers themselves are neither copied nor called symbolically: the
model's own graph stays as it is.
"""

from __future__ import annotations

import inspect
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, get_args

import keras
import numpy as np
import tensorflow as tf
from keras import KerasTensor

from iba_core.errors import InputError, LayerError, closest
from iba_core.framework.layout import DataFormat
from iba_tf.framework import traced
from iba_tf.graphs.place_names import matching, split_index

Slot = int
"""Number of a tensor in a graph."""

Values = dict[Slot, Any]
"""What the tensors of a graph are for one batch."""


@dataclass(frozen=True, eq=False)
class Call:
    """One call of an operation.

    Attributes:
        operation: a Keras layer, or any other operation on symbolic tensors.
        node: Keras' record of the call, which holds the arguments.
        inputs: slots of the symbolic tensors among the arguments.
        outputs: slots of the results.
        takes_training: whether the operation tells training from inference.
    """

    operation: keras.Operation
    node: Any
    inputs: tuple[Slot, ...]
    outputs: tuple[Slot, ...]
    takes_training: bool

    def run(self, values: Values) -> None:
        """Put the results for the arguments in `values` there, too."""
        tensors = zip(self.node.arguments.keras_tensors, self.inputs, strict=True)
        args, kwargs = self.node.arguments.fill_in({id(t): values[slot] for t, slot in tensors})
        if self.takes_training:
            kwargs = {**kwargs, "training": False}
        results = keras.tree.flatten(self.operation(*args, **kwargs))
        values.update(zip(self.outputs, results, strict=True))


@dataclass(frozen=True, eq=False)
class Place:
    """Where a graph can be cut: behind the call of an operation or of a nested model.

    Attributes:
        name: path of names through the nested models, such as ``"backbone/conv5"``; calls of a layer
            that runs several times are told apart by ``":0"``, ``":1"``, ...
        operation: what is called.
        inputs: slots of the arguments.
        outputs: slots of the results.
        tensors: the symbolic results of the call.
    """

    name: str
    operation: keras.Operation
    inputs: tuple[Slot, ...]
    outputs: tuple[Slot, ...]
    tensors: tuple[KerasTensor, ...]


@dataclass(frozen=True, eq=False)
class CallGraph:
    """Everything that a model calls between its inputs and its outputs.

    Attributes:
        inputs: slots of the model's inputs.
        outputs: slots of the model's outputs, nested as the outputs are.
        calls: all calls, each after those whose results it takes.
        places: where the graph can be cut, in the order in which they run.
        tensors: the symbolic tensor of each slot.
    """

    inputs: tuple[Slot, ...]
    outputs: Any
    calls: tuple[Call, ...]
    places: tuple[Place, ...]
    tensors: dict[Slot, KerasTensor]

    @classmethod
    def of(cls, model: keras.Model | keras.Function) -> CallGraph:
        """Graph of a functional or sequential model, or of a function of symbolic tensors.

        Raises:
            LayerError: the model has no graph: it is subclassed, or not yet built.
        """
        if not has_graph(model):
            raise LayerError(why_no_graph(model))
        builder = _Builder()
        inputs = tuple(builder.add(tensor) for tensor in model.inputs)
        flat = builder.inline(model, inputs, path="")
        outputs = keras.tree.pack_sequence_as(output_structure(model), flat)
        return cls(inputs, outputs, tuple(builder.calls), tuple(builder.places), builder.tensors)

    @property
    def flat_outputs(self) -> list[Slot]:
        """Slots of the model's outputs, in order."""
        return keras.tree.flatten(self.outputs)

    def run(self, calls: Iterable[Call], values: Values) -> Values:
        """Run calls in inference mode, and let none of them change a variable of the model.

        Args:
            calls: in the order of the graph.
            values: of the slots that the calls take; those that they give are added.
        """
        with keras.StatelessScope():
            for call in calls:
                call.run(values)
        return values

    def needed_for(self, slots: Iterable[Slot], given: Iterable[Slot] = ()) -> list[Call]:
        """The calls that lead to some slots, from the inputs and from slots that are given."""
        given = set(given)
        wanted = set(slots) - given
        calls = []
        for call in reversed(self.calls):
            if not wanted.isdisjoint(call.outputs):
                calls.append(call)
                wanted.update(slot for slot in call.inputs if slot not in given)
        return calls[::-1]

    def dependents(self, slot: Slot) -> set[Slot]:
        """The slots whose values depend on that of `slot`, itself among them."""
        found = {slot}
        for call in self.calls:
            if not found.isdisjoint(call.inputs):
                found.update(call.outputs)
        return found

    def find(self, layer: Any) -> tuple[Place, Slot]:
        """The place that a name, a layer or a symbolic tensor stands for, and the slot of its features.

        A layer within a nested model is named by its path, or by its name alone where that is the only one.
        Of several results the first one counts, unless `layer` is the symbolic tensor of another, or a
        number follows the name: ``"lstm[1]"`` is the second.

        Raises:
            LayerError: there is no such place, or there are several.
        """
        if isinstance(layer, KerasTensor):
            found = [
                (place, slot)
                for place in self.places
                for tensor, slot in zip(place.tensors, place.outputs, strict=True)
                if tensor is layer
            ]
        elif isinstance(layer, str):
            found = self._named(layer)
        else:
            found = [(place, place.outputs[0]) for place in self.places if place.operation is layer]
        if len(found) == 1:
            return found[0]
        shown = layer if isinstance(layer, str) else getattr(layer, "name", type(layer).__name__)
        if found:
            names = " or ".join(f"'{place.name}'" for place, _ in found)
            raise LayerError(
                f"layer {shown!r} runs {len(found)} times in the model; name one of its calls: {names}"
            )
        raise LayerError(
            f"the model runs no layer {shown!r}; {closest(str(shown), [place.name for place in self.places])}"
        )

    def _named(self, layer: str) -> list[tuple[Place, Slot]]:
        name, index = split_index(layer)
        found = matching(name, self.places)
        if any(index >= len(place.outputs) for place in found):
            raise LayerError(f"layer {layer!r}: {found[0].name!r} has {len(found[0].outputs)} result(s)")
        return [(place, place.outputs[index]) for place in found]

    def prepare(self, inputs: Any, slots: Sequence[Slot] | None = None) -> list[tf.Tensor]:
        """A user's inputs as tensors of the dtypes that the model takes.

        Args:
            inputs: one array, a list or tuple, or a dict by the inputs' names or symbolic tensors.
            slots: the inputs that are needed; all if None. Others may be left out of a dict.

        Returns:
            A tensor for each of `slots`.

        Raises:
            InputError: an input is missing, unknown, no array, or of the wrong shape.
        """
        slots = self.inputs if slots is None else slots
        given = self._by_name(inputs)
        names = [self.tensors[slot].name for slot in self.inputs]
        unknown = [name for name in given if name not in names]
        if unknown or any(self.tensors[slot].name not in given for slot in slots):
            raise InputError(f"inputs are given for {sorted(map(str, given))}; the model takes {names}")
        return [_as_tensor(given[self.tensors[slot].name], self.tensors[slot]) for slot in slots]

    def _by_name(self, inputs: Any) -> dict[Any, Any]:
        if isinstance(inputs, dict):
            return {getattr(key, "name", key): value for key, value in inputs.items()}
        names = [self.tensors[slot].name for slot in self.inputs]
        if isinstance(inputs, (list, tuple)) and (len(names) > 1 or any(map(_is_array, inputs))):
            if len(inputs) != len(names):
                raise InputError(f"{len(inputs)} inputs are given; the model takes {len(names)}: {names}")
            return dict(zip(names, inputs, strict=True))
        if len(names) > 1:
            raise InputError(f"one input is given; the model takes {len(names)}: {names}")
        return {names[0]: inputs}

    def shapes(self, inputs: Sequence[tf.Tensor]) -> dict[Slot, tuple[int, ...]]:
        """Shapes of all tensors for given inputs, with the batch axis; nothing is computed."""
        shapes: dict[Slot, tuple[int, ...]] = {}

        def trace(*flat: tf.Tensor) -> None:
            values = self.run(self.calls, dict(zip(self.inputs, flat, strict=True)))
            shapes.update({slot: tuple(value.shape) for slot, value in values.items()})

        traced(trace).get_concrete_function(*(tf.TensorSpec(x.shape, x.dtype) for x in inputs))
        return shapes

    def data_format(self, slot: Slot) -> DataFormat:
        """Where the channels are in a tensor, by the nearest layers that say so, those before it first.

        Layers that change the number of axes break the connection. Where no layer says so, the channels
        are last, but for images, where Keras' own setting decides.
        """
        rank = len(self.tensors[slot].shape)
        for backwards in (True, False):
            seen, queue = {slot}, deque([slot])
            while queue:
                current = queue.popleft()
                for call in self.calls:
                    here, beyond = (call.outputs, call.inputs) if backwards else (call.inputs, call.outputs)
                    if current not in here:
                        continue
                    data_format = getattr(call.operation, "data_format", None)
                    if data_format in get_args(DataFormat):
                        return data_format
                    near = [s for s in beyond if len(self.tensors[s].shape) == rank and s not in seen]
                    seen.update(near)
                    queue.extend(near)
        return keras.config.image_data_format() if rank == 4 else "channels_last"


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
        return model.outputs
    except AttributeError:
        return ()


def _calls_as_keras_does(operation: keras.Operation) -> bool:
    """Whether no subclass outside Keras has a `call` of its own."""
    caller = next(cls for cls in type(operation).__mro__ if "call" in vars(cls))
    return caller.__module__.partition(".")[0] == "keras"


def why_no_graph(model: Any) -> str:
    """The sentence that tells why a model cannot be cut."""
    if isinstance(model, keras.Sequential):
        return (
            f"the sequential model {model.name!r} is not built, so it has no graph to cut: start it with "
            "keras.Input, or call it on a batch once"
        )
    return (
        f"{type(model).__name__} is neither a functional nor a sequential Keras model, so it has no graph of "
        "layers to cut"
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


def _as_tensor(x: Any, symbol: KerasTensor) -> tf.Tensor:
    try:
        tensor = tf.convert_to_tensor(x if tf.is_tensor(x) else np.asarray(x))
    except (TypeError, ValueError) as error:
        raise InputError(
            f"input {symbol.name!r} of type {type(x).__name__} cannot be made an array: {error}"
        ) from error
    wanted = tuple(symbol.shape)
    fits = len(tensor.shape) == len(wanted) and all(
        size in (None, given) for size, given in zip(wanted[1:], tensor.shape[1:], strict=True)
    )
    if not fits:
        raise InputError(
            f"input {symbol.name!r} has shape {tuple(tensor.shape)}; the model takes "
            f"({', '.join(['batch', *('any' if size is None else str(size) for size in wanted[1:])])})"
        )
    return tf.cast(tensor, symbol.dtype)


def _is_array(value: Any) -> bool:
    return hasattr(value, "shape") and hasattr(value, "dtype")


@dataclass
class _Builder:
    calls: list[Call] = field(default_factory=list)
    places: list[Place] = field(default_factory=list)
    tensors: dict[Slot, KerasTensor] = field(default_factory=dict)

    def add(self, tensor: KerasTensor) -> Slot:
        slot = len(self.tensors)
        self.tensors[slot] = tensor
        return slot

    def inline(self, model: keras.Model | keras.Function, inputs: Sequence[Slot], path: str) -> list[Slot]:
        """List what `model` calls, given the slots of its inputs, and return those of its outputs."""
        slots = {id(tensor): slot for tensor, slot in zip(model.inputs, inputs, strict=True)}
        nodes = list(_nodes_between(model.inputs, model.outputs))
        for node, name in zip(nodes, _names(nodes), strict=True):
            taken = tuple(slots[id(tensor)] for tensor in node.arguments.keras_tensors)
            given = self._call(node, taken, path + name)
            slots.update((id(tensor), slot) for tensor, slot in zip(node.outputs, given, strict=True))
            self.places.append(Place(path + name, node.operation, taken, given, tuple(node.outputs)))
        return [slots[id(tensor)] for tensor in model.outputs]

    def _call(self, node: Any, taken: tuple[Slot, ...], name: str) -> tuple[Slot, ...]:
        operation = node.operation
        if has_graph(operation) and self._passes_plainly(node):
            return tuple(self.inline(operation, taken, f"{name}/"))
        given = tuple(self.add(tensor) for tensor in node.outputs)
        takes_training = "training" in inspect.signature(operation.call).parameters
        self.calls.append(Call(operation, node, taken, given, takes_training))
        return given

    def _passes_plainly(self, node: Any) -> bool:
        """Whether the nested model's inputs are the call's arguments, one by one and unaltered."""
        outer, inner = node.arguments.keras_tensors, node.operation.inputs
        structure = getattr(node.operation, "_inputs_struct", node.operation.inputs)
        return (
            len(node.arguments.args) == 1
            and not any(isinstance(x, KerasTensor) for x in keras.tree.flatten(node.arguments.kwargs))
            and isinstance(structure, dict) == isinstance(node.arguments.args[0], dict)
            and len(outer) == len(inner)
            and all(
                a.dtype == b.dtype and len(a.shape) == len(b.shape) for a, b in zip(outer, inner, strict=True)
            )
        )


def _nodes_between(inputs: Sequence[KerasTensor], outputs: Sequence[KerasTensor]) -> Iterator[Any]:
    """Keras' records of the calls that lead from inputs to outputs, each after those it depends on."""
    known = {id(tensor) for tensor in inputs}
    yielded: set[int] = set()
    # Deep models would exceed Python's recursion limit, hence the explicit stack.
    stack: list[tuple[KerasTensor, bool]] = [(tensor, False) for tensor in reversed(outputs)]
    while stack:
        tensor, ready = stack.pop()
        if id(tensor) in known:
            continue
        node = node_of(tensor)
        if ready:
            if id(node) not in yielded:
                yielded.add(id(node))
                known.update(id(output) for output in node.outputs)
                yield node
            continue
        stack.append((tensor, True))
        stack.extend((argument, False) for argument in reversed(node.arguments.keras_tensors))


def node_of(tensor: KerasTensor) -> Any:
    """Keras' record of the call that made a symbolic tensor."""
    operation, index, _ = tensor._keras_history
    return operation._inbound_nodes[index]


def _names(nodes: Sequence[Any]) -> Iterator[str]:
    counts = _tally(node.operation for node in nodes)
    seen: dict[int, int] = {}
    for node in nodes:
        operation = node.operation
        call = seen.get(id(operation), 0)
        seen[id(operation)] = call + 1
        yield f"{operation.name}:{call}" if counts[id(operation)] > 1 else operation.name


def _tally(operations: Iterable[keras.Operation]) -> dict[int, int]:
    counts: dict[int, int] = {}
    for operation in operations:
        counts[id(operation)] = counts.get(id(operation), 0) + 1
    return counts
