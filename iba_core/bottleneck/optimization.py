"""The loop that finds a bottleneck's mask, once for all frameworks.

For each image and step, S noisy copies of the restricted features pass the tail of the model. The gradient of

    model loss + beta * mean(capacity)                                                    (paper, eq. 6)

moves alpha by one step of Adam. The capacity depends on neither noise nor sample, so it is computed once per
image. Only the tail is differentiated by the framework. The copies are linear in the mask: two sums over the
copies give the gradient with respect to the mask, and the slope of the capacity is added to it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from iba_core.bottleneck.adam import AdamState, adam_step, bias_corrections
from iba_core.bottleneck.control import TRIALS, BetaSearch, Convergence, OffsetSearch, RiseGuard, by_image
from iba_core.bottleneck.formulas import Mask, alpha_slope, capacity, capacity_slope, mask_from_alpha
from iba_core.bottleneck.noise import seeded_normal
from iba_core.bottleneck.settings import BottleneckSettings
from iba_core.bottleneck.smoothing import smoothing_matrices
from iba_core.bottleneck.statistics import Statistics
from iba_core.bottleneck.survival import Answer
from iba_core.errors import InputError, OptimizationError
from iba_core.framework.adapter import Tail
from iba_core.framework.arrays import require_mask
from iba_core.framework.framework import Framework
from iba_core.framework.layout import Layout
from iba_core.framework.namespace import NAMESPACES, Array
from iba_core.targets import Loss
from iba_core.utils import get_tqdm

PassMask = npt.NDArray[np.bool_]
"""True where features pass unchanged and carry no capacity, (*feature map) or (B, *feature map)."""


class Problem(NamedTuple):
    """What a bottleneck is optimised on: a batch of images, as tensors of the bottleneck's precision."""

    features: Array
    """R, (B, *feature map)."""
    mean: Array
    """mu, (1, *feature map)."""
    std: Array
    """sigma, at least `min_std`, (1, *feature map)."""
    restricted: Array
    """Boolean, (1 or B, *feature map): True where the bottleneck acts."""
    fill: Array
    """Values where the bottleneck does not act, (1 or B, *feature map): 0 for inactive neurons, R for what
    the pass mask lets through. Elsewhere it is not used."""
    noise_std: Array
    """Scale of the noise, (1 or B, *feature map): sigma, or 0 where the bottleneck does not act."""
    matrices: tuple[Array, ...]
    """Smoothing along each spatial axis."""
    beta: Array
    """Weight of a feature's capacity, (1 or B, 1, ...), with as many axes as the features."""
    learning_rate: Array
    """Scalar."""
    run: Callable[[Array, tuple[Array, ...]], Any]
    """The tail of the model, see `Tail.run`."""
    carry: tuple[Array, ...]
    """What reaches the tail by another way, see `Tail.carry`."""
    rows: tuple[Array, ...]
    """What the loss needs to know of each image, B rows each."""

    @property
    def signal(self) -> Array:
        """R - mu, (B, *feature map)."""
        return self.features - self.mean

    def acting(self, x: Array) -> Array:
        """Return x, (B, *feature map), where the bottleneck acts, and 0 elsewhere."""
        xp = NAMESPACES[type(x)]
        return xp.where(self.restricted, x, xp.zeros_like(x))

    def tail_outputs(self, z: Array) -> Any:
        """Outputs of the tail for feature maps z, (B * S, *feature map)."""
        return self.run(z, self.carry)

    def permuted(self, axes: Sequence[int]) -> Problem:
        """Permute the axes of one feature map in all arrays. `run` keeps its own order."""
        maps = ("features", "mean", "std", "restricted", "fill", "noise_std")
        return self._replace(**{name: _permuted(getattr(self, name), axes) for name in maps})


class StepReport(NamedTuple):
    """The two terms of the objective in one step, each (B,)."""

    model_loss: Array
    information: Array
    """beta times the mean (or sum) of the capacity, in nats."""


Callback = Callable[[int, AdamState, StepReport], None]
"""Called after each step with its number from 0, the new state and the step's report."""

Step = Callable[[AdamState, Array, int, Array | None], tuple[AdamState, StepReport]]
"""Makes a step from a state, the row of `bias_corrections`, the step's number from 0, and the factors (B,) by
which a search has multiplied beta."""


@dataclass(frozen=True)
class BottleneckResult:
    """Outcome of an optimisation over a batch of B images.

    Attributes:
        alpha: the bottleneck's parameter in the end, tensor (B, *feature map); of a `SharedMask`, as
            `mask_from_alpha` takes it.
        mask: the mask at that alpha, tensors (B, *feature map), without a graph.
        capacity: nats that each feature carries at that alpha, tensor (B, *feature map); 0 where the
            bottleneck does not act.
        problem: what was optimised.
        model_losses: the model's loss, mean over the noisy copies, before each step, (steps, B). An image
            that has converged keeps its last value.
        informations: the information term of the objective before each step, (steps, B), likewise.
        steps_taken: steps until an image's map had converged, (B,); all steps where no tolerance is set.
        shares: share of the target that survives in each noisy copy, (B, S), see `surviving_shares`; None
            where it is not asked for.
        factors: by which `BetaSearch` has multiplied the beta of the settings in the end, (B,); None where
            beta is fixed.
    """

    alpha: Array
    mask: Mask
    capacity: Array
    problem: Problem
    model_losses: npt.NDArray[np.floating]
    informations: npt.NDArray[np.floating]
    steps_taken: npt.NDArray[np.integer]
    shares: npt.NDArray[np.floating] | None = None
    factors: npt.NDArray[np.floating] | None = None

    def permuted(self, axes: Sequence[int]) -> BottleneckResult:
        """Permute the axes of one feature map in all arrays."""
        return replace(
            self,
            alpha=_permuted(self.alpha, axes),
            mask=Mask(*(_permuted(part, axes) for part in self.mask)),
            capacity=_permuted(self.capacity, axes),
            problem=self.problem.permuted(axes),
        )


class _Constants(NamedTuple):
    """What the problems of all images have in common, as tensors."""

    mean: Array
    std: Array
    restricted: Array
    fill: Array
    noise_std: Array
    matrices: tuple[Array, ...]
    beta: Array
    learning_rate: Array


class Descent(NamedTuple):
    """How the steps of `BottleneckOptimizer.descend` ended."""

    state: AdamState
    reports: list[StepReport]
    taken: npt.NDArray[np.integer]
    """Steps that each image took, (B,)."""
    search: BetaSearch | None
    guard: RiseGuard | None


class BottleneckOptimizer:
    """Optimises bottlenecks on feature maps of one layout, for one loss.

    Keep the object: it compiles a step once for each shape.

    Args:
        framework: the model's framework.
        loss: the loss whose information is to be kept, ``loss(outputs, *rows)``. It gets the tail's outputs
            for B * S copies and rows of data for each of them, and must be a pure function.
        layout: meaning of the axes of one feature map, as the tail has them.
        relu: clip the restricted features at 0, as a ReLU after the bottleneck would.
        precision: of the tail, see `BottleneckSettings`.
        by_image: the loss must give a value for each copy; otherwise it may give their mean.
        log_likelihood: the loss is minus the logarithm of a probability, see `surviving_shares`.
        jit_compile: let the framework's compiler make machine code of the steps.
    """

    def __init__(
        self,
        framework: Framework,
        loss: Loss,
        layout: Layout,
        *,
        relu: bool = False,
        precision: str | None = None,
        by_image: bool = True,
        log_likelihood: bool = False,
        jit_compile: bool = False,
    ) -> None:
        self.framework = framework
        self.loss = loss
        self.layout = layout
        self.relu = relu
        self.precision = precision
        self.by_image = by_image
        self.log_likelihood = log_likelihood
        self._compiled_step = framework.compile(self._step, jit_compile=jit_compile, donate=2)
        self.compiled_gradient: Callable[[Array, tuple[Array, ...], Problem], tuple[Array, StepReport]] = (
            framework.compile(self.gradient, jit_compile=jit_compile, donate=1)
        )
        self._compiled_outcome = framework.compile(self._outcome, jit_compile=jit_compile)
        self._compiled_losses = framework.compile(self._losses_of_copies, jit_compile=jit_compile)
        self._constants: tuple[tuple[Any, ...], Statistics, _Constants] | None = None
        self._corrections: tuple[tuple[Any, ...], Sequence[Array]] | None = None

    def run(
        self,
        tail: Tail,
        statistics: Statistics,
        rows: tuple[Array, ...] = (),
        settings: BottleneckSettings | None = None,
        *,
        seed: int | None = None,
        pass_mask: PassMask | None = None,
        max_batch: int | None = None,
        progbar: bool = False,
        callback: Callback | None = None,
        whole: Array | None = None,
        start: npt.NDArray[np.floating] | None = None,
    ) -> BottleneckResult:
        """Optimise the bottleneck for a batch of images.

        Statistics, pass mask and result have the axes of a feature map in the model's own order, whatever
        the order of the tail.

        Args:
            tail: the tail of the model, with the features of B images.
            statistics: distribution of the features.
            rows: tensors with a row per image, given to the loss.
            settings: hyperparameters; the paper's if None.
            seed: makes the noise a function of the seed alone; otherwise it comes from the framework.
            pass_mask: see `PassMask`.
            max_batch: the most feature maps that pass the tail at once; B * samples if None.
            progbar: show the steps.
            callback: see `Callback`.
            whole: the model's loss of the unrestricted images, (B,). If it is given, one more pass of the
                tail measures how much of the target survives.
            start: alpha to start at, (B, *feature map); `initial_alpha` everywhere if None.

        Raises:
            InputError: shapes that do not fit, or features that are not finite.
            OptimizationError: the objective became NaN or infinite.
        """
        settings = settings or BottleneckSettings()
        problem = self.problem(tail, statistics, rows, settings, pass_mask)
        answer = None if whole is None else self.answer(problem, whole, settings, seed, max_batch)
        if callback is not None and tail.axes is not None:
            callback = partial(_call_in_order, callback, _inverse(tail.axes))
        found = self.descend(
            problem,
            settings,
            answer,
            self._start(problem, tail, settings, start),
            seed=seed,
            max_batch=max_batch,
            progbar=progbar,
            callback=callback,
        )
        result = self.result(found.state.parameter, problem, found, settings)
        require_finite_result(result, found.state.second)
        if answer is not None:
            result = self.measured(result, answer, settings, seed, max_batch)
            if found.guard is not None and found.search is None:
                result = self._without_rise(result, found, answer, settings, seed, max_batch)
            if found.search is not None:
                result = self._kept_answer(result, found, answer, settings, seed, max_batch)
        return in_model_order(result, tail)

    def descend(
        self,
        problem: Problem,
        settings: BottleneckSettings,
        answer: Answer | None,
        state: AdamState,
        *,
        seed: int | None,
        max_batch: int | None,
        progbar: bool,
        callback: Callback | None = None,
        take_step: Step | None = None,
    ) -> Descent:
        """Run the steps.

        Args:
            problem: the images.
            settings: hyperparameters.
            answer: what the loss that steps report is compared with, in a search for beta.
            state: before the first step.
            seed: as in `run`.
            max_batch: as in `run`.
            progbar: as in `run`.
            callback: as in `run`.
            take_step: makes a step of a state that is not the problem's own, without `tolerance`.
        """
        images = int(problem.features.shape[0])
        corrections = self._corrections_of(settings.steps, problem)
        convergence = Convergence(settings.tolerance, images) if settings.tolerance else None
        guard = self._guard(settings)
        search = self._search(answer, settings, problem)
        reports: list[StepReport] = []
        steps = range(settings.steps)
        for step in get_tqdm()(steps, desc="Bottleneck") if progbar else steps:
            if take_step is not None:
                factors = None if search is None else search.factors
                new, report = take_step(state, corrections[step], step, factors)
            else:
                # The noise has no name here, so that its memory can be reused.
                new, report = self._compiled_step(
                    state,
                    corrections[step],
                    self.noise_of_step(problem, settings, seed, step, max_batch),
                    problem,
                )
            if search is not None:
                new, problem = _with_less_beta(new, problem, search.see(report.model_loss))
            if guard is not None:
                new = guard.checked(state, new, report.model_loss)
            state = new if convergence is None else self._kept(state, new, convergence.running, problem)
            reports.append(report)
            if callback is not None:
                callback(step, state, report)
            if convergence is not None:
                _, nats = self._compiled_outcome(state.parameter, problem)
                convergence.see(self._maps(nats))
                if not convergence.running.any():
                    break
        taken = np.full(images, settings.steps) if convergence is None else convergence.steps
        return Descent(state, reports, taken, search, guard)

    def _start(
        self,
        problem: Problem,
        tail: Tail,
        settings: BottleneckSettings,
        start: npt.NDArray[np.floating] | None,
    ) -> AdamState:
        """The state before the first step."""
        zeros = NAMESPACES[type(problem.features)].zeros_like(problem.features)
        if start is None:
            return AdamState(zeros + settings.initial_alpha, zeros, zeros)
        if tail.axes is not None:
            start = start.transpose((0, *(axis + 1 for axis in tail.axes)))
        return AdamState(self._tensor(np.ascontiguousarray(start), problem), zeros, zeros)

    def _guard(self, settings: BottleneckSettings) -> RiseGuard | None:
        # Only of a probability it is known what a nat means.
        return RiseGuard(settings.max_rise) if settings.max_rise and self.log_likelihood else None

    def _search(
        self, answer: Answer | None, settings: BottleneckSettings, problem: Problem
    ) -> BetaSearch | None:
        if settings.keep is None:
            return None
        if answer is None:
            raise InputError(f"keep={settings.keep} is only offered by Explainer; leave it out, and set beta")
        nothing = answer.nothing
        baseline = None if nothing is None else self._tensor(nothing.mean(axis=1), problem)
        return BetaSearch(self._tensor(answer.whole, problem), baseline, settings.keep)

    def result(
        self, alpha: Array, problem: Problem, found: Descent, settings: BottleneckSettings
    ) -> BottleneckResult:
        """What the mask of an alpha lets pass, with the curves of the steps."""
        mask, nats = self._compiled_outcome(alpha, problem)
        curves = self._curves(found.reports, found.taken, settings.steps)
        return BottleneckResult(
            alpha=alpha,
            mask=mask,
            capacity=nats,
            problem=problem,
            model_losses=curves[0],
            informations=curves[1],
            steps_taken=found.taken,
            factors=None if found.search is None else self.framework.to_numpy(found.search.factors),
        )

    # -- survival ---------------------------------------------------------------------------------

    def _copies_of_survival(self, settings: BottleneckSettings) -> int:
        """Noisy copies to measure survival with; a score's baseline takes half of those of a step."""
        return settings.samples if self.log_likelihood else max(1, settings.samples // 2)

    def answer(
        self,
        problem: Problem,
        whole: Array,
        settings: BottleneckSettings,
        seed: int | None,
        max_batch: int | None,
    ) -> Answer:
        """What survival is measured by: the losses of all and, of a score, of nothing."""
        nothing = None
        if not self.log_likelihood:
            zeros = NAMESPACES[type(problem.features)].zeros_like(problem.features)
            closed = Mask(zeros, zeros + 1.0)
            nothing = self._losses_under(closed, problem, settings, seed, max_batch)
        return Answer(self.framework.to_numpy(whole), nothing)

    def _losses_under(
        self,
        mask: Mask,
        problem: Problem,
        settings: BottleneckSettings,
        seed: int | None,
        max_batch: int | None,
    ) -> npt.NDArray[np.floating]:
        """The model's loss of fresh noisy copies of each image, (B, copies)."""
        copies, images = self._copies_of_survival(settings), int(mask.passed.shape[0])
        chunks = self.noise(problem, _chunk_sizes(copies, max_batch, images), seed, settings.steps)
        parts = [self.framework.to_numpy(self._compiled_losses(mask, problem, noise)) for noise in chunks]
        return parts[0] if len(parts) == 1 else np.concatenate(parts, axis=1)

    def measured(
        self,
        result: BottleneckResult,
        answer: Answer,
        settings: BottleneckSettings,
        seed: int | None,
        max_batch: int | None,
    ) -> BottleneckResult:
        """The result with the shares of the target that survive, by one pass of the tail."""
        losses = self._losses_under(result.mask, result.problem, settings, seed, max_batch)
        return replace(result, shares=answer.shares(losses))

    def _without_rise(
        self,
        result: BottleneckResult,
        found: Descent,
        answer: Answer,
        settings: BottleneckSettings,
        seed: int | None,
        max_batch: int | None,
    ) -> BottleneckResult:
        """The result, with the state before the last step where that step has raised the loss too far."""
        assert result.shares is not None
        assert found.guard is not None
        problem = result.problem
        loss = self._tensor(answer.losses(result.shares).mean(axis=1), problem)
        rose, alpha = found.guard.kept(result.alpha, loss)
        if not self.framework.to_numpy(rose).any():
            return result
        result = self.result(alpha, problem, found, settings)
        return self.measured(result, answer, settings, seed, max_batch)

    def _kept_answer(
        self,
        result: BottleneckResult,
        found: Descent,
        answer: Answer,
        settings: BottleneckSettings,
        seed: int | None,
        max_batch: int | None,
    ) -> BottleneckResult:
        """The result, with alpha moved for each image to where its target just survives.

        The steps decide which places matter more than others; one offset for all places of an image then says
        how many of them pass.
        """
        assert result.shares is not None
        assert settings.keep is not None
        problem, search = result.problem, OffsetSearch(result.shares, settings.keep)
        for _ in range(TRIALS):
            mask, _ = self._compiled_outcome(self.moved(result.alpha, search.trial, problem), problem)
            losses = self._losses_under(mask, problem, settings, seed, max_batch)
            search.see(answer.shares(losses))
        moved = self.result(self.moved(result.alpha, search.found, problem), problem, found, settings)
        return replace(moved, shares=search.shares)

    def moved(self, alpha: Array, offsets: npt.NDArray[np.floating], problem: Problem) -> Array:
        """Alpha with an offset for each image, (B,)."""
        return alpha + by_image(self._tensor(offsets, problem), alpha)

    # -- the problem ------------------------------------------------------------------------------

    def problem(
        self,
        tail: Tail,
        statistics: Statistics,
        rows: tuple[Array, ...] = (),
        settings: BottleneckSettings | None = None,
        pass_mask: PassMask | None = None,
    ) -> Problem:
        """Make the tensors that an optimisation works on; arguments and errors as in `run`."""
        settings = settings or BottleneckSettings()
        features = tail.features
        axes = tail.axes or tuple(range(len(features.shape) - 1))
        _check_shape(features, statistics, axes)
        xp = NAMESPACES[type(features)]
        precision = xp.float64 if features.dtype == xp.float64 else xp.float32
        features = xp.astype(features, precision, copy=False)
        if not bool(xp.all(xp.isfinite(features))):
            raise InputError("the feature map at the layer holds NaN or infinite values for this input")
        tensor = partial(self.framework.asarray, like=features)
        constants = self._constants_of(statistics, axes, settings, features)
        restricted, fill, noise_std = constants.restricted, constants.fill, constants.noise_std
        if pass_mask is not None:
            passing = _checked_pass_mask(pass_mask, (int(features.shape[0]), *statistics.mean.shape))
            passing = _permuted(passing, axes)
            restricted = tensor(statistics.permuted(axes).active[None] & ~passing)
            fill = xp.where(tensor(passing), features, fill)
            noise_std = xp.where(restricted, noise_std, xp.zeros_like(noise_std))
        return Problem(
            features=features,
            mean=constants.mean,
            std=constants.std,
            restricted=restricted,
            fill=fill,
            noise_std=noise_std,
            matrices=constants.matrices,
            beta=constants.beta,
            learning_rate=constants.learning_rate,
            run=tail.run,
            carry=tail.carry,
            rows=rows,
        )

    def _constants_of(
        self, statistics: Statistics, axes: tuple[int, ...], settings: BottleneckSettings, features: Array
    ) -> _Constants:
        """Tensors of the statistics, made again only where something has changed."""
        key = (axes, settings, *_kind(features))
        known = self._constants
        if known is not None and known[0] == key and known[1] is statistics:
            return known[2]
        beta = settings.beta / (statistics.mean.size if settings.normalize_beta else 1)
        permuted = statistics.permuted(axes)
        floored, active = np.maximum(permuted.std, settings.min_std), permuted.active
        if not floored[active].all():
            raise InputError("min_std=0, but the standard deviation of some features is 0; give more than 0")
        tensor = partial(self.framework.asarray, like=features)
        constants = _Constants(
            mean=tensor(permuted.mean[None]),
            # An inactive neuron may have a std of 0, and a division by it must not spoil the neuron's 0.
            std=tensor(np.where(floored > 0, floored, 1.0)[None]),
            restricted=tensor(active[None]),
            fill=tensor(np.zeros(active.shape)[None]),
            noise_std=tensor(np.where(active, floored, 0.0)[None]),
            matrices=tuple(map(tensor, smoothing_matrices(active.shape, self.layout, settings.smooth_std))),
            beta=tensor(np.full((1,) * (active.ndim + 1), float(beta))),
            learning_rate=tensor(np.asarray(float(settings.learning_rate))),
        )
        self._constants = (key, statistics, constants)
        return constants

    def _corrections_of(self, steps: int, problem: Problem) -> Sequence[Array]:
        """The bias corrections of all steps, (2,) each, on the device of the problem."""
        key = (steps, *_kind(problem.features))
        known = self._corrections
        if known is None or known[0] != key:
            # All rows at once: taking one from a tensor of the device costs a call in each step.
            rows = NAMESPACES[type(problem.features)].unstack(self._tensor(bias_corrections(steps), problem))
            self._corrections = known = (key, rows)
        return known[1]

    # -- one step ---------------------------------------------------------------------------------

    def restricted(self, problem: Problem, mask: Mask, noise: Array) -> Array:
        """Restricted feature maps, as they enter the tail (paper, eq. 2).

        Args:
            problem: the images.
            mask: their masks.
            noise: standard normal, (S, *feature map), the same for every image.

        Returns:
            Tensor (B * S, *feature map); the S copies of an image follow one another.
        """
        return self._clipped(_copies(*_distribution(problem, mask), noise))

    def noise_of_step(
        self,
        problem: Problem,
        settings: BottleneckSettings,
        seed: int | None,
        step: int,
        max_batch: int | None,
    ) -> tuple[Array, ...]:
        """The noise of one step; arguments as in `run`, and the step's number from 0."""
        # A schedule has one or two sizes, so a compiled step meets as many shapes.
        sizes = _chunk_sizes(settings.schedule[step], max_batch, int(problem.features.shape[0]))
        return self.noise(problem, sizes, seed, step, settings.antithetic)

    def noise(
        self,
        problem: Problem,
        sizes: tuple[int, ...],
        seed: int | None,
        step: int,
        antithetic: bool = False,
    ) -> tuple[Array, ...]:
        """Standard normal noise of one step in chunks of the given sizes, each (size, *feature map).

        Args:
            problem: the images.
            sizes: of the chunks.
            seed: as in `run`.
            step: number of the step.
            antithetic: give every second copy the negated noise of the copy before it.
        """
        shape, samples = tuple(problem.features.shape[1:]), sum(sizes)
        drawn = -(-samples // 2) if antithetic else samples
        if seed is None:
            noise = self.framework.standard_normal((drawn, *shape), like=problem.features)
        else:
            noise = self._tensor(seeded_normal(seed, step, drawn, shape, self.layout), problem)
        if antithetic:
            xp = NAMESPACES[type(noise)]
            noise = xp.reshape(xp.stack([noise, -noise], axis=1), (2 * drawn, *shape))
        if sizes == (int(noise.shape[0]),):
            return (noise,)
        ends = np.cumsum(sizes)
        return tuple(noise[end - size : end] for size, end in zip(sizes, ends, strict=True))

    def gradient(self, alpha: Array, noise: tuple[Array, ...], problem: Problem) -> tuple[Array, StepReport]:
        """Gradient of the objective with respect to alpha, and the objective's terms.

        The objective is summed over the images, which stay independent.

        Args:
            alpha: the bottleneck's parameter, (B, *feature map), or one that all channels share, see
                `mask_from_alpha`.
            noise: standard normal, in chunks (size, *feature map) that pass the tail one after another. Their
                memory may be reused.
            problem: the images.

        Returns:
            The gradient, of the shape of alpha, and the two terms, (B,) each.
        """
        state = AdamState(alpha, alpha, alpha)
        return self._differentiated(state, noise, problem)[2:]

    def _step(
        self, state: AdamState, correction: Array, noise: tuple[Array, ...], problem: Problem
    ) -> tuple[AdamState, StepReport]:
        """One step of Adam. All that changes comes in as an argument."""
        state, problem, gradient, report = self._differentiated(state, noise, problem)
        return adam_step(state, gradient, correction, problem.learning_rate), report

    def _differentiated(
        self, state: AdamState, noise: tuple[Array, ...], problem: Problem
    ) -> tuple[AdamState, Problem, Array, StepReport]:
        """State and problem, as they are after the passes of the tail, and what `gradient` gives."""
        samples = sum(int(chunk.shape[0]) for chunk in noise)
        pass_tail = partial(self._pass_tail, samples)
        (state, problem), (model_loss, slopes, products) = self.framework.sum_over(
            pass_tail, noise, (state, problem)
        )
        xp, mask = NAMESPACES[type(model_loss)], self._mask(state.parameter, problem)
        center, _ = _distribution(problem, mask)
        normalized = problem.signal / problem.std
        nats, of_nats = capacity(normalized, mask), capacity_slope(normalized, mask)
        information = xp.reshape(problem.beta, (-1,)) * _per_image(problem.acting(nats))
        # A copy is z = center + (1 - lambda) noise. Its derivative with respect to 1 - lambda is noise -
        # signal, and the noise is (z - center) / (1 - lambda).
        of_blocked = (products - center * slopes) / mask.blocked - slopes * problem.signal
        of_blocked = of_blocked + problem.beta * of_nats
        gradient = alpha_slope(problem.acting(of_blocked), state.parameter, problem.matrices, self.layout)
        return state, problem, gradient, StepReport(model_loss, information)

    def _pass_tail(
        self, samples: int, given: tuple[AdamState, Problem], noise: Array
    ) -> tuple[Array, Array, Array]:
        """Pass noisy copies of each image through the tail, forward and backward.

        Args:
            samples: number of all copies of an image, of which these are a chunk.
            given: alpha's state, and the images.
            noise: of the chunk, (size, *feature map). Its memory is reused.

        Returns:
            The model's loss of each image, (B,); the sum over the copies of its slope with respect to a copy,
            (B, *feature map); and the sum of slope times copy, likewise.
        """
        (alpha, *_), problem = given
        xp, images = NAMESPACES[type(alpha)], int(alpha.shape[0])
        objective = partial(self._objective, problem, int(noise.shape[0]) / samples)
        # The mask has no name here, so that it is not held while the tail runs.
        z = _copies(*_distribution(problem, self._mask(alpha, problem)), noise, reuse=True)
        _, losses, slope = self.framework.value_and_grad(objective, z)
        z *= slope
        slope, z = (xp.reshape(x, (images, *noise.shape)) for x in (slope, z))
        return losses, xp.sum(slope, axis=1), xp.sum(z, axis=1)

    def _objective(self, problem: Problem, share: float, z: Array) -> tuple[Array, Array]:
        """The model's loss of noisy copies: its sum over the images, and the loss of each image, (B,).

        Args:
            problem: the images.
            share: size of the chunk as a share of all copies.
            z: the copies before the ReLU, (B * size of the chunk, *feature map).
        """
        xp, losses = NAMESPACES[type(z)], self._losses(problem, z)
        images = int(problem.features.shape[0])
        if len(losses.shape):
            losses = xp.mean(xp.reshape(losses, (images, -1)), axis=1)
        else:
            # The mean over all copies counts for each image, so that no image weighs less in a batch.
            losses = xp.repeat(xp.reshape(losses, (1,)), images, axis=0)
        losses = xp.astype(losses, z.dtype) * share
        return xp.sum(losses), losses

    def _losses(self, problem: Problem, z: Array) -> Array:
        """The model's loss of each copy, or of all; the arguments of `_objective`."""
        reduced = self.framework.reduced_precision(self.precision, z) if self.precision else nullcontext()
        with reduced:
            outputs = problem.tail_outputs(self._clipped(z))
        xp, copies = NAMESPACES[type(z)], int(z.shape[0])
        rows = (xp.repeat(row, copies // int(row.shape[0]), axis=0) for row in problem.rows)
        return self._checked_losses(self.loss(outputs, *rows), copies)

    def _losses_of_copies(self, mask: Mask, problem: Problem, noise: Array) -> Array:
        """The model's loss of each noisy copy, (B, S)."""
        losses = self._losses(problem, _copies(*_distribution(problem, mask), noise))
        return NAMESPACES[type(losses)].reshape(losses, (int(mask.passed.shape[0]), -1))

    def _checked_losses(self, losses: Any, copies: int) -> Array:
        shape = getattr(losses, "shape", None)
        if shape is not None and tuple(shape) == (copies,):
            return losses
        if not self.by_image and shape is not None and tuple(shape) in ((), (1,)):
            return losses if shape == () else losses[0]
        given = type(losses).__name__ if shape is None else f"shape {tuple(shape)}"
        raise InputError(
            f"the target's score has {given} for {copies} outputs; one score each is needed"
            + ("" if self.by_image else ", or their mean")
        )

    def _mask(self, alpha: Array, problem: Problem) -> Mask:
        return mask_from_alpha(alpha, problem.matrices, self.layout)

    def _clipped(self, z: Array) -> Array:
        xp = NAMESPACES[type(z)]
        return xp.maximum(z, xp.zeros_like(z)) if self.relu else z

    # -- the outcome ------------------------------------------------------------------------------

    def _outcome(self, alpha: Array, problem: Problem) -> tuple[Mask, Array]:
        """Mask and capacity, (B, *feature map) in nats."""
        mask = self._mask(alpha, problem)
        nats = masked_capacity(problem, mask)
        xp = NAMESPACES[type(alpha)]
        # Smoothing sums to one only up to rounding.
        return mask._replace(passed=xp.maximum(mask.passed, xp.zeros_like(nats))), nats

    def _maps(self, nats: Array) -> npt.NDArray[np.floating]:
        """Nats of each place, (B, *spatial shape)."""
        total = NAMESPACES[type(nats)].sum(nats, axis=self.layout.channel_axis + 1)
        return self.framework.to_numpy(total)

    def _kept(
        self, old: AdamState, new: AdamState, running: npt.NDArray[np.bool_], problem: Problem
    ) -> AdamState:
        """The new state of the images that have not converged, and the old state of all others."""
        if running.all():
            return new
        return AdamState(*(self._chosen(running, *pair, problem) for pair in zip(new, old, strict=True)))

    def _chosen(self, images: npt.NDArray[np.bool_], x: Array, other: Array, problem: Problem) -> Array:
        """`x` for the images of a boolean (B,), and `other` for the rest."""
        if images.all():
            return x
        chosen = by_image(self._tensor(images, problem), x)
        return NAMESPACES[type(x)].where(chosen, x, other)

    def _tensor(self, array: npt.NDArray[Any], problem: Problem) -> Array:
        return self.framework.asarray(array, like=problem.features)

    def _curves(
        self, reports: list[StepReport], taken: npt.NDArray[np.integer], steps: int
    ) -> npt.NDArray[np.floating]:
        """Both terms in all steps, (2, steps, B); after an image's last step, its last values."""
        terms = [*(report.model_loss for report in reports), *(report.information for report in reports)]
        # One transfer from the device for all of them.
        curves = self.framework.to_numpy(NAMESPACES[type(terms[0])].stack(terms))
        rows = np.minimum(np.arange(steps)[:, None], taken - 1)
        curves = curves.reshape(2, len(reports), len(taken))
        return np.asarray(np.take_along_axis(curves, rows[None], axis=1))


def masked_capacity(problem: Problem, mask: Mask) -> Array:
    """Capacity where the bottleneck acts, 0 elsewhere; nats, (B, *feature map)."""
    return problem.acting(capacity(problem.signal / problem.std, mask))


def _with_less_beta(state: AdamState, problem: Problem, change: Array) -> tuple[AdamState, Problem]:
    """State and problem after beta has changed by factors, (B,).

    Adam divides by the gradients that it has seen. Those of the information term were larger at the beta
    before, so all that carries no answer would now close more slowly. The moments change with beta.
    """
    factors, beta = by_image(change, state.parameter), problem.beta * by_image(change, problem.beta)
    first, second = state.first * factors, state.second * factors * factors
    return AdamState(state.parameter, first, second), problem._replace(beta=beta)


def _distribution(problem: Problem, mask: Mask) -> tuple[Array, Array]:
    """Mean and standard deviation of the noisy copies of each image, (B, *feature map) each.

    Equation 2 of the paper for noise ``mu + sigma n`` with standard normal n, with features and noise
    measured from mu: ``mu + lambda (R - mu) + (1 - lambda) sigma n``. All but n is the same for all copies.
    """
    center = problem.mean + mask.passed * problem.signal
    center = NAMESPACES[type(center)].where(problem.restricted, center, problem.fill)
    return center, mask.blocked * problem.noise_std


def _copies(center: Array, std: Array, noise: Array, reuse: bool = False) -> Array:
    """Noisy copies of each image, (B * S, *feature map).

    Args:
        center: their mean, (B, *feature map).
        std: their standard deviation, likewise.
        noise: standard normal, (S, *feature map).
        reuse: let the copies of a single image take the memory of the noise.
    """
    xp = NAMESPACES[type(noise)]
    if reuse and int(center.shape[0]) == 1:
        z = noise
        z *= std
        z += center
        return z
    z = noise * xp.expand_dims(std, axis=1)
    z += xp.expand_dims(center, axis=1)
    return xp.reshape(z, (-1, *z.shape[2:]))


def _per_image(x: Array) -> Array:
    """Sums over everything but the first axis, (B,)."""
    xp = NAMESPACES[type(x)]
    return xp.sum(xp.reshape(x, (int(x.shape[0]), -1)), axis=1)


def _permuted(x: Array, axes: Sequence[int]) -> Array:
    """Permute the axes of one feature map in a batch of them."""
    return NAMESPACES[type(x)].permute_dims(x, (0, *(axis + 1 for axis in axes)))


def _inverse(axes: Sequence[int]) -> tuple[int, ...]:
    return tuple(int(axis) for axis in np.argsort(axes))


def _kind(array: Array) -> tuple[Any, str]:
    """The dtype and the device of an array. NumPy's have no device before version 2."""
    return array.dtype, str(getattr(array, "device", None))


def in_model_order(result: BottleneckResult, tail: Tail) -> BottleneckResult:
    """A result whose axes are in the order of a tail, with those in the model's own order."""
    return result if tail.axes is None else result.permuted(_inverse(tail.axes))


def _call_in_order(
    callback: Callback, axes: Sequence[int], step: int, state: AdamState, report: StepReport
) -> None:
    callback(step, AdamState(*(_permuted(x, axes) for x in state)), report)


def _chunk_sizes(samples: int, max_batch: int | None, images: int) -> tuple[int, ...]:
    """Divide the noisy copies so that at most `max_batch` feature maps pass at once."""
    if max_batch is None:
        return (samples,)
    if max_batch < images:
        raise InputError(f"max_batch={max_batch} is less than the {images} images given at once")
    # Chunks of nearly equal size, so that a compiled step meets two shapes at most.
    chunks = -(-samples // (max_batch // images))
    return tuple(int(size) for size in np.diff(np.linspace(0, samples, chunks + 1).astype(int)))


def _check_shape(features: Array, statistics: Statistics, axes: Sequence[int]) -> None:
    """Check that a feature map, in the model's own order of axes, has the shape of the statistics."""
    shape = tuple(int(features.shape[1 + place]) for place in _inverse(axes))
    if shape != statistics.mean.shape:
        raise InputError(
            f"the feature map has shape {shape}, but the estimated distribution has "
            f"{statistics.mean.shape}: estimate it on inputs of the same size"
        )


def _checked_pass_mask(pass_mask: PassMask, shape: tuple[int, ...]) -> PassMask:
    mask = require_mask("pass_mask", pass_mask)
    if mask.shape == shape[1:]:
        return mask[None]
    if mask.shape == shape:
        return mask
    raise InputError(
        f"pass_mask has shape {mask.shape}; it must be that of the feature map, {shape[1:]}, "
        f"or a batch of them, {shape}"
    )


def require_finite_result(result: BottleneckResult, second: Array) -> None:
    """Check the curves and the capacity, and that the mean of the squared gradients has not overflowed.

    By an infinite mean, Adam would divide all that follows down to 0, and return the start as if nothing were
    wrong.
    """
    xp = NAMESPACES[type(result.capacity)]
    for name, curve, cause in (
        ("model's loss", result.model_losses, "the model's outputs overflow on noisy features"),
        ("information term", result.informations, "learning_rate or beta is too high"),
    ):
        bad = np.argwhere(~np.isfinite(curve))
        if len(bad):
            raise OptimizationError(
                f"the {name} became {curve[tuple(bad[0])]} at step {bad[0][0] + 1} of {len(curve)}; "
                f"likely {cause}"
            )
    bits_are, gradients_are = (xp.all(xp.isfinite(x)) for x in (result.capacity, second))
    # One number to read from the device where all is well.
    if bool(bits_are & gradients_are):
        return
    if bool(bits_are):
        raise OptimizationError(
            "the gradients are so large that their squares overflow; likely beta is too high, or the "
            "features lie far outside of the estimated distribution"
        )
    raise OptimizationError("the capacity became infinite in the last step; likely learning_rate is too high")
