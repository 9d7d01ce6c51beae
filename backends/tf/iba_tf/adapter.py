"""TensorFlow's way into models."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import keras
import numpy as np
import numpy.typing as npt
import tensorflow as tf

from iba_core.bottleneck.noise import keyed_normal
from iba_core.errors import InputError
from iba_core.framework.adapter import Adapter, F, Inputs, LayerInfo
from iba_core.framework.framework import rows_in_cache
from iba_core.framework.layout import DataFormat
from iba_core.utils import ifnone
from iba_tf.eager import eagerly, runs_eagerly
from iba_tf.efficientnet_lite import efficientnet_lite0
from iba_tf.graphs.calls import CallGraph, has_graph
from iba_tf.graphs.graph_split import GraphCut
from iba_tf.graphs.keras_split import KerasCut
from iba_tf.graphs.operations import OperationGraph
from iba_tf.models.graph_model import GraphModel, is_graph_model
from iba_tf.models.keras_network import KerasNetwork
from iba_tf.models.model_files import load_file
from iba_tf.randomness import fresh_key
from iba_tf.tracing import traced

_PRETRAINED = {"efficientnet-lite0": efficientnet_lite0}


class KerasAdapter(Adapter):
    """TensorFlow: Keras models, and whatever else computes tensors of tensors.

    Args:
        model: a Keras 3 or Keras 2 model of any kind, a `keras.Function` between symbolic tensors, a
            `tf.function`, a concrete function, a callable `tf.Module`, a frozen `GraphDef`, or a
            `GraphModel`, which stands for a v1 graph with its session or for a SavedModel.
        jit_compile: compile steps with XLA. The first step of a shape takes longer, and all others less
            where XLA serves the device well.

    Raises:
        InputError: Keras runs on another framework than TensorFlow.
        LayerError: the model is subclassed and not built.

    Example:
        >>> Explainer(KerasAdapter(model, jit_compile=True), layer="conv5")  # doctest: +SKIP
    """

    name: ClassVar[str] = "tensorflow"
    reuses_memory = True

    def __init__(self, model: Any, *, jit_compile: bool = False) -> None:
        super().__init__(model)
        self.jit_compile = jit_compile
        self.network = network_of(model)

    @classmethod
    def owns(cls, model: Any) -> bool:
        """See `Adapter.owns`."""
        return isinstance(model, keras.Function) or is_graph_model(model)

    @classmethod
    def load(cls, source: str) -> Any | None:
        """Model of a pretrained network's name, such as ``"efficientnet-lite0"``, of a file or folder.

        Files are those of Keras (``.keras``, ``.h5``, ``.hdf5``) and frozen graphs (``.pb``), folders those
        of SavedModels.

        Raises:
            InputError: Keras runs on another framework than TensorFlow.
            StateError: the file is missing, damaged, or holds code, which is not run.
        """
        if source in _PRETRAINED:
            require_tensorflow()
            return _PRETRAINED[source]()
        return load_file(Path(source))

    @property
    def graph(self) -> CallGraph | OperationGraph | None:
        """The model's calls of layers, or its operations; None where these follow from the inputs.

        Raises:
            LayerError: the model is not built and has no graph yet.
        """
        return self.network.graph

    @property
    def data_format(self) -> DataFormat:
        """See `Adapter.data_format`."""
        return self.network.data_format

    @runs_eagerly
    def layers(self, inputs: Inputs) -> list[LayerInfo]:
        """See `Adapter.layers`; layers within others are named by their path, ``"backbone/conv5"``."""
        return self.network.layers(inputs)

    @runs_eagerly
    def cut(self, layer: Any, until: Any = None) -> KerasCut | GraphCut:
        """Cut the model behind a layer.

        Args:
            layer: a layer; its name, alone where no other has it or by its path (``"backbone/conv5"`` in a
                nested model, ``"shared:1"`` for the second call of a layer that runs several times); or the
                symbolic tensor to cut at. Of a layer with several outputs the first is cut, and
                ``"lstm[1]"`` is the second one. In a `GraphModel` also an operation, a tensor, or the name
                of one, or of a scope.
            until: a layer, named likewise, whose output the tail gives instead of the model's.

        Raises:
            LayerError: see `Adapter.cut`.
        """
        return self.network.cut(layer, until)

    def predict(self, inputs: Inputs) -> Any:
        """See `Adapter.predict`; NumPy's arrays where the caller does not run eagerly."""
        return _outside(self.network.predict, inputs)

    # -- arrays -----------------------------------------------------------------------------------

    def to_inputs(self, inputs: Inputs) -> Inputs:
        """See `Adapter.to_inputs`; the inputs are also checked against the model's input shapes.

        Where the caller does not run eagerly, within a v1 graph, the arrays are NumPy's.

        Raises:
            InputError: an input is missing or does not have the shape that the model takes.
        """
        return _outside(self.network.to_inputs, inputs)

    @runs_eagerly
    def asarray(self, array: npt.ArrayLike, like: tf.Tensor) -> tf.Tensor:
        """See `Adapter.asarray`."""
        with tf.device(like.device):
            tensor = tf.convert_to_tensor(array)
            return tf.cast(tensor, like.dtype) if tensor.dtype.is_floating else tensor

    @runs_eagerly
    def to_numpy(self, array: tf.Tensor) -> npt.NDArray[Any]:
        """See `Adapter.to_numpy`."""
        tensor = tf.convert_to_tensor(array)
        return (tf.cast(tensor, tf.float32) if tensor.dtype == tf.bfloat16 else tensor).numpy()

    @runs_eagerly
    def standard_normal(self, shape: Sequence[int], like: tf.Tensor) -> tf.Tensor:
        """See `Adapter.standard_normal`; `tf.random.set_seed` governs the numbers."""
        first, second = fresh_key()
        if _on_processor(like):
            # In less than half the time that TensorFlow's own kernel takes there.
            return self.asarray(keyed_normal(first << 32 | second, shape), like)
        with tf.device(like.device):
            return tf.random.stateless_normal(shape, seed=(first, second), dtype=like.dtype)

    def preferred_batch(self, shape: Sequence[int], like: tf.Tensor) -> int | None:
        """See `Adapter.preferred_batch`."""
        return rows_in_cache(shape) if _on_processor(like) else None

    # -- functions --------------------------------------------------------------------------------

    @runs_eagerly
    def value_and_grad(
        self, function: Callable[[tf.Tensor], tuple[tf.Tensor, Any]], x: tf.Tensor
    ) -> tuple[tf.Tensor, Any, tf.Tensor]:
        """See `Adapter.value_and_grad`."""
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(x)
            value, auxiliary = function(x)
        gradient = tape.gradient(value, x, unconnected_gradients=tf.UnconnectedGradients.ZERO)
        return value, auxiliary, gradient

    def after(self, array: tf.Tensor) -> AbstractContextManager[Any]:
        """See `Adapter.after`."""
        context: AbstractContextManager[Any] = tf.control_dependencies([array])
        return context

    def handing_over(self, jit_compile: bool | None = None) -> Callable[[int, tf.Tensor], Any]:
        """See `Adapter.handing_over`; a variable lets go of its value where it is told to."""
        # XLA plans the memory by itself, and lets no variable change its shape. Those that a distribution
        # strategy makes are of one known shape.
        if ifnone(jit_compile, self.jit_compile) or tf.distribute.has_strategy():
            return super().handing_over(jit_compile)
        variables: dict[int, tf.Variable] = {}

        def hand_over(place: int, array: tf.Tensor) -> _Handed:
            if place in variables:
                # Another variable would take more time.
                variables[place].assign(array, read_value=False)
            else:
                with tf.device(array.device):
                    variables[place] = tf.Variable(array, trainable=False, shape=tf.TensorShape(None))
            return _Handed(variables[place], tuple(array.shape))

        return hand_over

    def taken(self, handed: tf.Tensor | _Handed) -> tf.Tensor:
        """See `Adapter.taken`."""
        if not isinstance(handed, _Handed):
            return handed
        array = tf.ensure_shape(handed.variable.read_value(), handed.shape)
        let_go = handed.variable.assign(tf.zeros([0], array.dtype), read_value=False)
        # Otherwise that may come last, and the memory is not the function's before.
        with tf.control_dependencies([let_go]):
            return tf.identity(array)

    def compile(self, function: F, jit_compile: bool | None = None) -> F:
        """`function` as a `tf.function`, traced once for each combination of shapes."""
        return traced(function, jit_compile=ifnone(jit_compile, self.jit_compile) or None)


class _Handed(NamedTuple):
    """An array in a variable that nothing else knows."""

    variable: tf.Variable
    shape: tuple[int, ...]


def _on_processor(tensor: tf.Tensor) -> bool:
    return tf.DeviceSpec.from_string(tensor.device).device_type in (None, "CPU")


def _outside(function: Callable[[Inputs], Any], inputs: Inputs) -> Any:
    """What a function gives, run eagerly, as arrays that the caller can work with.

    Where operations go into a graph, an eager tensor is of no use: not even a part of it can be taken.
    """
    eager = tf.executing_eagerly() or tf.inside_function()
    with eagerly():
        found = function(inputs)
        return found if eager else tf.nest.map_structure(np.asarray, found)


def network_of(model: Any) -> KerasNetwork | GraphModel:
    """The way into a model: by the calls of its layers where Keras 3 lists them, else by its operations.

    Raises:
        InputError: Keras runs on another framework than TensorFlow.
        LayerError: the model is subclassed and not built.
    """
    if isinstance(model, (keras.layers.Layer, keras.Function)):
        require_tensorflow()
    if isinstance(model, keras.Sequential) or has_graph(model):
        return KerasNetwork(model)
    return GraphModel.of(model)


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
