"""Variables of an optimisation step, computed once more to be looked at."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import tensorflow as tf

from iba_core.bottleneck.formulas import Mask, mask_from_alpha, restrict
from iba_core.bottleneck.optimization import BottleneckOptimizer, Problem, masked_capacity
from iba_core.framework.namespace import sigmoid
from iba_tf.tracing import traced

Extras = Callable[[tf.Tensor, Problem], dict[str, tf.Tensor]]
"""Further variables of the model's loss for restricted features z (B * S, \\*feature map)."""

Report = dict[str | int, dict[str, npt.NDArray[Any]]]
"""Collected variables: ``"init"``, one entry per step from 0, ``"final"``."""

FIRST_ONLY = ("feature", "feature_mean", "feature_std", "pass_mask")
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


class Probe:
    """Computes the variables of a step from what went into it.

    Args:
        optimizer: whose step it is.
        problem: what it optimises.
        pass_mask: as given to the optimisation.
        samples: noisy copies of each image.
        extras: computes the further variables of a classification.
    """

    def __init__(
        self,
        optimizer: BottleneckOptimizer,
        problem: Problem,
        pass_mask: npt.ArrayLike | None,
        samples: int,
        extras: Extras | None,
    ) -> None:
        self._optimizer = optimizer
        self._problem = problem
        self._samples = samples
        self._extras = extras
        self._constant = {
            "feature": problem.features,
            "feature_mean": problem.mean,
            "feature_std": problem.std,
            "pass_mask": np.broadcast_to(0.0 if pass_mask is None else pass_mask, problem.features.shape),
        }
        self._compiled = traced(self._compute)

    @staticmethod
    def names(is_classification: bool) -> list[str]:
        """Names of the variables, in alphabetic order."""
        return sorted((*_EVERY_STEP, *FIRST_ONLY, *(_OF_A_CLASSIFICATION if is_classification else ())))

    def values(self, alpha: tf.Tensor, seed: int, step: int) -> dict[str, npt.NDArray[Any]]:
        """All variables at `alpha`, with the noise of a step."""
        (noise,) = self._optimizer.noise(self._problem, (self._samples,), seed, step)
        computed = self._compiled(alpha, noise, self._problem)
        return {name: np.array(value) for name, value in {**computed, **self._constant}.items()}

    def _compute(self, alpha: tf.Tensor, noise: tf.Tensor, problem: Problem) -> dict[str, tf.Tensor]:
        optimizer = self._optimizer
        mask = mask_from_alpha(alpha, problem.matrices, optimizer.layout)
        gradient, (model_loss, information) = optimizer.gradient(alpha, (noise,), problem)
        eps = problem.mean + problem.std * noise
        copies = [tf.repeat(x, noise.shape[0], axis=0) for x in (problem.features, *mask)]
        perturbed = restrict(
            copies[0], Mask(*copies[1:]), tf.tile(eps, [alpha.shape[0]] + [1] * (eps.ndim - 1))
        )
        z = optimizer.restricted(problem, mask, noise)
        nats = masked_capacity(problem, mask)
        mean = tf.reduce_mean(nats, axis=range(1, nats.ndim))
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
            **(self._extras(z, problem) if self._extras else {}),
        }


def joined(reports: Sequence[Report]) -> Report:
    """One report of all images, from those of the parts in which they were analysed."""
    first, *rest = reports
    return {
        entry: {
            name: value
            if name in _OF_ALL_IMAGES
            else np.concatenate([value, *(report[entry][name] for report in rest)])
            for name, value in values.items()
        }
        for entry, values in first.items()
    }
