"""Hyperparameters of a per-sample bottleneck, and presets of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from types import MappingProxyType
from typing import Any

from iba_core.arguments import (
    LARGEST_COUNT,
    LARGEST_NUMBER,
    require_bool,
    require_choice,
    require_number,
    require_whole,
)
from iba_core.errors import InputError

_PRECISIONS = ("bfloat16", "float16")

AUTO = "auto"
"""In place of a beta: find one for each image."""

AUTO_BETA, KEEP = 20.0, 0.95
"""What an automatic beta starts at, and the share of the target that it lets survive."""

LARGEST_STD = 1e4
"""In features. A wider Gaussian is the same everywhere on any map, and its kernel would fill the memory."""

LARGEST_ALPHA = 80.0
"""Beyond it, the share that the mask blocks at the start, or its complement, is 0 in float32."""


@dataclass(frozen=True)
class BottleneckSettings:
    """Hyperparameters of a per-sample bottleneck, with the paper's defaults.

    `Explainer` has others, see `DEFAULT`.

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
        max_rise: take back a step after which the model's loss of an image has risen by more than this many
            nats, and make it again from the state before, with the newer gradient; but no more than two in a
            row, after which the image is left to its steps. 0 for never. It acts on targets that are
            probabilities.
        keep: find for each image the fewest bits that let this share of its target survive. The steps start
            at `beta` and lower it where too little survives. Then alpha moves, by one offset for all places
            of an image, to where the share just survives: four more passes of the noisy copies, without
            gradients. None for a fixed beta. ``beta="auto"`` is 0.95, and a start at 20.
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
    max_rise: float = 0.0
    keep: float | None = None
    precision: str | None = None

    def __post_init__(self) -> None:
        if _is_auto(self.beta):
            object.__setattr__(self, "beta", AUTO_BETA)
            object.__setattr__(self, "keep", KEEP if self.keep is None else self.keep)
        for name, value in plain_settings(vars(self)).items():
            object.__setattr__(self, name, value)

    @cached_property
    def schedule(self) -> tuple[int, ...]:
        """Noisy copies of each image in each of the steps."""
        early = min(self.early_steps, self.steps)
        return (self.early_samples,) * early + (self.samples,) * (self.steps - early)

    def override(self, **values: object) -> BottleneckSettings:
        """Return these settings with other values.

        Args:
            **values: the new values. None leaves a setting as it is; ``smooth_std=0`` turns smoothing off. A
                number for beta is fixed, unless `keep` is given with it.

        Raises:
            InputError: there is no setting of a name, or a value is out of its range.
        """
        known = self.__dataclass_fields__
        for name in values:
            if name not in known:
                raise InputError(f"{name!r} is no setting; the settings are {', '.join(known)}")
        given: dict[str, Any] = {name: value for name, value in values.items() if value is not None}
        if "beta" in given and not _is_auto(given["beta"]):
            given.setdefault("keep", None)
        return replace(self, **given)

    def chosen(self, preset: str | None, values: Mapping[str, Any]) -> BottleneckSettings:
        """Return given hyperparameters, else those of a preset, else these.

        Args:
            preset: see `preset_settings`.
            values: see `override`.

        Raises:
            InputError: as in both.

        Example:
            >>> BottleneckSettings().chosen("fast", {"steps": 3}).schedule
            (2, 2, 2)
        """
        if preset is None and not values:
            return self
        return self.override(**preset_settings(preset, values, self)).override(**values)


def _is_auto(beta: Any) -> bool:
    return isinstance(beta, str) and beta == AUTO


_COUNTS = ("steps", "samples", "early_samples")
_BOOLEANS = ("normalize_beta", "antithetic")


def plain_settings(values: Mapping[str, Any], names: Mapping[str, str] | None = None) -> dict[str, Any]:
    """Check hyperparameters, and make plain numbers of them.

    Args:
        values: some of the settings of `BottleneckSettings`, by name.
        names: what the caller calls a setting, for the message, such as ``{"learning_rate": "lr"}``.

    Raises:
        InputError: a value is out of its range; the message has the caller's name.

    Example:
        >>> plain_settings({"learning_rate": -1}, {"learning_rate": "lr"})
        Traceback (most recent call last):
        iba_core.errors.InputError: lr=-1 must be a finite number, 0 or more
    """
    return {
        name: _plain_setting(name, value, (names or {}).get(name, name)) for name, value in values.items()
    }


def _plain_setting(setting: str, value: Any, name: str) -> Any:
    if setting in _COUNTS:
        return require_whole(name, value, 1, LARGEST_COUNT)
    if setting == "early_steps":
        return require_whole(name, value, 0, LARGEST_COUNT)
    if setting in _BOOLEANS:
        return require_bool(name, value)
    if setting == "smooth_std":
        return None if value is None else require_number(name, value, 0, LARGEST_STD)
    if setting == "keep":
        return None if value is None else require_number(name, value, 0.01, below=1)
    if setting == "precision":
        return None if value is None else require_choice(name, value, _PRECISIONS)
    if setting == "initial_alpha":
        return require_number(name, value, -LARGEST_ALPHA, LARGEST_ALPHA)
    if setting == "active_neurons_threshold":
        # At 1, every neuron would be inactive, and the map empty.
        return require_number(name, value, 0, below=1)
    return require_number(name, value, 0, LARGEST_NUMBER)


_OF_A_PRESET = (
    "steps",
    "learning_rate",
    "initial_alpha",
    "samples",
    "early_steps",
    "early_samples",
    "antithetic",
    "max_rise",
)

PAPER: Mapping[str, Any] = MappingProxyType(
    {name: getattr(BottleneckSettings(), name) for name in (*_OF_A_PRESET, "beta", "keep")}
)
"""Ten steps of ten noisy copies, at a beta of 10."""

DEFAULT: Mapping[str, Any] = MappingProxyType(
    {
        **PAPER,
        "beta": AUTO_BETA,
        "keep": KEEP,
        "steps": 13,
        "learning_rate": 0.65,
        "initial_alpha": 3.0,
        "samples": 8,
        "early_steps": 5,
        "early_samples": 2,
        "antithetic": True,
        "max_rise": 0.3,
    }
)
"""The fewest bits that keep the answer, with three quarters of the paper's noisy copies: shorter steps from a
mask that is not quite as open, copies in pairs, few of them at first, and steps that are taken back where the
loss jumps, see `benchmarks.presets`."""

FAST: Mapping[str, Any] = MappingProxyType(
    {**DEFAULT, "beta": 40.0, "steps": 10, "learning_rate": 0.8, "samples": 2, "early_steps": 0}
)
"""A quarter of the default's noisy copies, in fewer and longer steps of one pair each, from a larger beta.
The guide on speed says what that costs."""

REFINED: Mapping[str, Any] = MappingProxyType(
    {**DEFAULT, "steps": 4, "samples": 4, "early_steps": 0, "max_rise": 0.0}
)
"""A few short steps from the mask that a readout gives."""

READ_ONLY: Mapping[str, Any] = MappingProxyType(
    {
        **REFINED,
        "beta": PAPER["beta"],
        "keep": None,
        "steps": 1,
        "learning_rate": 0.0,
        "early_steps": 1,
        "early_samples": 1,
    }
)
"""The mask that a readout gives, as it is: one copy measures the terms of the objective there."""

INSTANT: Mapping[str, Any] = MappingProxyType(
    {
        **PAPER,
        "steps": 4,
        "learning_rate": 1.2,
        "initial_alpha": 2.0,
        "samples": 2,
        "antithetic": True,
    }
)
"""Eight noisy copies: four long steps of one pair each, from a mask that lets seven eighths pass. For a first
look: the map is rough, its bits are too many, and it may lose the answer. The guide on speed says more."""

PRESETS: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {"default": DEFAULT, "paper": PAPER, "fast": FAST, "instant": INSTANT}
)
"""Sets of hyperparameters by name. They hold what decides the time and the noise of an explanation, the
learning rate that fits their steps, and beta, or the share of the answer to keep."""


def preset_settings(
    name: str | None,
    given: Mapping[str, Any] | None = None,
    own: BottleneckSettings | None = None,
    warm_start: bool = False,
    masks: int = 1,
) -> Mapping[str, Any]:
    """Hyperparameters of a preset.

    The settings of a preset fit each other. One of them, given alone, does not fit the rest: so without a
    preset, `given` then changes the paper's.

    Args:
        name: one of `PRESETS`. If None, a new explainer takes ``"default"`` for one mask and ``"fast"`` for
            several, whose maps are steadier together; one that is there takes what `own` says. But if `given`
            has a setting of a preset, it is the paper's, unless `own` are no preset's.
        given: hyperparameters that are given beside it.
        own: settings of the explainer that is there. A beta or a share to keep that no preset has stays.
        warm_start: the steps start at the mask of a readout. Without a preset that mask stays as it is,
            unless `given` has steps.
        masks: number of masks that make one map: of several layers, one each, unless they share one.

    Raises:
        InputError: there is no preset of that name.

    Example:
        >>> preset_settings(None)["steps"], preset_settings(None, {"samples": 5})["steps"]
        (13, 10)
    """
    given = {each: value for each, value in (given or {}).items() if value is not None}
    values = _preset(name, given, own, warm_start, masks)
    is_own = own is not None and (own.beta, own.keep) not in _OBJECTIVES
    if is_own or "beta" in given:
        return {each: value for each, value in values.items() if each in _OF_A_PRESET}
    return values


_OBJECTIVES = {(values["beta"], values["keep"]) for values in PRESETS.values()}
"""Pairs of beta and keep. Any other pair is one that a user has chosen."""


def _preset(
    name: str | None, given: Mapping[str, Any], own: BottleneckSettings | None, warm_start: bool, masks: int
) -> Mapping[str, Any]:
    if name is not None:
        return PRESETS[require_choice("preset", name, PRESETS, "preset")]
    if warm_start:
        return REFINED if "steps" in given else READ_ONLY
    is_preset = own is None or tuple(getattr(own, each) for each in _OF_A_PRESET) in _SCHEDULES
    if is_preset and not given.keys().isdisjoint(_OF_A_PRESET):
        return PAPER
    return {} if own is not None else FAST if masks > 1 else DEFAULT


_SCHEDULES = {tuple(values[each] for each in _OF_A_PRESET) for values in PRESETS.values()}
"""Values of what decides the time and the noise of an explanation. Any others are a user's choice."""
