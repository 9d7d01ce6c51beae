"""A Keras model with the layers that a readout needs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import keras
import tensorflow as tf

from iba_core.errors import InputError, LayerError
from iba_core.framework.adapter import Inputs
from iba_core.framework.framework import require_finite
from iba_core.framework.layout import DataFormat, Layout, MapOrder
from iba_core.framework.namespace import host_array
from iba_core.readout.model import NestedPass, ReadoutModel
from iba_tf.framework import TensorFlowFramework, traced
from iba_tf.graphs.calls import CallGraph
from iba_tf.graphs.dataflow import TensorName
from iba_tf.graphs.graph_inputs import plain
from iba_tf.graphs.split import as_format, channels_of
from iba_tf.models.network import KerasNetwork


class KerasReadoutModel(ReadoutModel):
    """A functional or sequential Keras model with the layers that a readout needs.

    Args:
        model: the model.
        layers: the layers, their names or symbolic tensors; that of the bottleneck first.
        jit_compile: compile the steps of a training with XLA.
        device: where to bring the data; TensorFlow's choice if None.
        data_format: where the channels of the bottleneck's features are; None to find that out.

    Attributes:
        precision: of the bottleneck, ``"float32"`` or ``"float64"``.

    Raises:
        LayerError: the model has no such layer, or no graph of layers.
    """

    framework = TensorFlowFramework()

    def __init__(
        self,
        model: keras.Model,
        layers: Sequence[Any],
        jit_compile: bool,
        device: Any = None,
        data_format: DataFormat | None = None,
    ) -> None:
        network = KerasNetwork(model)
        graph = network.graph
        found = [graph.find(layer) for layer in layers]
        self.names, self._tensors = ([each[index] for each in found] for index in (0, 1))
        for name, tensor in found[1:]:
            spec = graph.tensor(tensor)
            if not spec.dtype.is_floating or len(spec.shape) < 2:
                raise LayerError(
                    f"layer {name!r} gives {spec.dtype.name} of shape {tuple(spec.shape)}; "
                    "a readout layer must give a batch of floating-point feature maps"
                )
        self.jit_compile = jit_compile
        self.precision = "float64" if graph.tensor(self._tensors[0]).dtype == tf.float64 else "float32"
        self._model, self._graph, self._device = model, graph, device
        self._given_format = data_format
        self._split = network.split(self.names[0], data_format=data_format)
        # A smaller last batch of a data set must not cost one more trace for each of its sizes.
        self._features = traced(self._evaluate, reduce_retracing=True)

    def __reduce__(self) -> tuple[Any, ...]:
        # A graph belongs to one model object. A copy finds the layers in its own model, by their names.
        own = self._model, self.names, self.jit_compile, self._device, self._given_format
        return KerasReadoutModel, own

    def on(self, device: Any) -> KerasReadoutModel:
        """The same model and layers, with the data on a device."""
        own = self._model, self.names, self.jit_compile
        return KerasReadoutModel(*own, device, self._given_format)

    def to_inputs(self, inputs: Inputs) -> tuple[tf.Tensor, ...]:
        """See `ReadoutModel.to_inputs`; the tensors are in the order in which the model takes them."""
        with tf.device(self._device):
            return tuple(plain(self._graph.prepare(inputs)))

    def to_targets(self, values: tuple[Any, ...]) -> tuple[Any, ...]:
        """See `ReadoutModel.to_targets`."""
        with tf.device(self._device):
            targets: tuple[Any, ...] = keras.tree.map_structure(tf.convert_to_tensor, values)
        return targets

    def check(self, inputs: tuple[tf.Tensor, ...]) -> None:
        """Check that each input holds images, and finite values only.

        Raises:
            InputError: one does not.
        """
        for tensor, entry in zip(inputs, self._graph.inputs, strict=True):
            if tensor.shape[0] == 0:
                raise InputError(f"input {entry.name!r} is an empty batch")
            if tensor.dtype.is_floating:
                require_finite(host_array(tensor), f"input_t[{entry.name!r}]")

    def spatial_shape(self, inputs: tuple[tf.Tensor, ...]) -> tuple[int, ...]:
        """See `ReadoutModel.spatial_shape`."""
        shape = tuple(inputs[0].shape[1:])
        if not 1 < len(shape) <= 4:
            return ()
        return Layout.of(shape, self._split.input_format).spatial_shape(shape)

    def map_order(self, layout: Layout, inputs: Inputs) -> MapOrder:
        """See `ReadoutModel.map_order`; the graph tells, once the head has run."""
        return self._split.map_order(layout)

    def data_formats(self, inputs: Inputs = None) -> list[DataFormat]:
        """See `ReadoutModel.data_formats`; the layers tell, without a pass."""
        found = [self._split.data_format]
        for name, tensor in zip(self.names[1:], self._tensors[1:], strict=True):
            if tensor == self._tensors[0]:
                found.append(found[0])
                continue
            with self.looking_at(name):
                found.append(_format_of(self._graph, name, tensor))
        return found

    def features(self, inputs: tuple[tf.Tensor, ...]) -> tuple[tf.Tensor, ...]:
        """See `ReadoutModel.features`."""
        found: tuple[tf.Tensor, ...] = self._features(inputs)
        return found

    @contextmanager
    def nested_pass(self, inputs: tuple[tf.Tensor, ...]) -> Iterator[NestedPass]:
        """See `ReadoutModel.nested_pass`."""
        _, *readout_features = self.features(inputs)
        # In a function that is being traced there are no values to check the split with.
        head = self._split.open_head if tf.inside_function() else self._split.head
        with head(inputs) as tail:
            yield NestedPass(tail.features, tuple(readout_features), tail.run, tail.carry)

    def _evaluate(self, inputs: tuple[tf.Tensor, ...]) -> tuple[tf.Tensor, ...]:
        values = {entry.tensor: x for entry, x in zip(self._graph.inputs, inputs, strict=True)}
        return tuple(self._graph.evaluate(self._tensors, values))


def _format_of(graph: CallGraph, name: str, tensor: TensorName) -> DataFormat:
    return as_format(channels_of(graph, name, tensor, tensor), graph.rank(tensor))
