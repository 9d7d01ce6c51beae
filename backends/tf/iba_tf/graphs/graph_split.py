"""A graph of operations cut at a tensor."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import tensorflow as tf

from iba_core.errors import InputError, LayerError
from iba_core.framework.adapter import Inputs, Split, Tail
from iba_core.framework.layout import DataFormat
from iba_tf.framework import eagerly, runs_eagerly, traced
from iba_tf.graphs.operations import (
    SIZES,
    GraphInput,
    OperationGraph,
    TensorName,
    control_inputs,
    data_inputs,
    node_of,
)

_UNSLICED = (tf.variant, tf.resource)
"""Dtypes that hold something as a whole, such as a list of tensors, of which no image has a part."""


class Source(Protocol):
    """What a cut needs of a model."""

    @property
    def graph(self) -> OperationGraph | None:
        """The graph, if it is the same for all inputs."""

    def prepare(
        self, inputs: Inputs, needed: Callable[[OperationGraph], set[str]] | None = None
    ) -> tuple[OperationGraph, list[tf.Tensor | None]]:
        """The graph for some inputs, and their tensors; None for those that are missing and not needed."""

    def check_layer(self, layer: Any) -> str:
        """Name of a layer, as far as it can be told before the model has run."""


class GraphSplit(Split):
    """A graph of operations, cut at a tensor.

    The *tail* is every operation between that tensor and the model's outputs. It may take other tensors
    than the one at the cut, as a skip connection does: this *frontier* is computed by the head, once per
    image, and carried around the bottleneck. What depends on no input, such as a variable, belongs to
    the tail; so does all that is computed of the sizes of tensors, since the tail's batch is larger.

    Args:
        source: the model.
        layer: where to cut, see `OperationGraph.find`.
        end_layer: where the tail ends; None for the model's outputs.

    Raises:
        LayerError: there is no such place, the tensor is no batch of floating-point feature maps, or no
            output depends on it. Where a model's graph follows from its inputs, `features` and `head`
            raise it.
    """

    def __init__(self, source: Source, layer: Any, end_layer: Any = None) -> None:
        self._source = source
        self._layer, self._end_layer = layer, end_layer
        self._splits: dict[int, Division] = {}
        self._halves: dict[Any, _Halves] = {}
        self.layer_name = ""
        self.data_format: DataFormat = "channels_last"
        self.input_format: DataFormat = "channels_last"
        if source.graph is not None:
            self._split(source.graph)
        else:
            self.layer_name = source.check_layer(layer)
            if end_layer is not None:
                source.check_layer(end_layer)

    def _split(self, graph: OperationGraph) -> Division:
        if id(graph) not in self._splits:
            split = Division.of(graph, self._layer, self._end_layer)
            self._splits[id(graph)] = split
            self.layer_name = split.layer_name
            self.data_format = graph.data_format(split.cut)
            self.input_format = graph.data_format(graph.inputs[0].tensor)
        return self._splits[id(graph)]

    @property
    def feature_shape(self) -> tuple[int | None, ...] | None:
        """Shape of one feature map as far as it is known before the model runs; None where it is not."""
        split = next(iter(self._splits.values()), None)
        if split is None:
            return None
        shape = split.graph.tensor(split.cut).shape
        return None if shape.rank is None else tuple(shape[1:])

    @runs_eagerly
    def features(self, inputs: Inputs) -> tf.Tensor:
        """See `Split.features`; inputs that the features do not depend on may be left out of a dict."""
        halves, tensors = self._prepared(inputs, features_only=True)
        return halves.head(tensors)[0]

    @contextmanager
    def head(self, inputs: Inputs) -> Iterator[Tail]:
        """See `Split.head`; within it, operations run eagerly wherever the caller is."""
        with eagerly():
            halves, tensors = self._prepared(inputs, features_only=False)
            features, *carry = halves.head(tensors)
            yield Tail(features, halves.tail, tuple(carry))

    def _prepared(self, inputs: Inputs, features_only: bool) -> tuple[_Halves, list[tf.Tensor | None]]:
        needed = (lambda graph: self._split(graph).feature_inputs) if features_only else None
        graph, tensors = self._source.prepare(inputs, needed)
        split = self._split(graph)
        key = (id(graph), features_only, *(None if x is None else (x.shape[1:], x.dtype) for x in tensors))
        if key not in self._halves:
            self._halves[key] = _Halves(split, tensors, features_only)
        return self._halves[key], tensors


@dataclass(frozen=True, eq=False)
class Division:
    """The two halves of a graph that is cut at a tensor.

    Attributes:
        graph: what is cut.
        layer_name: name of the place.
        cut: the tensor.
        outputs: names of the tensors that the tail gives, nested as the results are.
        tail: names of its operations.
        frontier: tensors of the head that the tail takes, too.
        measures: operations that look at the sizes of tensors of the head.
        feature_inputs: names of the inputs that the features depend on.
    """

    graph: OperationGraph
    layer_name: str
    cut: TensorName
    outputs: Any
    tail: frozenset[str]
    frontier: tuple[TensorName, ...]
    measures: tuple[str, ...]
    feature_inputs: set[str]

    @classmethod
    def of(cls, graph: OperationGraph, layer: Any, end_layer: Any) -> Division:
        """Cut `graph` at `layer`; arguments and errors as of `GraphSplit`."""
        name, cut = graph.find(layer)
        _check_features(graph, name, cut)
        dependent = graph.dependents([cut])
        outputs = graph.outputs
        if end_layer is not None:
            end_name, outputs = graph.find(end_layer)
            if outputs not in dependent:
                raise LayerError(f"layer {end_name!r} does not depend on layer {name!r}")
        if dependent.isdisjoint(tf.nest.flatten(outputs)):
            raise LayerError(
                f"no output of the model depends on layer {name!r}, so there is nothing to explain"
            )
        tail, frontier, measures = _tail(graph, cut, tf.nest.flatten(outputs), dependent)
        given = {entry.tensor for entry in graph.inputs}
        nodes = graph.needed_for([cut], given)
        reached = {cut, *(source for node in nodes for source in data_inputs(graph.nodes[node]))}
        inputs = {entry.name for entry in graph.inputs if entry.tensor in reached}
        return cls(graph, name, cut, outputs, frozenset(tail), tuple(frontier), tuple(measures), inputs)


def _check_features(graph: OperationGraph, name: str, tensor: TensorName) -> None:
    symbol = graph.tensor(tensor)
    if not symbol.dtype.is_floating or tensor not in graph.moving or symbol.shape.rank in (0, 1):
        shape = "unknown" if symbol.shape.rank is None else tuple(symbol.shape)
        raise LayerError(
            f"layer {name!r} gives {symbol.dtype.name} of shape {shape}, and a bottleneck needs a batch of "
            "floating-point feature maps that depend on the input"
        )
    if node_of(tensor) in graph.within_control_flow:
        raise LayerError(f"layer {name!r} runs within a branch, where the model cannot be cut")


def _tail(
    graph: OperationGraph, cut: TensorName, outputs: Sequence[TensorName], dependent: set[TensorName]
) -> tuple[dict[str, None], dict[TensorName, None], dict[str, None]]:
    """The operations of the tail, the tensors that it takes of the head, and those that it measures."""
    tail: dict[str, None] = {}
    frontier: dict[TensorName, None] = {}
    measures: dict[str, None] = {}
    inputs = {entry.tensor for entry in graph.inputs}
    queue = list(outputs)
    while queue:
        tensor = queue.pop()
        name = node_of(tensor)
        if tensor == cut or tensor in graph.bindings or name in tail:
            continue
        apart = tensor not in dependent and tensor in graph.moving
        if apart and name not in graph.within_control_flow and graph.tensor(tensor).dtype not in _UNSLICED:
            if tensor in inputs or tensor not in graph.of_sizes:
                frontier[tensor] = None
                continue
            if graph.nodes[name].op in SIZES:
                measures[name] = None
                continue
        tail[name] = None
        queue.extend(data_inputs(graph.nodes[name]))
        queue.extend(f"{source}:0" for source in control_inputs(graph.nodes[name]) if graph.decides(source))
    return tail, frontier, measures


@dataclass(frozen=True)
class _Rows:
    """How the images of a batch lie in a tensor.

    Attributes:
        one: the tensor's shape for one image.
        axis: the axis along which the images follow one another; None if they share one tensor.
    """

    one: tuple[int, ...]
    axis: int | None

    @classmethod
    def of(cls, name: TensorName, one: tuple[int, ...], two: tuple[int, ...]) -> _Rows:
        """Of the tensor's shapes for one image and for two.

        Raises:
            LayerError: the images do not follow one another along one axis.
        """
        grown = [axis for axis, (a, b) in enumerate(zip(one, two, strict=True)) if a != b]
        if not grown:
            return cls(one, None)
        (axis, *others) = grown
        if others or two[axis] != 2 * one[axis]:
            raise LayerError(
                f"tensor {name!r} has shape {one} for one image and {two} for two, so it does not keep the "
                "images apart; cut the model behind it"
            )
        return cls(one, axis)

    @property
    def plain(self) -> bool:
        """Whether there is one row for each image already."""
        return self.axis == 0 and self.one[0] == 1

    def shape(self, images: int | tf.Tensor) -> list[int | tf.Tensor]:
        """The tensor's shape for a number of images."""
        return [images * size if axis == self.axis else size for axis, size in enumerate(self.one)]

    def split(self, x: tf.Tensor, images: tf.Tensor) -> tf.Tensor:
        """The tensor with a row for each image, (B, ...)."""
        if self.plain:
            return x
        if self.axis is None:
            return tf.repeat(x[None], images, axis=0)
        before, after = self._parts
        x = tf.reshape(x, [*before, images, *after])
        others = [axis for axis in range(len(x.shape)) if axis != self.axis]
        return tf.transpose(x, [self.axis, *others])

    def join(self, x: tf.Tensor) -> tf.Tensor:
        """What `split` was given, for as many images as there are rows."""
        if self.plain:
            return x
        if self.axis is None:
            return x[0]
        order = [*range(1, self.axis + 1), 0, *range(self.axis + 1, len(x.shape))]
        return tf.reshape(tf.transpose(x, order), self.shape(rows_of(x)))

    @property
    def _parts(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """What one image has before the axis and after its place in it."""
        size = self.one[self.axis]
        own = (size,) if size > 1 else ()
        return self.one[: self.axis], own + self.one[self.axis + 1 :]


class _Halves:
    """Head and tail as functions, for inputs of one shape and any number of them.

    Args:
        split: what is run.
        inputs: some inputs of that shape; None for those that are missing.
        features_only: leave the tail out.
    """

    def __init__(self, split: Division, inputs: Sequence[tf.Tensor | None], features_only: bool) -> None:
        self._split, self._graph = split, split.graph
        self._features_only = features_only
        self._given = [entry for entry, x in zip(self._graph.inputs, inputs, strict=True) if x is not None]
        self._batched = _batched(self._paired(inputs))
        self._sources = (
            []
            if features_only
            else list(
                dict.fromkeys(
                    source for node in split.measures for source in data_inputs(self._graph.nodes[node])
                )
            )
        )
        self._taken = [split.cut, *([] if features_only else split.frontier)]
        outputs = [] if features_only else tf.nest.flatten(split.outputs)
        measured = list(dict.fromkeys([*self._taken, *self._sources, *outputs]))
        sizes = self._measure(measured, [x for x in inputs if x is not None])
        self._rows = {name: _Rows.of(name, *sizes[name]) for name in [*self._taken, *self._sources]}
        self._output_sizes = [sizes[name] for name in outputs]
        features = self._rows[split.cut]
        if features.axis is None or (features.plain and len(features.one) < 2):
            raise LayerError(
                f"layer {split.layer_name!r} has shape {features.one} for one image, and a bottleneck needs "
                "a feature map for each image"
            )
        specs = [
            tf.TensorSpec([None, *x.shape[1:]] if batched else x.shape, x.dtype)
            for batched, (_, x) in zip(self._batched, self._paired(inputs), strict=True)
        ]
        self._run_head = traced(self._trace_head, input_signature=specs)
        self.tail = traced(self._trace_tail)

    def _paired(self, inputs: Sequence[tf.Tensor | None]) -> list[tuple[Any, tf.Tensor]]:
        return [(entry, x) for entry, x in zip(self._graph.inputs, inputs, strict=True) if x is not None]

    def head(self, inputs: Sequence[tf.Tensor | None]) -> list[tf.Tensor]:
        """Features (B, *feature map), and what is carried around them, (B, ...) each."""
        given = [x for x in inputs if x is not None]
        found = self._run_head(*given)
        images = rows_of(next(x for x, batched in zip(given, self._batched, strict=True) if batched))
        for name, x in zip(self._taken, found, strict=False):
            if None not in (x.shape[0], images) and x.shape[0] != images:
                raise LayerError(
                    f"tensor {name!r} has {x.shape[0]} rows for {images} images, by their values, so it does "
                    "not keep the images apart; cut the model elsewhere"
                )
        return found

    def _measure(
        self, names: Sequence[TensorName], inputs: Sequence[tf.Tensor]
    ) -> dict[TensorName, tuple[tuple[int, ...], tuple[int, ...]]]:
        """Shapes of tensors for one image and for two."""

        def shapes(*given: tf.Tensor) -> list[tf.Tensor]:
            values = {entry.tensor: x for entry, x in zip(self._given, given, strict=True)}
            nodes = self._graph.needed_for(names, values)
            return [tf.shape(x) for x in self._graph.run(nodes, values, names)]

        measure = traced(shapes, reduce_retracing=True)
        found = []
        for images in (1, 2):
            batch = [
                tf.repeat(x[:1], images, axis=0) if batched else x
                for batched, x in zip(self._batched, inputs, strict=True)
            ]
            try:
                found.append([tuple(map(int, shape)) for shape in measure(*batch)])
            except (tf.errors.OpError, ValueError) as error:
                raise InputError(f"the model fails on a batch of {images}: {_reason(error)}") from error
        return dict(zip(names, zip(*found, strict=True), strict=True))

    def _trace_head(self, *inputs: tf.Tensor) -> list[tf.Tensor]:
        values = {entry.tensor: x for entry, x in zip(self._given, inputs, strict=True)}
        names = [*self._taken, *self._sources]
        nodes = self._graph.needed_for(names, values)
        tensors = self._graph.run(nodes, values, names)
        images = tf.shape(next(x for x, batched in zip(inputs, self._batched, strict=True) if batched))[0]
        taken = len(self._taken)
        carried = [
            self._rows[name].split(x, images) for name, x in zip(self._taken, tensors[:taken], strict=True)
        ]
        # Sizes are carried as the shapes of tensors without entries: there they are known when the
        # tail is traced, and a tail that was traced for others is not taken by mistake.
        carried += [tf.zeros([images, 0, *self._rows[name].one]) for name in self._sources]
        return carried

    def _trace_tail(self, z: tf.Tensor, carry: tuple[tf.Tensor, ...]) -> Any:
        split, graph = self._split, self._graph
        images = rows_of(z)
        features = tf.cast(z, graph.tensor(split.cut).dtype)
        values = {split.cut: self._rows[split.cut].join(features)}
        for name, x in zip(split.frontier, carry, strict=False):
            values[name] = self._rows[name].join(_repeat(x, z))
        for node in split.measures:
            values.update(self._sizes(node, images))
        try:
            outputs = graph.run(split.tail, values, tf.nest.flatten(split.outputs))
        except ValueError as error:
            raise InputError(
                f"the model takes no batch of {images} behind layer {split.layer_name!r}, one for each noisy "
                f"sample; its batch may have a fixed size: {_reason(error)}"
            ) from error
        for output, (one, two) in zip(outputs, self._output_sizes, strict=True):
            if isinstance(images, int):
                output.set_shape([a + (b - a) * (images - 1) for a, b in zip(one, two, strict=True)])
        return tf.nest.pack_sequence_as(split.outputs, [tf.identity(x) for x in outputs])

    def _sizes(self, name: str, images: int | tf.Tensor) -> dict[TensorName, tf.Tensor]:
        """What an operation that looks at sizes gives for a number of images."""
        node = self._graph.nodes[name]
        results = self._graph.results(name)
        sizes = []
        for source in data_inputs(node):
            shape = tf.stack(self._rows[source].shape(images)) if self._rows[source].one else []
            sizes.append(tf.convert_to_tensor(shape, tf.int32))
        if node.op == "Size":
            sizes = [tf.reduce_prod(sizes[0])]
        elif node.op == "Rank":
            sizes = [tf.size(sizes[0])]
        return {
            result: tf.cast(size, self._graph.tensor(result).dtype)
            for result, size in zip(results, sizes, strict=True)
        }


def _batched(inputs: Sequence[tuple[GraphInput, tf.Tensor]]) -> list[bool]:
    """Which inputs have a row for each image: those whose first axis is that of the first input with axes."""
    first = next((pair for pair in inputs if pair[1].shape.rank), None)
    if first is None:
        raise InputError("no input has a batch axis")

    def alike(entry: GraphInput, x: tf.Tensor) -> bool:
        if not x.shape.rank:
            return False
        known, reference = entry.shape, first[0].shape
        return x.shape[0] == first[1].shape[0] if None in (known, reference) else known[0] == reference[0]

    return [alike(entry, x) for entry, x in inputs]


def _reason(error: Exception) -> str:
    return " ".join(str(error).split())


def _repeat(x: tf.Tensor, z: tf.Tensor) -> tf.Tensor:
    """Each row of `x` as often as `z` has copies of it."""
    return tf.repeat(x, rows_of(z) // rows_of(x), axis=0)


def rows_of(x: tf.Tensor) -> int | tf.Tensor:
    """Length of the first axis, as a number wherever it is known."""
    return tf.shape(x)[0] if x.shape[0] is None else x.shape[0]
