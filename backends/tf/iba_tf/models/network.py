"""A model as a dataflow graph: its layers, its outputs and its splits."""

from __future__ import annotations

import json
from abc import abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from copy import deepcopy
from functools import cached_property
from typing import Any

import keras
import numpy as np
import numpy.typing as npt
import tensorflow as tf

from iba_core.framework.adapter import Inputs, LayerInfo
from iba_core.framework.cache import Cache
from iba_core.framework.layout import DataFormat
from iba_tf.framework import runs_eagerly, traced
from iba_tf.graphs.calls import CallGraph
from iba_tf.graphs.dataflow import DataflowGraph, TensorName
from iba_tf.graphs.graph_inputs import Fed, batched_inputs, is_several, name_of, plain
from iba_tf.graphs.normalization import merged
from iba_tf.graphs.split import GraphSplit, Rewrite, Source, input_format_of

_REFERRING = ("inbound_nodes", "input_layers", "output_layers")
"""Entries of a configuration that hold names of layers."""

_KEPT = 8
"""How many graphs of a model have a compiled prediction, and how many sets of layers compiled features."""


class Network(Source):
    """What is asked of a model, answered by its graph."""

    rewrite: Rewrite | None = None
    """What makes a tail faster."""

    def __init__(self) -> None:
        self._predictions: Cache[Callable[..., Any]] = Cache(_KEPT)
        self._features: Cache[Callable[..., Any]] = Cache(_KEPT)

    @abstractmethod
    def copy(self) -> Any:
        """The same model over variables of its own, which have the present values."""

    @abstractmethod
    def described(self) -> tuple[str, Iterable[npt.NDArray[Any]]]:
        """See `ModelAdapter.described`."""

    @runs_eagerly
    def to_inputs(self, inputs: Inputs) -> Inputs:
        """`inputs` with every array as the model takes it, in the structure that they have."""
        if isinstance(inputs, Mapping):
            graph, tensors = self.prepare(inputs, lambda graph: set())
            given = {name_of(graph.inputs, key) for key in inputs}
            named = {
                entry.name: x for entry, x in zip(graph.inputs, tensors, strict=True) if entry.name in given
            }
            # Inputs with a row for each image come first: there a batch is counted.
            return dict(sorted(named.items(), key=lambda item: not _has_rows(item[1])))
        _, tensors = self.prepare(inputs)
        flat = tensors[: len(inputs) if is_several(inputs) else 1]
        return flat[0] if len(flat) == 1 else tuple(flat)

    @runs_eagerly
    def predict(self, inputs: Inputs) -> Any:
        """The model's output in inference mode."""
        graph, tensors = self.prepare(inputs)
        return self._predictions.get(graph, lambda: _prediction(graph))(*plain(tensors))

    @runs_eagerly
    def layers(self, inputs: Inputs) -> list[LayerInfo]:
        """The places where the model can be split, in order, with the shapes that they have for `inputs`."""
        graph, tensors = self.prepare(inputs)
        batched = batched_inputs(graph.inputs, tensors)
        one = {
            entry.tensor: x[:1] if flag else x
            for entry, x, flag in zip(graph.inputs, plain(tensors), batched, strict=True)
            if x is not None
        }
        names = list(dict.fromkeys(place.tensors[0] for place in graph.places if len(place.tensors) == 1))
        [shapes] = graph.measure(names, [one])
        found = dict(zip(names, shapes, strict=True))
        return [
            LayerInfo(
                place.name,
                place.kind,
                None
                if (shape := found.get(place.tensors[0])) is None or len(place.tensors) > 1
                else shape[1:],
            )
            for place in graph.places
        ]

    @runs_eagerly
    def features_of(self, inputs: Inputs, layers: Sequence[Any]) -> list[tf.Tensor]:
        """Features of several layers, from one pass in inference mode."""
        graph, tensors = self.prepare(inputs)
        names = tuple(graph.find(layer)[1] for layer in layers)
        run = self._features.get((graph, names), lambda: _features(graph, names))
        return list(run(*plain(tensors)))

    def split(self, layer: Any, end_layer: Any = None, **options: Any) -> GraphSplit:
        """Split the model at a layer; arguments and errors as of `GraphSplit`."""
        return GraphSplit(self, layer, end_layer, rewrite=self.rewrite, **options)


def _has_rows(x: Any) -> bool:
    return bool(tf.is_tensor(x) and x.shape.rank)


def _prediction(graph: DataflowGraph) -> Callable[..., Any]:
    def run(*given: tf.Tensor) -> Any:
        values = {entry.tensor: x for entry, x in zip(graph.inputs, given, strict=True)}
        flat = graph.evaluate(graph.flat_outputs, values)
        return tf.nest.pack_sequence_as(graph.outputs, [tf.identity(x) for x in flat])

    # A smaller last batch of a data set must not cost one more trace for each of its sizes.
    function: Callable[..., Any] = traced(run, reduce_retracing=True)
    return function


def _features(graph: DataflowGraph, names: Sequence[TensorName]) -> Callable[..., Any]:
    def run(*given: tf.Tensor) -> list[tf.Tensor]:
        values = {entry.tensor: x for entry, x in zip(graph.inputs, given, strict=True)}
        return [tf.identity(x) for x in graph.evaluate(names, values)]

    function: Callable[..., Any] = traced(run, reduce_retracing=True)
    return function


class KerasNetwork(Network):
    """A functional or sequential Keras 3 model, including nested ones, or a `keras.Function`.

    Its layers are called one by one. So every part of the model can run alone, with the weights that it has
    at the time.

    Args:
        model: the model. It need not be built yet.
        rewrites: whether tails may be rewritten to be faster.
    """

    def __init__(self, model: keras.Model | keras.Function, *, rewrites: bool = True) -> None:
        super().__init__()
        self.model = model
        self.rewrite = merged if rewrites else None

    def __reduce__(self) -> tuple[Any, ...]:
        return _network_of, (self.model, self.rewrite is not None)

    @cached_property
    def graph(self) -> CallGraph:
        """The model's calls.

        Raises:
            LayerError: the model is not built, so it has no graph yet.
        """
        return CallGraph.of(self.model)

    def copy(self) -> KerasNetwork:
        """See `Network.copy`."""
        return deepcopy(self)

    def described(self) -> tuple[str, Iterable[npt.NDArray[Any]]]:
        """See `ModelAdapter.described`: the configuration, and the weights."""
        model = self.model if isinstance(self.model, keras.Model) else None
        config = model.get_config() if model else [layer.get_config() for layer in self.model.layers]
        plain = json.loads(json.dumps(config, default=lambda value: type(value).__qualname__))
        text = json.dumps(_numbered(plain, {}), sort_keys=True)
        weights = [each for layer in self.model.layers for each in layer.weights]
        return text, (np.asarray(weight.value.numpy()) for weight in weights)

    @property
    def data_format(self) -> DataFormat:
        """See `Source.data_format`."""
        return input_format_of(self.graph)

    def prepare(
        self, inputs: Inputs, needed: Callable[[Any], set[str]] | None = None
    ) -> tuple[DataflowGraph, Fed]:
        """See `Source.prepare`."""
        return self.graph, self.graph.prepare(inputs, None if needed is None else needed(self.graph))


def _numbered(config: Any, names: dict[str, int], refers: bool = False) -> Any:
    """A configuration with numbers for the names of layers, which differ between processes.

    Args:
        config: what JSON holds.
        names: the numbers of the names so far.
        refers: whether a text may be the name of a layer.
    """
    if isinstance(config, dict):
        return {
            key: names.setdefault(value, len(names))
            if key == "name" and isinstance(value, str)
            else _numbered(value, names, refers or key in _REFERRING)
            for key, value in config.items()
        }
    if isinstance(config, list):
        return [_numbered(each, names, refers) for each in config]
    return names.get(config, config) if refers and isinstance(config, str) else config


def _network_of(model: Any, rewrites: bool) -> KerasNetwork:
    return KerasNetwork(model, rewrites=rewrites)
