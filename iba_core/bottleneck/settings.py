"""Hyperparameters of a per-sample bottleneck, and presets of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from types import MappingProxyType
from typing import Any

import numpy as np

from iba_core.errors import InputError, is_whole_number

_PRECISIONS = ("bfloat16", "float16")


@dataclass(frozen=True)
class BottleneckSettings:
    """Hyperparameters of a per-sample bottleneck, with the paper's defaults.

    Attributes:
        beta: weight of the information against the model's loss. More beta, fewer bits.
        steps: optimiser steps.
        samples: noisy copies of each image. A step averages its gradient over them.
        learning_rate: learning rate of Adam.
        initial_alpha: start value of alpha. At 5 almost everything passes.
        min_std: floor of the features' standard deviation.
        smooth_std: standard deviation of the Gaussian that smooths the mask, in features. 0 or None for no
            smoothing.
        normalize_beta: penalise the mean capacity of the features; otherwise their sum.
        active_neurons_threshold: a neuron is inactive if it is nonzero in at most this share of the samples
            of the estimate. Inactive neurons are set to 0 and carry no information.
        antithetic: give every second copy the negated noise of the copy before it. The noise's first-order
            effect on the gradient then cancels in each pair, not only on average.
        early_steps: number of first steps that use `early_samples` copies in place of `samples`. While the
            mask is open, little noise passes, and a few copies find the same gradient.
        early_samples: noisy copies of each image in those steps.
        tolerance: stop the steps of an image once its map has converged, which means that the sum of absolute
            changes of the map from one step to the next is at most this share of the map's sum. 0 runs
            all steps.
        precision: ``"bfloat16"`` or ``"float16"`` runs the tail of the model in that precision, where the
            framework offers it (PyTorch's autocast). The bottleneck stays in float32. None for the model's
            own.

    Raises:
        InputError: a value is out of its range.

    Example:
        >>> BottleneckSettings(steps=20).schedule[:3]
        (10, 10, 10)
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

    @cached_property
    def schedule(self) -> tuple[int, ...]:
        """Noisy copies of each image in each of the steps."""
        early = min(self.early_steps, self.steps)
        return (self.early_samples,) * early + (self.samples,) * (self.steps - early)

    def override(self, **values: object) -> BottleneckSettings:
        """Return these settings with other values.

        Args:
            **values: the new values. None leaves a setting as it is; ``smooth_std=0`` turns smoothing off.

        Raises:
            InputError: there is no setting of a name, or a value is out of its range.
        """
        known = self.__dataclass_fields__
        for name in values:
            if name not in known:
                raise InputError(f"{name!r} is no setting; the settings are {', '.join(known)}")
        given: dict[str, Any] = {name: value for name, value in values.items() if value is not None}
        return replace(self, **given)


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
"""A quarter of the default's noisy copies: fewer and longer steps, copies in pairs, and fewer copies while
the mask is open. The guide on speed says what that costs."""

PRESETS: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        "default": MappingProxyType({name: getattr(BottleneckSettings(), name) for name in FAST}),
        "fast": FAST,
    }
)
"""Sets of hyperparameters by name. They hold what decides the time and the noise of an explanation, and the
learning rate that fits their steps. They do not hold what is explained, such as beta."""


def preset_settings(name: str | None) -> Mapping[str, Any]:
    """Hyperparameters of a preset.

    Args:
        name: ``"default"``, ``"fast"``, or None for none.

    Raises:
        InputError: there is no preset of that name.
    """
    if name is None:
        return {}
    if name not in PRESETS:
        raise InputError(f"preset={name!r} is none of the presets {', '.join(map(repr, PRESETS))}")
    return PRESETS[name]
