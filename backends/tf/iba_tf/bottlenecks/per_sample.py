"""What the per-sample bottlenecks of this backend share, however they reach into a model."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, field
from threading import RLock
from typing import Any, NamedTuple

import keras
import numpy as np
import numpy.typing as npt
import tensorflow as tf

from iba_core.arguments import (
    given,
    require_bool,
    require_choice,
    require_seed,
    require_type,
    require_whole,
)
from iba_core.bottleneck import saliency
from iba_core.bottleneck.chunks import AtLayer, Task, explain_in_chunks
from iba_core.bottleneck.estimator import WelfordEstimator
from iba_core.bottleneck.optimization import BottleneckOptimizer, BottleneckResult
from iba_core.bottleneck.settings import BottleneckSettings, plain_settings
from iba_core.bottleneck.statistics import Statistics
from iba_core.errors import InputError, LayerError, NotEstimatedError, StateError
from iba_core.framework.adapter import Inputs, Tail
from iba_core.framework.arrays import as_array, require_array, require_mask
from iba_core.framework.cache import Cache
from iba_core.framework.framework import require_finite
from iba_core.framework.inputs import batch_size as rows_of
from iba_core.framework.inputs import samples_of
from iba_core.framework.layout import DataFormat, Layout, MapOrder
from iba_core.framework.namespace import full_precision
from iba_core.targets import ClassTarget, Loss, main_output
from iba_tf.adapter import TensorFlowAdapter
from iba_tf.bottlenecks.flow import Flow
from iba_tf.bottlenecks.report import Recording, Report, Reporter, joined, variable_names
from iba_tf.framework import fresh_key
from iba_tf.graphs.split import GraphSplit

_ADAMS = (keras.optimizers.Adam, tf.compat.v1.train.AdamOptimizer)

_SETTINGS = {"batch_size": "samples"}
"""What the core calls the hyperparameters that have another name here."""

_merging = RLock()
"""Held while an estimator takes in what another one has gathered."""

GIVEN = ("feature_mean", "feature_std", "feature_active")
"""Names of statistics that users give in place of an estimator."""


class Hyperparameters(NamedTuple):
    """Hyperparameters of the per-sample bottlenecks. None stands for the default.

    Attributes:
        batch_size: noisy samples that a step's gradient is averaged over, 10.
        steps: optimiser steps, 10.
        beta: weight of the information against the model's loss, 10. More beta, fewer bits.
        learning_rate: learning rate of Adam, 1.
        min_std: smallest standard deviation of a feature, 0.01. Smaller ones are raised to it.
        smooth_std: standard deviation of the Gaussian that smooths the mask, in features, 1; 0 for no
            smoothing.
        normalize_beta: divide beta by the number of features, True.

    Example:
        >>> from iba_tf import IBALayer
        >>> Hyperparameters(**IBALayer(beta=20).get_default())[:3]
        (10, 10, 20)
    """

    batch_size: int | None = None
    steps: int | None = None
    beta: float | None = None
    learning_rate: float | None = None
    min_std: float | None = None
    smooth_std: float | None = None
    normalize_beta: bool | None = None

    @classmethod
    def of(cls, settings: BottleneckSettings) -> Hyperparameters:
        """The hyperparameters in the settings of the core."""
        return cls(settings.samples, *(getattr(settings, name) for name in cls._fields[1:]))

    def override(self, settings: BottleneckSettings) -> BottleneckSettings:
        """Settings with these values in place; None leaves a value as it is.

        Raises:
            InputError: a value is out of its range.
        """
        given = {name: value for name, value in self._asdict().items() if value is not None}
        values = {_SETTINGS.get(name, name): value for name, value in given.items()}
        return settings.override(**plain_settings(values, {"samples": "batch_size"}))


@dataclass(frozen=True, eq=False)
class TailLoss:
    """What a model is asked to keep: a loss of its tail's outputs.

    Attributes:
        adapter: adapter of the model that has the outputs.
        split: that model, split where the bottleneck is.
        loss: loss of a classifier's outputs, given rows of data for each image. None where the outputs are
            losses themselves.
        classes: number of classes of a classifier.
        by_image: whether there is a loss for each image, and not one for all.
    """

    adapter: TensorFlowAdapter
    split: GraphSplit
    loss: Loss | None = None
    classes: int = 0
    by_image: bool = True
    _reporters: Cache[Reporter] = field(default_factory=lambda: Cache(size=2), repr=False)

    @property
    def is_classification(self) -> bool:
        """Whether the outputs are those of a classifier."""
        return self.loss is not None

    def __call__(self, outputs: tf.Tensor, *rows: tf.Tensor) -> tf.Tensor:
        """Losses (N,) of the outputs for N feature maps, or their mean."""
        output = main_output(outputs)
        if self.loss is not None:
            return self.loss(output, *rows)
        return tf.reshape(output, (-1,)) if self.by_image else output

    def reporter(self, feature_shape: Sequence[int]) -> Reporter:
        """The optimizer for feature maps of a shape, and its reporter; what they compile is kept."""
        layout = Layout.of(feature_shape, self.split.data_format)

        def made() -> Reporter:
            optimizer = BottleneckOptimizer(self.adapter.framework, self, layout, by_image=self.by_image)
            return Reporter(optimizer, self.is_classification)

        return self._reporters.get(layout, made)

    def require_tells_apart(self, images: int) -> None:
        """Raise unless the loss can be that of each of several images.

        Raises:
            InputError: the loss is one for all images, and they are more than one.
        """
        if not self.by_image and images > 1:
            raise InputError(
                f"the feed holds {images} images, and a scalar model_loss cannot tell them apart: "
                "give one image, or set a loss of shape (None,)"
            )


@dataclass
class State:
    """What a bottleneck knows apart from its model.

    It is one plain object, because Keras and TensorFlow wrap and track the attributes of a layer.

    Attributes:
        settings: default hyperparameters.
        estimator: statistics of the features.
        given: statistics that the user has given in place of the estimator.
        collected: names of the variables to report.
        report: variables of the last analysis.
        order: how a map of the last capacity is turned to lie over the input; a text that says why it cannot.
    """

    settings: BottleneckSettings
    estimator: WelfordEstimator
    given: Statistics | None
    collected: tuple[str, ...] = ()
    report: Report = field(default_factory=dict)
    order: MapOrder | str | None = None

    @property
    def statistics(self) -> Statistics:
        """Statistics of the features.

        Raises:
            NotEstimatedError: fewer than two samples have been seen, and none are given.
        """
        return self.given or Statistics.of(self.estimator, self.settings.active_neurons_threshold)


class PerSampleBottleneck:
    """Hyperparameters, statistics of the features, and reports of a per-sample bottleneck."""

    def _set_up(
        self,
        estimator: WelfordEstimator | None,
        feature_mean: npt.ArrayLike | None,
        feature_std: npt.ArrayLike | None,
        feature_active: npt.ArrayLike | None,
        hyperparameters: Hyperparameters,
    ) -> None:
        require_type("estimator", estimator, WelfordEstimator, "a WelfordEstimator", optional=True)
        given = _given_statistics(feature_mean, feature_std, feature_active)
        if given is not None and estimator is not None:
            raise InputError("give either estimator or feature_mean and feature_std, not both")
        settings = hyperparameters.override(BottleneckSettings())
        self._state = State(settings, estimator or WelfordEstimator(), given)

    def share(self, state: State) -> None:
        """Use another bottleneck's settings, statistics and reports from now on."""
        self._state = state

    @property
    def estimator(self) -> WelfordEstimator:
        """Estimator of the features' mean and standard deviation."""
        return self._state.estimator

    # -- hyperparameters --------------------------------------------------------------------------

    def set_default(
        self,
        batch_size: int | None = None,
        steps: int | None = None,
        beta: float | None = None,
        learning_rate: float | None = None,
        min_std: float | None = None,
        smooth_std: float | None = None,
        normalize_beta: bool | None = None,
    ) -> None:
        """Change the default hyperparameters, see `Hyperparameters`. None leaves a value as it is.

        Raises:
            InputError: a value is out of its range.

        Example:
            >>> from iba_tf import IBALayer
            >>> iba = IBALayer()
            >>> iba.set_default(beta=20, steps=5)
            >>> iba.get_default()["beta"]
            20
        """
        given = Hyperparameters(batch_size, steps, beta, learning_rate, min_std, smooth_std, normalize_beta)
        self._state.settings = given.override(self._state.settings)

    def get_default(self) -> dict[str, Any]:
        """Return the default hyperparameters by their names, see `Hyperparameters`."""
        return Hyperparameters.of(self._state.settings)._asdict()

    # -- reports ----------------------------------------------------------------------------------

    def collect(self, *var_names: str) -> None:
        """Choose the variables that `analyze` reports from now on. No names end the collection.

        Args:
            *var_names: some of `available_report_variables`.

        Raises:
            InputError: there is no variable of a name.
        """
        available = self.available_report_variables()
        for name in var_names:
            require_choice("var_names", name, available, "variable to collect")
        self._state.collected = var_names

    def collect_all(self) -> None:
        """Collect all variables. Each step then takes about twice as long."""
        self.collect(*self.available_report_variables())

    def available_report_variables(self) -> list[str]:
        r"""Return the names of the variables that can be collected.

        With S samples of one image and a feature map of shape f:

        - ``alpha``, ``lambda_pre_blur``, ``lambda`` (the mask), ``grad_loss_wrt_alpha``, ``capacity`` in nats
          and ``capacity_no_nans`` (the same here): (1, \*f).
        - ``eps`` (the noise), ``perturbed_feature``, ``perturbed_feature_passing``: (S, \*f).
        - ``capacity_mean``, ``information_loss`` (the same), ``model_loss`` and ``loss``: (1,).
        - For a classification, ``logits`` (S, K) and ``cross_entropy`` (S,).
        - In the entry ``"init"`` only, ``feature``, ``feature_mean``, ``feature_std`` and ``pass_mask``:
          (1, \*f).

        If B images are analysed together, there are B times as many rows, and the rows of an image follow one
        another. The images share ``eps``, ``feature_mean`` and ``feature_std``.
        """
        return variable_names(self._is_classification())

    def get_report(self) -> Report:
        """Return the collected variables of the last analysis.

        Returns:
            NumPy arrays by name, in the entries ``"init"``, the steps from 0 (before the step's update), and
            ``"final"`` (after the last update). Empty if nothing was collected.
        """
        return dict(self._state.report)

    def _is_classification(self) -> bool:
        """Whether the model is asked to keep a class, by its logits."""
        raise NotImplementedError

    # -- estimating -------------------------------------------------------------------------------

    def _fit_batches(
        self,
        features: Callable[[Any], tf.Tensor],
        batches: Iterable[Any],
        n_samples: int | None,
        progbar: bool,
        argument: str = "generator",
    ) -> None:
        """Let the estimator see the features of batches, of at most `n_samples` samples.

        If this fails or is interrupted, the estimator stays as it was.
        """
        if n_samples is not None:
            require_whole("n_samples", n_samples, 1)
        require_bool("progbar", progbar)
        own = self._state.estimator
        # What is new is gathered apart, since another thread may take in samples meanwhile.
        gathered = copy(own)
        gathered.reset()
        for samples in samples_of(map(_as_one, batches), n_samples, progbar, argument):
            gathered.fit(np.asarray(tf.cast(features(samples), tf.float64)))
        if not gathered.n_samples():
            raise InputError(f"{argument} gave no samples; give at least two")
        with _merging:
            gathered.merge(own)
            # The estimator stays the same object, since users may have given it.
            vars(own).update(vars(gathered))

    # -- explaining -------------------------------------------------------------------------------

    def _explain(
        self,
        loss: TailLoss,
        inputs: Inputs,
        rows: tuple[npt.NDArray[Any], ...],
        flow: Flow,
        hyperparameters: Hyperparameters,
        *,
        seed: int | None = None,
        pass_mask: npt.ArrayLike | None = None,
        max_batch: int | None = None,
        progbar: bool = False,
    ) -> npt.NDArray[np.floating]:
        """Capacity (B, *feature map) of a batch of images in nats, which `flow` lets pass from now on.

        Args:
            loss: what the model is asked to keep.
            inputs: of the model, a row per image.
            rows: data for the loss, a row per image.
            flow: where to keep what the analysis has kept.
            hyperparameters: override the defaults.
            seed: of the noise.
            pass_mask: of the features or a batch of them.
            max_batch: the most feature maps that pass the tail at once.
            progbar: show the progress.

        Raises:
            NotEstimatedError: the distribution of the features has not been estimated.
            InputError: an argument does not fit.
            OptimizationError: the objective became NaN or infinite.
        """
        state = self._state
        settings, statistics = hyperparameters.override(state.settings), state.statistics
        require_seed("seed", seed)
        passing = None if pass_mask is None else require_mask("pass_mask", pass_mask)
        loss.require_tells_apart(rows_of(inputs))
        if state.collected and seed is None:
            # The report draws the noise of each step once more, which takes a seed.
            _, seed = fresh_key()
        recordings: list[Recording] = []

        def task(tail: Tail, start: int, stop: int) -> Task:
            like = full_precision(tail.features)
            reporter = loss.reporter(tail.features.shape[1:])
            if state.collected:
                recordings.append(Recording(reporter, state.collected))
            return Task(
                reporter.optimizer,
                statistics,
                tuple(loss.adapter.framework.asarray(row[start:stop], like=like) for row in rows),
                recordings[-1].record if state.collected else None,
            )

        results: list[BottleneckResult] = []
        reports: list[Report] = []
        for chunk in explain_in_chunks(
            loss.adapter.framework,
            [AtLayer(loss.split, statistics.mean.shape, task, passing)],
            inputs,
            settings,
            seed=seed,
            max_batch=max_batch,
            progbar=progbar,
        ):
            results.append(chunk.result)
            if state.collected:
                assert seed is not None
                part = _rows_between(passing, chunk.result.alpha.ndim, chunk.start, chunk.stop)
                reports.append(recordings[-1].report(chunk.result, settings, seed, part))
        flow.keep(results, passing)
        state.report = joined(reports)
        capacity = np.concatenate([loss.adapter.framework.to_numpy(result.capacity) for result in results])
        try:
            state.order = loss.split.map_order(Layout.of(capacity.shape[1:], loss.split.data_format))
        except LayerError as error:
            state.order = str(error)
        return capacity

    @property
    def map_order(self) -> MapOrder:
        """How a map of the last capacity is turned to lie over the input, for `to_saliency_map`.

        Raises:
            NotEstimatedError: nothing has been explained yet.
            LayerError: the model exchanges axes, and does not show where all of them are.
        """
        order = self._state.order
        if order is None:
            raise NotEstimatedError("map_order is that of the last analysis: call analyze before")
        if isinstance(order, str):
            raise LayerError(order)
        return order

    def _warn_of_order(self) -> None:
        order = self._state.order
        if not (isinstance(order, MapOrder) and order.is_unchanged):
            warnings.warn(
                "the model exchanges or reverses axes before the layer, and the capacity has the axes of the "
                "layer; for a map of the input, give to_saliency_map order=map_order of the bottleneck",
                stacklevel=4,
            )

    # -- state ------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Return all that has been estimated, given or set, as arrays, numbers and strings.

        Returns:
            ``estimator`` (the state of the estimator, None if it has seen nothing), ``feature_mean``,
            ``feature_std`` and ``feature_active`` (as given to the constructor, or None),
            ``default_hyperparams`` (as `get_default` gives them) and ``feature_name``.
        """
        state = self._state
        given = state.given
        return {
            "estimator": state.estimator.state_dict() if state.estimator.n_samples() else None,
            "feature_mean": given and given.mean.copy(),
            "feature_std": given and given.std.copy(),
            "feature_active": given and given.active.copy(),
            "default_hyperparams": self.get_default(),
            "feature_name": self._feature_name(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Replace the state by one that `state_dict` gave.

        Raises:
            StateError: an entry is missing or malformed. Nothing has changed then.
        """
        if not isinstance(state, Mapping):
            raise StateError(f"{given('state', state)} must be what state_dict gave")
        missing = set(self.state_dict()) - set(state)
        if missing:
            raise StateError(f"the state lacks {', '.join(sorted(missing))}")
        estimator = copy(self._state.estimator)
        estimator.reset()
        if state["estimator"] is not None:
            estimator.load_state_dict(state["estimator"])
        try:
            statistics = _given_statistics(*(state[name] for name in GIVEN))
            settings = Hyperparameters(**state["default_hyperparams"]).override(self._state.settings)
        except (InputError, KeyError, TypeError, ValueError) as error:
            raise StateError(f"the state is malformed: {error}") from error
        self._state.estimator, self._state.given, self._state.settings = estimator, statistics, settings

    def _feature_name(self) -> str | None:
        """Name of the features that the statistics describe."""
        raise NotImplementedError


def _as_one(inputs: Any) -> tuple[Any]:
    """A batch of a data set that holds nothing but inputs, which may be a tuple themselves."""
    return (inputs,)


def to_saliency_map(
    capacity: npt.ArrayLike,
    shape: Sequence[int] | None = None,
    data_format: DataFormat | None = None,
    *,
    order: MapOrder | None = None,
) -> npt.NDArray[np.floating]:
    """Make a saliency map of one image from the capacity of its features.

    Args:
        capacity: (H, W, C), or (C, H, W) with ``data_format="channels_first"``, in nats. There may be 0 to 3
            spatial axes.
        shape: (height, width) of the image. If None, the map has the size of the feature map.
        data_format: ``"channels_first"`` or ``"channels_last"``. If None, that of
            `keras.config.image_data_format`.
        order: `map_order` of the bottleneck that gave the capacity, where the model exchanges or reverses
            axes before the layer; None if it does not.

    Returns:
        Array of `shape`, in bits per pixel. Its sum equals the bits of the capacity.

    Raises:
        InputError: the shapes do not fit, or `data_format` is unknown.

    Example:
        >>> to_saliency_map(np.ones((4, 4, 8)), shape=(16, 16)).shape
        (16, 16)
    """
    chosen = keras.config.image_data_format() if data_format is None else data_format
    return saliency.to_saliency_map(capacity, shape, chosen, order=order)


def require_adam(optimizer_cls: type) -> None:
    """Check the class of an optimiser in whose place the library uses its own Adam.

    Raises:
        InputError: it is not Adam.
    """
    if not (isinstance(optimizer_cls, type) and issubclass(optimizer_cls, _ADAMS)):
        shown = getattr(optimizer_cls, "__name__", type(optimizer_cls).__name__)
        raise InputError(
            f"optimizer_cls={shown!r} is not Adam, with which the bottleneck is optimised in every framework"
        )


def require_loss(loss: TailLoss | None) -> TailLoss:
    """Return a loss.

    Raises:
        InputError: it is None.
    """
    if loss is None:
        raise InputError("there is no model loss yet: call set_classification_loss or set_model_loss before")
    return loss


def require_rows(tensor: tf.Tensor, argument: str) -> None:
    """Check that an input has rows, and finite values.

    Raises:
        InputError: it is an empty batch, or holds NaN or infinity.
    """
    if not tensor.shape[0]:
        raise InputError(f"{argument} is an empty batch")
    if tensor.dtype.is_floating:
        require_finite(tensor.numpy(), argument)


def class_rows(loss: TailLoss, target: Any, images: int, count: Callable[[], int]) -> tuple[Any, ...]:
    """Data for a loss, a row per image: the indices of the classes (B,), int64; none for other losses.

    Args:
        loss: what the model is asked to keep.
        target: a class for all images, or one for each, (B,) or (B, 1). None where the loss is no
            classification.
        images: number of images.
        count: gives the number of classes.

    Raises:
        InputError: `target` has another shape, is no index of a class, or is not for this loss.
    """
    if not loss.is_classification:
        if target is not None:
            raise InputError("target is given, but the loss is one of its own, without a class")
        return ()
    if target is None:
        raise InputError("the feed gives no class: add {target: class}, or give target=")
    target = as_array("target", target)
    if target.shape == (images, 1):
        target = target[:, 0]
    if target.shape not in ((), (1,), (images,)):
        raise InputError(f"target has shape {target.shape} for {images} images; give one class, or one each")
    classes = count()
    if classes == 1:
        raise InputError(
            "the model has one logit, whose cross-entropy is constant; give set_model_loss a loss of your "
            "own, such as softplus(-logit) for a class whose probability is the logit's sigmoid"
        )
    return (ClassTarget(target).resolve_classes(np.empty((images, classes))),)


def alone(capacity: npt.NDArray[np.floating]) -> npt.NDArray[np.floating]:
    """Capacity as `analyze` returns it: without the batch axis for one image."""
    return capacity[0] if len(capacity) == 1 else capacity


def _rows_between(array: Any, ndim: int, start: int, stop: int) -> Any:
    """The part of an array for some images, where it has one for each image."""
    return array[start:stop] if array is not None and np.ndim(array) == ndim else array


def _given_statistics(
    mean: npt.ArrayLike | None, std: npt.ArrayLike | None, active: npt.ArrayLike | None
) -> Statistics | None:
    if (mean is None) != (std is None) or (mean is None and active is not None):
        raise InputError("feature_mean and feature_std are given together or not at all")
    if mean is None or std is None:
        return None
    mean = require_array("feature_mean", mean).astype(np.float64)
    std = require_array("feature_std", std, shape=mean.shape, least=0).astype(np.float64)
    taking_part = np.ones(mean.shape, bool) if active is None else require_mask("feature_active", active)
    if taking_part.shape != mean.shape or not taking_part.any():
        raise InputError(
            f"feature_active has shape {taking_part.shape} and {taking_part.sum()} features that take part; "
            f"it must have the shape {mean.shape} of feature_mean, and one at least"
        )
    return Statistics(mean, std, taking_part)
