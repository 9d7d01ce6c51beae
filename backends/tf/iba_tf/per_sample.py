"""What the per-sample bottlenecks of this backend share, however they reach into a model."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from copy import copy
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import tensorflow as tf

from iba_core.adapter import Head
from iba_core.bottleneck import BottleneckSettings, Statistics
from iba_core.errors import InputError, StateError
from iba_core.estimator import WelfordEstimator
from iba_core.inputs import batch_size as rows_of
from iba_core.inputs import take
from iba_core.optimization import BottleneckOptimizer, BottleneckResult
from iba_core.utils import get_tqdm
from iba_tf.report import FIRST_ONLY, Extras, Probe

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

Report = dict[str | int, dict[str, npt.NDArray[Any]]]
"""Collected variables: ``"init"``, one entry per step from 0, ``"final"``."""


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
        ``pass_mask``, each (1, \\*f). Capacities are in nats.
        """
        return Probe.names(self._extras() is not None)

    def get_report(self) -> Report:
        """Collected variables of the last run, as NumPy arrays by name.

        The entries are ``"init"``, the numbers of the steps from 0, each as the step found them before its
        update, and ``"final"`` after the last update. Empty if nothing was collected.
        """
        return dict(self._state.report)

    def _extras(self) -> Extras | None:
        """What the model's loss computes on its way, to be reported, too."""
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

    def _optimize(
        self,
        optimizer: BottleneckOptimizer,
        head: Head,
        targets: tuple[tf.Tensor, ...],
        hyperparameters: dict[str, Any],
        seed: int | None,
        pass_mask: npt.ArrayLike | None,
        max_batch: int | None,
        progbar: bool,
    ) -> BottleneckResult:
        settings = self._state.settings.override(**_core_names(hyperparameters))
        options = {"settings": settings, "pass_mask": pass_mask, "max_batch": max_batch, "progbar": progbar}
        statistics = self._statistics()
        if not self._state.collected:
            self._state.report = {}
            return optimizer.run(head, statistics, targets, seed=seed, **options)
        if seed is None:
            # The report draws a step's noise once more, which takes a seed.
            seed = int(tf.random.uniform((), maxval=2**31 - 1, dtype=tf.int32))
        states = []
        result = optimizer.run(
            head,
            statistics,
            targets,
            seed=seed,
            callback=lambda step, state, report: states.append(state.parameter),
            **options,
        )
        alphas = [tf.zeros_like(result.alpha) + settings.initial_alpha, *states]
        self._state.report = self._make_report(optimizer, result, alphas, settings, seed, pass_mask)
        return result

    def _make_report(
        self,
        optimizer: BottleneckOptimizer,
        result: BottleneckResult,
        alphas: list[tf.Tensor],
        settings: BottleneckSettings,
        seed: int,
        pass_mask: npt.ArrayLike | None,
    ) -> Report:
        probe = Probe(optimizer, result.problem, pass_mask, settings.samples, self._extras())
        collected = self._state.collected
        report: Report = {}
        for step, alpha in enumerate(alphas):
            values = probe.values(alpha, seed, step)
            if step == 0:
                report["init"] = {name: values[name] for name in collected}
            entry = step if step < settings.steps else "final"
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


def repeat_rows(rows: tf.Tensor, z: tf.Tensor) -> tf.Tensor:
    """Each row as often as `z` has copies of an image."""
    return tf.repeat(rows, z.shape[0] // rows.shape[0], axis=0)


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
