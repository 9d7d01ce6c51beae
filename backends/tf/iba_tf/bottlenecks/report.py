"""Reports: the variables of the optimisation's steps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import tensorflow as tf

from iba_core.bottleneck.adam import AdamState
from iba_core.bottleneck.formulas import Mask, mask_from_alpha, restrict
from iba_core.bottleneck.optimization import (
    BottleneckOptimizer,
    BottleneckResult,
    Problem,
    StepReport,
    masked_capacity,
)
from iba_core.bottleneck.settings import BottleneckSettings
from iba_core.framework.namespace import sigmoid
from iba_core.targets import main_output

Report = dict[str | int, dict[str, npt.NDArray[Any]]]
"""Collected variables: ``"init"``, one entry per step from 0, ``"final"``."""

_FIRST_ONLY = ("feature", "feature_mean", "feature_std", "pass_mask")
"""Variables that no step changes: they are reported once."""

_EVERY_STEP = (
    "alpha",
    "capacity",
    "capacity_mean",
    "capacity_no_nans",
    "eps",
    "grad_loss_wrt_alpha",
    "information_loss",
    "lambda",
    "lambda_pre_blur",
    "loss",
    "model_loss",
    "perturbed_feature",
    "perturbed_feature_passing",
)
_OF_A_CLASSIFICATION = ("cross_entropy", "logits")
_OF_ALL_IMAGES = ("eps", "feature_mean", "feature_std")


def variable_names(is_classification: bool) -> list[str]:
    """Names of the variables that can be reported, in alphabetical order."""
    return sorted((*_EVERY_STEP, *_FIRST_ONLY, *(_OF_A_CLASSIFICATION if is_classification else ())))


class Reporter:
    """Computes the variables of a step, by a function that is compiled once.

    Args:
        optimizer: runs the steps.
        is_classification: whether the model is asked to keep a class.
    """

    def __init__(self, optimizer: BottleneckOptimizer, is_classification: bool) -> None:
        self.optimizer = optimizer
        self._is_classification = is_classification
        self.variables = optimizer.framework.compile(self._variables)

    def _variables(self, alpha: tf.Tensor, noise: tf.Tensor, problem: Problem) -> dict[str, tf.Tensor]:
        optimizer, images = self.optimizer, alpha.shape[0]
        mask = mask_from_alpha(alpha, problem.matrices, optimizer.layout)
        eps = problem.mean + problem.std * noise
        features, passed, blocked = (tf.repeat(x, noise.shape[0], axis=0) for x in (problem.features, *mask))
        perturbed = restrict(features, Mask(passed, blocked), tf.tile(eps, [images] + [1] * (eps.ndim - 1)))
        z = optimizer.restricted(problem, mask, noise)
        nats = masked_capacity(problem, mask)
        mean = tf.reduce_mean(nats, axis=range(1, nats.ndim))
        gradient, (model_loss, information) = optimizer.gradient(alpha, (noise,), problem)
        return {
            "alpha": alpha,
            "capacity": nats,
            "capacity_mean": mean,
            "capacity_no_nans": nats,
            "eps": eps,
            "grad_loss_wrt_alpha": gradient,
            "information_loss": mean,
            "lambda": mask.passed,
            "lambda_pre_blur": sigmoid(alpha),
            "loss": model_loss + information,
            "model_loss": model_loss,
            "perturbed_feature": perturbed,
            "perturbed_feature_passing": z,
            **(self._of_classification(z, problem) if self._is_classification else {}),
        }

    def _of_classification(self, z: tf.Tensor, problem: Problem) -> dict[str, tf.Tensor]:
        logits = main_output(problem.tail_outputs(z))
        rows = (tf.repeat(row, z.shape[0] // row.shape[0], axis=0) for row in problem.rows)
        return {"logits": logits, "cross_entropy": self.optimizer.loss(logits, *rows)}


class Recording:
    """Remembers alpha at each step, and computes the other variables afterwards.

    Args:
        reporter: computes them.
        collected: names of the variables to report.
    """

    def __init__(self, reporter: Reporter, collected: Sequence[str]) -> None:
        self._reporter = reporter
        self._collected = collected
        self._alphas: list[tf.Tensor] = []

    def record(self, step: int, state: AdamState, report: StepReport) -> None:
        """Remember alpha after a step."""
        self._alphas.append(state.parameter)

    def report(
        self,
        result: BottleneckResult,
        settings: BottleneckSettings,
        seed: int,
        pass_mask: npt.ArrayLike | None,
    ) -> Report:
        """Report of an optimisation that has ended; arguments as given to it."""
        problem = result.problem
        constant = {
            "feature": problem.features,
            "feature_mean": problem.mean,
            "feature_std": problem.std,
            "pass_mask": np.broadcast_to(0.0 if pass_mask is None else pass_mask, problem.features.shape),
        }
        alphas = [tf.zeros_like(result.alpha) + settings.initial_alpha, *self._alphas]
        report: Report = {}
        for step, alpha in enumerate(alphas):
            (noise,) = self._reporter.optimizer.noise(problem, (settings.samples,), seed, step)
            values = self._reporter.variables(alpha, noise, problem)
            if step == 0:
                report["init"] = self._chosen({**values, **constant})
            report[step if step < settings.steps else "final"] = self._chosen(values)
        return report

    def _chosen(self, values: dict[str, Any]) -> dict[str, npt.NDArray[Any]]:
        return {name: np.array(values[name]) for name in self._collected if name in values}


def joined(reports: Sequence[Report]) -> Report:
    """One report of all images, from those of the chunks in which they were analysed; empty from none."""
    if not reports:
        return {}
    first, *others = reports
    return {
        entry: {
            name: value
            if name in _OF_ALL_IMAGES
            else np.concatenate([value, *(report[entry][name] for report in others)])
            for name, value in values.items()
        }
        for entry, values in first.items()
    }
