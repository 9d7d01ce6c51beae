"""The Readout Bottleneck's formulas: from the feature maps of several layers to a mask and its capacity.

K. Schulz, L. Sixt, F. Tombari, T. Landgraf, "Restricting the Flow: Information Bottlenecks for
Attribution", ICLR 2020, https://arxiv.org/abs/2001.00396, section 3.3. At every place of the bottleneck, a
network of three 1x1 convolutions takes the normalised features of several layers, resized to that place, and
gives alpha.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from iba_core.bottleneck.formulas import Mask, capacity, mask_from_alpha, restrict
from iba_core.bottleneck.resizing import resizing_matrix
from iba_core.bottleneck.settings import BottleneckSettings
from iba_core.bottleneck.smoothing import smooth, smoothing_matrices
from iba_core.bottleneck.statistics import Statistics
from iba_core.errors import InputError
from iba_core.framework.arrays import require_mask
from iba_core.framework.layout import Layout
from iba_core.framework.namespace import Array, array_namespace
from iba_core.readout.evidence import AnswerReader, Copy, copies
from iba_core.readout.model import NestedPass

Weights = Sequence[Array]
"""The readout network: weight (outputs, inputs) and bias (outputs,) of each of its three layers in turn."""

WEIGHTS = tuple(f"{layer}.{kind}" for layer in range(3) for kind in ("weight", "bias"))
"""Names of the `Weights`, in their order."""


def readout_sizes(inputs: int, outputs: int) -> tuple[tuple[int, int], ...]:
    """Channels (in, out) of the three 1x1 convolutions; a ReLU follows the first two.

    Args:
        inputs: channels of all readout layers together.
        outputs: channels of the bottleneck.

    Example:
        >>> readout_sizes(24, 6)
        ((24, 12), (12, 12), (12, 6))
    """
    first, second = max(inputs // 2, 1), 2 * outputs
    return (inputs, first), (first, second), (second, outputs)


def resizing_matrices(
    shape: Sequence[int], layout: Layout, target: Sequence[int], corners: bool = False
) -> tuple[npt.NDArray[np.float64], ...]:
    """Matrices that resize a feature map to the places of the bottleneck, one for each spatial axis.

    The features of a dense layer are repeated at every place. If the bottleneck itself is dense, feature maps
    are averaged over their places. All rows sum to one.

    Args:
        shape: shape of the feature map, without a batch axis.
        layout: meaning of its axes.
        target: spatial shape of the bottleneck.
        corners: put the corners of the two onto each other, see `iba_core.bottleneck.resizing`.

    Raises:
        InputError: the two have different numbers of spatial axes, and both have some.
    """
    places = layout.spatial_shape(shape)
    if not target:
        return tuple(np.full((1, size), 1.0 / size) for size in places)
    if not places:
        places = (1,) * len(target)
    if len(places) != len(target):
        raise InputError(
            f"a feature map with the places {places} cannot be resized to the bottleneck's {tuple(target)}: "
            "another number of spatial axes"
        )
    return tuple(resizing_matrix(size, wanted, corners) for size, wanted in zip(places, target, strict=True))


def resize_places(x: Array, matrices: Sequence[Array]) -> Array:
    """Resize a feature map whose places are flattened.

    Args:
        x: (B, places, channels), the places flattened.
        matrices: from `resizing_matrices`, as arrays of the kind of `x`.

    Returns:
        Array (B, places after resizing, channels).
    """
    xp = array_namespace(x)
    images, channels = int(x.shape[0]), int(x.shape[2])
    after = prod(int(matrix.shape[1]) for matrix in matrices)
    done = images
    for matrix in matrices:
        target, size = (int(length) for length in matrix.shape)
        after //= size
        x = xp.matmul(matrix, xp.reshape(x, (done, size, after * channels)))
        done *= target
    return xp.reshape(x, (images, done // images, channels))


_LEAST_SHARE = 1e-6
"""Where masks are compared, a smaller lambda, or 1 - lambda, counts as this one."""

BOUND = 3.0
"""With robust reading, the most standard deviations by which a feature can differ from its mean. Of evidence,
the most root mean squares."""


class LayerConstants(NamedTuple):
    """What is known about a readout layer before any image is seen."""

    mean: Array
    """Mean of its features, (*feature map)."""
    std: Array
    """Their standard deviation, at least `min_std`, likewise."""
    resizing: tuple[Array, ...]
    """From `resizing_matrices`."""


class ReadoutConstants(NamedTuple):
    """What is known about a readout before any image is seen, as tensors of the bottleneck's precision."""

    mean: Array
    """mu of the bottleneck's features, (1, *feature map)."""
    std: Array
    """sigma, at least `min_std`, likewise."""
    active: Array
    """Boolean, likewise: the features that the bottleneck acts on. All others are set to 0."""
    smoothing: tuple[Array, ...]
    """Smoothing along each spatial axis."""
    readout_layers: tuple[LayerConstants, ...]
    """One entry for each readout layer, in their order."""
    copies: tuple[Copy, ...] = ()
    """Noisy copies that the answer's gradient is taken at; none if it is not read."""


class Restricted(NamedTuple):
    """What a bottleneck gives for a batch of feature maps; each (B, *feature map)."""

    alpha: Array
    """The parameter of the mask."""
    z: Array
    """The features with their share of noise, as the next layer gets them."""
    capacity: Array
    """Information that each feature carries, in nats; 0 where the bottleneck does not act."""


@dataclass(frozen=True)
class FeatureMap:
    """Shape and layout of a layer's features.

    Attributes:
        shape: shape of one feature map, without a batch axis.
        layout: meaning of its axes.
    """

    shape: tuple[int, ...]
    layout: Layout

    @property
    def channels(self) -> int:
        """Number of channels."""
        return self.shape[self.layout.channel_axis]

    @property
    def spatial(self) -> tuple[int, ...]:
        """Sizes of the spatial axes."""
        return self.layout.spatial_shape(self.shape)

    def checked_mask(self, pass_mask: npt.ArrayLike, images: int) -> npt.NDArray[np.bool_]:
        """Check a mask of features that pass unchanged.

        Args:
            pass_mask: of the shape of a feature map, or of a batch of them.
            images: number of feature maps.

        Returns:
            The mask as a boolean array.

        Raises:
            InputError: it has another shape.
        """
        mask = require_mask("pass_mask", pass_mask)
        if mask.shape not in (self.shape, (images, *self.shape)):
            raise InputError(
                f"pass_mask has shape {mask.shape}; it must be that of the feature map, {self.shape}, or a "
                f"batch of them, {(images, *self.shape)}"
            )
        return mask

    def to_channels_last(self) -> tuple[int, ...]:
        """Permutation of a batch's axes that moves the channels to the end."""
        return (0, *(axis + 1 for axis in self.layout.spatial_axes), self.layout.channel_axis + 1)

    def from_channels_last(self) -> tuple[int, ...]:
        """Permutation that moves them back."""
        return tuple(int(axis) for axis in np.argsort(self.to_channels_last()))


@dataclass(frozen=True)
class Readout:
    """The formulas of a bottleneck whose mask is computed from the features of several layers.

    Attributes:
        bottleneck: features at the bottleneck.
        readout_layers: features of the readout layers.
        relu: clip the restricted features at 0.
        robust: normalise the readout layers' features by mean and standard deviation of their channel over
            all places, instead of each feature's own, and limit them smoothly to `BOUND`.
        corners: resize the readout layers' features corner to corner, instead of area to area.
        alpha_bound: the largest size of alpha, at which it is cut off; None for no bound.
        gradients: read `evidence`, too.

    Raises:
        InputError: a readout layer has another number of spatial axes than the bottleneck, and both have
            some.
    """

    bottleneck: FeatureMap
    readout_layers: tuple[FeatureMap, ...]
    relu: bool = False
    robust: bool = False
    corners: bool = False
    alpha_bound: float | None = None
    gradients: bool = False

    def __post_init__(self) -> None:
        self._resizing()

    @property
    def sizes(self) -> tuple[tuple[int, int], ...]:
        """Channels (in, out) of the layers of the network, see `readout_sizes`."""
        inputs = sum(layer.channels for layer in self.readout_layers)
        own = self.bottleneck.channels
        return readout_sizes(inputs + own * self.gradients, own)

    @property
    def weight_shapes(self) -> tuple[tuple[int, ...], ...]:
        """Shapes of the `Weights`."""
        return tuple(shape for inputs, outputs in self.sizes for shape in ((outputs, inputs), (outputs,)))

    def initial_weights(self, initial_alpha: float, seed: int) -> list[npt.NDArray[np.float64]]:
        """Weights under which alpha is `initial_alpha` for every input.

        Those of the last layer are 0, and its bias is `initial_alpha`. Those of the other layers are uniform
        within plus and minus one over the root of the number of the layer's inputs.

        Args:
            initial_alpha: start value of alpha.
            seed: of the random numbers.
        """
        generator = np.random.Generator(np.random.Philox(seed))
        bounds = np.repeat([inputs**-0.5 for inputs, _ in self.sizes], 2)
        *others, last, level = zip(bounds, self.weight_shapes, strict=True)
        weights = [generator.uniform(-bound, bound, shape) for bound, shape in others]
        return [*weights, np.zeros(last[1]), np.full(level[1], float(initial_alpha))]

    def _resizing(self) -> list[tuple[npt.NDArray[np.float64], ...]]:
        target = self.bottleneck.spatial
        return [
            resizing_matrices(layer.shape, layer.layout, target, self.corners)
            for layer in self.readout_layers
        ]

    def check(self, features: Array, readout_features: Sequence[Array], names: Sequence[str]) -> None:
        """Compare feature maps with those on which the distributions were estimated.

        Args:
            features: (B, *feature map) at the bottleneck.
            readout_features: those of the readout layers.
            names: of all layers, that of the bottleneck first.

        Raises:
            InputError: a shape differs.
        """
        expected = (self.bottleneck, *self.readout_layers)
        for name, found, known in zip(names, (features, *readout_features), expected, strict=True):
            shape = tuple(int(size) for size in found.shape[1:])
            if shape != known.shape:
                raise InputError(
                    f"the features of {name!r} have shape {shape}, but the estimated distribution has "
                    f"{known.shape}: estimate it on inputs of the same size"
                )

    def constants(
        self,
        statistics: Statistics,
        readout_statistics: Sequence[Statistics],
        settings: BottleneckSettings,
        tensor: Callable[[npt.NDArray[np.generic]], Array],
    ) -> ReadoutConstants:
        """Compute what the formulas need to know before any image is seen.

        Args:
            statistics: distribution of the bottleneck's features.
            readout_statistics: those of the readout layers.
            settings: only `min_std` and `smooth_std` are used.
            tensor: makes a tensor of the bottleneck's precision, or a boolean one, of an array.

        Raises:
            InputError: `min_std` is 0, and so is the standard deviation of some features.
        """
        if self.robust:
            pairs = zip(readout_statistics, self.readout_layers, strict=True)
            readout_statistics = [_pooled(each, layer.layout) for each, layer in pairs]
        std, *floored = (np.maximum(each.std, settings.min_std) for each in (statistics, *readout_statistics))
        if not (std[statistics.active].all() and all(each.all() for each in floored)):
            raise InputError("min_std=0, but the standard deviation of some features is 0; give more than 0")
        layers = zip(readout_statistics, floored, self._resizing(), strict=True)
        bottleneck = self.bottleneck
        smoothing = smoothing_matrices(bottleneck.shape, bottleneck.layout, settings.smooth_std)
        return ReadoutConstants(
            mean=tensor(statistics.mean[None]),
            # Inactive features need no standard deviation, but a division by 0 would spoil the gradients.
            std=tensor(np.where(statistics.active, std, 1.0)[None]),
            active=tensor(statistics.active[None]),
            smoothing=tuple(map(tensor, smoothing)),
            readout_layers=tuple(
                LayerConstants(tensor(each.mean), tensor(own), tuple(map(tensor, matrices)))
                for each, own, matrices in layers
            ),
            copies=copies(bottleneck.shape, bottleneck.layout, tensor) if self.gradients else (),
        )

    def evidence(self, gains: Array, constants: ReadoutConstants) -> Array:
        """What the network reads of the answer's gradient.

        The gains are smoothed as the mask is. They are divided by their root mean square over the image, so
        that the scale of the outputs does not matter, and bent towards `BOUND`.

        Args:
            gains: from `iba_core.readout.evidence.AnswerReader.gains`, (B, *feature map).
            constants: from `constants`.

        Returns:
            Array of the same shape; 0 for an image without gains.
        """
        xp, layout = array_namespace(gains), self.bottleneck.layout
        gains = smooth(gains, constants.smoothing, layout)
        axes = tuple(range(1, len(gains.shape)))
        scale = xp.sqrt(xp.mean(xp.square(gains), axis=axes, keepdims=True))
        gains = gains / xp.where(scale > 0, scale, xp.ones_like(scale))
        return BOUND * xp.tanh(gains / BOUND)

    def read_answer(
        self,
        answers: AnswerReader,
        nested: NestedPass,
        constants: ReadoutConstants,
        classes: Array | None = None,
    ) -> Array | None:
        """`evidence` of images, by passes of the model's tail; None if gradients are not read.

        Args:
            answers: asks the model.
            nested: the images.
            constants: from `constants`.
            classes: see `AnswerReader.gains`.
        """
        if not self.gradients:
            return None
        known = constants.copies, constants.mean, constants.std, constants.active
        return self.evidence(answers.gains(nested, *known, classes), constants)

    def alpha(
        self,
        weights: Weights,
        readout_features: Sequence[Array],
        constants: ReadoutConstants,
        evidence: Array | None = None,
    ) -> Array:
        """Compute the network's output: the parameter of the mask.

        The network's first layer and the resizing are both linear and act on different axes. So the layer
        comes first, where the maps are small.

        Args:
            weights: of the network.
            readout_features: of the readout layers, each (B, *feature map), of the dtype of the weights.
            constants: from `constants`.
            evidence: from `evidence`, if gradients are read.

        Returns:
            Array (B, *feature map of the bottleneck).
        """
        xp = array_namespace(readout_features[0])
        first, bias, *rest = weights
        images, hidden = int(readout_features[0].shape[0]), self.sizes[0][1]
        start, x = 0, bias
        for layer, features, known in zip(
            self.readout_layers, readout_features, constants.readout_layers, strict=True
        ):
            normalized = (features - known.mean) / known.std
            if self.robust:
                normalized = BOUND * xp.tanh(normalized / BOUND)
            normalized = xp.permute_dims(normalized, layer.to_channels_last())
            part = xp.matrix_transpose(first[:, start : start + layer.channels])
            rows = xp.matmul(xp.reshape(normalized, (-1, layer.channels)), part)
            x = x + resize_places(xp.reshape(rows, (images, -1, hidden)), known.resizing)
            start += layer.channels
        x = xp.reshape(x, (-1, hidden))
        if evidence is not None:
            rows = xp.permute_dims(evidence, self.bottleneck.to_channels_last())
            rows = xp.reshape(rows, (-1, self.bottleneck.channels))
            x = x + xp.matmul(rows, xp.matrix_transpose(first[:, start:]))
        for weight, bias in zip(rest[::2], rest[1::2], strict=True):
            x = xp.matmul(xp.maximum(x, xp.zeros_like(x)), xp.matrix_transpose(weight)) + bias
        if self.alpha_bound is not None:
            least = -self.alpha_bound * xp.ones_like(x)
            x = -xp.maximum(-xp.maximum(x, least), least)
        x = xp.reshape(x, (images, *self.bottleneck.spatial, self.bottleneck.channels))
        return xp.permute_dims(x, self.bottleneck.from_channels_last())

    def restrict(
        self,
        alpha: Array,
        features: Array,
        noise: Array,
        constants: ReadoutConstants,
        pass_mask: Array | None = None,
    ) -> Restricted:
        """Restrict the flow through the bottleneck by the mask of `alpha`.

        Args:
            alpha: (B, *feature map).
            features: R, likewise.
            noise: standard normal, likewise: each image has its own noise.
            constants: from `constants`.
            pass_mask: boolean, (*feature map) or (B, *feature map): features that pass unchanged and carry no
                capacity. None for none.
        """
        xp = array_namespace(alpha)
        mask = mask_from_alpha(alpha, constants.smoothing, self.bottleneck.layout)
        z, acts = restrict(features, mask, constants.mean + constants.std * noise), constants.active
        z = xp.where(acts, z, xp.zeros_like(z))
        if pass_mask is not None:
            z, acts = xp.where(pass_mask, features, z), xp.logical_and(acts, xp.logical_not(pass_mask))
        if self.relu:
            z = xp.maximum(z, xp.zeros_like(z))
        nats = capacity((features - constants.mean) / constants.std, mask)
        return Restricted(alpha, z, xp.where(acts, nats, xp.zeros_like(nats)))

    def distance(self, alpha: Array, wanted: Array, constants: ReadoutConstants) -> Array:
        """`mask_distance` of the masks of `alpha` from others, both (B, *feature map)."""
        return mask_distance(mask_from_alpha(alpha, constants.smoothing, self.bottleneck.layout), wanted)

    def restricted(
        self,
        weights: Weights,
        features: Array,
        readout_features: Sequence[Array],
        noise: Array,
        constants: ReadoutConstants,
        pass_mask: Array | None = None,
        evidence: Array | None = None,
    ) -> Restricted:
        """Restrict the flow by the mask that the network computes: `alpha` and `restrict` in one.

        Args:
            weights: of the network.
            features: at the bottleneck, (B, *feature map), of any floating-point dtype.
            readout_features: those of the readout layers, likewise.
            noise: as for `restrict`; all is computed in its dtype.
            constants: from `constants`.
            pass_mask: as for `restrict`.
            evidence: as for `alpha`.
        """
        xp = array_namespace(noise)
        own, *others = (xp.astype(each, noise.dtype) for each in (features, *readout_features))
        alpha = self.alpha(weights, others, constants, evidence)
        return self.restrict(alpha, own, noise, constants, pass_mask)


def mask_distance(mask: Mask, wanted: Array) -> Array:
    """How far masks are from others, the mean over all features in nats, at least 0.

    Of each feature it is the divergence of two coins, ``KL(wanted || lambda)``, whose derivative by the logit
    of lambda is the difference of the two.

    Args:
        mask: lambda and its complement.
        wanted: the other masks, numbers from 0 to 1 of the same shape.

    Example:
        >>> wanted = np.array([[0.5, 0.9]])
        >>> float(mask_distance(Mask(wanted, 1 - wanted), wanted))
        0.0
        >>> round(float(mask_distance(Mask(np.array([[0.25]]), np.array([[0.75]])), np.array([[0.5]]))), 4)
        0.1438
    """
    xp = array_namespace(wanted)
    least = _LEAST_SHARE * xp.ones_like(wanted)
    passes, stays = (xp.maximum(share, least) for share in (wanted, 1.0 - wanted))
    ours, theirs = xp.maximum(mask.passed, least), xp.maximum(mask.blocked, least)
    return xp.mean(passes * xp.log(passes / ours) + stays * xp.log(stays / theirs))


def _pooled(statistics: Statistics, layout: Layout) -> Statistics:
    """The distribution of each channel over all places, given at every place."""
    axes, shape = tuple(layout.spatial_axes), statistics.mean.shape
    mean = statistics.mean.mean(axis=axes, keepdims=True)
    # The variance within the places, plus the variance between them.
    variance = (statistics.std**2 + (statistics.mean - mean) ** 2).mean(axis=axes, keepdims=True)
    mean, std = (np.array(np.broadcast_to(each, shape)) for each in (mean, np.sqrt(variance)))
    return Statistics(mean, std, statistics.active)
