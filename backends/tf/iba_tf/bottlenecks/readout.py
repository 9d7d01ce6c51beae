"""The Readout Bottleneck for Keras: a network, trained once, gives the mask of every image in one pass."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from copy import copy
from os import PathLike
from typing import Any, Literal, NamedTuple, Self

import keras
import numpy as np
import numpy.typing as npt
import tensorflow as tf

from iba_core.bottleneck.estimator import WelfordEstimator
from iba_core.bottleneck.settings import BottleneckSettings
from iba_core.bottleneck.statistics import Statistics
from iba_core.bottleneck.saliency import saliency_maps
from iba_core.errors import InputError, LayerError, NotEstimatedError, OptimizationError
from iba_core.framework.adapter import Inputs
from iba_core.framework.framework import require_finite
from iba_core.framework.inputs import batch_size, inputs_of_batch, take
from iba_core.framework.layout import DataFormat, Layout, Tokens
from iba_core.framework.namespace import host_array
from iba_core.readout.formulas import Place, Readout, ReadoutConstants, Restricted
from iba_core.readout.state import (
    GIVEN,
    SETTINGS,
    ReadoutState,
    from_channels_first,
    settings_of,
    to_channels_first,
)
from iba_core.readout.training import (
    BETA,
    LEARNING_RATE,
    WARM_UP,
    EpochReport,
    NestedPass,
    ReadoutModel,
    ReadoutTrainer,
    TrainingSettings,
)
from iba_core.utils import get_tqdm
from iba_tf.adapter import TensorFlowAdapter
from iba_tf.graphs.calls import CallGraph
from iba_tf.graphs.keras_split import KerasSplit
from iba_tf.tracing import traced

Mode = Literal["saliency", "capacity"]


class IBAReadout:
    """A bottleneck whose mask is read out of the feature maps of several layers.

    The per-sample bottleneck optimises its mask anew for every image. Here a network of three 1x1
    convolutions learns to give the mask's parameter alpha. It reads the features of some layers, which a
    nested, unrestricted pass of the model brings about; layers behind the bottleneck may be among them, and
    dense ones. Explaining an image then costs that pass and one restricted pass.

    The network is made once the features' distribution is known: first `estimate`, then `fit`, or a loop of
    your own over `trainable_variables`, which are those of the network alone. At the start alpha is
    `initial_alpha` everywhere. The model is never altered.

    Args:
        attach_layer: the layer after which the bottleneck goes; a layer of the model, its name
            (``"backbone/conv5"`` in a nested model), or the symbolic tensor itself.
        readout_layers: the layers to read, likewise. Of one that runs more than once in a pass, name the
            call: ``"relu:2"``.
        model: the functional or sequential model that all of them are part of.
        estimator_type: class of the estimators, of the bottleneck's too unless `estimator` is given: a
            `WelfordEstimator`, which is what None stands for, or one derived from it.
        sigma: standard deviation of the Gaussian that smooths the mask, in features; None or 0 for no
            smoothing.
        min_std: floor of the features' standard deviation.
        initial_alpha: start value of the mask's parameter; at 5 almost everything passes.
        active_neurons_threshold: a neuron that is nonzero in no more than this share of the estimation
            samples is set to 0 and carries no information.
        feature_mean: mean of the bottleneck's features, of the shape of one feature map, in place of an
            estimator.
        feature_std: their standard deviation, likewise.
        estimator: estimates both.
        progbar: show the progress.
        relu: clip the restricted features at 0.
        tokens: how to read features that are a sequence of tokens, such as ``Tokens(prefix=1)``.
        data_format: where the channels of the bottleneck's features are; None to conclude it from the
            layers.
        jit_compile: compile the steps of a training with XLA.
        robust: normalise the features that are read by mean and standard deviation of their channel over all
            places, not of each feature, and bound them: for training on few images.

    Attributes:
        model: the model.
        network: the readout network, a `keras.Sequential` over (B, places, channels); None before it is made.
        estimators: one for each of the readout layers, in their order.
        outputs: what the model made of what passed the bottleneck, for the last input analysed.
        history: an `EpochReport` for each epoch of the last training.

    Raises:
        InputError: an argument is out of its range.
        LayerError: the model has no such layer, or no graph of layers.

    Example:
        >>> iba = IBAReadout("conv2", ["conv2", "conv4", "dense"], model)  # doctest: +SKIP
        >>> iba.estimate(model, batches)  # doctest: +SKIP
        >>> loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)  # doctest: +SKIP
        >>> iba.fit(batches, loss, epochs=20)  # doctest: +SKIP
        >>> saliency = iba.analyze(image[None])  # doctest: +SKIP
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
    ) -> None:
        if isinstance(readout_layers, str) or not isinstance(readout_layers, Sequence) or not readout_layers:
            raise InputError(f"readout_layers={readout_layers!r} must be a list of one layer or more")
        if (feature_mean is None) != (feature_std is None):
            raise InputError("feature_mean and feature_std go together; give both or neither")
        make_estimator = WelfordEstimator if estimator_type is None else estimator_type
        graph = CallGraph.of(model)
        self.model = model
        self.sigma = sigma
        self.min_std = min_std
        self.initial_alpha = initial_alpha
        self.active_neurons_threshold = active_neurons_threshold
        self.feature_mean = None if feature_mean is None else np.asarray(feature_mean, np.float64)
        self.feature_std = None if feature_std is None else np.asarray(feature_std, np.float64)
        self.progbar = progbar
        self.relu = relu
        self.robust = robust
        self.tokens = tokens
        self.data_format = data_format
        self._settings()
        self.estimator = make_estimator() if estimator is None else estimator
        self.estimators = [make_estimator() for _ in readout_layers]
        self.network: keras.Sequential | None = None
        self.outputs: Any = None
        self.history: list[EpochReport] = []
        self._adapter = TensorFlowAdapter(model, jit_compile=jit_compile)
        self._passes = _Passes(graph, attach_layer, readout_layers)
        self._known: _Known | None = None
        self._explain = traced(self._trace_explanation)

    @property
    def trainable_variables(self) -> list[keras.Variable]:
        """The variables of the network, for a training loop of one's own.

        Raises:
            NotEstimatedError: there is no network yet.
        """
        self._require_estimated()
        return self.network.trainable_variables

    # -- the distribution of the features -------------------------------------------------------------

    def reset_estimate(self) -> None:
        """Forget the distribution of the features, of the bottleneck and of every readout layer.

        The estimators stay the objects that they were, and so does the network. A given `feature_mean` and
        `feature_std` are dropped.
        """
        for estimator in (self.estimator, *self.estimators):
            estimator.reset()
        self.feature_mean = self.feature_std = self._known = None

    def estimate(
        self,
        model: keras.Model,
        dataloader: Iterable[Any],
        n_samples: int = 10000,
        progbar: bool | None = None,
        reset: bool = True,
    ) -> None:
        """Estimate mean and standard deviation of the bottleneck's and of all readout layers' features.

        One pass of the model serves all of them. The network is made, if it is not there; one that is there
        stays as it is.

        Args:
            model: the model with the bottleneck.
            dataloader: an iterable of batches, each the inputs or a tuple (inputs, ...), such as a
                `tf.data.Dataset`.
            n_samples: stop after exactly so many; fewer are used where the data end before.
            progbar: show the progress; the constructor's choice if None.
            reset: forget what has been estimated before; otherwise go on from there.

        Raises:
            InputError: the data hold fewer than two samples, or features that are not finite; or there is a
                network already, made for other numbers of channels.
        """
        if n_samples < 1:
            raise InputError(f"n_samples={n_samples} must be 1 or more")
        self._require_own(model)
        if reset:
            self.reset_estimate()
        self._known, seen = None, 0
        show = self.progbar if progbar is None else progbar
        with get_tqdm()(total=n_samples, desc="Estimating", unit="img", disable=not show) as bar:
            for batch in dataloader:
                inputs = take(inputs_of_batch(batch), 0, n_samples - seen)
                images = batch_size(inputs)
                for estimator, features in zip(
                    (self.estimator, *self.estimators), self._passes.features(inputs), strict=True
                ):
                    estimator.fit(np.asarray(tf.cast(features, tf.float64)))
                seen += images
                bar.update(images)
                if seen >= n_samples:
                    break
        total = self.estimators[0].n_samples()
        if total < 2:
            raise InputError(
                f"dataloader held {total} samples; at least 2 are needed to estimate the features' "
                "distribution, and about 10000 are advised"
            )
        self._make_network()

    # -- explaining -----------------------------------------------------------------------------------

    def analyze(
        self,
        input_t: Inputs,
        model: keras.Model | None = None,
        mode: Mode = "saliency",
        *,
        pass_mask: npt.ArrayLike | None = None,
        **kwargs: Any,
    ) -> npt.NDArray[np.floating]:
        """Explain an input: what does the trained network let pass?

        One nested and one restricted pass of the model; nothing is optimised.

        Args:
            input_t: (B, H, W, C), images; or several inputs, as a tuple or a dict by their names.
            model: the model that contains the bottleneck.
            mode: ``"saliency"`` for a map of the input, ``"capacity"`` for the features.
            pass_mask: True where features pass unchanged and carry no capacity, of the shape of a feature
                map or of a batch of them. For padding.
            **kwargs: ignored, so that calls written for the per-sample bottleneck can stay.

        Returns:
            For ``"saliency"``, an array (H, W) in bits per pixel whose sum is the total of bits, (B, H, W)
            for more than one image. For ``"capacity"``, an array of the shape of the feature map in nats,
            (B, *feature map) for more than one image.

        Raises:
            NotEstimatedError: `estimate` has not been called.
            InputError: an argument is out of its range, of the wrong shape or not finite.
            OptimizationError: the network's output is not finite.
        """
        if mode not in ("saliency", "capacity"):
            raise InputError(f"mode={mode!r} is neither 'saliency' nor 'capacity'")
        self._require_own(model)
        known = self._knowledge()
        place = known.readout.place
        inputs = self._passes.prepare(input_t)
        self._passes.require_finite(inputs)
        images = int(inputs[0].shape[0])
        passing = None if pass_mask is None else tf.constant(place.passing(pass_mask, images))
        with self._passes.open(inputs) as nested:
            known.readout.check(nested.features, nested.reads, self._passes.names)
            capacity, self.outputs = self._explain(
                self._weights(), nested, self._noise(nested), known.constants, passing
            )
        nats = self._adapter.to_numpy(capacity)
        if not np.isfinite(nats).all():
            raise OptimizationError(
                "the capacity is not finite: train the readout network anew, or look for features that are "
                "not finite for this input"
            )
        if mode == "capacity":
            return nats if images > 1 else nats[0]
        spatial = self._passes.spatial_shape(inputs[0])
        fits = len(spatial) == len(place.layout.places(place.shape))
        maps = saliency_maps(nats, place.layout, spatial if fits else None)
        return maps if images > 1 else maps[0]

    @tf.autograph.experimental.do_not_convert
    def restricted(self, inputs: Inputs) -> tuple[Any, tf.Tensor]:
        """The model's output where the flow is restricted, for a training loop of one's own.

        Both results are differentiable in `trainable_variables`.

        Args:
            inputs: a batch, as the model takes it.

        Returns:
            What the model makes of what passes the bottleneck, and the information that each feature carries
            in nats, (B, *feature map).

        Raises:
            NotEstimatedError: `estimate` has not been called.
            InputError: an input is missing or of the wrong shape.

        Example:
            >>> with tf.GradientTape() as tape:  # doctest: +SKIP
            ...     output, capacity = iba.restricted(images)
            ...     objective = loss(target, output) + tf.reduce_mean(capacity)
            >>> gradients = tape.gradient(objective, iba.trainable_variables)  # doctest: +SKIP
            >>> optimizer.apply(gradients, iba.trainable_variables)  # doctest: +SKIP
        """
        known = self._knowledge()
        with self._passes.open(self._passes.prepare(inputs)) as nested:
            known.readout.check(nested.features, nested.reads, self._passes.names)
            restricted = self._restricted(self._weights(), nested, self._noise(nested), known.constants, None)
            return self._passes.tail(restricted.z, nested.carry), restricted.capacity

    def _restricted(
        self,
        weights: Sequence[tf.Tensor],
        nested: NestedPass,
        noise: tf.Tensor,
        constants: ReadoutConstants,
        passing: tf.Tensor | None,
    ) -> Restricted:
        readout = self._knowledge().readout
        features, *reads = (tf.cast(each, noise.dtype) for each in (nested.features, *nested.reads))
        alpha = readout.alpha(weights, reads, constants)
        return readout.restrict(alpha, features, noise, constants, passing)

    def _trace_explanation(
        self,
        weights: Sequence[tf.Tensor],
        nested: NestedPass,
        noise: tf.Tensor,
        constants: ReadoutConstants,
        passing: tf.Tensor | None,
    ) -> tuple[tf.Tensor, Any]:
        restricted = self._restricted(weights, nested, noise, constants, passing)
        return restricted.capacity, self._passes.tail(restricted.z, nested.carry)

    def _noise(self, nested: NestedPass) -> tf.Tensor:
        return tf.random.normal(tf.shape(nested.features), dtype=self._passes.precision)

    # -- training -------------------------------------------------------------------------------------

    def fit(
        self,
        loader: Iterable[Any],
        loss: Callable[..., tf.Tensor],
        *,
        epochs: int = 10,
        lr: float = LEARNING_RATE,
        beta: float = BETA,
        validation: Iterable[Any] | None = None,
        patience: int = 3,
        checkpoint: str | PathLike[str] | None = None,
        seed: int | None = None,
        progbar: bool | None = None,
        warm_up: int = WARM_UP,
        beta_steps: int | None = None,
    ) -> list[EpochReport]:
        """Train the readout network by Adam.

        The objective is ``loss + beta * mean(capacity)``, as in the paper's section 3.3, with the model in
        inference mode. A step is compiled once for each shape of a batch, so let all have the same. How the
        mask is kept from closing at first, `iba_core.readout.training` tells.

        Args:
            loader: the data, to be gone through once an epoch: batches of inputs, or tuples (inputs, ...),
                such as a `tf.data.Dataset`.
            loss: a loss of Keras, which gets the entry that follows the inputs in a batch and the model's
                output; or any function ``loss(output, ...)`` of the output and all that follows. It gives a
                loss for each image or the mean over the batch.
            epochs: how often to go through the data, those before an interruption included.
            lr: learning rate of Adam.
            beta: weight of the mean information, in nats per feature. A network that has to do for all
                images needs more information than a mask made for one, and at the per-sample bottleneck's 10
                it would soon give up the loss: the default is a tenth of that.
            validation: data like those of `loader`. The objective on them, always under the same noise,
                decides which epoch's weights are kept at the end, and when to stop.
            patience: stop after so many epochs without improvement on the validation data.
            checkpoint: a safetensors file, written after each epoch. If it exists, training resumes from
                it: the network, its optimiser, the features' distribution and the history are taken over.
            seed: makes the noise a function of it and the step, the same in every framework. With data in
                an order of their own, a resumed training then ends as an uninterrupted one.
            progbar: show the progress; the constructor's choice if None.
            warm_up: number of first steps in which nothing but the level of the mask is trained; 0 for a
                readout that starts half open.
            beta_steps: number of first steps over which `beta` rises from 3 % of its value; those of the
                warm-up if None.

        Returns:
            A report for each epoch, also kept as `history`.

        Raises:
            NotEstimatedError: `estimate` has not been called.
            InputError: an argument is out of its range, the data are empty, or the loss is neither a scalar
                nor one for each image.
            StateError: the checkpoint is truncated, of another kind or of another network.
            OptimizationError: the objective turned NaN or infinite.
        """
        settings = TrainingSettings(epochs, lr, beta, patience, seed, warm_up, beta_steps)
        show = self.progbar if progbar is None else progbar
        trainer = ReadoutTrainer(_TrainedModel(self), _as_function(loss), settings, checkpoint, show)
        try:
            trainer.run(loader, validation)
        finally:
            self.history = trainer.reports
        return list(self.history)

    # -- state ----------------------------------------------------------------------------------------

    def save(self, path: str | PathLike[str]) -> None:
        """Write everything that has been learnt and estimated, and the settings, to a safetensors file.

        `iba_torch.IBAReadout` reads it, too.

        Args:
            path: the file; its folder must exist.

        Raises:
            NotEstimatedError: there is no network yet.
            InputError: the folder does not exist.
        """
        self._state().save(path)

    def load(self, path: str | PathLike[str]) -> Self:
        """Take over what `save` wrote, here or in `iba_torch.IBAReadout`, in place of what is there.

        Args:
            path: the file of a readout of the same layers.

        Returns:
            The readout.

        Raises:
            StateError: the file is missing, truncated, of another kind or of other layers; nothing is
                changed then.
        """
        self._load_state(ReadoutState.read(path))
        return self

    def state_dict(self) -> dict[str, Any]:
        """Everything that has been learnt and estimated, as arrays by name, channels first, and ``facts``.

        Raises:
            NotEstimatedError: there is no network yet.
        """
        state = self._state()
        return {**state.arrays(), "facts": state.facts}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over a state that `state_dict` gave.

        Raises:
            StateError: something is missing, or it is the state of a readout of other layers; nothing is
                changed then.
        """
        arrays = {name: value for name, value in state.items() if name != "facts"}
        self._load_state(ReadoutState.of(arrays, state.get("facts", {})))

    def _state(self) -> ReadoutState:
        self._require_estimated()
        formats = self._formats()
        moments = [
            to_channels_first(estimator.state_dict(), data_format) if estimator.n_samples() else None
            for estimator, data_format in zip((self.estimator, *self.estimators), formats, strict=True)
        ]
        given = None
        if self.feature_mean is not None:
            arrays = {name: getattr(self, name) for name in GIVEN}
            mean, std = to_channels_first(arrays, formats[0]).values()
            given = mean, std
        layer, *reads = self._passes.names
        return ReadoutState(
            weights=tuple(np.asarray(weight) for weight in self._weights()),
            estimators=tuple(moments),
            given=given,
            facts={
                "framework": self._adapter.name,
                "layer": layer,
                "readout_layers": reads,
                "data_formats": formats,
                "input_shape": None,
                "settings": settings_of(self),
            },
        )

    def _load_state(self, state: ReadoutState) -> None:
        layer, *reads = self._passes.names
        state.check(self._adapter.name, layer, reads)
        tokens = state.tokens
        formats = self._formats(tokens)
        estimators = [copy(estimator) for estimator in (self.estimator, *self.estimators)]
        for estimator, moments, data_format in zip(estimators, state.estimators, formats, strict=True):
            estimator.reset()
            if moments is not None:
                estimator.load_state_dict(from_channels_first(moments, data_format))
        given = dict.fromkeys(GIVEN)
        if state.given is not None:
            given = from_channels_first(dict(zip(GIVEN, state.given, strict=True)), formats[0])
        for name, value in (*given.items(), *((name, state.settings[name]) for name in SETTINGS)):
            setattr(self, name, value)
        self.estimator, *self.estimators = estimators
        self.tokens, self.network, self._known = tokens, _make_layers(state.weights), None

    # -- what is known before any image ---------------------------------------------------------------

    def _knowledge(self) -> _Known:
        """The formulas and their constants, made anew where something that they depend on has changed."""
        counts = tuple((id(each), each.n_samples()) for each in (self.estimator, *self.estimators))
        given = (id(self.feature_mean), id(self.feature_std))
        key = (self._settings(), self.relu, self.robust, self.tokens, self.data_format, counts, given)
        if self._known is None or self._known.key != key:
            self._require_estimated()
            settings, readout = self._settings(), self._make_readout()
            reads = []
            for estimator in self.estimators:
                mean = estimator.mean()
                reads.append(Statistics(mean, estimator.std(), np.ones(mean.shape, bool)))
            # They outlive the function that may be traced right now.
            with tf.init_scope():
                constants = readout.constants(self._statistics(), reads, settings, self._tensor)
            self._known = _Known(key, readout, constants)
        return self._known

    def _settings(self) -> BottleneckSettings:
        return BottleneckSettings(
            initial_alpha=self.initial_alpha,
            min_std=self.min_std,
            smooth_std=self.sigma,
            active_neurons_threshold=self.active_neurons_threshold,
        )

    def _statistics(self) -> Statistics:
        if self.feature_mean is not None:
            return Statistics(self.feature_mean, self.feature_std, np.ones(self.feature_mean.shape, bool))
        return Statistics.of(self.estimator, self.active_neurons_threshold)

    def _tensor(self, array: npt.ArrayLike) -> tf.Tensor:
        """`array` in the precision of the bottleneck."""
        tensor = tf.convert_to_tensor(np.asarray(array))
        return tf.cast(tensor, self._passes.precision) if tensor.dtype.is_floating else tensor

    def _formats(self, tokens: Tokens | None = None) -> list[DataFormat]:
        """Where the channels are: of tokens, they are always last."""
        own = "channels_last" if (tokens or self.tokens) is not None else self.data_format
        return [own or self._passes.formats[0], *self._passes.formats[1:]]

    def _make_readout(self) -> Readout:
        own = self.estimator.mean() if self.feature_mean is None else self.feature_mean
        shapes = [own.shape, *(estimator.mean().shape for estimator in self.estimators)]
        places = [
            Place(shape, Layout.of(shape, data_format, None if index else self.tokens))
            for index, (shape, data_format) in enumerate(zip(shapes, self._formats(), strict=True))
        ]
        return Readout(places[0], tuple(places[1:]), self.relu, self.robust)

    def _make_network(self) -> None:
        readout = self._make_readout()
        if self.network is None:
            # A number of NumPy's own generator, which `keras.utils.set_random_seed` governs, too.
            seed = int(np.random.randint(2**31))
            weights = readout.initial_weights(self.initial_alpha, seed)
            self.network = _make_layers([weight.astype(self._passes.precision) for weight in weights])
        elif [weight.shape for weight in self._weights()] != list(readout.weight_shapes):
            raise InputError(
                f"the layers now have the channels {readout.sizes}, but the readout network was made for "
                "others; make a new IBAReadout"
            )

    def _weights(self) -> list[tf.Tensor]:
        """The network's weights, see `iba_core.readout.formulas.Weights`."""
        variables = [tf.convert_to_tensor(variable) for variable in self.network.trainable_variables]
        return [tf.transpose(each[0]) if len(each.shape) == 3 else each for each in variables]

    def _set_weights(self, weights: Sequence[npt.NDArray[np.floating]]) -> None:
        self.network.set_weights([_kernel(weight) for weight in weights])

    def _require_estimated(self) -> None:
        own = self.feature_mean is not None or self.estimator.n_samples() > 1
        reads = all(estimator.n_samples() > 1 for estimator in self.estimators)
        if self.network is None or not own or not reads:
            raise NotEstimatedError(
                "the features' distribution at the bottleneck and the readout layers is not estimated; "
                "call estimate(model, dataloader) first"
            )

    def _require_own(self, model: Any) -> None:
        if model is not None and model is not self.model:
            shown = getattr(model, "name", type(model).__name__)
            raise InputError(f"model={shown!r} is not the model that the readout was made for")


class _Known(NamedTuple):
    """The formulas of a readout and their constants."""

    key: Any
    """What they depend on."""
    readout: Readout
    constants: ReadoutConstants


class _Passes:
    """The passes of a model that a readout needs.

    Args:
        graph: the model.
        attach_layer: what stands for the place of the bottleneck.
        readout_layers: what stands for the layers that are read.

    Attributes:
        names: of the bottleneck's layer and of the layers read.
        formats: where their channels are.
        precision: of the bottleneck, ``"float32"`` or ``"float64"``.

    Raises:
        LayerError: the model has no such layer.
    """

    def __init__(self, graph: CallGraph, attach_layer: Any, readout_layers: Sequence[Any]) -> None:
        place, slot = graph.find(attach_layer)
        found = [graph.find(layer) for layer in readout_layers]
        for read, number in found:
            tensor = graph.tensors[number]
            if not tf.as_dtype(tensor.dtype).is_floating or len(tensor.shape) < 2:
                raise LayerError(
                    f"layer {read.name!r} gives {tensor.dtype} of shape {tuple(tensor.shape)}; "
                    "only a batch of floating-point feature maps can be read"
                )
        self.names = [place.name, *(read.name for read, _ in found)]
        self._graph = graph
        self._cut = KerasSplit(graph, place, slot)
        self._slots = [slot, *(number for _, number in found)]
        self.formats = [self._cut.data_format, *(graph.data_format(number) for _, number in found)]
        self.precision = "float64" if graph.tensors[slot].dtype == "float64" else "float32"
        # A smaller last batch of a data set must not cost one more trace for each of its sizes.
        self._read = traced(self._trace, reduce_retracing=True)

    def prepare(self, inputs: Inputs) -> tuple[tf.Tensor, ...]:
        """The inputs as tensors, in the order and of the dtypes in which the model takes them.

        Raises:
            InputError: an input is missing, empty or of the wrong shape.
        """
        tensors = tuple(self._graph.prepare(inputs))
        for tensor, slot in zip(tensors, self._graph.inputs, strict=True):
            if tensor.shape[0] == 0:
                raise InputError(f"input {self._graph.tensors[slot].name!r} is an empty batch")
        return tensors

    def require_finite(self, inputs: tuple[tf.Tensor, ...]) -> None:
        """Make sure that no input holds NaN or infinite values.

        Raises:
            InputError: one does.
        """
        for tensor, slot in zip(inputs, self._graph.inputs, strict=True):
            if tensor.dtype.is_floating:
                require_finite(host_array(tensor), f"input_t[{self._graph.tensors[slot].name!r}]")

    def features(self, inputs: Inputs) -> tuple[tf.Tensor, ...]:
        """Feature maps at the bottleneck and of the layers read, by one unrestricted pass."""
        return self._read(self.prepare(inputs))

    @contextmanager
    def open(self, inputs: tuple[tf.Tensor, ...]) -> Iterator[NestedPass]:
        """The unrestricted pass on `inputs`, after which `tail` is ready for them."""
        _, *reads = self._read(inputs)
        with self._cut.open(inputs) as head:
            yield NestedPass(head.features, tuple(reads), head.carry)

    def tail(self, z: tf.Tensor, carry: tuple[tf.Tensor, ...]) -> Any:
        """See `Split.tail`."""
        return self._cut.tail(z, carry)

    def spatial_shape(self, images: tf.Tensor) -> tuple[int, ...]:
        """Sizes of the spatial axes of the model's first input; none where it has no channels."""
        shape = tuple(images.shape[1:])
        if not 1 < len(shape) <= 4:
            return ()
        return Layout.of(shape, self._cut.input_format).spatial_shape(shape)

    def _trace(self, inputs: tuple[tf.Tensor, ...]) -> tuple[tf.Tensor, ...]:
        graph = self._graph
        calls = graph.needed_for(self._slots, given=graph.inputs)
        values = graph.run(calls, dict(zip(graph.inputs, inputs, strict=True)))
        return tuple(values[slot] for slot in self._slots)


class _TrainedModel(ReadoutModel):
    """A model with a readout in it, as the training sees it."""

    def __init__(self, bottleneck: IBAReadout) -> None:
        self.adapter = bottleneck._adapter
        self._bottleneck = bottleneck
        self._passes = bottleneck._passes

    @property
    def readout(self) -> Readout:
        return self._bottleneck._knowledge().readout

    def to_batch(self, batch: Any) -> tuple[Inputs, tuple[Any, ...]]:
        rest = batch[1:] if isinstance(batch, (tuple, list)) else ()
        return self._passes.prepare(inputs_of_batch(batch)), tuple(map(_as_tensors, rest))

    @contextmanager
    def open(self, inputs: Inputs) -> Iterator[NestedPass]:
        with self._passes.open(inputs) as nested:
            self.readout.check(nested.features, nested.reads, self._passes.names)
            yield nested

    def tail(self, z: tf.Tensor, carry: tuple[tf.Tensor, ...]) -> Any:
        return self._passes.tail(z, carry)

    def tensor(self, array: npt.ArrayLike) -> tf.Tensor:
        return self._bottleneck._tensor(np.asarray(array))

    def constants(self) -> ReadoutConstants:
        return self._bottleneck._knowledge().constants

    def state(self) -> ReadoutState:
        return self._bottleneck._state()

    def load(self, state: ReadoutState) -> None:
        self._bottleneck._load_state(state)

    def set_weights(self, weights: Sequence[npt.NDArray[np.floating]]) -> None:
        self._bottleneck._set_weights(weights)


def _as_tensors(values: Any) -> Any:
    """What follows the inputs in a batch, as tensors."""
    return keras.tree.map_structure(tf.convert_to_tensor, values)


def _as_function(loss: Callable[..., tf.Tensor]) -> Callable[..., tf.Tensor]:
    """A loss as a function of the model's output first; Keras has it second."""
    if isinstance(loss, keras.losses.Loss):
        return lambda output, target, *rest: loss(target, output)
    return loss


def _make_layers(weights: Sequence[npt.NDArray[np.floating]]) -> keras.Sequential:
    """1x1 convolutions over flattened places, with ReLUs between."""
    kernels = weights[::2]
    dtype = str(kernels[0].dtype)
    network = keras.Sequential([keras.Input((None, kernels[0].shape[1]), dtype=dtype)], name="readout")
    for index, kernel in enumerate(kernels):
        activation = "relu" if index < len(kernels) - 1 else None
        network.add(
            keras.layers.Conv1D(
                kernel.shape[0], 1, data_format="channels_last", activation=activation, dtype=dtype
            )
        )
    network.set_weights([_kernel(weight) for weight in weights])
    return network


def _kernel(weight: npt.NDArray[np.floating]) -> npt.NDArray[np.floating]:
    """A weight (outputs, inputs) as Keras keeps it, (1, inputs, outputs); a bias as it is."""
    return weight.T[None] if weight.ndim == 2 else weight
