"""The bottleneck itself: mask, restricted features, capacity.

The formulas of K. Schulz, L. Sixt, F. Tombari, T. Landgraf, "Restricting the Flow: Information Bottlenecks
for Attribution", ICLR 2020, https://arxiv.org/abs/2001.00396, each written once over the array namespace.
Features R of an image have mean mu and standard deviation sigma over many images. A mask lambda in (0, 1)
mixes them with noise of that distribution, and the capacity says how much of R is still told.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from iba_core.bottleneck.estimator import WelfordEstimator
from iba_core.bottleneck.smoothing import smooth
from iba_core.errors import InputError, NotEstimatedError, is_whole_number
from iba_core.framework.layout import Layout
from iba_core.framework.namespace import Array, array_namespace, expit


class Mask(NamedTuple):
    """The mask of a bottleneck and its complement, each (B, *feature map) in [0, 1] up to rounding.

    The complement is what is computed: ``1 - passed`` rounds to 0 in float32 long before the share of noise
    is 0, and its logarithm, which the capacity needs, would be infinite. Nothing takes that of `passed`.
    """

    passed: Array
    """lambda, the share of the features that passes."""
    blocked: Array
    """1 - lambda, the share that is replaced by noise; more than 0."""


def mask_from_alpha(alpha: Array, matrices: Sequence[Array], layout: Layout) -> Mask:
    """Mask of the bottleneck's parameter: ``G * sigmoid(alpha)``, with a Gaussian G (paper, eq. 8).

    G sums to one, so the complement is ``G * sigmoid(-alpha)``.

    Args:
        alpha: (B, *feature map), any real numbers.
        matrices: G along each spatial axis, from `smoothing_matrices`; none for no smoothing.
        layout: meaning of the axes of a feature map.
    """
    blocked = smooth(expit(-alpha), matrices, layout)
    return Mask(1.0 - blocked, blocked)


def alpha_slope(of_blocked: Array, alpha: Array, matrices: Sequence[Array], layout: Layout) -> Array:
    """From the derivative of something with the mask's complement, that with alpha, by `mask_from_alpha`.

    It is ``-sigmoid(alpha) sigmoid(-alpha)`` times the derivative, smoothed by the transpose of G.

    Args:
        of_blocked: derivative with 1 - lambda, (B, *feature map).
        alpha: likewise.
        matrices: as of `mask_from_alpha`.
        layout: likewise.
    """
    xp = array_namespace(alpha)
    transposed = [xp.permute_dims(matrix, (1, 0)) for matrix in matrices]
    # Relatively exact on both sides, also where one of the two factors rounds to 1.
    return -expit(alpha) * expit(-alpha) * smooth(of_blocked, transposed, layout)


def restrict(features: Array, mask: Mask, noise: Array) -> Array:
    """Features with a share replaced by noise: ``lambda R + (1 - lambda) eps`` (paper, eq. 2).

    Args:
        features: R.
        mask: lambda and its complement.
        noise: eps, drawn from N(mu, sigma^2). All arguments broadcast against each other.
    """
    return mask.passed * features + mask.blocked * noise


def capacity(normalized: Array, mask: Mask) -> Array:
    """Information that passes each feature, ``KL(P(Z|R) || Q(Z))`` with Q = N(mu, sigma^2) (paper, eq. 5).

    With r = (R - mu) / sigma this is ``-1/2 (1 + log (1 - lambda)^2 - (r lambda)^2 - (1 - lambda)^2)``.

    Args:
        normalized: r, of the shape of the mask or broadcasting to it.
        mask: lambda and its complement.

    Returns:
        Array of the shape of the mask, in nats, not negative up to rounding.
    """
    xp = array_namespace(normalized)
    return (xp.square(normalized * mask.passed) + xp.square(mask.blocked) - 1.0) / 2.0 - xp.log(mask.blocked)


def capacity_slope(normalized: Array, mask: Mask) -> Array:
    """Derivative of `capacity` with what is blocked, 1 - lambda: ``b - 1 / b - r^2 (1 - b)`` for blocked b.

    Args:
        normalized: as of `capacity`.
        mask: likewise.

    Returns:
        Array of the shape of the mask, in nats, not positive up to rounding.
    """
    return mask.blocked - 1.0 / mask.blocked - normalized * (normalized * mask.passed)


_PRECISIONS = ("bfloat16", "float16")


@dataclass(frozen=True)
class BottleneckSettings:
    """Hyperparameters of a per-sample bottleneck, with the paper's defaults.

    Attributes:
        beta: weight of the information against the model's loss. More beta, fewer bits.
        steps: optimiser steps.
        samples: noisy copies of each image that a step's gradient is averaged over.
        learning_rate: learning rate of Adam.
        initial_alpha: start value of alpha; at 5 almost everything passes.
        min_std: floor of the features' standard deviation.
        smooth_std: standard deviation of the Gaussian that smooths the mask, in features; 0 or None for
            no smoothing.
        normalize_beta: penalise the mean capacity of the features; otherwise their sum.
        active_neurons_threshold: a neuron that is nonzero in no more than this share of the estimation
            samples is inactive: it is set to 0 and carries no information.
        antithetic: let every second copy have the noise of the one before it, negated. What the noise adds
            to the gradient in first order is then 0 in each pair, not only on average.
        early_steps: so many of the steps, the first ones, have `early_samples` copies in place of `samples`:
            while the mask is open, little noise passes, and a few copies find the same gradient.
        early_samples: noisy copies of each image in those steps.
        tolerance: stop the steps of an image once its map has converged: once the sum of the absolute changes
            of the map from one step to the next is no more than this share of the map's sum. 0 for all steps.
        precision: ``"bfloat16"`` or ``"float16"``, to let the tail of the model run in it where the framework
            offers that (PyTorch's autocast); the bottleneck stays in float32. None for the model's own.

    Raises:
        InputError: a value is out of its range.
    """

    beta: float = 10.0
    steps: int = 10
    samples: int = 10
    learning_rate: float = 1.0
    initial_alpha: float = 5.0
    min_std: float = 0.01
    smooth_std: float | None = 1.0
    normalize_beta: bool = True
    active_neurons_threshold: float = 0.01
    antithetic: bool = False
    early_steps: int = 0
    early_samples: int = 2
    tolerance: float = 0.0
    precision: str | None = None

    def __post_init__(self) -> None:
        for name, least in (("steps", 0), ("samples", 1), ("early_steps", 0), ("early_samples", 1)):
            value = getattr(self, name)
            if not is_whole_number(value, least):
                raise InputError(f"{name}={value!r} must be a whole number, {least} or more")
        for name in ("beta", "learning_rate", "min_std", "active_neurons_threshold", "tolerance"):
            if not _is_number(getattr(self, name), 0.0):
                raise InputError(f"{name}={getattr(self, name)!r} must be a finite number, 0 or more")
        if self.smooth_std is not None and not _is_number(self.smooth_std, 0.0):
            raise InputError(f"smooth_std={self.smooth_std!r} must be None or a finite number, 0 or more")
        if not _is_number(self.initial_alpha, -np.inf):
            raise InputError(f"initial_alpha={self.initial_alpha!r} must be a finite number")
        if not isinstance(self.antithetic, (bool, np.bool_)):
            raise InputError(f"antithetic={self.antithetic!r} must be True or False")
        if self.precision not in (None, *_PRECISIONS):
            raise InputError(
                f"precision={self.precision!r} must be None or one of {', '.join(map(repr, _PRECISIONS))}"
            )

    @property
    def schedule(self) -> tuple[int, ...]:
        """Noisy copies of each image in each of the steps."""
        early = min(self.early_steps, self.steps)
        return (self.early_samples,) * early + (self.samples,) * (self.steps - early)

    def override(self, **values: object) -> BottleneckSettings:
        """These settings with the given values in place.

        None leaves a setting as it is; to turn smoothing off, give ``smooth_std=0``.
        """
        known = self.__dataclass_fields__
        for name in values:
            if name not in known:
                raise InputError(f"{name!r} is no setting; the settings are {', '.join(known)}")
        given = {name: value for name, value in values.items() if value is not None}
        return BottleneckSettings(**{**{name: getattr(self, name) for name in known}, **given})


def _is_number(value: object, least: float) -> bool:
    try:
        return bool(np.isfinite(value) and value >= least)  # type: ignore[call-overload,operator]  # of no number, what is raised is caught
    except TypeError:
        return False


FAST: Mapping[str, Any] = MappingProxyType(
    {
        "steps": 8,
        "learning_rate": 1.25,
        "samples": 4,
        "early_steps": 4,
        "early_samples": 2,
        "antithetic": True,
    }
)
"""A quarter of the default's noisy copies: fewer and longer steps, copies in pairs, and fewer of them while
the mask is open. ``docs/speed.md`` has what it costs."""

PRESETS: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        "default": MappingProxyType({name: getattr(BottleneckSettings(), name) for name in FAST}),
        "fast": FAST,
    }
)
"""Sets of hyperparameters by their names. They hold what the time and the noise of an explanation depend on,
with the learning rate that goes with their steps, and not what is explained, such as beta."""


def preset_settings(name: str | None) -> Mapping[str, Any]:
    """Hyperparameters of a preset; none for None.

    Raises:
        InputError: there is no preset of that name.
    """
    if name is None:
        return {}
    if name not in PRESETS:
        raise InputError(f"preset={name!r} is none of the presets {', '.join(map(repr, PRESETS))}")
    return PRESETS[name]


@dataclass(frozen=True)
class Statistics:
    """Distribution of the features over many images, each array of the shape of one feature map.

    Attributes:
        mean: mean, in units of the features.
        std: standard deviation, likewise.
        active: whether the neuron takes part; the others are set to 0.

    Raises:
        InputError: the shapes differ, or a value is not finite or negative where it must not be.
    """

    mean: npt.NDArray[np.floating]
    std: npt.NDArray[np.floating]
    active: npt.NDArray[np.bool_]

    def __post_init__(self) -> None:
        shapes = {name: getattr(self, name).shape for name in ("mean", "std", "active")}
        if len(set(shapes.values())) != 1:
            given = ", ".join(f"{name} {shape}" for name, shape in shapes.items())
            raise InputError(f"the statistics of the features must have one shape, not {given}")
        if not (np.isfinite(self.mean).all() and np.isfinite(self.std).all()):
            raise InputError("the mean and standard deviation of the features must be finite")
        if (self.std < 0).any():
            raise InputError("the standard deviation of the features must not be negative")

    def permuted(self, axes: Sequence[int]) -> Statistics:
        """The same of feature maps whose axes are permuted."""
        return Statistics(*(np.transpose(x, axes) for x in (self.mean, self.std, self.active)))

    @classmethod
    def of(cls, estimator: WelfordEstimator, active_neurons_threshold: float = 0.01) -> Statistics:
        """Statistics that an estimator has gathered.

        Raises:
            NotEstimatedError: it has seen fewer than two samples.
        """
        if estimator.n_samples() < 2:
            raise NotEstimatedError(
                "the distribution of the features is not estimated: "
                f"{estimator.n_samples()} samples seen, at least 2 are needed and about 5000 are advised"
            )
        return cls(estimator.mean(), estimator.std(), estimator.active_neurons(active_neurons_threshold))
