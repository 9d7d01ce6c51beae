"""TensorFlow's way into models."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any, ClassVar

import keras
import numpy as np
import numpy.typing as npt
import tensorflow as tf

from iba_core.arguments import require_bool, require_data_format
from iba_core.errors import InputError
from iba_core.framework.adapter import Inputs, LayerInfo, ModelAdapter, Split
from iba_core.framework.framework import Framework
from iba_core.framework.inputs import arrays_of
from iba_core.framework.layout import DataFormat
from iba_tf.efficientnet_lite import efficientnet_lite0
from iba_tf.framework import TensorFlowFramework, eagerly, forgotten_if_interrupted, runs_eagerly
from iba_tf.graphs.calls import has_graph
from iba_tf.graphs.dataflow import DataflowGraph
from iba_tf.models.graph_model import GraphModel, is_graph_model
from iba_tf.models.layer_tracing import layer_classes
from iba_tf.models.model_files import load_file
from iba_tf.models.network import KerasNetwork, Network

_PRETRAINED = {"efficientnet-lite0": efficientnet_lite0}


class TensorFlowAdapter(ModelAdapter):
    """TensorFlow's way into a Keras model, or anything else that computes tensors from tensors.

    Args:
        model: a Keras 3 or Keras 2 model of any kind, a `keras.Function` between symbolic tensors, a
            `tf.function`, a concrete function, a callable `tf.Module`, a frozen `GraphDef`, or a
            `GraphModel`, which stands for a TensorFlow 1 graph with its session or for a SavedModel.
        rewrites: whether tails of Keras models may be rewritten to be faster. The results are the same up to
            rounding.

    Raises:
        InputError: Keras runs on another framework than TensorFlow.
        LayerError: the model is subclassed and not built.

    Example:
        >>> model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(4, name="dense")])
        >>> TensorFlowAdapter(model).layers(np.zeros((1, 8)))
        [LayerInfo(name='dense', kind='Dense', output_shape=(4,))]
    """

    framework: ClassVar[Framework] = TensorFlowFramework()

    def __init__(self, model: Any, *, rewrites: bool = True) -> None:
        super().__init__(model)
        if isinstance(model, type):
            raise InputError(f"model={model.__name__} is a class; give an object of it")
        self._rewrites = require_bool("rewrites", rewrites)
        self.network = network_of(model, rewrites=rewrites)

    @forgotten_if_interrupted
    def __deepcopy__(self, memo: dict[int, Any]) -> TensorFlowAdapter:
        # Functions and modules are not copied by themselves, but their graphs and variables are.
        is_keras = isinstance(self.model, (keras.Function, *layer_classes()))
        model = deepcopy(self.model, memo) if is_keras else self.network.copy()
        copied = TensorFlowAdapter(model, rewrites=self._rewrites)
        memo[id(self)] = copied
        return copied

    def __reduce__(self) -> tuple[Any, ...]:
        return _adapter_of, (self.model, self._rewrites)

    @classmethod
    def owns(cls, model: Any) -> bool:
        """See `ModelAdapter.owns`."""
        return isinstance(model, keras.Function) or is_graph_model(model)

    @classmethod
    def load(cls, source: str) -> Any | None:
        """Load the model that the name of a pretrained network, a file or a folder stands for.

        Args:
            source: ``"efficientnet-lite0"``; a file of Keras (``.keras``, ``.h5``, ``.hdf5``); a frozen graph
                (``.pb``); or the folder of a SavedModel.

        Raises:
            InputError: Keras runs on another framework than TensorFlow.
            StateError: the file is missing, damaged, or holds code, which is not run.
        """
        if source in _PRETRAINED:
            require_tensorflow()
            return _PRETRAINED[source]()
        return load_file(Path(source))

    @property
    def graph(self) -> DataflowGraph | None:
        """The model's calls of layers, or its operations; None where these follow from the inputs.

        Raises:
            LayerError: the model is not built and has no graph yet.
        """
        return self.network.graph

    @property
    def data_format(self) -> DataFormat:  # type: ignore[override]  # a model need not know it before it runs
        """See `ModelAdapter.data_format`."""
        return self.network.data_format

    @runs_eagerly
    def layers(self, inputs: Inputs) -> list[LayerInfo]:
        """See `ModelAdapter.layers`; layers inside others are named by their path, ``"backbone/conv5"``."""
        return self.network.layers(inputs)

    @runs_eagerly
    def split(self, layer: Any, end_layer: Any = None, *, data_format: DataFormat | None = None) -> Split:
        """Split the model after a layer.

        Args:
            layer: a layer; its name, alone where no other has it or by its path (``"backbone/conv5"`` in a
                nested model, ``"shared:1"`` for the second call of a layer that runs several times); or the
                symbolic tensor to split at. Of a layer with several outputs the first is meant, and
                ``"lstm[1]"`` is the second one. In a `GraphModel` also an operation, a tensor, or the name
                of one, or of a scope.
            end_layer: a layer, named likewise, whose output the tail gives instead of the model's.
            data_format: where the channels of the feature map are; None to find that out.

        Raises:
            LayerError: see `ModelAdapter.split`.
        """
        require_data_format("data_format", data_format, optional=True)
        return self.network.split(layer, end_layer, data_format=data_format)

    def predict(self, inputs: Inputs) -> Any:
        """See `ModelAdapter.predict`; NumPy arrays where the caller does not run eagerly."""
        return _outside(self.network.predict, inputs)

    def features_of(self, inputs: Inputs, layers: Sequence[Any]) -> list[Any]:
        """See `ModelAdapter.features_of`; NumPy arrays where the caller does not run eagerly."""
        found: list[Any] = _outside(lambda x: self.network.features_of(x, layers), inputs)
        return found

    def gradient(self, inputs: Any, score: Callable[[Any], Any]) -> Any:
        """See `ModelAdapter.gradient`."""

        def value(x: tf.Tensor) -> tuple[tf.Tensor, tuple[()]]:
            return score(self.network.predict(x)), ()

        def gradient(x: tf.Tensor) -> tf.Tensor:
            return self.framework.value_and_grad(value, tf.convert_to_tensor(x))[-1]

        return _outside(gradient, inputs)

    def weights(self) -> dict[str, list[npt.NDArray[Any]]]:
        """See `ModelAdapter.weights`, of Keras models; moving averages are not among them.

        Raises:
            InputError: the model is no Keras model.
        """
        layers = _layers_with_weights(self.model)
        return {
            name: [np.array(variable.numpy()) for variable in variables] for name, variables in layers.items()
        }

    def place(self, device: str) -> None:
        """See `ModelAdapter.place`: TensorFlow has placed the model already, so it is only checked where."""
        kind, _, number = device.lower().partition(":")
        wanted = f"{'gpu' if kind == 'cuda' else kind}:{number or 0}"
        there = [name.removeprefix("/device:").lower() for name, _ in tf.config.list_logical_devices()]
        if wanted not in there:
            raise InputError(f"device={device!r} is not there; TensorFlow has {', '.join(there)}")
        chosen = "gpu:0" if "gpu:0" in there else "cpu:0"
        if wanted != chosen:
            raise InputError(
                f"device={device!r} is not {chosen!r}, where TensorFlow puts models; set the environment "
                "variable CUDA_VISIBLE_DEVICES before the start"
            )

    @runs_eagerly
    def described(self) -> tuple[str, Iterable[npt.NDArray[Any]]]:
        """See `ModelAdapter.described`."""
        return self.network.described()

    @forgotten_if_interrupted
    def with_weights(self, weights: Mapping[str, Sequence[npt.NDArray[Any]]]) -> Any:
        """See `ModelAdapter.with_weights`, of Keras models.

        Raises:
            InputError: the model is no Keras model.
        """
        if not isinstance(self.model, keras.Model):
            _layers_with_weights(self.model)
        copied = deepcopy(self.model)
        layers = _layers_with_weights(copied)
        for name, arrays in weights.items():
            for variable, array in zip(layers[name], arrays, strict=True):
                variable.assign(array)
        return copied

    def as_tensors(self, inputs: Inputs, device: Any = None) -> Inputs:
        """See `ModelAdapter.as_tensors`; the inputs are also checked against the model's input shapes.

        Where the caller does not run eagerly, inside a TensorFlow 1 graph, the arrays are NumPy's.

        Raises:
            InputError: an input is missing or does not have the shape that the model takes.
        """
        symbolic = (tf.is_tensor(array) and not hasattr(array, "numpy") for array in arrays_of(inputs))
        if tf.inside_function() or any(symbolic):
            raise InputError(
                "inputs have no values inside of a tf.function or of a graph; explain arrays, outside of it"
            )
        return _outside(self.network.to_inputs, inputs)


def _layers_with_weights(model: Any) -> dict[str, list[Any]]:
    """What training changes in the layers that hold no other layers, by their paths, the first first."""
    if not isinstance(model, keras.Model):
        raise InputError(
            f"model is a {type(model).__name__}, whose layers are not known; "
            "give a Keras model to change its weights"
        )
    found: dict[str, list[Any]] = {}
    for layer in model.layers:
        if isinstance(layer, keras.Model):
            inner = _layers_with_weights(layer)
            found.update({f"{layer.name}/{name}": variables for name, variables in inner.items()})
        # Of a frozen layer, no variable is trainable; only the name tells which are averages.
        elif own := [each for each in layer.weights if not each.name.startswith("moving_")]:
            found[layer.name] = own
    return found


@forgotten_if_interrupted
def _outside(function: Callable[[Inputs], Any], inputs: Inputs) -> Any:
    """Run a function eagerly, and return arrays that the caller can work with.

    Where operations go into a graph, an eager tensor is useless: it cannot even be sliced there.
    """
    eager = tf.executing_eagerly() or tf.inside_function()
    with eagerly():
        found = function(inputs)
        return found if eager else tf.nest.map_structure(np.asarray, found)


def _adapter_of(model: Any, rewrites: bool) -> TensorFlowAdapter:
    return TensorFlowAdapter(model, rewrites=rewrites)


@forgotten_if_interrupted
def network_of(model: Any, *, rewrites: bool = True) -> Network:
    """The way into a model: by the calls of its layers where Keras 3 lists them, else by its operations.

    Raises:
        InputError: Keras runs on another framework than TensorFlow.
        LayerError: the model is subclassed and not built.
    """
    if isinstance(model, (keras.layers.Layer, keras.Function)):
        require_tensorflow()
    if isinstance(model, keras.Sequential) or has_graph(model):
        return KerasNetwork(model, rewrites=rewrites)
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
