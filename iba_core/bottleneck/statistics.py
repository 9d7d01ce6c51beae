"""Distribution of a layer's features, as the bottleneck needs it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from iba_core.arguments import require_type
from iba_core.bottleneck.estimator import WelfordEstimator
from iba_core.errors import InputError, NotEstimatedError
from iba_core.framework.adapter import Inputs
from iba_core.framework.arrays import require_array, require_mask
from iba_core.framework.inputs import padding_of
from iba_core.framework.layout import Tokens


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

    def repeated(self, length: int) -> Statistics:
        """Statistics of one token (C,) for each of `length` tokens, (length, C)."""
        shape = (length, *self.mean.shape)
        return Statistics(*(np.broadcast_to(x, shape) for x in (self.mean, self.std, self.active)))

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


def samples_of_tokens(features: npt.NDArray[Any], tokens: Tokens, inputs: Inputs) -> npt.NDArray[Any]:
    """What an estimator sees of features (B, N, C): all of each, or each token where lengths differ.

    Args:
        features: of a batch of sequences.
        tokens: how they are read.
        inputs: what the model was given, which may mark padding. That is left out.

    Returns:
        The features themselves; or (tokens of all sequences, C) where tokens may be any in number.

    Raises:
        InputError: the features are no tokens, or the mask does not fit them.
    """
    if not tokens.any_length:
        return features
    if features.ndim != 3:
        raise InputError(
            f"the features have shape {features.shape[1:]}; Tokens(any_length=True) reads (tokens, channels)"
        )
    padding = padding_of(inputs)
    if padding is None:
        return features.reshape(-1, features.shape[2])
    if padding.shape != features.shape[:2]:
        raise InputError(
            f"attention_mask has shape {padding.shape}, but the layer gives {features.shape[:2]} tokens; "
            "name a layer with a vector for each token"
        )
    return features[~padding]
