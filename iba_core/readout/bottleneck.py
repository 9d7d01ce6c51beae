"""What a readout bottleneck does in every framework: estimate, train, explain, and keep its state."""

from __future__ import annotations

import copy
import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from os import PathLike
from typing import Any, ClassVar, Literal, NamedTuple, Self

import numpy as np
import numpy.typing as npt

from iba_core.arguments import require_bool, require_callable, require_choice, require_whole
from iba_core.bottleneck.saliency import saliency_maps
from iba_core.bottleneck.settings import BottleneckSettings
from iba_core.bottleneck.statistics import Statistics
from iba_core.errors import InputError, NotEstimatedError, OptimizationError
from iba_core.files import as_path
from iba_core.framework.adapter import Inputs, Tail
from iba_core.framework.cache import Cache
from iba_core.framework.inputs import (
    InputShape,
    arrays_of,
    batch_size,
    common_shape,
    require_batches,
    require_inputs,
    samples_of,
    take,
)
from iba_core.framework.layout import DataFormat, Layout, Tokens
from iba_core.framework.namespace import Array, array_namespace, host_array
from iba_core.readout.evidence import AnswerReader
from iba_core.readout.formulas import FeatureMap, Readout, ReadoutConstants, Restricted, Weights
from iba_core.readout.model import NestedPass, ReadoutModel
from iba_core.readout.state import (
    GIVEN,
    SETTINGS,
    ReadoutState,
    from_channels_first,
    settings_of,
    to_channels_first,
)
from iba_core.readout.teacher import TeacherMasks, require_teacher
from iba_core.readout.training import (
    BETA,
    LEARNING_RATE,
    WARM_UP,
    EpochReport,
    Loss,
    Progress,
    ReadoutTrainer,
    TrainingSettings,
    read_checkpoint,
)

Mode = Literal["saliency", "capacity"]


class Known(NamedTuple):
    """What is known about a readout before any image is seen."""

    readout: Readout
    constants: ReadoutConstants
    sources: Sequence[Any]
    """What both were computed from. It is kept, so that no other object can get the same identity."""


class ReadoutBottleneck(ABC):
    """A bottleneck whose mask is computed from the features of several layers.

    The per-sample bottleneck optimises its mask anew for every image. Here a network of three 1x1
    convolutions learns to give the mask's parameter alpha. Its input is the features of the readout layers,
    from a nested, unrestricted pass of the model. Layers after the bottleneck may be among them, and dense
    ones. So an explanation costs that pass and one restricted pass. The model is never altered.

    The network is made once the features' distribution is known: first call `estimate`, then `fit`, or write
    a training loop of your own. At the start alpha is `initial_alpha` everywhere.

    Each framework derives its `IBAReadout` from this class. It adds how to get into a model, the network as
    layers of the framework, and the estimators.

    Attributes:
        network: the readout network; None before it is made.
        estimators: one for each readout layer, in their order.
        outputs: the model's outputs for what passed the bottleneck, for the last input analysed.
        history: an `EpochReport` for each epoch of the last training.
    """

    sigma: float | None
    min_std: float
    initial_alpha: float
    active_neurons_threshold: float
    relu: bool
    robust: bool
    corners: bool = False
    alpha_bound: float | None = None
    gradients: bool = False
    progbar: bool
    tokens: Tokens | None
    data_format: DataFormat | None
    beta: float = BETA
    estimator: Any
    estimators: Any
    feature_mean: Any
    feature_std: Any
    network: Any
    alpha: Any
    outputs: Any
    history: list[EpochReport]
    _capacity: Any
    _input_shape: InputShape | None
    _formats: list[DataFormat] | None
    """Where the channels of the layers are, as far as the model has shown it."""
    _foreign: str | None
    """The framework of the file that the distributions come from, as long as `_formats` are a guess."""
    _guesses_formats: ClassVar[bool] = False
    """Whether `_guessed_formats` may be wrong."""
    _known: Cache[Known]
    _explain: Cache[Callable[..., tuple[Restricted, Any]]]
    _answers: Cache[AnswerReader]

    def _set_up(self, robust: bool, gradients: bool) -> None:
        """Set what a readout starts with."""
        self.robust = require_bool("robust", robust)
        self.gradients = require_bool("gradients", gradients)
        self.network = self.alpha = self.outputs = self._capacity = self._input_shape = None
        self.history = []
        self._formats = self._foreign = None
        self._known, self._explain, self._answers = Cache(1), Cache(1), Cache(1)

    # -- what a framework adds ------------------------------------------------------------------------

    @abstractmethod
    def _readout_model(self, model: Any = None, device: Any = None) -> ReadoutModel:
        """The model, or another one that contains it, with the layers of this readout.

        Args:
            model: the other one.
            device: where to bring the data; the model's own device if None.
        """

    @abstractmethod
    def _settings(self) -> BottleneckSettings:
        """The settings, checked."""

    @abstractmethod
    def _checked_input(self, input_t: Inputs) -> Inputs:
        """Make tensors of what is to be explained, checked as far as that can be done without the model."""

    @abstractmethod
    def _weights(self) -> list[Array]:
        """Weights of the network."""

    @abstractmethod
    def _set_weights(self, weights: Sequence[npt.NDArray[np.floating]]) -> None:
        """Replace the weights of the network by arrays on the host."""

    @abstractmethod
    def _make_layers(self, weights: Sequence[npt.NDArray[np.floating]]) -> Any:
        """Make a network with these weights: 1x1 convolutions over flattened places, with ReLUs between."""

    @abstractmethod
    def _precision(self) -> str:
        """``"float64"`` if the bottleneck's features have that dtype, else ``"float32"``."""

    @abstractmethod
    def _draw_seed(self) -> int:
        """Draw a seed by the framework's own generator, so that its global seed governs the network."""

    @abstractmethod
    def _sources(self) -> tuple[Hashable, list[Any]]:
        """What the formulas are computed from, besides settings.

        Returns:
            A key that changes whenever any of it does, and objects that must live as long as the key counts.
        """

    @abstractmethod
    def _take_in(self, estimator: Any, features: Array) -> None:
        """Show a batch of features to an estimator."""

    @abstractmethod
    def _used_by(self, estimator: Any) -> Sequence[Any]:
        """Models and graphs that an estimator may compute features with; they are no part of its state."""

    @abstractmethod
    def _moments_of(self, estimator: Any) -> Mapping[str, npt.ArrayLike]:
        """State of an estimator by the names of `iba_core.bottleneck.estimator.STATE`.

        Raises:
            InputError: it is of a type whose state no other framework can read.
        """

    @abstractmethod
    def _set_moments(
        self, estimator: Any, moments: Mapping[str, npt.NDArray[Any]], dtype: np.dtype[Any]
    ) -> None:
        """Set the state of an estimator of features that have the given dtype."""

    @abstractmethod
    def _given(self, array: npt.NDArray[np.floating]) -> Any:
        """`feature_mean` or `feature_std` as the readout keeps them."""

    @abstractmethod
    def _guessed_formats(self, shapes: Sequence[tuple[int, ...]]) -> list[DataFormat]:
        """Where the channels are, if no pass of the model has shown it.

        Args:
            shapes: of the feature maps, that of the bottleneck first.
        """

    def _as_loss(self, loss: Callable[..., Any]) -> Loss:
        """A user's loss as a function of the model's output first."""
        return loss

    # -- the distribution of the features -------------------------------------------------------------

    def reset_estimate(self) -> None:
        """Forget the distribution of the features, at the bottleneck and at every readout layer.

        The estimators stay the same objects, and so does the network. A given `feature_mean` and
        `feature_std` are dropped.
        """
        for estimator in self._all_estimators():
            estimator.reset()
        self.feature_mean = self.feature_std = None
        self._known.clear()

    def estimate(
        self,
        model: Any,
        dataloader: Iterable[Any],
        device: Any = None,
        n_samples: int = 10000,
        progbar: bool | None = None,
        reset: bool = True,
    ) -> None:
        """Estimate mean and standard deviation of the features, at the bottleneck and all readout layers.

        One pass of the model serves all of them. The network is made if there is none; one that is there
        stays as it is. If the estimation fails or is interrupted, everything stays as it was.

        Args:
            model: the model with the bottleneck. It runs in evaluation mode and is left as it was.
            dataloader: an iterable of batches, each the inputs or a tuple (inputs, ...). (In PyTorch, a dict
                is taken for keyword arguments of the model.)
            device: where to bring the data; the model's own device if None.
            n_samples: stop after exactly so many; fewer are used if the data end before.
            progbar: show the progress; the constructor's choice if None.
            reset: forget what has been estimated before; otherwise go on from there.

        Raises:
            InputError: the data hold fewer than two samples, or features that are not finite; or there is a
                network already, made for other numbers of channels.
            LayerError: a layer never runs in the model, or more than once.
        """
        n_samples = require_whole("n_samples", n_samples, 2)
        dataloader = require_batches("dataloader", dataloader)
        require_bool("reset", reset)
        if progbar is not None:
            require_bool("progbar", progbar)
        readout_model = self._readout_model(model, device)
        show = self.progbar if progbar is None else progbar
        with self._all_or_nothing():
            if reset:
                self.reset_estimate()
                self._input_shape = None
            for number, samples in enumerate(samples_of(dataloader, n_samples, show, "dataloader")):
                inputs = require_inputs("dataloader", samples, readout_model.to_inputs)
                if not number:
                    self._formats, self._foreign = readout_model.data_formats(take(inputs, 0, 1)), None
                features = readout_model.features(inputs)
                for estimator, maps in zip(self._all_estimators(), features, strict=True):
                    self._take_in(estimator, maps)
                shape = tuple(int(size) for size in next(arrays_of(inputs)).shape[1:])
                self._input_shape = common_shape(self._input_shape, shape)
            self._check_estimates(readout_model.names)
            self._make_network()

    def _check_estimates(self, names: Sequence[str]) -> None:
        for name, estimator in zip(names, self._all_estimators(), strict=True):
            total = int(estimator.n_samples())
            if total < 2:
                raise InputError(
                    f"dataloader held {total} samples; at least 2 are needed to estimate the features' "
                    "distribution, and about 10000 are advised"
                )
            if not np.isfinite(host_array(estimator.std())).all():
                raise InputError(
                    f"dataloader holds images on which the features of {name!r} are NaN or infinite"
                )

    def _all_estimators(self) -> tuple[Any, ...]:
        return (self.estimator, *self.estimators)

    @contextmanager
    def _all_or_nothing(self) -> Iterator[None]:
        """Context in which an exception undoes every change of this object and its estimators."""
        things = (self, *self._all_estimators())
        before = [_shallow(vars(self)), *map(self._attributes_of, things[1:])]
        try:
            yield
        except BaseException:
            for thing, attributes in zip(things, before, strict=True):
                vars(thing).clear()
                vars(thing).update(attributes)
            self._known.clear()
            raise

    def _attributes_of(self, estimator: Any) -> dict[str, Any]:
        """A copy of an estimator's attributes; it may change its arrays in place."""
        kept = {id(each): each for each in self._used_by(estimator)}
        return copy.deepcopy(vars(estimator), kept)

    # -- explaining -----------------------------------------------------------------------------------

    def analyze(
        self,
        input_t: Inputs,
        model: Any = None,
        mode: Mode = "saliency",
        *,
        pass_mask: npt.ArrayLike | None = None,
        **kwargs: Any,
    ) -> npt.NDArray[np.floating]:
        """Explain an input: what does the trained network let pass?

        It takes one unrestricted and one restricted pass of the model; nothing is optimised. The model is
        left as it was.

        Args:
            input_t: a batch of images, as the model takes them; or several inputs, as a tuple or dict, with
                the batch as the first axis of each.
            model: the model that contains the bottleneck; the constructor's if None.
            mode: ``"saliency"`` for a map of the input, ``"capacity"`` for the features.
            pass_mask: True where features pass unchanged and carry no capacity, of the shape of a feature
                map or of a batch of them. Useful for padding.
            **kwargs: ignored, so that calls written for the per-sample bottleneck keep working.

        Returns:
            For ``"saliency"``, an array (H, W) in bits per pixel whose sum is the total of bits, (B, H, W)
            for more than one image. For ``"capacity"``, an array of the shape of the feature map in nats,
            (B, *feature map) for more than one image.

        Raises:
            NotEstimatedError: `estimate` has not been called.
            InputError: an argument is out of its range, of the wrong shape or not finite.
            LayerError: the model does not run the bottleneck's layer or a readout layer.
            OptimizationError: the network's output is not finite.
        """
        require_choice("mode", mode, ("saliency", "capacity"))
        readout_model, known = self._readout_model(model), self._what_is_known()
        inputs = self._checked_input(input_t)
        if self._foreign is not None:
            self._confirm_formats(readout_model, inputs)
            known = self._what_is_known()
        framework, bottleneck = readout_model.framework, known.readout.bottleneck
        images = batch_size(inputs)
        mask = None if pass_mask is None else bottleneck.checked_mask(pass_mask, images)
        explain = self._explain.get(framework.name, lambda: framework.compile(_explain))
        with readout_model.nested_pass(inputs) as nested:
            known.readout.check(nested.features, nested.readout_features, readout_model.names)
            shape = tuple(int(size) for size in nested.features.shape)
            restricted, self.outputs = explain(
                known.readout,
                self._weights(),
                nested,
                framework.standard_normal(shape, like=known.constants.mean),
                known.constants,
                None if mask is None else framework.asarray(mask, like=known.constants.mean),
                self._evidence(readout_model, known, nested),
            )
        self.alpha, self._capacity = restricted.alpha, restricted.capacity
        nats = framework.to_numpy(restricted.capacity)
        if not np.isfinite(nats).all():
            raise OptimizationError(
                "the capacity is not finite: train the readout network anew, or look for features that are "
                "not finite for this input"
            )
        if mode == "capacity":
            return nats if images > 1 else nats[0]
        order = readout_model.map_order(bottleneck.layout, inputs)
        spatial = readout_model.spatial_shape(inputs)
        fits = len(spatial) == len(bottleneck.layout.places(bottleneck.shape))
        maps = saliency_maps(nats, bottleneck.layout, spatial if fits else None, order)
        return maps if images > 1 else maps[0]

    def _evidence(
        self, model: ReadoutModel, known: Known, nested: NestedPass, classes: Array | None = None
    ) -> Array | None:
        """What the network reads of the answer's gradient; None if it reads none."""
        framework, relu = model.framework, self.relu
        answers = self._answers.get((framework.name, relu), lambda: AnswerReader(framework, relu))
        return known.readout.read_answer(answers, nested, known.constants, classes)

    def start(
        self, tail: Tail, inputs: Inputs, classes: npt.NDArray[np.integer] | None = None
    ) -> npt.NDArray[np.floating]:
        """Alpha for images whose head has run elsewhere, for per-sample steps to start at.

        Args:
            tail: the tail of the same model at the bottleneck's layer.
            inputs: the images. They run through the model where it reads other layers than the bottleneck's.
            classes: (B,), the classes whose answer is read; None for the predicted ones.

        Returns:
            Array (B, *feature map), its axes in the model's own order.

        Raises:
            NotEstimatedError: `estimate` has not been called.
            InputError: the features have another shape than those of the estimate.
        """
        model = self._readout_model()
        if self._foreign is not None:
            self._what_is_known()
            self._confirm_formats(model, model.to_inputs(inputs))
        known, features, run = self._what_is_known(), tail.features, tail.run
        if tail.axes is not None:
            back = (0, *(int(axis) + 1 for axis in np.argsort(tail.axes)))
            features = array_namespace(features).permute_dims(features, back)
            run = _Reordered(run, tuple(axis + 1 for axis in tail.axes))
        if set(model.names) == {model.names[0]}:
            others: tuple[Array, ...] = (features,) * len(self.estimators)
        else:
            others = model.features(model.to_inputs(inputs))[1:]
        nested, like = NestedPass(features, tuple(others), run, tail.carry), known.constants.mean
        known.readout.check(nested.features, nested.readout_features, model.names)
        wanted = None if classes is None else model.framework.asarray(classes, like=like)
        evidence = self._evidence(model, known, nested, wanted)
        xp = array_namespace(like)
        cast = [xp.astype(each, like.dtype) for each in nested.readout_features]
        alpha = known.readout.alpha(self._weights(), cast, known.constants, evidence)
        return model.framework.to_numpy(alpha)

    # -- training -------------------------------------------------------------------------------------

    def fit(
        self,
        loader: Iterable[Any],
        loss: Callable[..., Any] | None,
        *,
        epochs: int = 10,
        lr: float = LEARNING_RATE,
        beta: float | None = None,
        validation: Iterable[Any] | None = None,
        patience: int = 3,
        checkpoint: str | PathLike[str] | None = None,
        seed: int | None = None,
        device: Any = None,
        progbar: bool | None = None,
        warm_up: int = WARM_UP,
        beta_steps: int | None = None,
        teacher: Any = None,
        teacher_weight: float = 1.0,
    ) -> list[EpochReport]:
        """Train the readout network by Adam; the model is left as it was.

        The objective is ``loss + beta * mean(capacity)``, as in the paper's section 3.3, with the model in
        evaluation mode and no gradients for its parameters. `iba_core.readout.training` explains how the mask
        is kept from closing at first. A framework that compiles does so once for each shape of a batch, so
        let all batches have the same.

        If the training fails or is interrupted, the network and the history are those after the last whole
        epoch.

        Args:
            loader: the data; each epoch goes through them once. Batches of inputs, or tuples (inputs, ...).
            loss: ``loss(output, ...)`` gets the model's output and what comes with the inputs in a batch, and
                gives a loss for each image or the mean over the batch. In TensorFlow it can also be a
                `keras.losses.Loss`. None, with a `teacher`, to learn from the teacher alone.
            epochs: how often to go through the data, epochs before an interruption included.
            lr: learning rate of Adam.
            beta: weight of the mean information, in nats per feature; the constructor's if None, which is 1
                unless given. One network for all images needs more information than a mask made for one
                image. At 10, the per-sample bottleneck's beta, it would soon give up the loss.
            validation: further data like those of `loader`. The objective on them, always under the same
                noise, decides which epoch's weights are kept at the end, and when to stop.
            patience: stop after so many epochs without improvement on the validation data.
            checkpoint: a safetensors file, written after each epoch. If it exists, training resumes from
                it: the network, its optimiser, the features' distribution and the history are restored.
            seed: makes the noise depend on the seed and the step alone, in the same way in every framework.
                In PyTorch it also fixes the order of a shuffling loader. A resumed training then ends as an
                uninterrupted one.
            device: where to bring the data; the model's own device if None.
            progbar: show the progress; the constructor's choice if None.
            warm_up: number of first steps in which only the level of the mask is trained. Use 0 for a readout
                that starts half open.
            beta_steps: number of first steps over which `beta` rises from 3 % of its value; those of the
                warm-up if None.
            teacher: a fitted `iba_core.Explainer` of the same model and layer, whose masks the readout learns
                to give (distillation). It explains the class predicted of each image once, which takes most
                of the time, and its masks are kept in half precision as long as the training runs.
            teacher_weight: weight of the distance from the teacher's masks, in nats per feature.

        Returns:
            A report for each epoch, also kept as `history`.

        Raises:
            NotEstimatedError: `estimate` has not been called.
            InputError: an argument is out of its range, the data are empty, or the loss is neither a scalar
                nor one for each image.
            StateError: the checkpoint is truncated, of another kind or of another network.
            OptimizationError: the objective became NaN or infinite.
        """
        beta = self.beta if beta is None else beta
        settings = TrainingSettings(epochs, lr, beta, patience, seed, warm_up, beta_steps, teacher_weight)
        loader = _require_data("loader", loader)
        validation = None if validation is None else _require_data("validation", validation)
        if loss is not None or teacher is None:
            require_callable("loss", loss, "a function of the model's output and what comes with the inputs")
        explains = None if teacher is None else require_teacher(teacher)
        if progbar is not None:
            require_bool("progbar", progbar)
        if checkpoint is not None:
            checkpoint = as_path(checkpoint, "checkpoint")
            if not checkpoint.parent.is_dir():
                raise InputError(
                    f"checkpoint={str(checkpoint)!r} cannot be written: its folder does not exist"
                )
            if checkpoint.is_dir():
                raise InputError(
                    f"checkpoint={str(checkpoint)!r} is a folder; the path of a file was expected"
                )
        model, progress = self._readout_model(device=device), None
        if checkpoint is not None and checkpoint.exists():
            state, progress = read_checkpoint(checkpoint)
            self.load_state(state)
            self.history = list(progress.reports)
        known = self._what_is_known()
        if self._foreign is not None:
            self._confirm_formats(model, model.to_batch(next(iter(loader)))[0])
            known = self._what_is_known()
        if progress is None:
            progress = Progress.of([host_array(weight) for weight in self._weights()])
        show = self.progbar if progbar is None else progbar
        masks = (
            None
            if explains is None
            else TeacherMasks(explains, model.framework, model.names[0], known.readout.bottleneck.shape)
        )
        own = None if loss is None else self._as_loss(loss)
        trainer = ReadoutTrainer(model, known.readout, known.constants, own, settings, show, masks)
        self._train(trainer, trainer.start(progress), loader, validation, checkpoint)
        return list(self.history)

    def _train(
        self,
        trainer: ReadoutTrainer,
        progress: Progress,
        loader: Iterable[Any],
        validation: Iterable[Any] | None,
        checkpoint: str | PathLike[str] | None,
    ) -> None:
        """Take over what the trainer gives; network and history always belong to the same epoch."""
        try:
            for reached in trainer.epochs(progress, loader, validation):
                progress = reached
                self._set_weights(trainer.weights(progress.adam.parameter))
                self.history = list(progress.reports)
                if checkpoint is not None:
                    trainer.save(checkpoint, progress, self.state())
            if progress.best is not None:
                self._set_weights(trainer.weights(progress.best))
        except BaseException:
            if progress.reports:
                # An interruption may have come between the two.
                self._set_weights(trainer.weights(progress.adam.parameter))
                self.history = list(progress.reports)
            raise
        self.history = list(progress.reports)

    # -- state ----------------------------------------------------------------------------------------

    @property
    def layer_name(self) -> str:
        """Name of the layer that the bottleneck comes after."""
        return self._readout_model().names[0]

    def fingerprint(self) -> str:
        """Hash of all that alpha depends on besides the model, 32 hexadecimal digits.

        Raises:
            NotEstimatedError: there is no network yet.
        """
        state, found = self.state(), hashlib.sha256()
        found.update(json.dumps(state.settings, sort_keys=True).encode())
        for name, array in sorted(state.arrays().items()):
            found.update(name.encode() + np.ascontiguousarray(array).tobytes())
        return found.hexdigest()[:32]

    def save(self, path: str | PathLike[str]) -> None:
        """Write the network, the features' distribution and the settings to a safetensors file.

        The `IBAReadout` of every framework can read it.

        Args:
            path: the file; its folder must exist.

        Raises:
            NotEstimatedError: there is no network yet.
            InputError: the folder does not exist, or an estimator is of a type of your own whose state no
                other framework can read; `state_dict` keeps those.
        """
        self.state().save(path)

    def load(self, path: str | PathLike[str]) -> Self:
        """Replace the network, the distribution and the settings by those that `save` wrote.

        Args:
            path: the file of a readout of the same layers, written in any framework.

        Returns:
            The readout.

        Raises:
            StateError: the file is missing, truncated, of another kind or of other layers. Nothing has
                changed then.
        """
        return self.load_state(ReadoutState.read(path))

    def state(self) -> ReadoutState:
        """What has been learnt and estimated, see `save`."""
        self._require_estimated()
        model, shapes = self._readout_model(), self._feature_shapes()
        formats = self._data_formats(shapes)
        moments = [
            to_channels_first(self._moments_of(estimator), data_format) if estimator.n_samples() else None
            for estimator, data_format in zip(self._all_estimators(), formats, strict=True)
        ]
        given = None
        if self.feature_mean is not None:
            arrays = {name: host_array(getattr(self, name)) for name in GIVEN}
            mean, std = to_channels_first(arrays, formats[0]).values()
            given = mean, std
        return ReadoutState(
            weights=tuple(np.array(host_array(weight)) for weight in self._weights()),
            estimators=tuple(moments),
            given=given,
            facts={
                "framework": self._foreign or model.framework.name,
                "layer": model.names[0],
                "readout_layers": model.names[1:],
                "data_formats": formats,
                "input_shape": self._input_shape,
                "settings": settings_of(self),
            },
        )

    def load_state(self, state: ReadoutState) -> Self:
        """Replace the network, the distribution and the settings, see `load`."""
        model = self._readout_model()
        state.check(model.framework.name, model.names[0], model.names[1:])
        is_own = state.facts["framework"] == model.framework.name
        shape = state.facts["input_shape"] if is_own else None
        with self._all_or_nothing():
            self.tokens = state.tokens
            self._formats = list(state.facts["data_formats"]) if is_own else None
            self._input_shape = None if shape is None else tuple(shape)
            formats = self._data_formats([(*shape[1:], shape[0]) for shape in state.shapes()])
            self._formats = formats
            self._foreign = None if is_own or not self._guesses_formats else state.facts["framework"]
            dtype = state.weights[0].dtype
            for estimator, moments, data_format in zip(
                self._all_estimators(), state.estimators, formats, strict=True
            ):
                estimator.reset()
                if moments is not None:
                    self._set_moments(estimator, from_channels_first(moments, data_format), dtype)
            given: dict[str, Any] = dict.fromkeys(GIVEN)
            if state.given is not None:
                arrays = from_channels_first(dict(zip(GIVEN, state.given, strict=True)), formats[0])
                given = {name: self._given(array) for name, array in arrays.items()}
            for name, value in (*given.items(), *((name, state.settings[name]) for name in SETTINGS)):
                setattr(self, name, value)
            self.network = self._make_layers(state.weights)
            self._known.clear()
        return self

    def _confirm_formats(self, model: ReadoutModel, inputs: Inputs) -> None:
        """Let the model show where the channels are, and turn the axes of what was read by a guess.

        Args:
            model: the model.
            inputs: a batch for it.

        Raises:
            LayerError: the model does not show it.
        """
        own, *others = model.data_formats(take(inputs, 0, 1))
        found = [self.data_format or (own if self.tokens is None else "channels_last"), *others]
        guessed, dtype = self._formats or found, host_array(self._weights()[0]).dtype
        with self._all_or_nothing():
            for estimator, old, new in zip(self._all_estimators(), guessed, found, strict=True):
                if old != new and estimator.n_samples():
                    moments = to_channels_first(self._moments_of(estimator), old)
                    self._set_moments(estimator, from_channels_first(moments, new), dtype)
            if self.feature_mean is not None and guessed[0] != found[0]:
                arrays = {name: host_array(getattr(self, name)) for name in GIVEN}
                given = to_channels_first(arrays, guessed[0])
                for name, array in from_channels_first(given, found[0]).items():
                    setattr(self, name, self._given(array))
            self._formats, self._foreign = found, None
        self._known.clear()

    # -- what is known before any image is seen -------------------------------------------------------

    def _what_is_known(self) -> Known:
        """The formulas and their constants, computed anew if something that they depend on has changed."""
        version, sources = self._sources()
        formats = None if self._formats is None else tuple(self._formats)
        switches = (self.relu, self.robust, self.corners, self.alpha_bound, self.gradients)
        key = (self._settings(), switches, self.tokens, self.data_format, formats, version)
        return self._known.get(key, lambda: self._make_known(sources))

    def _make_known(self, sources: Sequence[Any]) -> Known:
        self._require_estimated()
        settings, readout = self._settings(), self._make_readout()
        framework, like = self._readout_model().framework, self._weights()[0]
        layers = []
        for estimator in self.estimators:
            mean = host_array(estimator.mean())
            layers.append(Statistics(mean, host_array(estimator.std()), np.ones(mean.shape, bool)))
        constants = readout.constants(
            self._own_statistics(), layers, settings, lambda array: framework.asarray(array, like)
        )
        return Known(readout, constants, sources)

    def _own_statistics(self) -> Statistics:
        if self.feature_mean is not None:
            mean = host_array(self.feature_mean)
            return Statistics(mean, host_array(self.feature_std), np.ones(mean.shape, bool))
        active = host_array(self.estimator.active_neurons(self.active_neurons_threshold))
        mean, std = host_array(self.estimator.mean()), host_array(self.estimator.std())
        return Statistics(mean, std, active.astype(bool))

    def _feature_shapes(self) -> list[tuple[int, ...]]:
        """Shapes of the feature maps, that of the bottleneck first."""
        own = self.estimator.mean() if self.feature_mean is None else self.feature_mean
        means = (own, *(estimator.mean() for estimator in self.estimators))
        return [tuple(int(size) for size in mean.shape) for mean in means]

    def _data_formats(self, shapes: Sequence[tuple[int, ...]]) -> list[DataFormat]:
        """Where the channels are, that of the bottleneck first. Those of tokens are last, unless given."""
        own, *others = self._formats or self._guessed_formats(shapes)
        return [self.data_format or (own if self.tokens is None else "channels_last"), *others]

    def _make_readout(self) -> Readout:
        shapes = self._feature_shapes()
        own, *others = (
            FeatureMap(shape, Layout.of(shape, data_format, None if index else self.tokens))
            for index, (shape, data_format) in enumerate(zip(shapes, self._data_formats(shapes), strict=True))
        )
        return Readout(
            own,
            tuple(others),
            self.relu,
            self.robust,
            self.corners,
            self.alpha_bound,
            bool(self.gradients),
        )

    def _make_network(self) -> None:
        # Estimators of a user's own may have changed without a sign of it.
        self._known.clear()
        readout = self._make_readout()
        if self.network is None:
            weights = readout.initial_weights(self.initial_alpha, self._draw_seed())
            self.network = self._make_layers([weight.astype(self._precision()) for weight in weights])
            return
        sizes = tuple(tuple(int(size) for size in weight.shape[::-1]) for weight in self._weights()[::2])
        if sizes != readout.sizes:
            raise InputError(
                f"the layers now have the channels {readout.sizes}, but the readout network was made for "
                f"{sizes}; make a new IBAReadout"
            )

    def _is_estimated(self) -> bool:
        own = self.feature_mean is not None or int(self.estimator.n_samples()) > 1
        return own and all(int(estimator.n_samples()) > 1 for estimator in self.estimators)

    def _require_estimated(self) -> None:
        if self.network is None or not self._is_estimated():
            raise NotEstimatedError(
                "the features' distribution at the bottleneck and the readout layers is not estimated; "
                "call estimate(model, dataloader) first"
            )


def _explain(
    readout: Readout,
    weights: Weights,
    nested: NestedPass,
    noise: Array,
    constants: ReadoutConstants,
    pass_mask: Array | None,
    evidence: Array | None,
) -> tuple[Restricted, Any]:
    """What passes the bottleneck, and the model's outputs for it."""
    restricted = readout.restricted(
        weights, nested.features, nested.readout_features, noise, constants, pass_mask, evidence
    )
    return restricted, nested.outputs(restricted.z)


@dataclass(frozen=True)
class _Reordered:
    """A tail for feature maps in the model's own order of axes."""

    run: Callable[[Array, tuple[Array, ...]], Any]
    axes: tuple[int, ...]

    def __call__(self, z: Array, carry: tuple[Array, ...]) -> Any:
        return self.run(array_namespace(z).permute_dims(z, (0, *self.axes)), carry)


def _require_data(name: str, data: Any) -> Iterable[Any]:
    """Return data that every epoch goes through anew."""
    if isinstance(data, Iterator):
        raise InputError(f"{name} can be gone through only once; give a list or a data loader")
    return require_batches(name, data)


def _shallow(attributes: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of an object's attributes and of the dictionaries among them, such as a module's buffers."""
    return {
        name: copy.copy(value) if isinstance(value, dict) else value for name, value in attributes.items()
    }
