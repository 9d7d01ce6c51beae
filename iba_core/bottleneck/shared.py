"""One mask for several layers of a model.

Each layer keeps its own bottleneck, noise and tail. Their masks are made of one parameter alpha, which has a
value for each place, whatever the channel. At a layer, the mask is ``G * sigmoid(alpha)``, where G resizes
from the places of alpha to those of the layer and then smooths there. The objective is the mean over the
layers of what each one has alone, see `iba_core.bottleneck.optimization`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from iba_core.bottleneck.adam import AdamState, adam_step
from iba_core.bottleneck.control import TRIALS, OffsetSearch, by_image
from iba_core.bottleneck.optimization import (
    BottleneckOptimizer,
    BottleneckResult,
    Descent,
    PassMask,
    Problem,
    StepReport,
    in_model_order,
    require_finite_result,
)
from iba_core.bottleneck.settings import BottleneckSettings
from iba_core.bottleneck.smoothing import smoothing_matrices
from iba_core.bottleneck.statistics import Statistics
from iba_core.bottleneck.survival import Answer
from iba_core.errors import InputError
from iba_core.framework.adapter import Tail
from iba_core.framework.namespace import NAMESPACES, Array


class Part(NamedTuple):
    """One of the layers, for a batch of images; see `BottleneckOptimizer.run`."""

    optimizer: BottleneckOptimizer
    tail: Tail
    statistics: Statistics
    rows: tuple[Array, ...]
    whole: Array
    pass_mask: PassMask | None = None


class SharedMask:
    """Optimises one mask for several layers, on a batch of B images.

    Args:
        parts: the layers, at least two.
        settings: hyperparameters, without `tolerance`.

    Attributes:
        grid: number of places of alpha along each spatial axis, the most of any layer.

    Raises:
        InputError: the layers have no places, or axes that do not fit each other, or as in
            `BottleneckOptimizer.run`.
    """

    def __init__(self, parts: Sequence[Part], settings: BottleneckSettings) -> None:
        require_shareable(settings)
        self._parts = tuple(parts)
        self._settings = settings
        problems = [
            part.optimizer.problem(part.tail, part.statistics, part.rows, settings, part.pass_mask)
            for part in parts
        ]
        self.grid: tuple[int, ...] = _grid(parts, problems)
        self._problems = [
            _resized(part, problem, self.grid, settings.smooth_std)
            for part, problem in zip(parts, problems, strict=True)
        ]

    def run(
        self, seed: int | None = None, max_batch: int | None = None, progbar: bool = False
    ) -> tuple[BottleneckResult, ...]:
        """Optimise the mask.

        A step passes the noisy copies of each layer through its tail. `RiseGuard` and `BetaSearch` see the
        mean of the losses at all layers, and `OffsetSearch` the layer at which least survives.

        Args:
            seed: as in `BottleneckOptimizer.run`.
            max_batch: likewise.
            progbar: likewise.

        Returns:
            A result for each layer: its mask, capacity, curves and survival.

        Raises:
            OptimizationError: the objective became NaN or infinite.
        """
        lead, problem, settings = self._parts[0].optimizer, self._problems[0], self._settings
        answers = [
            part.optimizer.answer(problem, part.whole, settings, seed, max_batch)
            for part, problem in zip(self._parts, self._problems, strict=True)
        ]
        reports: list[list[StepReport]] = []

        def step(
            state: AdamState, correction: Array, number: int, factors: Array | None
        ) -> tuple[AdamState, StepReport]:
            gradient, found = self.gradient(state.parameter, number, seed, max_batch, factors)
            reports.append(found)
            mean = StepReport(*(_mean(terms) for terms in zip(*found, strict=True)))
            return adam_step(state, gradient, correction, problem.learning_rate), mean

        zeros = lead.framework.asarray(
            np.zeros((int(problem.features.shape[0]), *self.grid)), like=problem.features
        )
        begin = AdamState(zeros + settings.initial_alpha, zeros, zeros)
        found = lead.descend(
            problem,
            settings,
            _mean_answer(answers),
            begin,
            seed=seed,
            max_batch=max_batch,
            progbar=progbar,
            take_step=step,
        )
        alone = [found._replace(reports=[*of_layer]) for of_layer in zip(*reports, strict=True)]

        def results_at(alpha: Array) -> list[BottleneckResult]:
            return self._results(alpha, alone, answers, seed, max_batch)

        alpha = found.state.parameter
        results = results_at(alpha)
        if settings.keep is not None:
            search = OffsetSearch(_least_shares(results), settings.keep)
            for _ in range(TRIALS):
                search.see(_least_shares(results_at(lead.moved(alpha, search.trial, problem))))
            results = results_at(lead.moved(alpha, search.found, problem))
        elif found.guard is not None:
            losses = [
                answer.losses(_shares(result)).mean(axis=1)
                for answer, result in zip(answers, results, strict=True)
            ]
            loss = lead.framework.asarray(np.mean(losses, axis=0), like=problem.features)
            rose, alpha = found.guard.kept(alpha, loss)
            if lead.framework.to_numpy(rose).any():
                results = results_at(alpha)
        return tuple(
            in_model_order(result, part.tail) for result, part in zip(results, self._parts, strict=True)
        )

    def gradient(
        self,
        alpha: Array,
        step: int,
        seed: int | None = None,
        max_batch: int | None = None,
        factors: Array | None = None,
    ) -> tuple[Array, list[StepReport]]:
        """Gradient of the objective with respect to alpha, and each layer's terms of it.

        Args:
            alpha: (B, *grid).
            step: number of the step, whose noise is taken.
            seed: as in `run`.
            max_batch: as in `run`.
            factors: by which to multiply each image's beta, (B,).

        Returns:
            The gradient, (B, *grid), and the two terms of each layer, (B,) each.
        """
        xp = NAMESPACES[type(alpha)]
        slopes, reports = [], []
        for (optimizer, *_), known in zip(self._parts, self._problems, strict=True):
            problem = known
            if factors is not None:
                problem = known._replace(beta=known.beta * by_image(factors, known.beta))
            # The noise has no name here, so that its memory can be reused.
            slope, report = optimizer.compiled_gradient(
                xp.expand_dims(alpha, axis=optimizer.layout.channel_axis + 1),
                optimizer.noise_of_step(problem, self._settings, seed, step, max_batch),
                problem,
            )
            slopes.append(xp.reshape(slope, tuple(alpha.shape)))
            reports.append(report)
        return _mean(slopes), reports

    def _results(
        self,
        alpha: Array,
        found: Sequence[Descent],
        answers: Sequence[Answer],
        seed: int | None,
        max_batch: int | None,
    ) -> list[BottleneckResult]:
        """What passes each layer, and how much of the target survives there."""
        results = []
        for (optimizer, *_), problem, own, answer in zip(
            self._parts, self._problems, found, answers, strict=True
        ):
            opened = NAMESPACES[type(alpha)].expand_dims(alpha, axis=optimizer.layout.channel_axis + 1)
            result = optimizer.result(opened, problem, own, self._settings)
            require_finite_result(result, own.state.second)
            results.append(optimizer.measured(result, answer, self._settings, seed, max_batch))
        return results


def require_shareable(settings: BottleneckSettings) -> None:
    """Check that a mask can be shared with these settings.

    Raises:
        InputError: they have a `tolerance`.
    """
    if settings.tolerance:
        raise InputError(
            f"tolerance={settings.tolerance} is about the map of one layer; leave it out, or give "
            "combine='mean'"
        )


def _grid(parts: Sequence[Part], problems: Sequence[Problem]) -> tuple[int, ...]:
    """Sizes of the spatial axes of alpha."""
    layouts = [part.optimizer.layout for part in parts]
    sizes = [
        layout.spatial_shape(tuple(problem.features.shape[1:]))
        for layout, problem in zip(layouts, problems, strict=True)
    ]
    if len({len(each) for each in sizes}) > 1 or not sizes[0]:
        raise InputError(
            f"combine='shared' takes layers with places along the same axes, but theirs are {sizes}; choose "
            "other layers, or combine='mean'"
        )
    tokens = [layout.tokens for layout in layouts]
    if tokens != [None] * len(tokens) and (len({*tokens}) > 1 or len({*sizes}) > 1):
        raise InputError(
            f"combine='shared' takes layers with the same tokens, but theirs are {tokens} and their numbers "
            f"{sizes}; choose other layers, or combine='mean'"
        )
    return tuple(int(max(axis)) for axis in zip(*sizes, strict=True))


def _resized(part: Part, problem: Problem, grid: tuple[int, ...], std: float | None) -> Problem:
    """The problem of a layer, whose mask is made of an alpha with other places."""
    shape = tuple(int(size) for size in problem.features.shape[1:])
    matrices = smoothing_matrices(shape, part.optimizer.layout, std, grid)
    tensors = (part.optimizer.framework.asarray(matrix, like=problem.features) for matrix in matrices)
    return problem._replace(matrices=tuple(tensors))


def _mean_answer(answers: Sequence[Answer]) -> Answer:
    """What the mean of the layers' losses is compared with."""
    nothing = [each.nothing for each in answers if each.nothing is not None]
    return Answer(
        np.mean([each.whole for each in answers], axis=0), np.mean(nothing, axis=0) if nothing else None
    )


def _shares(result: BottleneckResult) -> npt.NDArray[np.floating]:
    assert result.shares is not None, "they have been measured"
    return result.shares


def _least_shares(results: Sequence[BottleneckResult]) -> npt.NDArray[np.floating]:
    """For each image the shares that survive at the layer with the least, (B, S)."""
    shares = np.stack([_shares(result) for result in results])
    worst = shares.mean(axis=2).argmin(axis=0)
    return np.asarray(shares[worst, np.arange(len(worst))])


def _mean(arrays: Sequence[Array]) -> Array:
    xp = NAMESPACES[type(arrays[0])]
    return xp.mean(xp.stack(arrays), axis=0)
