"""A dataflow graph divided at a layer into head and tail."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any, get_args

import keras
import tensorflow as tf

from iba_core.errors import InputError, LayerError, UnknownChannelsError
from iba_core.framework.adapter import Activation, Inputs, Split, Tail
from iba_core.framework.cache import Cache
from iba_core.framework.comparison import OwnOutputs
from iba_core.framework.layout import DataFormat, FeatureAxes, input_format_by
from iba_tf.framework import eagerly, forgotten_if_interrupted, is_cut_off, runs_eagerly, traced
from iba_tf.graphs.axis_sources import axes_of_input, traced_axes
from iba_tf.graphs.channels import channel_axis, nearest
from iba_tf.graphs.dataflow import DataflowGraph, Node, Shape, TensorName, in_order
from iba_tf.graphs.endings import ending
from iba_tf.graphs.graph_inputs import Fed, batched_inputs, plain
from iba_tf.graphs.random_operations import draws_numbers

_UNSLICED = (tf.variant, tf.resource)
"""Dtypes that hold something as a whole, such as a list of tensors, of which no image has a part."""

_KEPT = 32
"""How many shapes of inputs a split keeps its functions for."""

Rewrite = Callable[[list[Node], Iterable[TensorName]], list[Node]]
"""``rewrite(nodes, kept)`` gives nodes that compute the same faster; the tensors `kept` are still given."""


class Source(ABC):
    """A model that has a dataflow graph, or has one for each shape of its inputs."""

    @property
    @abstractmethod
    def graph(self) -> DataflowGraph | None:
        """The graph, if it is the same for all inputs."""

    @property
    @abstractmethod
    def data_format(self) -> DataFormat:
        """Where the channels of the first input are, as far as it is known before the model has run."""

    @abstractmethod
    def prepare(
        self, inputs: Inputs, needed: Callable[[Any], set[str]] | None = None
    ) -> tuple[DataflowGraph, Fed]:
        """Make tensors of a user's inputs, of the dtypes that the model takes, and find the graph for them.

        Args:
            inputs: one array, a list or tuple, or a dict by the inputs' names or symbolic tensors.
            needed: gives the names of the inputs that must be there; all if None.

        Returns:
            The graph, and a tensor for each of its inputs; None for those that are missing.

        Raises:
            InputError: an input is missing, unknown, no array, or of the wrong shape.
        """

    def check_layer(self, layer: Any) -> str:
        """Name of a layer, as far as it can be told where no graph is known yet.

        Raises:
            LayerError: no layer of the model has such a name.
        """
        raise NotImplementedError


class GraphSplit(Split):
    """A model's dataflow graph, divided at a tensor.

    The *tail* is every node between that tensor and the model's outputs. It may take other tensors, as a skip
    connection does. The head computes this *frontier* once for each image, and the tail's `carry` holds it.
    What depends on no input, such as a variable, belongs to the tail. So does all that is computed from the
    sizes of tensors, since the tail's batch is larger.

    How the images lie in a tensor is learnt from its shapes for one image and for two.

    Args:
        source: the model.
        layer: where to split, see `DataflowGraph.find_place`.
        end_layer: where the tail ends; None for the model's outputs.
        replace: split inside the layer: its argument is the feature map, and the tail takes restricted
            features in place of the layer's result. This is for a bottleneck that is a layer of the model.
        rewrite: makes the tail faster; None for no rewrite.
        data_format: where the channels of the feature map are; None to find that out.

    Raises:
        LayerError: there is no such place, the tensor is no batch of floating-point feature maps, or no
            output depends on it. Where a model's graph follows from its inputs, `features` and `head` raise
            this error.

    Example:
        >>> import keras
        >>> from iba_tf import TensorFlowAdapter
        >>> x, dense = keras.Input((8,)), keras.layers.Dense(4, name="features")
        >>> model = keras.Model(x, keras.layers.Dense(2)(dense(x)))
        >>> split = TensorFlowAdapter(model).split("features")
        >>> with split.head(tf.ones((1, 8))) as tail:
        ...     tuple(tail.features.shape), tuple(tail(tf.ones((5, 4))).shape)
        ((1, 4), (5, 2))
    """

    def __init__(
        self,
        source: Source,
        layer: Any,
        end_layer: Any = None,
        *,
        replace: bool = False,
        rewrite: Rewrite | None = None,
        data_format: DataFormat | None = None,
    ) -> None:
        super().__init__()
        require_format(data_format)
        self._given_format = data_format
        self._source = source
        self._layer, self._end_layer = layer, end_layer
        self._replace, self._rewrite = replace, rewrite
        self._divisions: Cache[Division] = Cache(_KEPT)
        self._passes: Cache[_Passes] = Cache(_KEPT)
        self._latest: Division | None = None
        self._latest_passes: _Passes | None = None
        if source.graph is not None:
            self._take(self._division(source.graph))
        else:
            self.layer_name = source.check_layer(layer)
            self.input_format = source.data_format
            self.data_format = data_format or self.input_format
            if end_layer is not None:
                source.check_layer(end_layer)

    def __reduce__(self) -> tuple[Any, ...]:
        options = {
            "replace": self._replace,
            "rewrite": self._rewrite,
            "data_format": self._given_format,
        }
        return _made_again, (self._source, self._layer, self._end_layer, options)

    @property
    def feature_shape(self) -> tuple[int | None, ...] | None:
        """Shape of one feature map as far as it is known before the model runs; None where it is not."""
        if self._latest is None:
            return None
        shape = self._latest.graph.tensor(self._latest.features).shape
        return None if shape.rank is None else tuple(shape[1:])

    @runs_eagerly
    def run_features(self, inputs: Inputs) -> tf.Tensor:
        """See `Split.features`; inputs that the features do not depend on may be left out of a dict."""
        passes, tensors = self._prepared(inputs, features_only=True)
        return passes.head(tensors)[0]

    @contextmanager
    def open_head(self, inputs: Inputs) -> Iterator[Tail]:
        """See `Split.head`; within it, operations run eagerly wherever the caller is."""
        with eagerly():
            passes, tensors = self._prepared(inputs, features_only=False)
            features, *carry = passes.head(tensors)
            yield GraphTail(
                features, passes.tail, tuple(carry), endings=passes.division.endings, passes=passes
            )

    @runs_eagerly
    def own_outputs(self, inputs: Inputs) -> OwnOutputs:
        """See `Split.own_outputs`: the whole graph runs on the first image."""
        passes, tensors = self._prepared(inputs, features_only=False)
        outputs, features = passes.own_outputs(tensors)
        return OwnOutputs(outputs, 1, features=features)

    def feature_axes(self) -> FeatureAxes | None:
        """See `Split.feature_axes`: the graph shows it."""
        return None if self._latest_passes is None else self._latest_passes.feature_axes

    def _division(self, graph: DataflowGraph) -> Division:
        return self._divisions.get(
            graph,
            lambda: Division.of(
                graph,
                self._layer,
                self._end_layer,
                self._replace,
                self._rewrite,
                self._given_format is not None,
            ),
        )

    def _take(self, division: Division) -> None:
        """Show what a division is like."""
        self.layer_name = division.layer_name
        self.data_format = self._given_format or division.data_format
        self.input_format = input_format_of(division.graph, self._given_format, division.features)
        self._latest = division

    @forgotten_if_interrupted
    def _prepared(self, inputs: Inputs, features_only: bool) -> tuple[_Passes, list[tf.Tensor | None]]:
        needed = (lambda graph: self._division(graph).feature_inputs) if features_only else None
        graph, fed = self._source.prepare(inputs, needed)
        batched, tensors = batched_inputs(graph.inputs, fed), plain(fed)
        shapes = (None if x is None else (tuple(x.shape[1:]), x.dtype) for x in tensors)
        key = (graph, features_only, *batched, *shapes)
        passes = self._passes.get(
            key, lambda: _Passes(self._division(graph), tensors, batched, features_only)
        )
        if passes.division is not self._latest:
            self._take(passes.division)
        self._latest_passes = passes
        self.data_format = self._given_format or passes.data_format
        return passes, tensors


@dataclass(frozen=True, eq=False)
class GraphTail(Tail):
    """The part of a graph after a place.

    Attributes:
        endings: the function that each output ends in.
        passes: head and tail for inputs of this shape.
    """

    endings: Sequence[Activation | None] = ()
    passes: _Passes | None = None

    def activations(self) -> list[Activation | None]:
        """See `Tail.activations`."""
        return list(self.endings)

    @property
    def may_draw(self) -> bool:
        """See `Tail.may_draw`."""
        return self.passes is not None and (self.passes.draws or self.passes.tail.draws)


def require_format(data_format: Any) -> None:
    """Check what a user says of where the channels are; None says nothing.

    Raises:
        InputError: it is no data format.
    """
    if data_format not in (None, *get_args(DataFormat)):
        raise InputError(f"data_format={data_format!r} is neither 'channels_first' nor 'channels_last'")


def _made_again(source: Source, layer: Any, end_layer: Any, options: dict[str, Any]) -> GraphSplit:
    return GraphSplit(source, layer, end_layer, **options)


@dataclass(frozen=True, eq=False)
class Division:
    """How a graph is divided at a tensor.

    Attributes:
        graph: what is divided.
        layer_name: name of the place.
        features: the tensor that is the feature map.
        start: the tensor in whose place the tail takes restricted features; that of the features, unless the
            place itself is the bottleneck.
        outputs: names of the tensors that the tail gives, nested as the results are.
        tail: its nodes, in order.
        frontier: tensors of the head that the tail takes, too.
        measured: nodes that read the sizes of tensors of the head.
        feature_inputs: names of the inputs that the features depend on.
        channels: axis of the features' tensor that holds channels; None where that is not known.
    """

    graph: DataflowGraph
    layer_name: str
    features: TensorName
    start: TensorName
    outputs: Any
    tail: tuple[Node, ...]
    frontier: tuple[TensorName, ...]
    measured: tuple[Node, ...]
    feature_inputs: set[str]
    channels: int | None

    @classmethod
    def of(
        cls,
        graph: DataflowGraph,
        layer: Any,
        end_layer: Any,
        replace: bool,
        rewrite: Rewrite | None,
        is_format_given: bool,
    ) -> Division:
        """Divide `graph` at `layer`; arguments and errors as of `GraphSplit`.

        Args:
            graph: what is divided.
            layer: see `GraphSplit`.
            end_layer: likewise.
            replace: likewise.
            rewrite: likewise.
            is_format_given: whether the user says where the channels are.
        """
        place, index = graph.find_place(layer)
        name, start = place.named(index), place.tensors[index]
        features = place.inputs[0] if replace else start
        _check_features(graph, name, features)
        dependent = graph.dependents([start])
        outputs = graph.outputs
        if end_layer is not None:
            end_name, outputs = graph.find(end_layer)
            if outputs not in dependent:
                raise LayerError(f"layer {end_name!r} does not depend on layer {name!r}")
        flat = tf.nest.flatten(outputs)
        if dependent.isdisjoint(flat):
            raise LayerError(
                f"no output of the model depends on layer {name!r}, so there is nothing to explain"
            )
        tail, frontier, measured = _tail(graph, start, flat, dependent)
        nodes = [node for node in graph.nodes.values() if node.name in tail]
        for node in nodes:
            if graph.has_lost_gradient(node) and not dependent.isdisjoint(node.inputs):
                raise LayerError(
                    f"after layer {name!r} operation {node.name!r} has a gradient of its own "
                    "(tf.custom_gradient), which is not in the graph: name a layer after it, or give the "
                    "model itself in the program that makes it"
                )
        if (generator := graph.draws_from_generator()) is not None:
            raise LayerError(
                f"{generator!r} draws from a tf.random.Generator, whose state each pass of the model "
                "changes: give a model that draws no random numbers outside of training"
            )
        if rewrite is not None:
            nodes = rewrite(nodes, flat)
        reached = {features, *(source for node in graph.needed_for([features]) for source in node.inputs)}
        inputs = {entry.name for entry in graph.inputs if entry.tensor in reached}
        channels = None if is_format_given else channels_of(graph, name, features, start)
        parts = tuple(nodes), tuple(frontier), tuple(measured)
        return cls(graph, name, features, start, outputs, *parts, inputs, channels)

    @property
    def data_format(self) -> DataFormat:
        """Where the channels are, unless the images turn out not to be on the first axis of the features."""
        return as_format(self.channels, self.graph.rank(self.features))

    @cached_property
    def endings(self) -> list[Activation | None]:
        """The function that each output ends in, in the order of `arrays_of`."""
        return [ending(self.graph, name) for name in in_order(self.outputs)]

    @property
    def flat_outputs(self) -> list[TensorName]:
        """Names of the outputs, in order."""
        flat: list[TensorName] = tf.nest.flatten(self.outputs)
        return flat

    @property
    def sources(self) -> list[TensorName]:
        """The tensors of the head whose sizes are read in the tail."""
        return list(dict.fromkeys(source for node in self.measured for source in node.inputs))


def channels_of(graph: DataflowGraph, name: str, features: TensorName, start: TensorName) -> int | None:
    """The axis of a tensor that holds channels; None where even their number is not known.

    Args:
        graph: the graph.
        name: of the layer that gives the tensor.
        features: the tensor.
        start: the tensor that stands for it in what follows; mostly the same.

    Raises:
        UnknownChannelsError: nothing says which axis it is.
        LayerError: two layers say different things.
    """
    found, rank = channel_axis(graph, name, features, start), graph.rank(features)
    if found is None and rank is not None:
        raise UnknownChannelsError(
            f"no layer around {name!r} says which axis of its output, of shape "
            f"{tuple(graph.tensor(features).shape)}, holds the channels; say so by data_format="
        )
    return found


def as_format(axis: int | None, rank: int | None) -> DataFormat:
    """The format of a batch of feature maps whose channels are on an axis."""
    return "channels_first" if axis == 1 and rank != 2 else "channels_last"


def input_format_of(
    graph: DataflowGraph, wanted: DataFormat | None = None, features: TensorName | None = None
) -> DataFormat:
    """Where the channels of the first input are: what takes it says so, or else the user, or else Keras.

    Args:
        graph: the graph.
        wanted: what the user says of the features.
        features: the tensor that is the feature map; None for the input itself.
    """
    tensor = graph.inputs[0].tensor
    rank = graph.rank(tensor)
    found, _ = nearest(graph, [(tensor, tuple(range(rank or 0)))], backwards=False)
    if rank is not None and rank > 2 and found in (1, rank - 1):
        return "channels_first" if found == 1 else "channels_last"
    if wanted is not None:
        return (features and _traced_input_format(graph, wanted, features)) or wanted
    of_keras: DataFormat = keras.config.image_data_format()
    return of_keras if rank is not None and rank > 3 else "channels_last"


def _traced_input_format(graph: DataflowGraph, wanted: DataFormat, features: TensorName) -> DataFormat | None:
    """Where the channels of the first input are, by what has become of its axes in the features."""
    rank = graph.rank(features)
    _, ends = nearest(graph, [(features, tuple(range(rank or 0)))], backwards=True)
    for tensor, (images, *others) in ends:
        if tensor == graph.inputs[0].tensor and rank is not None and images == 0:
            return input_format_by(wanted, rank - 1, [axis and axis - 1 for axis in others])
    return None


def _check_features(graph: DataflowGraph, name: str, features: TensorName) -> None:
    symbol = graph.tensor(features)
    batch = graph.inputs[0].shape or (0,)
    is_open = batch[0] is None
    if (
        not symbol.dtype.is_floating
        or features not in graph.moving
        or symbol.shape.rank in (0, 1)
        # The same for any number of images.
        or (is_open and symbol.shape.is_fully_defined())
    ):
        shape = "unknown" if symbol.shape.rank is None else tuple(symbol.shape)
        raise LayerError(
            f"layer {name!r} gives {symbol.dtype.name} of shape {shape}, and a bottleneck needs a batch of "
            "floating-point feature maps that depend on the input"
        )
    node = None if features in {entry.tensor for entry in graph.inputs} else graph.producer(features)
    if node is not None and node.name in graph.within_control_flow:
        raise LayerError(f"layer {name!r} runs within a branch, where the model cannot be split")


def _tail(
    graph: DataflowGraph, start: TensorName, outputs: Sequence[TensorName], dependent: set[TensorName]
) -> tuple[set[str], list[TensorName], list[Node]]:
    """Names of the tail's nodes, the tensors that it takes of the head, and the nodes that read sizes."""
    tail: set[str] = set()
    frontier: dict[TensorName, None] = {}
    measured: dict[Node, None] = {}
    inputs = {entry.tensor for entry in graph.inputs}
    queue = list(outputs)
    while queue:
        tensor = queue.pop()
        if tensor == start or tensor in graph.bindings:
            continue
        if tensor in inputs:
            frontier[tensor] = None
            continue
        node = graph.producer(tensor)
        if node is None or node.name in tail:
            continue
        apart = tensor not in dependent and tensor in graph.moving
        if apart and node.name not in graph.within_control_flow and _is_sliced(graph, tensor):
            if tensor not in graph.of_sizes:
                frontier[tensor] = None
                continue
            if node.reads_sizes:
                measured[node] = None
                continue
        tail.add(node.name)
        queue.extend(node.inputs)
        queue.extend(f"{source}:0" for source in node.controls if graph.decides(source))
    return tail, list(frontier), list(measured)


def _is_sliced(graph: DataflowGraph, tensor: TensorName) -> bool:
    return graph.tensor(tensor).dtype not in _UNSLICED


@dataclass(frozen=True)
class _Rows:
    """How the images of a batch lie in a tensor.

    Attributes:
        one: the tensor's shape for one image.
        axis: the axis along which the images follow one another; None if they share one tensor.
    """

    one: Shape
    axis: int | None

    @classmethod
    def of(cls, name: TensorName, one: Shape, two: Shape) -> _Rows:
        """Learn it from the tensor's shapes for one image and for two.

        Raises:
            LayerError: the images do not follow one another along one axis.
        """
        grown = [axis for axis, (a, b) in enumerate(zip(one, two, strict=False)) if a != b]
        if not grown and len(one) == len(two):
            return cls(one, None)
        if len(grown) != 1 or len(one) != len(two) or two[grown[0]] != 2 * one[grown[0]]:
            raise LayerError(
                f"tensor {name!r} has shape {one} for one image and {two} for two, so it does not keep the "
                "images apart; split the model after it"
            )
        return cls(one, grown[0])

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
        # One image may take several places along the axis, which stay where they are.
        size = self.one[self.axis]
        own = (size,) if size > 1 else ()
        x = tf.reshape(x, [*self.one[: self.axis], images, *own, *self.one[self.axis + 1 :]])
        return tf.transpose(x, [self.axis, *(axis for axis in range(len(x.shape)) if axis != self.axis)])

    def axis_after_split(self, axis: int) -> int:
        """Where an axis of the tensor is in the row of an image, counted without the axis of the images."""
        return self.order.index(axis)

    @property
    def row(self) -> Shape:
        """Shape of the row of an image."""
        return tuple(self.one[axis] for axis in self.order)

    @property
    def order(self) -> list[int]:
        """The axes of a row, by their numbers in the tensor."""
        if self.axis is None or self.one[self.axis] > 1:
            return list(range(len(self.one)))
        return [axis for axis in range(len(self.one)) if axis != self.axis]

    def join(self, x: tf.Tensor) -> tf.Tensor:
        """Undo `split`, for as many images as there are rows."""
        if self.plain:
            return x
        if self.axis is None:
            return x[0]
        order = [*range(1, self.axis + 1), 0, *range(self.axis + 1, len(x.shape))]
        return tf.reshape(tf.transpose(x, order), self.shape(rows_of(x)))


class _Passes:
    """Head and tail as functions, for inputs of one shape and any number of them.

    Args:
        division: what is run.
        inputs: some inputs of that shape; None for those that are missing.
        batched: which of them have a row for each image.
        features_only: leave the tail out.

    Attributes:
        tail: the tail as a function.
        draws: whether the head has operations that draw random numbers.
    """

    def __init__(
        self,
        division: Division,
        inputs: Sequence[tf.Tensor | None],
        batched: Sequence[bool],
        features_only: bool,
    ) -> None:
        self.division = division
        self._graph = division.graph
        present = [x is not None for x in inputs]
        given = [x for x in inputs if x is not None]
        self._given = [
            entry.tensor for entry, is_there in zip(self._graph.inputs, present, strict=True) if is_there
        ]
        self._batched = [flag for flag, is_there in zip(batched, present, strict=True) if is_there]
        main = [division.features, *(() if features_only else division.frontier)]
        taken = [*main, *(name for tensor in main for name in self._graph.companions(tensor))]
        self._sources = [] if features_only else division.sources
        outputs = [] if features_only or self._graph.runs_in_python else division.flat_outputs
        reshaped = self._graph.reshaped_for(division.features)
        sizes = self._measured(list(dict.fromkeys([*taken, *self._sources, *outputs, *reshaped])), given)
        self._reshaped = {name: sizes[name] for name in reshaped if name in sizes}
        self._taken = [name for name in taken if name in sizes]
        self._rows = {name: _Rows.of(name, *sizes[name]) for name in [*self._taken, *self._sources]}
        self._output_sizes = [sizes[name] for name in outputs]
        self._check_features()
        self._check_outputs()
        specs = [
            tf.TensorSpec([None, *x.shape[1:]] if flag else x.shape, x.dtype)
            for flag, x in zip(self._batched, given, strict=True)
        ]
        self._run_head = traced(self._trace_head, input_signature=specs)
        # Once is not worth a trace, where none is needed.
        self._run_all = self._trace_all if self._graph.runs_in_python else traced(self._trace_all)
        self.tail = _TailFunction(self._trace_tail, self._graph.runs_in_python)
        self.draws = False

    def head(self, inputs: Sequence[tf.Tensor | None]) -> list[tf.Tensor]:
        """Features (B, *feature map), and what is carried around them, (B, ...) each."""
        given = [x for x in inputs if x is not None]
        found: list[tf.Tensor] = self._run_head(*given)
        images = rows_of(next(x for x, flag in zip(given, self._batched, strict=True) if flag))
        for name, x in zip(self._taken, found, strict=True):
            if None not in (x.shape[0], images) and x.shape[0] != images:
                raise LayerError(
                    f"tensor {name!r} has {x.shape[0]} rows for {images} images, by their values, so it does "
                    "not keep the images apart; split the model elsewhere"
                )
        return found

    def own_outputs(self, inputs: Sequence[tf.Tensor | None]) -> Any:
        """What the whole graph gives for the first image, and its features, (1, *feature map)."""
        given = [x for x in inputs if x is not None]
        one = (x[:1] if flag else x for x, flag in zip(given, self._batched, strict=True))
        try:
            return self._run_all(*one)
        except (tf.errors.OpError, ValueError) as error:
            raise InputError(
                f"the model fails on a batch of 1, so it cannot be checked: {_reason(error)}"
            ) from error

    @cached_property
    def feature_axes(self) -> FeatureAxes | None:
        """What the axes of a feature map come of; None where that is not known."""
        graph, features = self._graph, self.division.features
        image = graph.inputs[0].tensor
        shape = graph.tensor(image).shape
        if shape.rank is None:
            return None
        shapes = {
            name: [None if a != b else a for a, b in zip(one, two, strict=True)]
            for name, (one, two) in self._reshaped.items()
            if len(one) == len(two)
        }
        found = traced_axes(graph, {image: axes_of_input(shape.as_list())}, [features], shapes)
        axes = found.get(features)
        order = self._rows[features].order
        if axes is None:
            return None
        return FeatureAxes([axes[axis] for axis in order], shape.rank - 1, [*found.values()])

    @cached_property
    def data_format(self) -> DataFormat:
        """Where the channels of the feature maps are.

        Raises:
            LayerError: that is not known, or they are neither first nor last.
        """
        rows, axis = self._rows[self.division.features], self.division.channels
        shape = rows.row
        if len(shape) == 1:
            return "channels_last"
        place = None if axis is None else rows.axis_after_split(axis)
        if place not in (0, len(shape) - 1):
            where = (
                "which axis holds the channels is not known"
                if place is None
                else (f"the channels are on axis {place}, neither the first nor the last")
            )
            raise LayerError(
                f"layer {self.division.layer_name!r} gives {tuple(shape)} for each image, and {where}; say "
                "how to read it by data_format=, or name another layer"
            )
        return "channels_first" if place == 0 else "channels_last"

    def _check_features(self) -> None:
        features = self._rows[self.division.features]
        if features.axis is None or (features.plain and len(features.one) < 2):
            raise LayerError(
                f"layer {self.division.layer_name!r} has shape {features.one} for one image, and a "
                "bottleneck needs a feature map for each image"
            )

    def _check_outputs(self) -> None:
        """A number for all images, such as their mean loss, may be an output; anything larger may not."""
        if self._output_sizes and all(one == two and one for one, two in self._output_sizes):
            raise LayerError(
                f"the model's output has shape {self._output_sizes[0][0]} for one image and for two, so no "
                "image has an output of its own; images must be along the first axis, in any number"
            )

    def _measured(
        self, names: Sequence[TensorName], inputs: Sequence[tf.Tensor]
    ) -> dict[TensorName, tuple[Shape, Shape]]:
        """Shapes of tensors for one image and for two; companions that are not there are left out."""
        batches = [
            {
                name: tf.repeat(x[:1], images, axis=0) if flag else x
                for name, flag, x in zip(self._given, self._batched, inputs, strict=True)
            }
            for images in (1, 2)
        ]
        try:
            found = self._graph.measure(names, batches)
        except (tf.errors.OpError, ValueError) as error:
            raise InputError(f"the model fails on a batch of 1 or 2: {_reason(error)}") from error
        pairs = zip(names, *found, strict=True)
        return {name: (one, two) for name, one, two in pairs if one is not None and two is not None}

    def _trace_head(self, *inputs: tf.Tensor) -> list[tf.Tensor]:
        tensors = self._graph.evaluate(self._taken, dict(zip(self._given, inputs, strict=True)))
        self.draws = draws_numbers(tf.compat.v1.get_default_graph())
        images = tf.shape(next(x for x, flag in zip(inputs, self._batched, strict=True) if flag))[0]
        return [self._rows[name].split(x, images) for name, x in zip(self._taken, tensors, strict=True)]

    def _trace_all(self, *inputs: tf.Tensor) -> Any:
        division, graph = self.division, self._graph
        values = dict(zip(self._given, inputs, strict=True))
        if division.start != division.features:
            # What the model has in place of the tail's start is a bottleneck, which passes everything here.
            taken = [division.features, *graph.companions(division.features)]
            given = [division.start, *graph.companions(division.start)]
            found = zip(given, graph.evaluate(taken, values), strict=True)
            values.update((name, x) for name, x in found if x is not None)
        *flat, features = graph.evaluate([*division.flat_outputs, division.features], values)
        outputs = tf.nest.pack_sequence_as(division.outputs, [tf.identity(x) for x in flat])
        return outputs, self._rows[division.features].split(features, 1)

    def _trace_tail(self, z: tf.Tensor, carry: tuple[tf.Tensor, ...]) -> Any:
        division, graph = self.division, self._graph
        images = rows_of(z)
        features = tf.cast(z, graph.tensor(division.features).dtype)
        values = {division.start: self._rows[division.features].join(features)}
        moved = dict(zip(graph.companions(division.features), graph.companions(division.start), strict=True))
        for name, x in zip(self._taken[1:], carry, strict=True):
            values[moved.get(name, name)] = self._rows[name].join(_repeat(x, z))
        for node in division.measured:
            values.update(self._sizes(node, images))
        try:
            outputs = graph.run(division.tail, values, division.flat_outputs)
        except ValueError as error:
            raise InputError(
                f"the model takes no batch of {images} after layer {division.layer_name!r}, one for each "
                f"noisy sample; its batch may have a fixed size: {_reason(error)}"
            ) from error
        if isinstance(images, int):
            for output, (one, two) in zip(outputs, self._output_sizes, strict=False):
                output.set_shape([a + (b - a) * (images - 1) for a, b in zip(one, two, strict=True)])
        return tf.nest.pack_sequence_as(division.outputs, [tf.identity(x) for x in outputs])

    def _sizes(self, node: Node, images: int | tf.Tensor) -> dict[TensorName, tf.Tensor]:
        """What a node that reads sizes gives for a number of images."""
        sizes = []
        for source in node.inputs:
            shape = tf.stack(self._rows[source].shape(images)) if self._rows[source].one else []
            sizes.append(tf.convert_to_tensor(shape, tf.int32))
        if node.kind == "Size":
            sizes = [tf.reduce_prod(sizes[0])]
        elif node.kind == "Rank":
            sizes = [tf.size(sizes[0])]
        return {
            result: tf.cast(size, self._graph.tensor(result).dtype)
            for result, size in zip(node.outputs, sizes, strict=True)
        }


class _TailFunction:
    """A tail, as a function of its own or as part of a function that is being traced.

    Args:
        trace: runs the tail.
        inlines: whether it may become part of another function.

    Attributes:
        cut_off: for each output, whether no gradient can go from it to the features.
        draws: whether it has operations that draw random numbers.
    """

    def __init__(self, trace: Callable[[tf.Tensor, tuple[tf.Tensor, ...]], Any], inlines: bool) -> None:
        self._trace, self._inlines = trace, inlines
        self._function = traced(self._run)
        self.cut_off: list[bool] = []
        self.draws = False

    def _run(self, z: tf.Tensor, carry: tuple[tf.Tensor, ...]) -> Any:
        outputs = self._trace(z, carry)
        self.cut_off = [is_cut_off(output, z) for output in tf.nest.flatten(outputs)]
        self.draws = draws_numbers(tf.compat.v1.get_default_graph())
        return outputs

    def __call__(self, z: tf.Tensor, carry: tuple[tf.Tensor, ...]) -> Any:
        if self._inlines and tf.inside_function():
            return self._trace(z, carry)
        outputs = self._function(z, carry)
        if not any(self.cut_off):
            return outputs
        # The gradient of a function is zero, where that of its operations is none.
        flat = zip(tf.nest.flatten(outputs), self.cut_off, strict=True)
        return tf.nest.pack_sequence_as(outputs, [tf.stop_gradient(x) if stops else x for x, stops in flat])


def _reason(error: Exception) -> str:
    return " ".join(str(error).split())


def _repeat(x: tf.Tensor, z: tf.Tensor) -> tf.Tensor:
    """Each row of `x` as often as `z` has copies of it."""
    return tf.repeat(x, rows_of(z) // rows_of(x), axis=0)


def rows_of(x: tf.Tensor) -> int | tf.Tensor:
    """Length of the first axis, as a number wherever it is known."""
    return tf.shape(x)[0] if x.shape[0] is None else x.shape[0]
