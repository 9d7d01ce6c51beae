"""What the per-sample bottlenecks of this backend share, however they reach into a model."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from copy import copy
from dataclasses import dataclass, field
from typing import Any

import keras
import numpy as np
import numpy.typing as npt
import tensorflow as tf

from iba_core.bottleneck.estimator import WelfordEstimator
from iba_core.bottleneck.optimization import BottleneckResult
from iba_core.bottleneck.settings import BottleneckSettings
from iba_core.bottleneck.statistics import Statistics
from iba_core.errors import InputError, StateError
from iba_core.framework.adapter import Head, Inputs
from iba_core.framework.framework import require_finite
from iba_core.framework.inputs import arrays_of, images_at_once, of_images, take
from iba_core.framework.inputs import batch_size as rows_of
from iba_core.framework.namespace import full_precision
from iba_core.targets import ClassTarget
from iba_core.utils import get_tqdm
from iba_tf.bottlenecks.flow import Flow
from iba_tf.bottlenecks.report import FIRST_ONLY, Probe, Report, joined
from iba_tf.bottlenecks.tail_loss import TailLoss
from iba_tf.randomness import fresh_key

_SETTINGS = {
    "batch_size": "samples",
    "steps": "steps",
    "beta": "beta",
    "learning_rate": "learning_rate",
    "min_std": "min_std",
    "smooth_std": "smooth_std",
    "normalize_beta": "normalize_beta",
}
"""The hyperparameters by their names in this backend, and in the core."""


_ADAMS = (keras.optimizers.Adam, tf.compat.v1.train.AdamOptimizer)


@dataclass
class _State:
    """What a bottleneck knows.

    It is one plain object, since Keras and TensorFlow wrap and track the attributes of a layer.
    """

    settings: BottleneckSettings
    estimator: WelfordEstimator
    given: Statistics | None
    collected: tuple[str, ...] = ()
    report: Report = field(default_factory=dict)


class PerSampleBottleneck:
    """Hyperparameters, statistics of the features, and reports of a per-sample bottleneck."""

    def _set_up(
        self,
        estimator: WelfordEstimator | None,
        feature_mean: npt.ArrayLike | None,
        feature_std: npt.ArrayLike | None,
        feature_active: npt.ArrayLike | None,
        **hyperparameters: Any,
    ) -> None:
        given = _given_statistics(feature_mean, feature_std, feature_active)
        if given is not None and estimator is not None:
            raise InputError("give either estimator or feature_mean and feature_std, not both")
        settings = BottleneckSettings().override(**_core_names(hyperparameters))
        self._state = _State(settings, estimator or WelfordEstimator(), given)

    def share(self, state: _State) -> None:
        """Work on another bottleneck's settings, statistics and reports."""
        self._state = state

    @property
    def estimator(self) -> WelfordEstimator:
        """What estimates mean and standard deviation of the features."""
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
        """Change the default hyperparameters; None leaves one as it is.

        Args:
            batch_size: noisy samples that a step's gradient is averaged over.
            steps: optimiser steps.
            beta: weight of the information against the model's loss.
            learning_rate: of Adam.
            min_std: floor of the features' standard deviation.
            smooth_std: standard deviation of the Gaussian that smooths the mask; 0 for no smoothing.
            normalize_beta: divide beta by the number of features.

        Raises:
            InputError: a value is out of its range.
        """
        given = {name: value for name, value in locals().items() if name in _SETTINGS}
        self._state.settings = self._state.settings.override(**_core_names(given))

    def get_default(self) -> dict[str, Any]:
        """The default hyperparameters, by the names of the arguments of `set_default`."""
        return {name: getattr(self._state.settings, core) for name, core in _SETTINGS.items()}

    # -- reports ----------------------------------------------------------------------------------

    def collect(self, *var_names: str) -> None:
        """Choose the variables that `analyze` reports from now on; none ends the collection.

        Args:
            *var_names: some of `available_report_variables`.

        Raises:
            InputError: there is no variable of a name.
        """
        available = self.available_report_variables()
        for name in var_names:
            if name not in available:
                raise InputError(
                    f"there is no variable {name!r} to collect; there are {', '.join(available)}"
                )
        self._state.collected = var_names

    def collect_all(self) -> None:
        """Collect all variables. Each step then takes about twice as long."""
        self.collect(*self.available_report_variables())

    def available_report_variables(self) -> list[str]:
        r"""Names of the variables that can be collected.

        With S samples of one image and a feature map of shape f they are ``alpha``, ``lambda_pre_blur``,
        ``lambda`` (the mask), ``capacity`` and ``capacity_no_nans`` (the same here), each (1, \\*f);
        ``eps``, ``perturbed_feature`` and ``perturbed_feature_passing``, each (S, \\*f);
        ``capacity_mean``, ``information_loss`` (the same), ``model_loss`` and ``loss``, each (1,);
        ``grad_loss_wrt_alpha`` (1, \\*f); for a classification ``logits`` (S, K) and ``cross_entropy``
        (S,); and, in the entry ``"init"`` alone, ``feature``, ``feature_mean``, ``feature_std`` and
        ``pass_mask``, each (1, \\*f). Capacities are in nats. With B images analysed together there are B
        times as many rows, those of an image one after the other, of all but ``eps``, ``feature_mean`` and
        ``feature_std``, which the images share.
        """
        return Probe.names(self._is_classification())

    def get_report(self) -> Report:
        """Collected variables of the last run, as NumPy arrays by name.

        The entries are ``"init"``, the numbers of the steps from 0, each as the step found them before its
        update, and ``"final"`` after the last update. Empty if nothing was collected.
        """
        return dict(self._state.report)

    def _is_classification(self) -> bool:
        """Whether the model is asked to keep a class, by its logits."""
        raise NotImplementedError

    # -- statistics -------------------------------------------------------------------------------

    def _statistics(self) -> Statistics:
        state = self._state
        return state.given or Statistics.of(state.estimator, state.settings.active_neurons_threshold)

    def _fit_batches(
        self,
        features: Callable[[Any], tf.Tensor],
        batches: Iterable[Any],
        n_samples: int | None,
        progbar: bool,
    ) -> None:
        """Let the estimator see the features of batches, of no more than `n_samples` samples."""
        if n_samples is not None and n_samples < 1:
            raise InputError(f"n_samples={n_samples} must be 1 or more")
        seen = 0
        with get_tqdm()(total=n_samples, desc="Estimating", unit="sample", disable=not progbar) as bar:
            for batch in batches:
                left = None if n_samples is None else n_samples - seen
                size = rows_of(batch) if left is None else min(rows_of(batch), left)
                values = features(take(batch, 0, size))
                self._state.estimator.fit(np.asarray(tf.cast(values, tf.float64)))
                bar.update(size)
                seen += size
                if seen == n_samples:
                    break
        if not seen:
            raise InputError("the generator gave no samples; give at least two")

    # -- optimisation -----------------------------------------------------------------------------

    def _explain(
        self,
        loss: TailLoss,
        inputs: Inputs,
        rows: tuple[npt.NDArray[Any], ...],
        flow: Flow,
        *,
        hyperparameters: dict[str, Any],
        seed: int | None,
        pass_mask: npt.ArrayLike | None,
        max_batch: int | None,
        progbar: bool,
    ) -> npt.NDArray[np.floating]:
        """Capacity (B, *feature map) of a batch of images in nats, which `flow` lets pass from now on.

        Args:
            loss: what the model is asked to keep.
            inputs: of the model, a row per image.
            rows: data for the loss, likewise.
            flow: where what has been kept is kept.
            hyperparameters: by the names of this backend; None for the defaults.
            seed: of the noise.
            pass_mask: of the features or a batch of them.
            max_batch: the most feature maps that pass the tail at once.
            progbar: show the progress.

        Raises:
            NotEstimatedError: the distribution of the features has not been estimated.
            InputError: an argument does not fit.
            OptimizationError: the objective turned NaN or infinite.
        """
        settings = self._state.settings.override(**_core_names(hyperparameters))
        feature_shape = self._statistics().mean.shape
        images = rows_of(inputs)
        if not loss.by_image and images > 1:
            raise InputError(
                f"the feed holds {images} images, and a scalar model_loss cannot tell them apart: give one "
                "image, or set a loss of shape (None,)"
            )
        if self._state.collected and seed is None:
            # The report draws a step's noise once more, which takes a seed.
            _, seed = fresh_key()
        at_once = images_at_once(
            images,
            settings.samples,
            max_batch,
            loss.adapter.preferred_batch(feature_shape, next(arrays_of(inputs))),
        )
        starts = range(0, images, at_once)
        parts = []
        for start in get_tqdm()(starts, desc="Explaining", disable=not progbar or len(starts) == 1):
            stop = min(start + at_once, images)
            with loss.cut.open(take(inputs, start, stop)) as head:
                like = full_precision(head.features)
                part = self._optimize(
                    loss,
                    head,
                    tuple(loss.adapter.asarray(row[start:stop], like=like) for row in rows),
                    settings,
                    seed=seed,
                    pass_mask=of_images(pass_mask, len(feature_shape), start, stop),
                    max_batch=max_batch,
                    progbar=progbar and len(starts) == 1,
                )
            parts.append(part)
        results, reports = zip(*parts, strict=True)
        flow.keep(results, pass_mask)
        self._state.report = joined(reports)
        return np.concatenate([loss.adapter.to_numpy(result.capacity) for result in results])

    def _optimize(
        self,
        loss: TailLoss,
        head: Head,
        targets: tuple[tf.Tensor, ...],
        settings: BottleneckSettings,
        *,
        seed: int | None,
        pass_mask: npt.ArrayLike | None,
        max_batch: int | None,
        progbar: bool,
    ) -> tuple[BottleneckResult, Report]:
        optimizer = loss.optimizer(head.features.shape[1:])
        alphas: list[tf.Tensor] = []
        result = optimizer.run(
            head,
            self._statistics(),
            targets,
            settings=settings,
            seed=seed,
            pass_mask=pass_mask,
            max_batch=max_batch,
            progbar=progbar,
            callback=(lambda step, state, report: alphas.append(state.parameter))
            if self._state.collected
            else None,
        )
        if not self._state.collected:
            return result, {}
        assert seed is not None
        alphas.insert(0, tf.zeros_like(result.alpha) + settings.initial_alpha)
        extras = loss.extras if loss.is_classification else None
        probe = Probe(optimizer, result.problem, pass_mask, settings.samples, extras)
        return result, self._make_report(probe, alphas, settings.steps, seed)

    def _make_report(self, probe: Probe, alphas: list[tf.Tensor], steps: int, seed: int) -> Report:
        collected = self._state.collected
        report: Report = {}
        for step, alpha in enumerate(alphas):
            values = probe.values(alpha, seed, step)
            if step == 0:
                report["init"] = {name: values[name] for name in collected}
            entry = step if step < steps else "final"
            report[entry] = {name: values[name] for name in collected if name not in FIRST_ONLY}
        return report

    # -- state ------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Everything that has been estimated, given or set, as arrays, numbers and strings.

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
        """Take over a state that `state_dict` gave.

        Raises:
            StateError: an entry is missing or malformed; nothing is changed then.
        """
        missing = set(self.state_dict()) - set(state)
        if missing:
            raise StateError(f"the state lacks {', '.join(sorted(missing))}")
        estimator = copy(self._state.estimator)
        estimator.reset()
        if state["estimator"] is not None:
            estimator.load_state_dict(state["estimator"])
        try:
            given = _given_statistics(state["feature_mean"], state["feature_std"], state["feature_active"])
            settings = self._state.settings.override(**_core_names(state["default_hyperparams"]))
        except (InputError, KeyError, TypeError, ValueError) as error:
            raise StateError(f"the state is malformed: {error}") from error
        self._state.estimator, self._state.given, self._state.settings = estimator, given, settings

    def _feature_name(self) -> str | None:
        """Name of the features that the statistics describe."""
        raise NotImplementedError


def require_adam(optimizer_cls: type) -> None:
    """Check the class of an optimiser that stands for the library's own Adam.

    Raises:
        InputError: it is another optimiser's.
    """
    if not (isinstance(optimizer_cls, type) and issubclass(optimizer_cls, _ADAMS)):
        raise InputError(
            f"optimizer_cls={getattr(optimizer_cls, '__name__', optimizer_cls)!r} is not Adam, by which the "
            "bottleneck is optimised in every framework"
        )


def require_rows(tensor: tf.Tensor, argument: str) -> None:
    """Check that an input has rows, and finite values.

    Raises:
        InputError: it is an empty batch, or holds NaN or infinity.
    """
    if not tensor.shape[0]:
        raise InputError(f"{argument} is an empty batch")
    if tensor.dtype.is_floating:
        require_finite(tensor.numpy(), argument)


def classes_of(target: Any, images: int, count: int) -> npt.NDArray[np.int64]:
    """Indices of the classes of images, (B,).

    Args:
        target: a class for all images, or one for each, (B,) or (B, 1).
        images: how many there are.
        count: number of classes.

    Raises:
        InputError: `target` has another shape, or is no index of a class.
    """
    if target is None:
        raise InputError("the feed gives no class: add {target: class}, or give target=")
    target = np.asarray(target)
    if target.shape == (images, 1):
        target = target[:, 0]
    if target.shape not in ((), (1,), (images,)):
        raise InputError(f"target has shape {target.shape} for {images} images; give one class, or one each")
    return ClassTarget(target).resolve_classes(np.empty((images, count)))


def _core_names(hyperparameters: dict[str, Any]) -> dict[str, Any]:
    return {_SETTINGS[name]: value for name, value in hyperparameters.items()}


def _given_statistics(
    mean: npt.ArrayLike | None, std: npt.ArrayLike | None, active: npt.ArrayLike | None
) -> Statistics | None:
    if (mean is None) != (std is None) or (mean is None and active is not None):
        raise InputError("feature_mean and feature_std are given together or not at all")
    if mean is None or std is None:
        return None
    mean, std = np.asarray(mean, np.float64), np.asarray(std, np.float64)
    return Statistics(
        mean, std, np.ones(mean.shape, bool) if active is None else np.asarray(active).astype(bool)
    )
