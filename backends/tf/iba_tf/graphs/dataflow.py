"""A dataflow graph that can be split anywhere: nodes that take tensors and give tensors.

There are two kinds of nodes: calls of Keras layers (`calls.CallGraph`) and operations of TensorFlow
(`operations.OperationGraph`). How to run a node is a matter of its kind. The dependencies, which place a
name stands for, where the channels are, and how a graph is split are the same for both.

Tensors are called by name, such as ``"conv/Relu:0"``.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import tensorflow as tf

from iba_core.errors import LayerError, closest
from iba_core.framework.adapter import Inputs
from iba_tf.graphs.axis_sources import Known, Shapes
from iba_tf.graphs.channels import Axes, Found
from iba_tf.graphs.graph_inputs import Fed, GraphInput, tensors_for

TensorName = str
"""Such as ``"conv/Relu:0"``."""

Values = Mapping[TensorName, Any]
"""What the tensors of a graph are for one batch."""

Shape = tuple[int, ...]

_INDEX = re.compile(r"(?P<name>.+)\[(?P<index>\d+)\]")
_CALL_NUMBER = re.compile(r":\d+$")


class Node(ABC):
    """Something that takes tensors of a graph and gives others.

    Attributes:
        name: its name, which no other node of the graph has.
        kind: name of the layer's class, or type of the operation.
        inputs: names of the tensors that it takes.
        controls: names of the nodes that must have run before, though it takes nothing of them.
    """

    name: str
    kind: str
    inputs: tuple[TensorName, ...]
    controls: tuple[str, ...] = ()

    @property
    @abstractmethod
    def outputs(self) -> tuple[TensorName, ...]:
        """Names of the tensors that it gives."""

    @property
    def reads_sizes(self) -> bool:
        """Whether only the shapes of its inputs matter."""
        return False


@dataclass(frozen=True, eq=False)
class Place:
    """A place in a graph that has a name for users.

    Attributes:
        name: path of layers' names, such as ``"block/conv"``; calls of a layer that runs several times are
            told apart by ``":0"``, ``":1"``, ... For an operation, its name.
        kind: name of the layer's class, or type of the operation.
        tensors: names of its results.
        object: the layer; None for an operation.
        inputs: names of its arguments, where they are known.
        symbols: Keras' symbolic tensors of the results, where it has them.
        channels: the axis of its results that holds channels, if the layer says so; it may be negative.
    """

    name: str
    kind: str
    tensors: tuple[TensorName, ...]
    object: Any = None
    inputs: tuple[TensorName, ...] = ()
    symbols: tuple[Any, ...] = ()
    channels: int | None = None

    def named(self, index: int) -> str:
        """Name of one of the results."""
        return f"{self.name}[{index}]" if index else self.name


class DataflowGraph(ABC):
    """Nodes between some inputs and outputs.

    Attributes:
        inputs: what the graph takes.
        outputs: names of the tensors that it gives, nested as the model's results are.
        nodes: the nodes by name, each after those that it depends on.
        layers: the places that have names of their own.
        bindings: what stands for tensors that no node computes, such as variables.
        all_names: names of all nodes, also of those that no output depends on.
        within_control_flow: names of the nodes that run only if a branch is taken.
        runs_in_python: whether a node runs by a call of Python functions. Then a gradient tape records it,
        and
            the shapes of its results are as well known as those of its inputs. Other nodes are imported into
            the function that is being traced.
    """

    runs_in_python: ClassVar[bool]

    inputs: tuple[GraphInput, ...]
    outputs: Any
    nodes: Mapping[str, Node]
    layers: tuple[Place, ...]
    bindings: Mapping[TensorName, Any] = {}
    all_names: tuple[str, ...] = ()

    # -- what differs between kinds of nodes -------------------------------------------------------

    @abstractmethod
    def run(self, nodes: Iterable[Node], values: Values, fetched: Sequence[TensorName]) -> list[Any]:
        """Run nodes in inference mode, and leave every variable of the model as it is.

        Args:
            nodes: in the order of the graph.
            values: of the tensors that the nodes take from elsewhere.
            fetched: names of the tensors to return.

        Returns:
            The values of those tensors; None for a companion that is not there.
        """

    @abstractmethod
    def measure(self, names: Sequence[TensorName], batches: Sequence[Values]) -> list[list[Shape | None]]:
        """Shapes of tensors for several batches, one list for each batch.

        Args:
            names: of the tensors.
            batches: values of the inputs, concrete tensors.
        """

    @abstractmethod
    def tensor(self, name: TensorName) -> Any:
        """A tensor's dtype, and its shape as far as it is known for any batch: `tf.TensorSpec` or alike."""

    @abstractmethod
    def producer(self, tensor: TensorName) -> Node | None:
        """The node that gives a tensor; None for an input.

        Raises:
            InputError: no node gives it.
        """

    @property
    def places(self) -> tuple[Place, ...]:
        """What a user sees as layers."""
        return self.layers

    @property
    def within_control_flow(self) -> frozenset[str]:
        """Names of the nodes that run only if a branch is taken."""
        return frozenset()

    def companions(self, tensor: TensorName) -> tuple[TensorName, ...]:
        """Names of what belongs to a tensor and goes wherever it goes, such as a mask of Keras."""
        return ()

    def has_lost_gradient(self, node: Any) -> bool:
        """Whether a node had a gradient of its own in the program that made the graph."""
        return False

    def draws_from_generator(self) -> str | None:
        """Name of what draws from a `tf.random.Generator` in a pass of the model; None if nothing does."""
        return None

    def decides(self, name: str) -> bool:
        """Whether a node decides which branch is taken."""
        return False

    # -- structure --------------------------------------------------------------------------------

    @property
    def flat_outputs(self) -> list[TensorName]:
        """Names of the outputs, in order."""
        flat: list[TensorName] = tf.nest.flatten(self.outputs)
        return flat

    @cached_property
    def _consumers(self) -> dict[TensorName, list[Node]]:
        consumers: dict[TensorName, list[Node]] = {}
        for node in self.nodes.values():
            for source in dict.fromkeys(node.inputs):
                consumers.setdefault(source, []).append(node)
        return consumers

    def consumers(self, tensor: TensorName) -> list[Node]:
        """The nodes that take a tensor."""
        return self._consumers.get(tensor, [])

    def needed_for(self, tensors: Iterable[TensorName], given: Iterable[TensorName] = ()) -> list[Node]:
        """The nodes that lead to some tensors, in order.

        A node that another one merely waits for is left out, and so is everything that changes a variable.
        Within a TensorFlow 1 branch the nodes that an operation waits for decide whether it runs, so these
        stay.

        Args:
            tensors: names of the tensors.
            given: names of tensors that are known already, besides inputs and bindings.
        """
        known = {*given, *self.bindings, *(entry.tensor for entry in self.inputs)}
        found: set[str] = set()
        queue = [tensor for tensor in tensors if tensor not in known]
        while queue:
            node = self.producer(queue.pop())
            if node is None or node.name in found:
                continue
            found.add(node.name)
            queue.extend(source for source in node.inputs if source not in known)
            queue.extend(f"{source}:0" for source in node.controls if self.decides(source))
        return [node for node in self.nodes.values() if node.name in found]

    def evaluate(self, names: Sequence[TensorName], values: Values) -> list[Any]:
        """Run the nodes that lead from known tensors to others.

        Args:
            names: of the tensors that are wanted.
            values: of the inputs, or of other tensors.
        """
        return self.run(self.needed_for(names, values), values, names)

    def dependents(self, tensors: Iterable[TensorName]) -> set[TensorName]:
        """The tensors whose values depend on those of some tensors, including these."""
        found = set(tensors)
        queue = list(found)
        while queue:
            for node in self.consumers(queue.pop()):
                new = [result for result in node.outputs if result not in found]
                found.update(new)
                queue.extend(new)
        return found

    @cached_property
    def moving(self) -> set[TensorName]:
        """The tensors whose values depend on the inputs."""
        return self.dependents(entry.tensor for entry in self.inputs)

    @cached_property
    def of_sizes(self) -> set[TensorName]:
        """The tensors whose values depend on the inputs only through the inputs' shapes."""
        found: set[TensorName] = set()
        for node in self.nodes.values():
            moving = [source for source in node.inputs if source in self.moving]
            if moving and (node.reads_sizes or all(source in found for source in moving)):
                found.update(node.outputs)
        return found

    def prepare(self, inputs: Inputs, needed: set[str] | None = None) -> Fed:
        """Make tensors of a user's inputs, of the dtypes that the model takes; see `tensors_for`."""
        return tensors_for(self.inputs, inputs, needed)

    # -- places -----------------------------------------------------------------------------------

    def find(self, layer: Any) -> tuple[str, TensorName]:
        """Name and tensor of the place that a layer, a name or a symbolic tensor stands for.

        Args:
            layer: see `find_place`.

        Raises:
            LayerError: there is no such place, or there are several.
        """
        place, index = self.find_place(layer)
        return place.named(index), place.tensors[index]

    def find_place(self, layer: Any) -> tuple[Place, int]:
        """The place that a layer, a name or a symbolic tensor stands for, and the number of its result.

        Args:
            layer: a layer; its path, or its name alone where no other layer has it; or a symbolic tensor of
                Keras. Of several results, the first is meant; ``"lstm[1]"`` is the second. In a graph of
                operations also an operation or tensor, the name of one, or a scope that one tensor leaves.

        Raises:
            LayerError: there is no such place, or there are several.
        """
        if isinstance(layer, str):
            name, index = split_index(layer)
            return self._only(matching(name, self.layers) or self._otherwise_named(name), layer, index)
        for place in self.layers:
            for index, symbol in enumerate(place.symbols):
                if symbol is layer:
                    return place, index
        # A symbolic tensor of Keras knows the layer that gives it, and the number of the result.
        owner, _, index = getattr(layer, "_keras_history", (layer, 0, 0))
        found = [place for place in self.layers if place.object is owner]
        return self._only(found, getattr(owner, "name", type(owner).__name__), index)

    def _otherwise_named(self, name: str) -> list[Place]:
        """The places that a name stands for where no layer has it."""
        return []

    def _only(self, found: Sequence[Place], shown: str, index: int) -> tuple[Place, int]:
        if len(found) == 1:
            place = found[0]
            if index >= len(place.tensors):
                raise LayerError(f"layer {shown!r}: {place.name!r} has {len(place.tensors)} result(s)")
            return place, index
        if found:
            calls = " or ".join(f"'{place.name}'" for place in found)
            raise LayerError(
                f"layer {shown!r} runs {len(found)} times in the model; name one of its calls: {calls}"
            )
        if shown.partition(":")[0] in self.all_names:
            raise LayerError(
                f"no output of the model depends on layer {shown!r}, so there is nothing to explain"
            )
        names = [place.name for place in self.places]
        hint = self.where_instead(shown) or closest(shown, names)
        raise LayerError(f"the model runs no layer {shown!r}; {hint}")

    def where_instead(self, name: str) -> str | None:
        """How to reach a layer that runs, but that the graph does not show; None if there is none."""
        return None

    # -- channels ---------------------------------------------------------------------------------

    def inside(self, node: Any) -> Any:
        """The operations of a node that is a call, as a graph; None where they are not known, or it is one.

        The graph's inputs are those of the node, each once.
        """
        return None

    @abstractmethod
    def stated_channels(self, node: Any, tensor: TensorName) -> int | None:
        """The axis of a tensor that holds channels, if a node that makes or takes it says so."""

    @abstractmethod
    def carried(self, node: Any, tensor: TensorName, axes: Axes, backwards: bool) -> Found:
        """What is found about channels within a node, or where the axes of a tensor are beyond it."""

    @abstractmethod
    def axes_after(self, node: Any, known: Known, shapes: Shapes) -> Known:
        """The axes of the results of a node, from those of its arguments."""

    def reshaped_for(self, tensor: TensorName) -> list[TensorName]:
        """What reshapes give on the way to a tensor, as far as the graph does not tell its shape."""
        return []

    def rank(self, tensor: TensorName) -> int | None:
        """Number of axes of a tensor; None where it is not known."""
        found: int | None = self.tensor(tensor).shape.rank
        return found

    def neighbours(self, tensor: TensorName, backwards: bool) -> list[Node]:
        """The node that makes a tensor, or those that take it."""
        if not backwards:
            return self.consumers(tensor)
        node = None if self.is_end(tensor, backwards) or tensor in self.bindings else self.producer(tensor)
        return [] if node is None else [node]

    def is_end(self, tensor: TensorName, backwards: bool) -> bool:
        """Whether a tensor is an input, or an output, of the graph."""
        return tensor in (self._inputs if backwards else self.flat_outputs)

    @cached_property
    def _inputs(self) -> set[TensorName]:
        return {entry.tensor for entry in self.inputs}


# -- names ----------------------------------------------------------------------------------------


def in_order(outputs: Any) -> Iterator[TensorName]:
    """The names in a nested structure, in its own order; TensorFlow sorts dicts by their keys."""
    if isinstance(outputs, str):
        yield outputs
        return
    for part in outputs.values() if isinstance(outputs, Mapping) else outputs:
        yield from in_order(part)


def split_index(name: str) -> tuple[str, int]:
    """Split a name from the number of the result that is meant, 0 where none is given.

    Example:
        >>> split_index("lstm[1]")
        ('lstm', 1)
    """
    match = _INDEX.fullmatch(name)
    return (match["name"], int(match["index"])) if match else (name, 0)


def matching(name: str, places: Iterable[Place]) -> list[Place]:
    """The places that a name stands for: all calls of a layer, or one.

    The full name is tried before the name without the number of a call, and the path before its last part.
    """
    places = list(places)
    for shortened in (str, _without_number, _last_part, _last_part_without_number):
        if found := [place for place in places if shortened(place.name) == name]:
            return found
    return []


def _without_number(name: str) -> str:
    return _CALL_NUMBER.sub("", name)


def _last_part(name: str) -> str:
    return name.rpartition("/")[2]


def _last_part_without_number(name: str) -> str:
    return _last_part(_without_number(name))
