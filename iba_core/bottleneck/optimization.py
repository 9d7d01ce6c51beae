"""The loop that finds a bottleneck's mask, once for all frameworks: it drives an adapter.

Per image and step, `samples` noisy copies of the restricted feature map pass the tail of the model; the
gradient of

    model loss + beta * mean(capacity)                                                    (paper, eq. 6)

moves alpha by one step of Adam. Noise and capacity are independent, so the capacity is computed once per
image, not once per copy. The gradient is found in parts: that of the model's loss for the noisy copies, by
the tail; from there, since the copies are linear in mask and noise, that for the mask from two sums over the
copies, to which comes the slope of the capacity; and from the mask that for alpha. Only the tail is
differentiated by the framework. While it runs, nothing is held besides but the features, alpha and Adam's two
moments: the mask is computed again behind it, which takes little time and spares its memory. Nothing is read
back from the device before the last step, unless a tolerance asks whether the map has converged.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import count
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from iba_core.bottleneck.adam import AdamState, adam_step, bias_corrections
from iba_core.bottleneck.formulas import (
    BottleneckSettings,
    Mask,
    Statistics,
    alpha_slope,
    capacity,
    capacity_slope,
    mask_from_alpha,
)
from iba_core.bottleneck.noise import seeded_normal
from iba_core.bottleneck.smoothing import smoothing_matrices
from iba_core.errors import InputError, OptimizationError
from iba_core.framework.adapter import Adapter, Head
from iba_core.framework.allocator import memory_kept
from iba_core.framework.layout import Layout
from iba_core.framework.namespace import Array, array_namespace
from iba_core.utils import get_tqdm

ModelLoss = Callable[[Array, tuple[Array, ...], tuple[Array, ...]], Array]
"""``model_loss(z, carry, targets)`` for feature maps z (B * S, *feature map): losses (B * S,), in nats or
the loss's own unit, or their mean as a scalar."""


class Problem(NamedTuple):
    """What a bottleneck is optimised on: one batch of images, as tensors of the bottleneck's precision."""

    features: Array
    """R, (B, *feature map)."""
    mean: Array
    """mu, (1, *feature map)."""
    std: Array
    """sigma, floored at `min_std`, likewise."""
    restricted: Array
    """Boolean, (1 or B, *feature map): the features that the bottleneck acts on."""
    ground: Array
    """What is there where the bottleneck does not act, (1 or B, *feature map): 0 of inactive neurons, R of
    what passes by order. Elsewhere, of no account."""
    spread: Array
    """Standard deviation of the noise, (1 or B, *feature map): sigma; 0 where the bottleneck does not act."""
    matrices: tuple[Array, ...]
    """Smoothing along each spatial axis."""
    beta: Array
    """Weight of a feature's capacity, scalar."""
    learning_rate: Array
    """Scalar."""
    carry: tuple[Array, ...]
    """What reaches the tail around the cut."""
    targets: tuple[Array, ...]
    """What the model's loss needs to know, a row per image."""

    @property
    def signal(self) -> Array:
        """R - mu, (B, *feature map)."""
        return self.features - self.mean

    def permuted(self, axes: Sequence[int]) -> Problem:
        """The same problem on feature maps whose axes are permuted, `axes` being those of a batch of them."""
        xp = array_namespace(self.features)
        maps = ("features", "mean", "std", "restricted", "ground", "spread")
        return self._replace(**{name: xp.permute_dims(getattr(self, name), tuple(axes)) for name in maps})

    def acting(self, x: Array) -> Array:
        """x, (B, *feature map), where the bottleneck acts, and 0 elsewhere, whatever x is there."""
        xp = array_namespace(x)
        return xp.where(self.restricted, x, xp.zeros_like(x))


class _Constants(NamedTuple):
    """What the problems of all images have in common, as tensors."""

    mean: Array
    std: Array
    restricted: Array
    ground: Array
    spread: Array
    matrices: tuple[Array, ...]


class StepReport(NamedTuple):
    """The two terms of the objective of one step, each (B,)."""

    model_loss: Array
    information: Array
    """beta times the mean (or sum) of the capacity, in nats."""


@dataclass(frozen=True)
class BottleneckResult:
    """Outcome of an optimisation over a batch of B images.

    Attributes:
        alpha: the bottleneck's parameter after the last step, tensor (B, *feature map).
        mask: the mask at that alpha, tensors likewise, without a graph.
        capacity: nats that each feature carries at that alpha, tensor likewise; 0 where the bottleneck
            does not act.
        problem: what was optimised.
        model_losses: the model's loss, mean over the noisy copies, before each step, (steps, B). Once an
            image has converged, its last value stands.
        informations: the information term of the objective before each step, (steps, B), likewise.
        steps_taken: steps until an image's map had converged, (B,); all of them where no tolerance is set.
    """

    alpha: Array
    mask: Mask
    capacity: Array
    problem: Problem
    model_losses: npt.NDArray[np.floating]
    informations: npt.NDArray[np.floating]
    steps_taken: npt.NDArray[np.integer]

    def permuted(self, axes: Sequence[int]) -> BottleneckResult:
        """The same of feature maps whose axes are permuted, `axes` being those of a batch of them."""
        permute = partial(array_namespace(self.alpha).permute_dims, axes=tuple(axes))
        return replace(
            self,
            alpha=permute(self.alpha),
            mask=Mask(*map(permute, self.mask)),
            capacity=permute(self.capacity),
            problem=self.problem.permuted(axes),
        )


class BottleneckOptimizer:
    """Optimises bottlenecks at one place of one model.

    Keep the object: the step it has compiled serves every image of a shape.

    Args:
        adapter: the model's framework.
        model_loss: the loss whose information is to be kept; a pure function of its arguments.
        layout: meaning of the axes of one feature map.
        settings: hyperparameters.
        relu: clip the restricted features at 0, as a ReLU behind the bottleneck would.
        jit_compile: whether the steps shall be machine code; None for what the adapter does.
    """

    def __init__(
        self,
        adapter: Adapter,
        model_loss: ModelLoss,
        layout: Layout,
        settings: BottleneckSettings | None = None,
        relu: bool = False,
        jit_compile: bool | None = None,
    ) -> None:
        self.adapter = adapter
        self.model_loss = model_loss
        self.layout = layout
        self.settings = settings or BottleneckSettings()
        self.relu = relu
        options = {} if jit_compile is None else {"jit_compile": jit_compile}
        self._compiled_step = adapter.compile(self._step, **options)
        self._compiled_outcome = adapter.compile(self._outcome, **options)
        self._jit_compile = jit_compile
        self._constants: tuple[tuple[Any, ...], Statistics, _Constants] | None = None
        self._in_memory: dict[tuple[int, ...], _InOrder] = {}

    # The memory of a step's pass is that of the next one's.
    @memory_kept()
    def run(
        self,
        head: Head,
        statistics: Statistics,
        targets: tuple[Array, ...] = (),
        *,
        settings: BottleneckSettings | None = None,
        seed: int | None = None,
        pass_mask: npt.NDArray[np.bool_] | None = None,
        max_batch: int | None = None,
        progbar: bool = False,
        callback: Callable[[int, AdamState, StepReport], None] | None = None,
    ) -> BottleneckResult:
        """Optimise the bottleneck for a batch of images.

        Args:
            head: features (B, *feature map), and what reaches the tail around them.
            statistics: distribution of the features.
            targets: tensors with a row per image, handed to the model's loss.
            settings: hyperparameters instead of the optimiser's own.
            seed: makes the noise a function of the seed alone; otherwise it comes from the framework.
            pass_mask: (*feature map) or (B, *feature map), True where the features pass unchanged and
                carry no capacity, such as padding.
            max_batch: the most feature maps that pass the tail at once; B * samples if None.
            progbar: show the steps.
            callback: called after each step with its number from 0, the new state and the step's report.

        Raises:
            InputError: shapes that do not fit, or features that are not finite.
            OptimizationError: the objective turned NaN or infinite.
        """
        settings = settings or self.settings
        axes = self.adapter.axes_in_memory(head.features)
        if axes != tuple(range(len(axes))) and self.layout.keeps_places(_of_one(axes)):
            if axes not in self._in_memory:
                self._in_memory[axes] = _InOrder(self, axes)
            run = self._in_memory[axes].run
            options = {"seed": seed, "max_batch": max_batch, "progbar": progbar}
            return run(head, statistics, targets, pass_mask, callback, settings=settings, **options)
        problem = self.problem(head, statistics, targets, settings, pass_mask)
        xp = array_namespace(problem.features)
        images = int(problem.features.shape[0])
        # A schedule has one or two sizes, and a compiled step as many shapes.
        sizes = {copies: _chunk_sizes(copies, max_batch, images) for copies in set(settings.schedule)}

        state = AdamState(
            xp.zeros_like(problem.features) + settings.initial_alpha,
            xp.zeros_like(problem.features),
            xp.zeros_like(problem.features),
        )
        # All rows at once: to take one from the device's tensor costs a call in each step.
        corrections = xp.unstack(self._tensor(bias_corrections(settings.steps), problem))
        convergence = _Convergence(settings.tolerance, images) if settings.tolerance else None
        hand_over = self.adapter.handing_over(self._jit_compile)
        reports: list[StepReport] = []
        for step in get_tqdm()(range(settings.steps), desc="Bottleneck", disable=not progbar):
            size = sizes[settings.schedule[step]]
            # Nothing here holds the noise while the step has it.
            noise = map(hand_over, count(), self.noise(problem, size, seed, step, settings.antithetic))
            new, report = self._compiled_step(state, corrections[step], tuple(noise), problem)
            state = new if convergence is None else self._kept(state, new, convergence.running, problem)
            reports.append(report)
            if callback is not None:
                callback(step, state, report)
            if convergence is not None:
                _, nats = self._compiled_outcome(state.parameter, problem)
                convergence.see(self._maps(nats))
                if not convergence.running.any():
                    break

        mask, nats = self._compiled_outcome(state.parameter, problem)
        taken = np.full(images, settings.steps) if convergence is None else convergence.steps
        result = BottleneckResult(
            alpha=state.parameter,
            mask=mask,
            capacity=nats,
            problem=problem,
            model_losses=self._curve([report.model_loss for report in reports], taken, settings.steps),
            informations=self._curve([report.information for report in reports], taken, settings.steps),
            steps_taken=taken,
        )
        _require_finite(result)
        return result

    def problem(
        self,
        head: Head,
        statistics: Statistics,
        targets: tuple[Array, ...] = (),
        settings: BottleneckSettings | None = None,
        pass_mask: npt.NDArray[np.bool_] | None = None,
    ) -> Problem:
        """The tensors that an optimisation works on; arguments and errors as in `run`."""
        settings = settings or self.settings
        shape = _checked_shape(head, statistics)
        xp = array_namespace(head.features)
        precision = xp.float64 if head.features.dtype == xp.float64 else xp.float32
        features = xp.astype(head.features, precision, copy=False)
        if not bool(xp.all(xp.isfinite(features))):
            raise InputError("the feature map at the layer holds NaN or infinite values for this input")

        def tensor(array: npt.NDArray[Any]) -> Array:
            return self.adapter.asarray(array, like=features)

        constants = self._constants_of(statistics, settings, features)
        restricted, ground, spread = constants.restricted, constants.ground, constants.spread
        if pass_mask is not None:
            passing = _checked_pass_mask(pass_mask, tuple(features.shape))
            restricted = tensor(statistics.active[None] & ~passing)
            ground = xp.where(tensor(passing), features, ground)
            spread = xp.where(restricted, spread, xp.zeros_like(spread))
        beta = settings.beta / (float(np.prod(shape)) if settings.normalize_beta else 1.0)
        return Problem(
            features=features,
            mean=constants.mean,
            std=constants.std,
            restricted=restricted,
            ground=ground,
            spread=spread,
            matrices=constants.matrices,
            beta=tensor(np.asarray(beta)),
            learning_rate=tensor(np.asarray(float(settings.learning_rate))),
            carry=head.carry,
            targets=targets,
        )

    def _constants_of(
        self, statistics: Statistics, settings: BottleneckSettings, features: Array
    ) -> _Constants:
        """Tensors of the statistics, made anew only where something has changed."""
        key = (settings.min_std, settings.smooth_std, features.dtype, str(features.device))
        if self._constants is not None and self._constants[0] == key and self._constants[1] is statistics:
            return self._constants[2]
        floored = np.maximum(statistics.std, settings.min_std)
        if not floored[statistics.active].all():
            raise InputError("min_std=0, but the standard deviation of some features is 0; give more than 0")

        def tensor(array: npt.NDArray[Any]) -> Array:
            return self.adapter.asarray(array, like=features)

        active, shape = statistics.active, statistics.mean.shape
        constants = _Constants(
            mean=tensor(statistics.mean[None]),
            # Inactive neurons may have none, but a division by it must not spoil their 0.
            std=tensor(np.where(floored > 0, floored, 1.0)[None]),
            restricted=tensor(active[None]),
            ground=tensor(np.zeros(shape)[None]),
            spread=tensor(np.where(active, floored, 0.0)[None]),
            matrices=tuple(map(tensor, smoothing_matrices(shape, self.layout, settings.smooth_std))),
        )
        self._constants = (key, statistics, constants)
        return constants

    def restricted(self, problem: Problem, mask: Mask, noise: Array) -> Array:
        """Restricted feature maps, as they enter the tail.

        Args:
            problem: the images.
            mask: their masks.
            noise: standard normal, (S, *feature map), the same for every image.

        Returns:
            Tensor (B * S, *feature map); the S copies of an image follow one another.
        """
        return self._clipped(_copies(_distribution(problem, mask), noise, replace=False))

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
            seed: as of `run`.
            step: number of the step.
            antithetic: let every second copy have the noise of the one before it, negated.
        """
        shape, samples = tuple(problem.features.shape[1:]), sum(sizes)
        drawn = -(-samples // 2) if antithetic else samples
        if seed is None:
            noise = self.adapter.standard_normal((drawn, *shape), like=problem.features)
        else:
            noise = self._tensor(seeded_normal(seed, step, drawn, shape, self.layout), problem)
        if antithetic:
            xp = array_namespace(noise)
            noise = xp.reshape(xp.stack([noise, -noise], axis=1), (2 * drawn, *shape))
        if sizes == (int(noise.shape[0]),):
            return (noise,)
        ends = np.cumsum(sizes)
        return tuple(noise[end - size : end] for size, end in zip(sizes, ends, strict=True))

    def gradient(self, alpha: Array, noise: tuple[Array, ...], problem: Problem) -> tuple[Array, StepReport]:
        """Gradient of the objective, summed over the images, which stay independent.

        Args:
            alpha: the bottleneck's parameter, (B, *feature map).
            noise: standard normal, in chunks (size, *feature map) that pass the tail one after another.
                Where the adapter reuses memory, it is gone afterwards.
            problem: the images.

        Returns:
            The gradient, (B, *feature map), and the two terms of the objective.
        """
        xp = array_namespace(alpha)
        images, samples = int(alpha.shape[0]), sum(int(chunk.shape[0]) for chunk in noise)
        adapter = self.adapter
        # Of one image there are as many copies as of the noise, whose memory they can have.
        replace = images == 1 and adapter.reuses_memory
        model_loss: Array = 0.0
        of_center: Array = 0.0
        of_noise: Array = 0.0
        before = alpha
        for chunk in noise:
            share = int(chunk.shape[0]) / samples
            objective = partial(self._model_loss, problem=problem, images=images, share=share)
            # A graph may run chunks at once that do not depend on each other, and would then hold several.
            with adapter.after(before):
                # The mask has no name here, so that none is held while the tail runs.
                z = _copies(_distribution(problem, self._mask(alpha, problem)), chunk, replace)
                _, losses, slope = adapter.value_and_grad(objective, z)
            with adapter.after(slope):
                mask = self._mask(alpha, problem)
                slope = xp.reshape(slope, (images, *chunk.shape))
                of_copy = xp.sum(slope, axis=1)
                if replace:
                    of_noise = of_noise + _slope_of_noise(_distribution(problem, mask), z, slope, of_copy)
                else:
                    of_noise = of_noise + xp.sum(chunk * slope, axis=1)
                del z
                model_loss = model_loss + losses
                of_center = of_center + of_copy
                before = of_noise
        with adapter.after(of_noise):
            signal = problem.signal
            normalized = signal / problem.std
            information = problem.beta * _per_image(problem.acting(capacity(normalized, mask)))
            # From the copies to the mask: how `_distribution` depends on what is blocked.
            of_blocked = problem.beta * capacity_slope(normalized, mask)
            of_blocked = of_blocked + of_noise * problem.spread - of_center * signal
            # Where the bottleneck does not act, a slope is of no account, and need not even be finite.
            gradient = alpha_slope(problem.acting(of_blocked), alpha, problem.matrices, self.layout)
        return gradient, StepReport(model_loss, information)

    def _step(
        self, state: AdamState, correction: Array, handed: tuple[Any, ...], problem: Problem
    ) -> tuple[AdamState, StepReport]:
        """One optimiser step. Everything that changes comes in as an argument; the noise is handed over."""
        noise = tuple(map(self.adapter.taken, handed))
        gradient, report = self.gradient(state.parameter, noise, problem)
        with self.adapter.after(gradient):
            return adam_step(state, gradient, correction, problem.learning_rate), report

    def _mask(self, alpha: Array, problem: Problem) -> Mask:
        return mask_from_alpha(alpha, problem.matrices, self.layout)

    def _model_loss(self, z: Array, *, problem: Problem, images: int, share: float) -> tuple[Array, Array]:
        """The model's loss of noisy copies: its sum over the images, and the loss of each, (B,).

        Args:
            z: the copies before the ReLU, (B * size of the chunk, *feature map).
            problem: the images.
            images: how many they are.
            share: size of the chunk as a share of all copies.
        """
        xp = array_namespace(z)
        losses = self.model_loss(self._clipped(z), problem.carry, problem.targets)
        if len(losses.shape):
            losses = xp.mean(xp.reshape(losses, (images, -1)), axis=1)
        losses = xp.astype(xp.reshape(losses, (-1,)), z.dtype) * share
        return xp.sum(losses), losses

    def _clipped(self, z: Array) -> Array:
        xp = array_namespace(z)
        return xp.maximum(z, xp.zeros_like(z)) if self.relu else z

    def _outcome(self, alpha: Array, problem: Problem) -> tuple[Mask, Array]:
        """Mask and capacity, (B, *feature map) in nats."""
        mask = self._mask(alpha, problem)
        nats = masked_capacity(problem, mask)
        xp = array_namespace(alpha)
        # Smoothing sums to one only up to rounding.
        return mask._replace(passed=xp.maximum(mask.passed, xp.zeros_like(alpha))), nats

    def _maps(self, nats: Array) -> npt.NDArray[np.floating]:
        """Nats of each place, (B, *spatial shape)."""
        return self.adapter.to_numpy(array_namespace(nats).sum(nats, axis=self.layout.channel_axis + 1))

    def _kept(
        self, old: AdamState, new: AdamState, running: npt.NDArray[np.bool_], problem: Problem
    ) -> AdamState:
        """The new state of the images that have not converged, the old one of all others."""
        if running.all():
            return new
        chosen = self._tensor(running.reshape(-1, *(1,) * (len(problem.features.shape) - 1)), problem)
        where = array_namespace(problem.features).where
        return AdamState(*(where(chosen, *pair) for pair in zip(new, old, strict=True)))

    def _tensor(self, array: npt.NDArray[Any], problem: Problem) -> Array:
        return self.adapter.asarray(array, like=problem.features)

    def _curve(
        self, values: list[Array], taken: npt.NDArray[np.integer], steps: int
    ) -> npt.NDArray[np.floating]:
        """The values of all steps, (steps, B), with an image's last one behind those it has taken."""
        if not values:
            return np.empty((0, len(taken)))
        curve = self.adapter.to_numpy(array_namespace(values[0]).stack(values))
        rows = np.minimum(np.arange(steps)[:, None], taken - 1)
        return np.asarray(np.take_along_axis(curve, rows, axis=0))


class _InOrder:
    """Optimises bottlenecks on feature maps with their axes in the order in which they lie in memory.

    Args:
        optimizer: the one that it does so for.
        axes: those of a batch of feature maps, in that order.
    """

    def __init__(self, optimizer: BottleneckOptimizer, axes: tuple[int, ...]) -> None:
        self._axes = axes
        self._of_one = _of_one(axes)
        self._back = tuple(int(axis) for axis in np.argsort(axes))
        self._statistics: tuple[Statistics, Statistics] | None = None
        self._optimizer = BottleneckOptimizer(
            optimizer.adapter,
            partial(self._model_loss, optimizer.model_loss),
            optimizer.layout.permuted(self._of_one),
            optimizer.settings,
            optimizer.relu,
            optimizer._jit_compile,
        )

    def _model_loss(
        self, model_loss: ModelLoss, z: Array, carry: tuple[Array, ...], targets: tuple[Array, ...]
    ) -> Array:
        return model_loss(array_namespace(z).permute_dims(z, self._back), carry, targets)

    def run(
        self,
        head: Head,
        statistics: Statistics,
        targets: tuple[Array, ...],
        pass_mask: npt.NDArray[np.bool_] | None,
        callback: Callable[[int, AdamState, StepReport], None] | None,
        **options: Any,
    ) -> BottleneckResult:
        """See `BottleneckOptimizer.run`."""
        _checked_shape(head, statistics)
        xp = array_namespace(head.features)
        if self._statistics is None or self._statistics[0] is not statistics:
            self._statistics = (statistics, statistics.permuted(self._of_one))
        if pass_mask is not None:
            passing = _checked_pass_mask(pass_mask, tuple(head.features.shape)).transpose(self._axes)
            pass_mask = passing[0] if len(passing) == 1 else passing

        def called(step: int, state: AdamState, report: StepReport) -> None:
            assert callback is not None
            callback(step, AdamState(*(xp.permute_dims(x, self._back) for x in state)), report)

        result = self._optimizer.run(
            Head(xp.permute_dims(head.features, self._axes), head.carry),
            self._statistics[1],
            targets,
            pass_mask=pass_mask,
            callback=None if callback is None else called,
            **options,
        )
        return result.permuted(self._back)


class _Convergence:
    """Which images of a batch have converged: their maps changed by no more than a tolerance.

    Args:
        tolerance: the sum of absolute changes of the map between two steps, as a share of the map's sum.
        images: number of images.
    """

    def __init__(self, tolerance: float, images: int) -> None:
        self._tolerance = tolerance
        self._last: npt.NDArray[np.floating] | None = None
        self.running = np.ones(images, bool)
        self.steps = np.zeros(images, int)

    def see(self, maps: npt.NDArray[np.floating]) -> None:
        """Take in the maps after a step, (B, ...)."""
        maps = maps.reshape(len(maps), -1)
        self.steps += self.running
        if self._last is not None:
            change = np.abs(maps - self._last).sum(axis=1)
            self.running &= ~(change <= self._tolerance * maps.sum(axis=1))
        self._last = maps


def _distribution(problem: Problem, mask: Mask) -> tuple[Array, Array]:
    """Mean and standard deviation of the noisy copies of each image, (B, *feature map) each.

    They are what `restrict` gives (paper, eq. 2), with features and noise measured from mu: for noise
    ``mu + sigma n`` with standard normal n it is ``mu + lambda (R - mu) + (1 - lambda) sigma n``, of which
    all but n is the same for all copies.
    """
    center = problem.mean + mask.passed * problem.signal
    center = array_namespace(center).where(problem.restricted, center, problem.ground)
    return center, mask.blocked * problem.spread


def _copies(distribution: tuple[Array, Array], noise: Array, replace: bool) -> Array:
    """Noisy copies of each image, (B * S, *feature map).

    Args:
        distribution: their mean and standard deviation, (B, *feature map) each.
        noise: standard normal, (S, *feature map).
        replace: of one image, let the copies have the memory of the noise, which is then gone.
    """
    xp = array_namespace(noise)
    if replace:
        center, spread = distribution
        z = noise
        z *= spread
        z += center
        return z
    center, spread = (xp.expand_dims(x, axis=1) for x in distribution)
    z = noise * spread
    z += center
    return xp.reshape(z, (-1, *z.shape[2:]))


def _slope_of_noise(distribution: tuple[Array, Array], z: Array, slope: Array, of_copies: Array) -> Array:
    """Sum over the copies of noise times slope, from copies that have replaced the noise.

    The noise is (z - center) / spread, so that what is wanted is the sum of z times slope, less center times
    the sum of the slopes, over the spread.

    Args:
        distribution: of the copies, as for `_copies`.
        z: the copies, (S, *feature map); replaced by their products with the slope.
        slope: (1, S, *feature map).
        of_copies: its sum over the copies, (1, *feature map).

    Returns:
        Array (1, *feature map), not finite where the noise has no effect.
    """
    xp = array_namespace(z)
    center, spread = distribution
    z *= slope[0]
    return (xp.sum(z, axis=0, keepdims=True) - center * of_copies) / spread


def masked_capacity(problem: Problem, mask: Mask) -> Array:
    """Capacity of the features that the bottleneck acts on, 0 for all others; nats, (B, *feature map)."""
    return problem.acting(capacity(problem.signal / problem.std, mask))


def _per_image(x: Array) -> Array:
    """Sums over everything but the first axis, (B,)."""
    xp = array_namespace(x)
    return xp.sum(xp.reshape(x, (int(x.shape[0]), -1)), axis=1)


def _chunk_sizes(samples: int, max_batch: int | None, images: int) -> tuple[int, ...]:
    """How to split the noisy copies so that no more than `max_batch` feature maps pass at once."""
    if max_batch is None:
        return (samples,)
    if max_batch < images:
        raise InputError(f"max_batch={max_batch} is less than the {images} images given at once")
    # Chunks of nearly equal size, so that a compiled step meets two shapes at most.
    chunks = -(-samples // (max_batch // images))
    return tuple(int(size) for size in np.diff(np.linspace(0, samples, chunks + 1).astype(int)))


def _of_one(axes: tuple[int, ...]) -> tuple[int, ...]:
    """Permutation of a feature map's axes, from that of a batch of them."""
    return tuple(axis - 1 for axis in axes[1:])


def _checked_shape(head: Head, statistics: Statistics) -> tuple[int, ...]:
    shape = tuple(int(size) for size in head.features.shape[1:])
    if shape != statistics.mean.shape:
        raise InputError(
            f"the feature map has shape {shape}, but the estimated distribution has "
            f"{statistics.mean.shape}: estimate it on inputs of the same size"
        )
    return shape


def _checked_pass_mask(pass_mask: npt.NDArray[np.bool_], shape: tuple[int, ...]) -> npt.NDArray[np.bool_]:
    mask = np.asarray(pass_mask).astype(bool)
    if mask.shape == shape[1:]:
        return mask[None]
    if mask.shape == shape:
        return mask
    raise InputError(
        f"pass_mask has shape {mask.shape}; it must be that of the feature map, {shape[1:]}, "
        f"or a batch of them, {shape}"
    )


def _require_finite(result: BottleneckResult) -> None:
    xp = array_namespace(result.capacity)
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
    if not bool(xp.all(xp.isfinite(result.capacity))):
        raise OptimizationError(
            "the capacity became infinite in the last step; likely learning_rate is too high"
        )
