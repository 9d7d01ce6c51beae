"""What is right for a case, from the papers' formulas: in NumPy, in float64, on passes of the whole model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from scipy.special import expit

from tests.generator.cases import Bench, Inputs
from tests.reference import Bottleneck, Settings, Statistics, resized, saliency

TINY = float(np.finfo(np.float32).tiny)
"""What a probability that is less counts as."""


def class_loss(bench: Bench, target: int) -> Callable[[Any, Any], Any]:
    """The loss that a target stands for, as a function of the main output (N, K)."""
    end, classes = bench.case.signature.end, bench.case.signature.classes

    def loss(outputs: Any, ops: Any) -> Any:
        if bench.case.settings.kind == "logit":
            return -outputs[:, target]
        if end == "none" and classes == 1:
            return ops.softplus(-outputs[:, 0] if target else outputs[:, 0])
        if end == "none":
            return ops.logsumexp(outputs) - outputs[:, target]
        if classes == 1:
            return -ops.log(outputs[:, 0] if target else 1 - outputs[:, 0])
        loss = -ops.log(outputs[:, target])
        # What sums to 1 in the model need not where the bottleneck comes after the softmax.
        return loss + ops.logsumexp(ops.log(outputs)) if end == "softmax" else loss

    return loss


class Reference:
    """The right values for a case."""

    def __init__(self, bench: Bench) -> None:
        self.bench, self.case = bench, bench.case
        place = self.case.place
        self.channel = place.channel_axis
        self.spatial = [axis for axis in range(len(place.features)) if axis != self.channel]
        self.features = self._features(self.case.inputs, self.case.layer)
        self.statistics = self.statistics_of(self.case.layer)
        self.losses = np.empty((self.case.settings.steps, self.case.images))
        """Of the model before each step, (steps, B)."""
        maps = [self._optimised(index) for index in range(self.case.images)]
        self.capacity = None if any(each is None for each in maps) else np.stack(maps)
        """Nats, (B, *feature map); None where nothing depends on the layer."""

    def _features(self, inputs: Inputs, layer: str) -> np.ndarray:
        """Features of each image, alone where images depend on each other."""
        if self.case.independent:
            return self.bench.features(inputs, layer)
        ones = [self.case.signature.one(inputs, index) for index in range(len(inputs[0]))]
        return np.concatenate([self.bench.features(one, layer) for one in ones])

    def statistics_of(self, layer: str) -> Statistics:
        return Statistics.of(np.concatenate([self._features(batch, layer) for batch in self.case.batches]))

    def _optimised(self, index: int) -> np.ndarray | None:
        """Capacity of an image's features, in nats; None where the loss does not depend on them."""
        losses: list[float] = []

        def slope(z: np.ndarray) -> np.ndarray | None:
            found = self._slope(index, z)
            if found is None:
                return None
            losses.append(found[0].mean())
            return found[1]

        bottleneck = self._bottleneck(self.features[index])
        alpha = bottleneck.optimised(slope)
        if alpha is None:
            return None
        self.losses[:, index] = losses
        return bottleneck.capacity(alpha)

    def _bottleneck(self, features: np.ndarray) -> Bottleneck:
        """The bottleneck of an image at the layer."""
        own = self.case.settings
        settings = Settings(
            beta=own.beta,
            steps=own.steps,
            samples=own.samples,
            learning_rate=own.learning_rate,
            smooth_std=own.smooth_std,
            seed=own.seed,
        )
        return Bottleneck(features, self.statistics, self.channel, settings)

    def _slope(self, index: int, z: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
        """Losses of copies z, (S, *feature map), and their slopes."""
        case = self.case
        loss = class_loss(self.bench, case.targets[index])
        one = case.signature.one(case.inputs, index)
        if case.independent:
            return self.bench.slope(case.signature.copies(one, len(z)), z, loss)
        found = [self.bench.slope(one, copy[None], loss) for copy in z]
        if any(each is None for each in found):
            return None
        losses, slopes = (np.concatenate(each) for each in zip(*found, strict=True))  # type: ignore[arg-type]  # none is None
        return losses, slopes

    # -- maps --------------------------------------------------------------------------------------

    @property
    def input_shape(self) -> tuple[int, ...] | None:
        """Sizes of the places of the input where there are as many as in the feature map, else None."""
        axes = self.case.signature.axes.replace("B", "")
        if "C" not in axes or len(axes) != len(self.case.place.features):
            return None
        return tuple(
            size for axis, size in zip(axes, self.case.inputs[0].shape[1:], strict=True) if axis != "C"
        )

    def turned(self, features: np.ndarray, spatial: list[int]) -> np.ndarray:
        """Features whose place axes, at the given positions, are put in the order of the input's."""
        order = self.case.place.order
        places = sum(axis not in "BC" for axis in self.case.signature.axes)
        if order is None or not len(order) == len(spatial) == places:
            return features
        axes = list(range(features.ndim))
        for position, (index, _) in zip(spatial, order, strict=True):
            axes[spatial[index]] = position
        against = [spatial[index] for index, runs in order if runs]
        return np.flip(features.transpose(axes), against)

    def saliency(self, capacity: np.ndarray) -> np.ndarray:
        """Bits per pixel, whose sum is that of the capacity."""
        lying = self.turned(capacity, [1 + axis for axis in self.spatial])
        return saliency(lying, self.channel, self.input_shape)

    def activation_maps(self, method: str) -> tuple[np.ndarray, np.ndarray]:
        """Grad-CAM, HiResCAM or LayerCAM of the targets' outputs, from 0 to 1; and which of them are defined.

        After a normalisation of a channel, for example, its mean gradient is 0 but for rounding, and so is
        Grad-CAM's map. Others are constant but for rounding. And the gradient of a maximum of equal numbers
        depends on how they are rounded.
        """
        maps, defined = [], []
        nudge = 1e-12 * np.random.default_rng(self.case.number).normal(size=self.features.shape)
        for index, target in enumerate(self.case.targets):
            one = self.case.signature.one(self.case.inputs, index)
            column = target if self.case.signature.classes > 1 else 0
            near = (self.features + amount * nudge for amount in (0, 1))
            found, other = (
                self.bench.slope(one, features[index : index + 1], lambda y, _, c=column: y[:, c])
                for features in near
            )
            assert found is not None
            assert other is not None
            slope, r = (np.moveaxis(x, self.channel, 0) for x in (found[1][0], self.features[index]))
            weights = {
                "GradCAM": slope.mean(axis=tuple(range(1, slope.ndim)), keepdims=True),
                "HiResCAM": slope,
                "LayerCAM": np.maximum(slope, 0),
            }[method]
            parts = weights * r
            maps.append(np.maximum(parts.sum(axis=0), 0))
            scale = np.abs(slope).max()
            defined.append(
                scale > 1e-9
                and np.ptp(maps[-1]) > 1e-6 * maps[-1].max()
                and maps[-1].max() > 1e-6 * scale * np.abs(r).max()
                and np.abs(other[1][0] - found[1][0]).max() < 1e-6 * scale
            )
        shape = self.input_shape
        assert shape is not None
        lying = self.turned(np.stack(maps), list(range(1, 1 + len(shape))))
        return _unit(resized(_unit(lying), shape)), np.array(defined)

    def located(self, normal: np.ndarray, bias: float) -> np.ndarray | None:
        """Probability of a concept at every pixel; None where the map is larger than the input."""
        shape = self.input_shape
        maps = expit(np.moveaxis(self.features, self.channel + 1, -1) @ normal + bias)
        maps = self.turned(maps, [1, 2]) if maps.ndim == 3 else maps
        if shape is None or len(shape) != 2 or any(a > b for a, b in zip(maps.shape[1:], shape, strict=True)):
            return None
        return resized(maps, shape)

    def readout(self, weights: list[np.ndarray]) -> np.ndarray:
        """Capacity by the mask that a readout network gives, (B, *feature map)."""
        place_shape = [self.features.shape[1 + axis] for axis in self.spatial]
        parts = []
        for name in self.case.readout_layers:
            own, stats = self._features(self.case.inputs, name), self.statistics_of(name)
            axis = self.case.program.places[name.partition(":")[0]].channel_axis
            x = np.moveaxis((own - stats.mean) / stats.std, axis + 1, -1)
            if not place_shape:
                x = x.mean(axis=tuple(range(1, x.ndim - 1))) if x.ndim > 2 else x
            elif x.ndim == 2:
                x = np.broadcast_to(
                    x[(slice(None), *[None] * len(place_shape))], (len(x), *place_shape, x.shape[-1])
                )
            else:
                x = np.moveaxis(np.stack([resized(c, place_shape) for c in np.moveaxis(x, -1, 0)]), 0, -1)
            parts.append(x)
        alpha = np.concatenate(parts, axis=-1)
        if (alpha.shape[-1], self.features.shape[1 + self.channel]) != (
            weights[0].shape[1],
            len(weights[-1]),
        ):
            raise ValueError(
                f"the readout network is for {weights[0].shape[1]} and {len(weights[-1])} channels"
            )
        for number in range(3):
            alpha = alpha @ weights[2 * number].T + weights[2 * number + 1]
            alpha = np.maximum(alpha, 0) if number < 2 else alpha
        alpha = np.moveaxis(alpha, -1, self.channel + 1)
        pairs = zip(self.features, alpha, strict=True)
        return np.stack([self._bottleneck(r).capacity(a) for r, a in pairs])


def _unit(maps: np.ndarray) -> np.ndarray:
    axes = tuple(range(1, maps.ndim))
    shifted = maps - maps.min(axis=axes, keepdims=True)
    peak = shifted.max(axis=axes, keepdims=True)
    return np.divide(shifted, peak, out=np.zeros_like(shifted), where=peak > 0)
