"""Functional and sequential Keras 3 models, as graphs of their layers' calls."""

from __future__ import annotations

from dataclasses import replace
from functools import cached_property
from typing import Any

import keras
import tensorflow as tf
from keras import KerasTensor

from iba_core.errors import LayerError
from iba_core.framework.adapter import Inputs, LayerInfo
from iba_core.framework.layout import DataFormat
from iba_tf.framework import traced
from iba_tf.graphs.calls import CallGraph
from iba_tf.graphs.keras_split import KerasSplit


class KerasNetwork:
    """A functional or sequential model, nested ones included, or a `keras.Function`.

    Its layers are called one by one, so that every part of the model can run alone, over the weights that
    it has at the time.

    Args:
        model: the model. It need not be built yet.
    """

    def __init__(self, model: keras.Model | keras.Function) -> None:
        self.model = model
        self._predict = traced(self._trace_predict, reduce_retracing=True)

    @cached_property
    def graph(self) -> CallGraph:
        """The model's calls.

        Raises:
            LayerError: the model is not built, so it has no graph yet.
        """
        return CallGraph.of(self.model)

    @property
    def data_format(self) -> DataFormat:
        """Where the channels of the first input are."""
        return self.graph.data_format(self.graph.inputs[0])

    def layers(self, inputs: Inputs) -> list[LayerInfo]:
        """Layers in the order in which they run; those of nested models by path, ``"backbone/conv5"``."""
        graph = self.graph
        shapes = graph.shapes(graph.prepare(inputs))
        return [
            LayerInfo(
                place.name,
                type(place.operation).__name__,
                shapes[place.outputs[0]][1:] if len(place.outputs) == 1 else None,
            )
            for place in graph.places
        ]

    def split(
        self,
        layer: str | keras.Operation | KerasTensor,
        end_layer: str | keras.Operation | KerasTensor | None = None,
    ) -> KerasSplit:
        """Split the model after a layer; arguments and errors as of `TensorFlowAdapter.split`."""
        place, slot = self.graph.find(layer)
        if end_layer is None:
            return KerasSplit(self.graph, place, slot)
        end, end_slot = self.graph.find(end_layer)
        if end_slot not in self.graph.dependents(slot):
            raise LayerError(f"layer {end.name!r} does not depend on layer {place.name!r}")
        return KerasSplit(replace(self.graph, outputs=end_slot), place, slot)

    def predict(self, inputs: Inputs) -> Any:
        """The model's output in inference mode."""
        return self._predict(self.graph.prepare(inputs))

    def to_inputs(self, inputs: Inputs) -> Inputs:
        """Inputs as tensors of the dtypes and shapes that the model takes."""
        graph = self.graph
        flat = graph.prepare(inputs)
        if isinstance(inputs, dict):
            return {graph.tensors[slot].name: x for slot, x in zip(graph.inputs, flat, strict=True)}
        return flat[0] if len(flat) == 1 else tuple(flat)

    def _trace_predict(self, inputs: list[tf.Tensor]) -> Any:
        values = self.graph.run(self.graph.calls, dict(zip(self.graph.inputs, inputs, strict=True)))
        return keras.tree.map_structure(values.__getitem__, self.graph.outputs)
