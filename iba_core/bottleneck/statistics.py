"""Distribution of a layer's features, as the bottleneck needs it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from iba_core.arguments import require_type
from iba_core.bottleneck.estimator import WelfordEstimator
from iba_core.errors import InputError, NotEstimatedError
from iba_core.framework.arrays import require_array, require_mask


@dataclass(frozen=True)
class Statistics:
    """Distribution of the features over many images, each array of the shape of one feature map.

    Attributes:
        mean: mean, in units of the features.
        std: standard deviation, likewise.
        active: True where the neuron takes part; inactive neurons are set to 0.

    Raises:
        InputError: the shapes differ, a mean or standard deviation is not finite, or a standard deviation is
            negative.

    Example:
        >>> statistics = Statistics(np.zeros(3), np.ones(3), np.array([True, False, True]))
        >>> int(statistics.active.sum())
        2
    """

    mean: npt.NDArray[np.floating]
    std: npt.NDArray[np.floating]
    active: npt.NDArray[np.bool_]

    def __post_init__(self) -> None:
        for name in ("mean", "std", "active"):
            array = require_array(name, getattr(self, name), least=0 if name == "std" else None)
            object.__setattr__(self, name, require_mask(name, array) if name == "active" else array)
        shapes = {name: getattr(self, name).shape for name in ("mean", "std", "active")}
        if len(set(shapes.values())) != 1:
            given = ", ".join(f"{name} {shape}" for name, shape in shapes.items())
            raise InputError(f"the statistics of the features must have one shape, not {given}")

    def permuted(self, axes: Sequence[int]) -> Statistics:
        """Statistics of the same features with the axes of a feature map permuted."""
        return Statistics(*(np.transpose(x, axes) for x in (self.mean, self.std, self.active)))

    @classmethod
    def of(cls, estimator: WelfordEstimator, active_neurons_threshold: float = 0.01) -> Statistics:
        """Statistics of the samples that an estimator has seen.

        Args:
            estimator: the estimator that has seen the features.
            active_neurons_threshold: see `BottleneckSettings`.

        Raises:
            NotEstimatedError: it has seen fewer than two samples.

        Example:
            >>> estimator = WelfordEstimator()
            >>> _ = estimator.fit(np.arange(6.0).reshape(3, 2))
            >>> Statistics.of(estimator).mean
            array([2., 3.])
        """
        require_type("estimator", estimator, WelfordEstimator, "a WelfordEstimator")
        if estimator.n_samples() < 2:
            raise NotEstimatedError(
                "the distribution of the features is not estimated: "
                f"{estimator.n_samples()} samples seen, at least 2 are needed and about 5000 are advised"
            )
        return cls(estimator.mean(), estimator.std(), estimator.active_neurons(active_neurons_threshold))
