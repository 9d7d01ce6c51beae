"""A Keras model with the layers that a readout needs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from copy import copy
from typing import Any, Self

import keras
import tensorflow as tf

from iba_core.errors import InputError, LayerError
from iba_core.framework.adapter import Inputs
from iba_core.framework.framework import require_finite
from iba_core.framework.layout import DataFormat, Layout
from iba_core.framework.namespace import host_array
from iba_core.readout.model import NestedPass, ReadoutModel
from iba_tf.framework import TensorFlowFramework, traced
from iba_tf.graphs.calls import CallGraph, Place, Slot
from iba_tf.graphs.keras_split import KerasSplit


class KerasReadoutModel(ReadoutModel):
    """A functional or sequential Keras model with the layers that a readout needs.

    Args:
        model: the model.
        attach_layer: the layer, its name, or the symbolic tensor, after which the bottleneck goes.
        readout_layers: the readout layers, likewise.
        jit_compile: compile the steps of a training with XLA.

    Attributes:
        precision: of the bottleneck, ``"float32"`` or ``"float64"``.
        slot_names: names by which the graph finds the tensors at the layers, that of the bottleneck first.

    Raises:
        LayerError: the model has no such layer, or no graph of layers.
    """

    framework = TensorFlowFramework()

    def __init__(
        self, model: keras.Model, attach_layer: Any, readout_layers: Sequence[Any], jit_compile: bool
    ) -> None:
        graph = CallGraph.of(model)
        (place, slot), *found = (graph.find(layer) for layer in (attach_layer, *readout_layers))
        for layer, number in found:
            tensor = graph.tensors[number]
            if not tf.as_dtype(tensor.dtype).is_floating or len(tensor.shape) < 2:
                raise LayerError(
                    f"layer {layer.name!r} gives {tensor.dtype} of shape {tuple(tensor.shape)}; "
                    "a readout layer must give a batch of floating-point feature maps"
                )
        self.jit_compile = jit_compile
        self.names = [place.name, *(layer.name for layer, _ in found)]
        self.slot_names = [_slot_name(*each) for each in ((place, slot), *found)]
        self._device: Any = None
        self._graph = graph
        self._split = KerasSplit(graph, place, slot)
        self._slots = [slot, *(number for _, number in found)]
        self._formats = [self._split.data_format, *(graph.data_format(number) for _, number in found)]
        self.precision = "float64" if graph.tensors[slot].dtype == "float64" else "float32"
        # A smaller last batch of a data set must not cost one more trace for each of its sizes.
        self._read = traced(self._trace, reduce_retracing=True)

    def to_inputs(self, inputs: Inputs) -> tuple[tf.Tensor, ...]:
        """See `ReadoutModel.to_inputs`; the tensors are in the order in which the model takes them."""
        with tf.device(self._device):
            return tuple(self._graph.prepare(inputs))

    def to_targets(self, values: tuple[Any, ...]) -> tuple[Any, ...]:
        """See `ReadoutModel.to_targets`."""
        with tf.device(self._device):
            targets: tuple[Any, ...] = keras.tree.map_structure(tf.convert_to_tensor, values)
        return targets

    def on(self, device: Any) -> Self:
        """The same with the data on a device."""
        other = copy(self)
        other._device = device
        return other

    def check(self, inputs: tuple[tf.Tensor, ...]) -> None:
        """Check that each input holds images, and finite values only.

        Raises:
            InputError: one does not.
        """
        for tensor, slot in zip(inputs, self._graph.inputs, strict=True):
            name = self._graph.tensors[slot].name
            if tensor.shape[0] == 0:
                raise InputError(f"input {name!r} is an empty batch")
            if tensor.dtype.is_floating:
                require_finite(host_array(tensor), f"input_t[{name!r}]")

    def spatial_shape(self, inputs: tuple[tf.Tensor, ...]) -> tuple[int, ...]:
        """Sizes of the spatial axes of the first input; none if it has no channels."""
        shape = tuple(inputs[0].shape[1:])
        if not 1 < len(shape) <= 4:
            return ()
        return Layout.of(shape, self._split.input_format).spatial_shape(shape)

    def data_formats(self, inputs: Inputs) -> list[DataFormat]:
        """See `ReadoutModel.data_formats`; the layers tell, without a pass."""
        return list(self._formats)

    def features(self, inputs: tuple[tf.Tensor, ...]) -> tuple[tf.Tensor, ...]:
        """See `ReadoutModel.features`."""
        return self._read(inputs)

    @contextmanager
    def nested_pass(self, inputs: tuple[tf.Tensor, ...]) -> Iterator[NestedPass]:
        """See `ReadoutModel.nested_pass`."""
        _, *readout_features = self._read(inputs)
        with self._split.head(inputs) as tail:
            yield NestedPass(tail.features, tuple(readout_features), tail.run, tail.carry)

    def _trace(self, inputs: tuple[tf.Tensor, ...]) -> tuple[tf.Tensor, ...]:
        graph = self._graph
        calls = graph.needed_for(self._slots, given=graph.inputs)
        values = graph.run(calls, dict(zip(graph.inputs, inputs, strict=True)))
        return tuple(values[slot] for slot in self._slots)


def _slot_name(place: Place, slot: Slot) -> str:
    number = place.outputs.index(slot)
    return f"{place.name}[{number}]" if number else place.name
