"""The Readout Bottleneck for Keras: a network, trained once, gives the mask of every image in one pass."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from typing import Any

import keras
import numpy as np
import numpy.typing as npt
import tensorflow as tf

from iba_core.arguments import (
    require_bool,
    require_callable,
    require_data_format,
    require_sequence,
    require_text,
    require_type,
)
from iba_core.bottleneck.estimator import WelfordEstimator
from iba_core.bottleneck.settings import BottleneckSettings, plain_settings
from iba_core.errors import InputError
from iba_core.framework.adapter import Inputs
from iba_core.framework.arrays import require_array
from iba_core.framework.inputs import require_inputs
from iba_core.framework.layout import DataFormat, Tokens
from iba_core.readout.bottleneck import Known, ReadoutBottleneck
from iba_core.readout.state import ReadoutState
from iba_tf.adapter import TensorFlowAdapter
from iba_tf.bottlenecks.readout_model import KerasReadoutModel
from iba_tf.framework import forgotten_if_interrupted


class IBAReadout(ReadoutBottleneck):
    """A bottleneck for Keras models whose mask is computed from the features of several layers.

    `iba_core.readout.bottleneck.ReadoutBottleneck` describes it. For a training loop of your own there are
    `restricted` and `trainable_variables`, those of the network alone.

    Args:
        attach_layer: the layer after which the bottleneck goes; a layer of the model, its name
            (``"backbone/conv5"`` in a nested model), or the symbolic tensor itself.
        readout_layers: the readout layers, likewise. For one that runs more than once in a pass, name the
            call: ``"relu:2"``.
        model: the functional or sequential model that has all of these layers.
        estimator_type: class of the estimators, also of the bottleneck's unless `estimator` is given:
            `WelfordEstimator`, used for None, or a class derived from it.
        sigma: standard deviation of the Gaussian that smooths the mask, in features; None or 0 for no
            smoothing.
        min_std: floor of the features' standard deviation.
        initial_alpha: start value of the mask's parameter; at 5 almost everything passes.
        active_neurons_threshold: a neuron that is nonzero in no more than this share of the estimation
            samples is set to 0 and carries no information.
        feature_mean: mean of the bottleneck's features, of the shape of one feature map, instead of an
            estimator.
        feature_std: their standard deviation, likewise.
        estimator: estimates both.
        progbar: show the progress.
        relu: clip the restricted features at 0.
        tokens: how to read features that are a sequence of tokens, such as ``Tokens(prefix=1)``.
        data_format: where the channels of the bottleneck's features are; None to conclude it from the
            layers.
        jit_compile: compile the steps of a training with XLA.
        robust: normalise the readout layers' features by mean and standard deviation of their channel over
            all places, instead of each feature's own, and limit them. Useful for training on few images.
        gradients: let the network read the gradient of the model's own answer, too, at eight noisy copies of
            each image. Maps then follow what the answer rests on, at the cost of eight passes of the tail,
            forward and backward. The model's output must be the scores of classes, (images, classes).

    Attributes:
        model: the model.
        network: the readout network, a `keras.Sequential` over (B, places, channels); None before it is made.

    Raises:
        InputError: an argument is out of its range.
        LayerError: the model has no such layer, or no graph of layers.

    Example:
        >>> iba = IBAReadout("conv", ["conv", "pool", "logits"], model)
        >>> iba.estimate(model, batches)
        >>> pairs = [(images, tf.argmax(model(images), axis=1)) for images in batches]
        >>> loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        >>> history = iba.fit(pairs, loss, epochs=2)
        >>> iba.analyze(x).shape
        (2, 8, 8)
    """

    def __init__(
        self,
        attach_layer: Any,
        readout_layers: Sequence[Any],
        model: keras.Model,
        estimator_type: type[WelfordEstimator] | None = None,
        *,
        sigma: float | None = 1.0,
        min_std: float = 0.01,
        initial_alpha: float = 5.0,
        active_neurons_threshold: float = 0.01,
        feature_mean: npt.ArrayLike | None = None,
        feature_std: npt.ArrayLike | None = None,
        estimator: WelfordEstimator | None = None,
        progbar: bool = False,
        relu: bool = False,
        tokens: Tokens | None = None,
        data_format: DataFormat | None = None,
        jit_compile: bool = False,
        robust: bool = False,
        gradients: bool = False,
    ) -> None:
        require_sequence("readout_layers", readout_layers, "layers")
        require_callable("estimator_type", estimator_type, "a class of estimators", optional=True)
        require_type("estimator", estimator, WelfordEstimator, "a WelfordEstimator", optional=True)
        require_type("tokens", tokens, Tokens, "iba_core.Tokens", optional=True)
        require_data_format("data_format", data_format, optional=True)
        for name, flag in (("progbar", progbar), ("relu", relu), ("jit_compile", jit_compile)):
            require_bool(name, flag)
        if (feature_mean is None) != (feature_std is None):
            raise InputError("feature_mean and feature_std go together; give both or neither")
        make_estimator = WelfordEstimator if estimator_type is None else estimator_type
        known_format = data_format if tokens is None else "channels_last"
        layers = [attach_layer, *readout_layers]
        self._passes = KerasReadoutModel(model, layers, jit_compile, data_format=known_format)
        self.model = model
        self.sigma = sigma
        self.min_std = min_std
        self.initial_alpha = initial_alpha
        self.active_neurons_threshold = active_neurons_threshold
        self.feature_mean = self.feature_std = None
        if feature_mean is not None:
            mean = require_array("feature_mean", feature_mean).astype(np.float64)
            std = require_array("feature_std", feature_std, shape=mean.shape, least=0).astype(np.float64)
            self.feature_mean, self.feature_std = mean, std
        self.progbar = progbar
        self.relu = relu
        self.tokens = tokens
        self.data_format = data_format
        self.estimator = make_estimator() if estimator is None else estimator
        self.estimators = [make_estimator() for _ in readout_layers]
        for made in (self.estimator, *self.estimators):
            require_type("estimator_type", made, WelfordEstimator, "a class of WelfordEstimators")
        self._set_up(robust, gradients)
        self._settings()

    @property
    def trainable_variables(self) -> list[keras.Variable]:
        """The variables of the network, for a training loop of your own.

        Raises:
            NotEstimatedError: there is no network yet.
        """
        self._require_estimated()
        variables: list[keras.Variable] = self.network.trainable_variables
        return variables

    def estimate(  # type: ignore[override]  # callers give n_samples third, where the base has a device
        self,
        model: keras.Model,
        dataloader: Iterable[Any],
        n_samples: int = 10000,
        progbar: bool | None = None,
        reset: bool = True,
    ) -> None:
        """Estimate the features' distribution at all layers, see `ReadoutBottleneck.estimate`."""
        super().estimate(model, dataloader, None, n_samples, progbar, reset)

    def restricted(self, inputs: Inputs) -> tuple[Any, tf.Tensor]:
        """Run the model with the flow restricted, for a training loop of your own.

        Both results are differentiable in `trainable_variables`.

        Args:
            inputs: a batch, as the model takes it.

        Returns:
            The model's outputs for what passes the bottleneck, and the information that each feature carries
            in nats, (B, *feature map).

        Raises:
            NotEstimatedError: `estimate` has not been called.
            InputError: an input is missing or of the wrong shape.

        Example:
            >>> iba = IBAReadout("conv", ["conv", "logits"], model)
            >>> iba.estimate(model, batches)
            >>> loss, optimizer = keras.losses.MeanSquaredError(), keras.optimizers.Adam(3e-4)
            >>> with tf.GradientTape() as tape:
            ...     output, capacity = iba.restricted(x)
            ...     objective = loss(model(x), output) + tf.reduce_mean(capacity)
            >>> gradients = tape.gradient(objective, iba.trainable_variables)
            >>> optimizer.apply(gradients, iba.trainable_variables)
        """
        plain = tf.autograph.experimental.do_not_convert(self._restricted)
        found: tuple[Any, tf.Tensor] = plain(inputs)
        return found

    def _restricted(self, inputs: Inputs) -> tuple[Any, tf.Tensor]:
        known = self._what_is_known()
        with self._passes.nested_pass(self._passes.to_inputs(inputs)) as nested:
            features, readout_features = nested.features, nested.readout_features
            known.readout.check(features, readout_features, self._passes.names)
            noise = tf.random.normal(tf.shape(features), dtype=known.constants.mean.dtype)
            restricted = known.readout.restricted(
                self._weights(),
                features,
                readout_features,
                noise,
                known.constants,
                evidence=self._evidence(self._passes, known, nested),
            )
            return nested.outputs(restricted.z), restricted.capacity

    def state_dict(self) -> dict[str, Any]:
        """Everything that has been learnt and estimated, as arrays by name, channels first, and ``facts``.

        Raises:
            NotEstimatedError: there is no network yet.
        """
        state = self.state()
        return {**state.arrays(), "facts": state.facts}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Replace the present state by one that `state_dict` gave.

        Raises:
            StateError: something is missing, or it is the state of a readout of other layers. Nothing has
                changed then.
        """
        arrays = {name: value for name, value in state.items() if name != "facts"}
        self.load_state(ReadoutState.of(arrays, state.get("facts", {})))

    # -- what the core asks for -----------------------------------------------------------------------

    def _readout_model(self, model: Any = None, device: Any = None) -> KerasReadoutModel:
        if model is not None and model is not self.model:
            shown = getattr(model, "name", type(model).__name__)
            raise InputError(f"model={shown!r} is not the model that the readout was made for")
        if device is None:
            return self._passes
        require_text("device", device, "the name of a device, such as '/GPU:0'")
        try:
            tf.DeviceSpec.from_string(device)
        except ValueError as error:
            raise InputError(f"device={device!r} is no device of TensorFlow: {error}") from error
        return self._passes.on(device)

    def _settings(self) -> BottleneckSettings:
        values = {
            "initial_alpha": self.initial_alpha,
            "min_std": self.min_std,
            "smooth_std": self.sigma,
            "active_neurons_threshold": self.active_neurons_threshold,
        }
        return BottleneckSettings(**plain_settings(values, {"smooth_std": "sigma"}))

    def _checked_input(self, input_t: Inputs) -> tuple[tf.Tensor, ...]:
        inputs: tuple[tf.Tensor, ...] = require_inputs("input_t", input_t, self._passes.to_inputs)
        self._passes.check(inputs)
        return inputs

    def _weights(self) -> list[tf.Tensor]:
        variables = [tf.convert_to_tensor(variable) for variable in self.network.trainable_variables]
        return [tf.transpose(each[0]) if len(each.shape) == 3 else each for each in variables]

    def _set_weights(self, weights: Sequence[npt.NDArray[np.floating]]) -> None:
        self.network.set_weights([_kernel(weight) for weight in weights])

    def _make_layers(self, weights: Sequence[npt.NDArray[np.floating]]) -> keras.Sequential:
        kernels = weights[::2]
        options = {"dtype": str(kernels[0].dtype), "data_format": "channels_last"}
        network = keras.Sequential(name="readout")
        network.add(keras.Input((None, kernels[0].shape[1]), dtype=options["dtype"]))
        for index, kernel in enumerate(kernels):
            activation = "relu" if index < len(kernels) - 1 else None
            network.add(keras.layers.Conv1D(len(kernel), 1, activation=activation, **options))
        network.set_weights([_kernel(weight) for weight in weights])
        return network

    def _precision(self) -> str:
        return self._passes.precision

    def _draw_seed(self) -> int:
        # NumPy's own generator, which `keras.utils.set_random_seed` governs, too.
        return int(np.random.randint(2**31))

    def _sources(self) -> tuple[Hashable, list[Any]]:
        given = [self.feature_mean, self.feature_std]
        # Estimators of your own may keep something else than moments.
        seen = [each.moments for each in self._all_estimators()]
        version = tuple(map(id, (*given, *seen, *self._all_estimators(), self.network)))
        return version, [*given, *seen, *self._all_estimators(), self.network]

    @forgotten_if_interrupted
    def _make_known(self, sources: Sequence[Any]) -> Known:
        # The constants outlive the function that may be traced right now.
        with tf.init_scope():
            return super()._make_known(sources)

    def _take_in(self, estimator: WelfordEstimator, features: tf.Tensor) -> None:
        estimator.fit(np.asarray(tf.cast(features, tf.float64)))

    def _used_by(self, estimator: WelfordEstimator) -> Sequence[Any]:
        kinds = (keras.Model, TensorFlowAdapter, tf.Graph, tf.Tensor)
        return [self.model, *(value for value in vars(estimator).values() if isinstance(value, kinds))]

    def _moments_of(self, estimator: WelfordEstimator) -> Mapping[str, npt.ArrayLike]:
        return estimator.state_dict()

    def _set_moments(
        self, estimator: WelfordEstimator, moments: Mapping[str, npt.NDArray[Any]], dtype: np.dtype[Any]
    ) -> None:
        estimator.load_state_dict(dict(moments))

    def _given(self, array: npt.NDArray[np.floating]) -> npt.NDArray[np.floating]:
        return array

    def _guessed_formats(self, shapes: Sequence[tuple[int, ...]]) -> list[DataFormat]:
        return self._passes.data_formats()

    def _as_loss(self, loss: Callable[..., Any]) -> Callable[..., Any]:
        if isinstance(loss, keras.losses.Loss):
            return lambda output, target, *rest: loss(target, output)
        return loss


def _kernel(weight: npt.NDArray[np.floating]) -> npt.NDArray[np.floating]:
    """A weight (outputs, inputs) as Keras keeps it, (1, inputs, outputs); a bias as it is."""
    return weight.T[None] if weight.ndim == 2 else weight
