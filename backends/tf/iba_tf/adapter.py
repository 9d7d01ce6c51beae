"""TensorFlow's way into Keras models."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import keras
import numpy.typing as npt
import tensorflow as tf

from iba_core.adapter import Adapter, F, Inputs, LayerInfo, rows_in_cache
from iba_core.errors import InputError, LayerError, StateError
from iba_core.layout import DataFormat
from iba_tf.cut import KerasCut
from iba_tf.efficientnet_lite import efficientnet_lite0
from iba_tf.graph import CallGraph
from iba_tf.tracing import traced

_PRETRAINED = {"efficientnet-lite0": efficientnet_lite0}


class KerasAdapter(Adapter):
    """Keras 3 on TensorFlow: functional and sequential models, nested ones included.

    Args:
        model: a Keras model, or a `keras.Function` between symbolic tensors.
        jit_compile: compile steps with XLA. The first step of a shape takes longer, and all others less
            where XLA serves the device well.

    Raises:
        InputError: Keras runs on another framework than TensorFlow.
    """

    name: ClassVar[str] = "tensorflow"

    def __init__(self, model: keras.Model | keras.Function, *, jit_compile: bool = False) -> None:
        require_tensorflow()
        super().__init__(model)
        self.jit_compile = jit_compile
        self._graph: CallGraph | None = None
        self._predict = traced(self._trace_predict, reduce_retracing=True)

    @classmethod
    def owns(cls, model: Any) -> bool:
        """See `Adapter.owns`."""
        return isinstance(model, (keras.Model, keras.Function))

    @classmethod
    def load(cls, source: str) -> keras.Model | None:
        """Model of a pretrained network's name, such as ``"efficientnet-lite0"``, or of a ``.keras`` file.

        Raises:
            InputError: Keras runs on another framework than TensorFlow.
            StateError: the file is missing, damaged, or holds code, which is not run.
        """
        if source in _PRETRAINED:
            require_tensorflow()
            return _PRETRAINED[source]()
        if Path(source).suffix != ".keras":
            return None
        require_tensorflow()
        if not Path(source).is_file():
            raise StateError(f"there is no model file {source!r}")
        try:
            return keras.saving.load_model(source, compile=False, safe_mode=True)
        except Exception as error:  # Keras raises whatever the first wrong byte leads to.
            reason = " ".join(str(error).split())
            raise StateError(f"{source!r} is no Keras model that can be loaded safely: {reason}") from error

    @property
    def graph(self) -> CallGraph:
        """The model's calls.

        Raises:
            LayerError: the model is subclassed or not built and has no graph.
        """
        if self._graph is None:
            self._graph = CallGraph.of(self.model)
        return self._graph

    @property
    def data_format(self) -> DataFormat:
        """See `Adapter.data_format`."""
        return self.graph.data_format(self.graph.inputs[0])

    def layers(self, inputs: Inputs) -> list[LayerInfo]:
        """See `Adapter.layers`; layers of nested models are named by their path, ``"backbone/conv5"``."""
        graph = self.graph
        shapes = graph.shapes(self.graph.prepare(inputs))
        return [
            LayerInfo(
                place.name,
                type(place.operation).__name__,
                shapes[place.outputs[0]][1:] if len(place.outputs) == 1 else None,
            )
            for place in graph.places
        ]

    def cut(
        self,
        layer: str | keras.Operation | keras.KerasTensor,
        until: str | keras.Operation | keras.KerasTensor | None = None,
    ) -> KerasCut:
        """Cut the model behind a layer.

        Args:
            layer: a layer, its name (``"backbone/conv5"`` in a nested model, ``"shared:1"`` for the
                second call of a layer that runs several times), or the symbolic tensor to cut at. Of a
                layer with several outputs the first is cut.
            until: a layer, named likewise, whose output the tail gives instead of the model's.

        Raises:
            LayerError: see `Adapter.cut`.
        """
        place, slot = self.graph.find(layer)
        if until is None:
            return KerasCut(self.graph, place, slot)
        end, end_slot = self.graph.find(until)
        if end_slot not in self.graph.dependents(slot):
            raise LayerError(f"layer {end.name!r} does not depend on layer {place.name!r}")
        return KerasCut(replace(self.graph, outputs=end_slot), place, slot)

    def predict(self, inputs: Inputs) -> Any:
        """See `Adapter.predict`."""
        return self._predict(self.graph.prepare(inputs))

    def _trace_predict(self, inputs: list[tf.Tensor]) -> Any:
        values = self.graph.run(self.graph.calls, dict(zip(self.graph.inputs, inputs, strict=True)))
        return keras.tree.map_structure(values.__getitem__, self.graph.outputs)

    # -- arrays -----------------------------------------------------------------------------------

    def to_inputs(self, inputs: Inputs) -> Inputs:
        """See `Adapter.to_inputs`; the inputs are also checked against the model's input shapes.

        Raises:
            InputError: an input is missing or does not have the shape that the model takes.
        """
        flat = self.graph.prepare(inputs)
        if isinstance(inputs, dict):
            return {self.graph.tensors[slot].name: x for slot, x in zip(self.graph.inputs, flat, strict=True)}
        return flat[0] if len(flat) == 1 else tuple(flat)

    def asarray(self, array: npt.ArrayLike, like: tf.Tensor) -> tf.Tensor:
        """See `Adapter.asarray`."""
        with tf.device(like.device):
            tensor = tf.convert_to_tensor(array)
            return tf.cast(tensor, like.dtype) if tensor.dtype.is_floating else tensor

    def to_numpy(self, array: tf.Tensor) -> npt.NDArray[Any]:
        """See `Adapter.to_numpy`."""
        tensor = tf.convert_to_tensor(array)
        return (tf.cast(tensor, tf.float32) if tensor.dtype == tf.bfloat16 else tensor).numpy()

    def standard_normal(self, shape: Sequence[int], like: tf.Tensor) -> tf.Tensor:
        """See `Adapter.standard_normal`; `tf.random.set_seed` governs the numbers."""
        with tf.device(like.device):
            return tf.random.normal(shape, dtype=like.dtype)

    def preferred_batch(self, shape: Sequence[int], like: tf.Tensor) -> int | None:
        """See `Adapter.preferred_batch`."""
        on_processor = tf.DeviceSpec.from_string(like.device).device_type in (None, "CPU")
        return rows_in_cache(shape) if on_processor else None

    # -- functions --------------------------------------------------------------------------------

    def value_and_grad(
        self, function: Callable[[tf.Tensor], tuple[tf.Tensor, Any]], x: tf.Tensor
    ) -> tuple[tf.Tensor, Any, tf.Tensor]:
        """See `Adapter.value_and_grad`."""
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(x)
            value, auxiliary = function(x)
        gradient = tape.gradient(value, x, unconnected_gradients=tf.UnconnectedGradients.ZERO)
        return value, auxiliary, gradient

    def compile(self, function: F) -> F:
        """`function` as a `tf.function`, traced once for each combination of shapes."""
        return traced(function, jit_compile=self.jit_compile or None)


def require_tensorflow() -> None:
    """Check that Keras runs on TensorFlow.

    Raises:
        InputError: it runs on another framework.
    """
    if keras.backend.backend() != "tensorflow":
        raise InputError(
            f"Keras runs on {keras.backend.backend()!r}, and iba_tf explains models on TensorFlow: set the "
            "environment variable KERAS_BACKEND=tensorflow before keras is imported"
        )
