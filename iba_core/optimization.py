"""The loop that finds a bottleneck's mask, once for all frameworks: it drives an adapter.

Per image and step, `samples` noisy copies of the restricted feature map pass the tail of the model; the
gradient of

    model loss + beta * mean(capacity)                                                    (paper, eq. 6)

moves alpha by one step of Adam. Noise and capacity are independent, so the capacity is computed once per
image, not once per copy. Nothing is read back from the device before the last step.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from iba_core.adam import AdamState, adam_step, bias_corrections
from iba_core.adapter import Adapter, Head
from iba_core.bottleneck import (
    BottleneckSettings,
    Mask,
    Statistics,
    capacity,
    mask_from_alpha,
    restrict,
)
from iba_core.errors import InputError, OptimizationError
from iba_core.layout import Layout
from iba_core.namespace import Array, array_namespace
from iba_core.noise import seeded_normal
from iba_core.smoothing import smoothing_matrices
from iba_core.utils import get_tqdm

ModelLoss = Callable[[Array, tuple[Array, ...], tuple[Array, ...]], Array]
"""``model_loss(z, carry, targets)`` for feature maps z (B * S, *feature map): losses (B * S,), in nats or
the loss's own unit, or their mean as a scalar."""


class Problem(NamedTuple):
    """What a bottleneck is optimised on: one batch of images, as tensors of the bottleneck's precision."""

    features: Array
    """R, (B, *feature map)."""
    normalized: Array
    """(R - mu) / sigma, likewise."""
    mean: Array
    """mu, (1, *feature map)."""
    std: Array
    """sigma, floored at `min_std`, likewise."""
    restricted: Array
    """Boolean, (1 or B, *feature map): the features that the bottleneck acts on."""
    fill: Array
    """Values of all other features, (1 or B, *feature map): 0 where inactive, R where passed by order."""
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
        model_losses: the model's loss, mean over the noisy copies, before each step, (steps, B).
        informations: the information term of the objective before each step, (steps, B).
    """

    alpha: Array
    mask: Mask
    capacity: Array
    problem: Problem
    model_losses: npt.NDArray[np.floating]
    informations: npt.NDArray[np.floating]


class BottleneckOptimizer:
    """Optimises bottlenecks at one place of one model.

    Keep the object: the step it has compiled serves every image of a shape.

    Args:
        adapter: the model's framework.
        model_loss: the loss whose information is to be kept; a pure function of its arguments.
        layout: meaning of the axes of one feature map.
        settings: hyperparameters.
        relu: clip the restricted features at 0, as a ReLU behind the bottleneck would.
    """

    def __init__(
        self,
        adapter: Adapter,
        model_loss: ModelLoss,
        layout: Layout,
        settings: BottleneckSettings | None = None,
        relu: bool = False,
    ) -> None:
        self.adapter = adapter
        self.model_loss = model_loss
        self.layout = layout
        self.settings = settings or BottleneckSettings()
        self.relu = relu
        self._compiled_step = adapter.compile(self._step)

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
        problem = self.problem(head, statistics, targets, settings, pass_mask)
        xp = array_namespace(problem.features)
        images = int(problem.features.shape[0])
        sizes = _chunk_sizes(settings.samples, max_batch, images)

        start = xp.zeros_like(problem.features)
        state = AdamState(start + settings.initial_alpha, start, start)
        corrections = self._tensor(bias_corrections(settings.steps), problem)
        reports: list[StepReport] = []
        for step in get_tqdm()(range(settings.steps), desc="Bottleneck", disable=not progbar):
            noise = self.noise(problem, sizes, seed, step)
            state, report = self._compiled_step(state, corrections[step], noise, problem)
            reports.append(report)
            if callback is not None:
                callback(step, state, report)

        mask = mask_from_alpha(state.parameter, problem.matrices, self.layout)
        result = BottleneckResult(
            alpha=state.parameter,
            mask=mask,
            capacity=masked_capacity(problem, mask),
            problem=problem,
            model_losses=self._curve([report.model_loss for report in reports], images),
            informations=self._curve([report.information for report in reports], images),
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
        shape = tuple(int(size) for size in head.features.shape[1:])
        if shape != statistics.mean.shape:
            raise InputError(
                f"the feature map has shape {shape}, but the estimated distribution has "
                f"{statistics.mean.shape}: estimate it on inputs of the same size"
            )
        xp = array_namespace(head.features)
        precision = xp.float64 if head.features.dtype == xp.float64 else xp.float32
        features = xp.astype(head.features, precision)
        if not bool(xp.all(xp.isfinite(features))):
            raise InputError("the feature map at the layer holds NaN or infinite values for this input")

        def tensor(array: npt.NDArray[Any]) -> Array:
            return self.adapter.asarray(array, like=features)

        floored = np.maximum(statistics.std, settings.min_std)
        if not floored[statistics.active].all():
            raise InputError("min_std=0, but the standard deviation of some features is 0; give more than 0")
        mean = tensor(statistics.mean[None])
        std = tensor(floored[None])
        restricted = tensor(statistics.active[None])
        fill = xp.zeros_like(mean)
        if pass_mask is not None:
            passing = _checked_pass_mask(pass_mask, tuple(features.shape))
            restricted = tensor(statistics.active[None] & ~passing)
            fill = xp.where(tensor(passing), features, fill)
        beta = settings.beta / (float(np.prod(shape)) if settings.normalize_beta else 1.0)
        return Problem(
            features=features,
            normalized=(features - mean) / std,
            mean=mean,
            std=std,
            restricted=restricted,
            fill=fill,
            matrices=tuple(map(tensor, smoothing_matrices(shape, self.layout, settings.smooth_std))),
            beta=tensor(np.asarray(beta)),
            learning_rate=tensor(np.asarray(float(settings.learning_rate))),
            carry=head.carry,
            targets=targets,
        )

    def restricted(self, problem: Problem, mask: Mask, noise: Array) -> Array:
        """Restricted feature maps, as they enter the tail.

        Args:
            problem: the images.
            mask: their masks.
            noise: standard normal, (S, *feature map), the same for every image.

        Returns:
            Tensor (B * S, *feature map); the S copies of an image follow one another.
        """
        xp = array_namespace(problem.features)
        eps = problem.mean + problem.std * noise

        def per_image(x: Array) -> Array:
            return xp.expand_dims(x, axis=1)

        mixed = restrict(per_image(problem.features), Mask(*map(per_image, mask)), eps)
        z = xp.where(per_image(problem.restricted), mixed, per_image(problem.fill))
        if self.relu:
            z = xp.maximum(z, xp.zeros_like(z))
        return xp.reshape(z, (-1, *z.shape[2:]))

    def noise(
        self, problem: Problem, sizes: tuple[int, ...], seed: int | None, step: int
    ) -> tuple[Array, ...]:
        """Standard normal noise of one step in chunks of the given sizes, each (size, *feature map)."""
        shape = tuple(problem.features.shape[1:])
        if seed is None:
            return tuple(
                self.adapter.standard_normal((size, *shape), like=problem.features) for size in sizes
            )
        drawn = self._tensor(seeded_normal(seed, step, sum(sizes), shape, self.layout), problem)
        ends = np.cumsum(sizes)
        return tuple(drawn[end - size : end] for size, end in zip(sizes, ends, strict=True))

    def _step(
        self, state: AdamState, correction: Array, noise: tuple[Array, ...], problem: Problem
    ) -> tuple[AdamState, StepReport]:
        """One optimiser step. Pure: everything that changes comes in as an argument."""
        samples = sum(int(chunk.shape[0]) for chunk in noise)
        gradient: Array = 0.0
        model_loss: Array = 0.0
        information: Array = None
        for chunk in noise:
            # The information depends on no noise: only the first chunk carries it.
            objective = partial(
                self.objective,
                noise=chunk,
                problem=problem,
                share=int(chunk.shape[0]) / samples,
                with_information=information is None,
            )
            _, (loss, info), grad = self.adapter.value_and_grad(objective, state.parameter)
            information = info if information is None else information
            model_loss = model_loss + loss
            gradient = gradient + grad
        return (
            adam_step(state, gradient, correction, problem.learning_rate),
            StepReport(model_loss, information),
        )

    def objective(
        self, alpha: Array, *, noise: Array, problem: Problem, share: float, with_information: bool
    ) -> tuple[Array, tuple[Array, Array]]:
        """Objective of a chunk of the noisy copies, summed over the images, which stay independent.

        Args:
            alpha: the bottleneck's parameter, (B, *feature map).
            noise: standard normal, (size of the chunk, *feature map).
            problem: the images.
            share: size of the chunk as a share of all copies.
            with_information: whether the information term is part of this chunk's objective.

        Returns:
            The scalar to be minimised, and its two terms per image, (B,) each; without the information,
            the model's loss stands in its place too.
        """
        xp = array_namespace(alpha)
        images = int(alpha.shape[0])
        mask = mask_from_alpha(alpha, problem.matrices, self.layout)
        z = self.restricted(problem, mask, noise)
        losses = self.model_loss(z, problem.carry, problem.targets)
        if len(losses.shape):
            losses = xp.mean(xp.reshape(losses, (images, -1)), axis=1)
        losses = xp.astype(xp.reshape(losses, (-1,)), alpha.dtype) * share
        total = xp.sum(losses)
        if not with_information:
            return total, (losses, losses)
        capacities = xp.reshape(masked_capacity(problem, mask), (images, -1))
        information = problem.beta * xp.sum(capacities, axis=1)
        return total + xp.sum(information), (losses, information)

    def _tensor(self, array: npt.NDArray[Any], problem: Problem) -> Array:
        return self.adapter.asarray(array, like=problem.features)

    def _curve(self, values: list[Array], images: int) -> npt.NDArray[np.floating]:
        if not values:
            return np.empty((0, images))
        return self.adapter.to_numpy(array_namespace(values[0]).stack(values))


def masked_capacity(problem: Problem, mask: Mask) -> Array:
    """Capacity of the features that the bottleneck acts on, 0 for all others; nats, (B, *feature map)."""
    xp = array_namespace(mask.passed)
    nats = capacity(problem.normalized, mask)
    return xp.where(problem.restricted, nats, xp.zeros_like(nats))


def _chunk_sizes(samples: int, max_batch: int | None, images: int) -> tuple[int, ...]:
    """How to split the noisy copies so that no more than `max_batch` feature maps pass at once."""
    if max_batch is None:
        return (samples,)
    if max_batch < images:
        raise InputError(f"max_batch={max_batch} is less than the {images} images given at once")
    # Chunks of nearly equal size, so that a compiled step meets two shapes at most.
    chunks = -(-samples // (max_batch // images))
    return tuple(int(size) for size in np.diff(np.linspace(0, samples, chunks + 1).astype(int)))


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
