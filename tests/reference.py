"""What an explanation has to be: the paper's formulas in NumPy, in float64, on passes of the whole model.

Nothing of the library is used except the noise of a seed, which is part of its public promise. A caller
gives the slopes of its model's losses, from a pass of the whole model with other features in the place of a
layer's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from scipy.ndimage import gaussian_filter1d
from scipy.special import expit

from iba_core.bottleneck.noise import seeded_normal
from iba_core.framework.layout import Layout

MIN_STD, ACTIVE = 0.01, 0.01
"""The library's defaults: floor of the standard deviations, and share of the samples in which a neuron that
is active is not 0."""

Slope = Callable[[np.ndarray], np.ndarray | None]
"""Slopes of the losses of noisy copies z, (S, *feature map), with respect to each copy; None where the losses
do not depend on them."""


@dataclass(frozen=True)
class Settings:
    """Hyperparameters of an optimisation, by the names that the library gives them."""

    beta: float = 10.0
    steps: int = 2
    samples: int = 2
    learning_rate: float = 1.0
    initial_alpha: float = 5.0
    smooth_std: float = 1.0
    seed: int = 0


@dataclass(frozen=True)
class Statistics:
    """Mean, standard deviation (not less than `MIN_STD`) and activity of every feature."""

    mean: np.ndarray
    std: np.ndarray
    active: np.ndarray

    @classmethod
    def of(cls, features: np.ndarray) -> Statistics:
        """Statistics of features (N, *feature map)."""
        wide = features.astype(np.float64)
        std = np.maximum(wide.std(axis=0, ddof=1), MIN_STD)
        return cls(wide.mean(axis=0), std, (wide != 0).mean(axis=0) > ACTIVE)


def smoothing(size: int, std: float) -> np.ndarray:
    """Gaussian smoothing of an axis that ends at two standard deviations, mirrored at the borders."""
    if not std:
        return np.eye(size)
    return gaussian_filter1d(np.eye(size), std, axis=0, mode="mirror", radius=max(1, round(2 * std)))


def along(x: np.ndarray, matrices: Sequence[np.ndarray], axes: Sequence[int]) -> np.ndarray:
    """Apply a matrix along each of some axes."""
    for matrix, axis in zip(matrices, axes, strict=True):
        x = np.moveaxis(np.tensordot(matrix, x, axes=(1, axis)), 0, axis)
    return x


def resized(maps: np.ndarray, shape: Sequence[int]) -> np.ndarray:
    """Maps (B, *places), resized linearly between the centres of the places."""
    for axis, (size, wanted) in enumerate(zip(maps.shape[1:], shape, strict=True), start=1):
        centres = (np.arange(wanted) + 0.5) * size / wanted - 0.5
        maps = np.apply_along_axis(
            lambda row, at=centres: np.interp(at, np.arange(len(row)), row), axis, maps
        )
    return maps


@dataclass(frozen=True)
class Bottleneck:
    """The bottleneck of one image at a layer.

    Attributes:
        features: R of the image, (*feature map).
        statistics: of the layer's features.
        channel: axis of the channels in a feature map.
        settings: hyperparameters.
    """

    features: np.ndarray
    statistics: Statistics
    channel: int
    settings: Settings

    @property
    def spatial(self) -> list[int]:
        return [axis for axis in range(self.features.ndim) if axis != self.channel]

    @property
    def matrices(self) -> list[np.ndarray]:
        return [smoothing(self.features.shape[axis], self.settings.smooth_std) for axis in self.spatial]

    @property
    def normal(self) -> np.ndarray:
        return (self.features - self.statistics.mean) / self.statistics.std

    def optimised(self, slope: Slope) -> np.ndarray | None:
        """Alpha after the last step; None where the losses do not depend on the features."""
        settings = self.settings
        alpha = np.full(self.features.shape, settings.initial_alpha)
        first, second = np.zeros_like(alpha), np.zeros_like(alpha)
        for step in range(settings.steps):
            terms = self.gradients(alpha, step, slope)
            if terms is None:
                return None
            gradient = terms[0] + settings.beta * terms[1]
            first = 0.9 * first + 0.1 * gradient
            second = 0.999 * second + 0.001 * gradient**2
            t = step + 1
            change = first / (1 - 0.9**t) / (np.sqrt(second / (1 - 0.999**t)) + 1e-8)
            alpha = alpha - settings.learning_rate * change
        return alpha

    def gradients(self, alpha: np.ndarray, step: int, slope: Slope) -> tuple[np.ndarray, np.ndarray] | None:
        """Gradients with respect to alpha: of the model's loss, and of the mean capacity."""
        stats, r, settings = self.statistics, self.features.astype(np.float64), self.settings
        blocked = along(expit(-alpha), self.matrices, self.spatial)
        layout = Layout(r.ndim, self.channel)
        noise = seeded_normal(settings.seed, step, settings.samples, r.shape, layout).astype(np.float64)
        epsilon = stats.mean + stats.std * noise
        slopes = slope(np.where(stats.active, (1 - blocked) * r + blocked * epsilon, 0.0))
        if slopes is None:
            return None
        of_loss = (slopes * (r - epsilon)).mean(axis=0)
        of_capacity = (1 / blocked + self.normal**2 * (1 - blocked) - blocked) / r.size
        return self._to_alpha(of_loss, alpha), self._to_alpha(of_capacity, alpha)

    def _to_alpha(self, of_passed: np.ndarray, alpha: np.ndarray) -> np.ndarray:
        acting = np.where(self.statistics.active, of_passed, 0.0)
        transposed = [matrix.T for matrix in self.matrices]
        return along(acting, transposed, self.spatial) * expit(alpha) * expit(-alpha)

    def capacity(self, alpha: np.ndarray) -> np.ndarray:
        """Nats of each feature, (*feature map)."""
        blocked = along(expit(-alpha), self.matrices, self.spatial)
        nats = -0.5 * (1 + np.log(blocked**2) - (self.normal * (1 - blocked)) ** 2 - blocked**2)
        return np.where(self.statistics.active, nats, 0.0)

    def balanced(self, slope: Slope) -> Bottleneck:
        """The same bottleneck with a beta at which both terms move alpha alike in the first step."""
        terms = self.gradients(np.full(self.features.shape, self.settings.initial_alpha), 0, slope)
        assert terms is not None
        of_loss, of_capacity = (float(np.linalg.norm(term)) for term in terms)
        return replace(self, settings=replace(self.settings, beta=of_loss / of_capacity))


def saliency(capacity: np.ndarray, channel: int, shape: Sequence[int] | None) -> np.ndarray:
    """Bits per pixel, (B, *shape), whose sum is that of the capacity (B, *feature map), in nats."""
    maps = (capacity / np.log(2)).sum(axis=channel + 1)
    if not shape:
        return maps
    large = resized(maps, shape)
    axes = tuple(range(1, maps.ndim))
    return large * maps.sum(axis=axes, keepdims=True) / large.sum(axis=axes, keepdims=True)


def relative_error(found: Any, right: np.ndarray) -> float:
    """The largest difference, as a share of the largest of the right numbers."""
    found = np.asarray(found)
    if found.shape != right.shape or not np.isfinite(found).all():
        return float("inf")
    return float(np.abs(found - right).max() / max(float(np.abs(right).max()), 1e-300))
