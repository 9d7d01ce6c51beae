"""The Readout Bottleneck's formulas: from the feature maps of several layers to a mask and its capacity.

K. Schulz, L. Sixt, F. Tombari, T. Landgraf, "Restricting the Flow: Information Bottlenecks for
Attribution", ICLR 2020, section 3.3: a network of three 1x1 convolutions reads, at every place of the
bottleneck, the normalised features of several layers, resized to that place, and gives alpha.
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
from iba_core.bottleneck.smoothing import smoothing_matrices
from iba_core.bottleneck.statistics import Statistics
from iba_core.errors import InputError
from iba_core.framework.layout import Layout
from iba_core.framework.namespace import Array, array_namespace

Weights = Sequence[Array]
"""The readout network: weight (outputs, inputs) and bias (outputs,) of each of its three layers in turn."""

WEIGHTS = tuple(f"{layer}.{kind}" for layer in range(3) for kind in ("weight", "bias"))
"""Names of the `Weights`, in their order."""


def readout_sizes(inputs: int, outputs: int) -> tuple[tuple[int, int], ...]:
    """Channels (in, out) of the three 1x1 convolutions; a ReLU follows the first two.

    Args:
        inputs: channels of all layers read, together.
        outputs: channels of the bottleneck.
    """
    first, second = max(inputs // 2, 1), 2 * outputs
    return (inputs, first), (first, second), (second, outputs)


def resizing_matrices(
    shape: Sequence[int], layout: Layout, target: Sequence[int]
) -> tuple[npt.NDArray[np.float64], ...]:
    """Matrices that bring a feature map to the places of the bottleneck, one for each axis.

    The features of a dense layer are repeated at every place; where the bottleneck is dense itself, feature
    maps are averaged over their places. All rows sum to one.

    Args:
        shape: shape of the feature map, without a batch axis.
        layout: meaning of its axes.
        target: spatial shape of the bottleneck.

    Raises:
        InputError: the two have different numbers of spatial axes, and neither has none.
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
    return tuple(resizing_matrix(size, wanted) for size, wanted in zip(places, target, strict=True))


def resize_places(x: Array, matrices: Sequence[Array]) -> Array:
    """Rows of features at the places of one map as rows at those of another.

    Args:
        x: (B, places, channels), the places flattened.
        matrices: what `resizing_matrices` gave, as arrays of the kind of `x`.

    Returns:
        Array (B, places of the other, channels).
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


BOUND = 3.0
"""Standard deviations that a feature which is read cannot exceed, where reading is robust."""


class ReadConstants(NamedTuple):
    """What is known of a layer that is read before any image is."""

    mean: Array
    """Mean of its features, (*feature map)."""
    std: Array
    """Their standard deviation, floored at `min_std`, likewise."""
    resizing: tuple[Array, ...]
    """What `resizing_matrices` gave."""


class ReadoutConstants(NamedTuple):
    """What is known of a bottleneck before any image is, as tensors of its precision."""

    mean: Array
    """mu of its features, (1, *feature map)."""
    std: Array
    """sigma, floored at `min_std`, likewise."""
    active: Array
    """Boolean, likewise: the features that the bottleneck acts on; all others are set to 0."""
    smoothing: tuple[Array, ...]
    """Smoothing along each spatial axis."""
    reads: tuple[ReadConstants, ...]
    """Of each of the layers read, in their order."""


class Restricted(NamedTuple):
    """What a bottleneck makes of a batch of feature maps; each (B, *feature map)."""

    z: Array
    """The features with their share of noise, as the next layer gets them."""
    capacity: Array
    """Information that each feature carries, in nats; 0 where the bottleneck does not act."""


@dataclass(frozen=True)
class Place:
    """A layer's feature map.

    Attributes:
        shape: its shape, without a batch axis.
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

    def passing(self, pass_mask: npt.ArrayLike, images: int) -> npt.NDArray[np.bool_]:
        """A mask of features that are to pass unchanged, checked.

        Args:
            pass_mask: of the shape of a feature map, or of a batch of them.
            images: number of feature maps.

        Raises:
            InputError: it has another shape.
        """
        mask = np.asarray(pass_mask).astype(bool)
        if mask.shape not in (self.shape, (images, *self.shape)):
            raise InputError(
                f"pass_mask has shape {mask.shape}; it must be that of the feature map, {self.shape}, or a "
                f"batch of them, {(images, *self.shape)}"
            )
        return mask

    def to_channels_last(self) -> tuple[int, ...]:
        """Permutation of the axes of a batch of such maps that brings the channels to the end."""
        return (0, *(axis + 1 for axis in self.layout.spatial_axes), self.layout.channel_axis + 1)

    def from_channels_last(self) -> tuple[int, ...]:
        """Permutation that brings them back."""
        return tuple(int(axis) for axis in np.argsort(self.to_channels_last()))


@dataclass(frozen=True)
class Readout:
    """A bottleneck whose mask is read out of the feature maps of several layers.

    Attributes:
        place: where the bottleneck is.
        reads: the layers read.
        relu: clip the restricted features at 0.
        robust: normalise the features that are read by mean and standard deviation of their channel over all
            places, not of each feature, and bend those that are far from the mean towards `BOUND`.

    Raises:
        InputError: a layer that is read has another number of spatial axes than the bottleneck, and neither
            has none.
    """

    place: Place
    reads: tuple[Place, ...]
    relu: bool = False
    robust: bool = False

    def __post_init__(self) -> None:
        self._resizing()

    @property
    def sizes(self) -> tuple[tuple[int, int], ...]:
        """Channels (in, out) of the layers of the network, see `readout_sizes`."""
        return readout_sizes(sum(read.channels for read in self.reads), self.place.channels)

    @property
    def weight_shapes(self) -> tuple[tuple[int, ...], ...]:
        """Shapes of the `Weights`."""
        return tuple(shape for inputs, outputs in self.sizes for shape in ((outputs, inputs), (outputs,)))

    def initial_weights(self, initial_alpha: float, seed: int) -> list[npt.NDArray[np.float64]]:
        """Weights under which alpha is `initial_alpha`, whatever is read.

        Those of the last layer are 0, and its bias is `initial_alpha`; those of the others are uniform
        within one over the root of the number of the layer's inputs.

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
        return [resizing_matrices(read.shape, read.layout, self.place.spatial) for read in self.reads]

    def check(self, features: Array, reads: Sequence[Array], names: Sequence[str]) -> None:
        """Compare feature maps with those that the distributions were estimated of.

        Args:
            features: (B, *feature map) at the bottleneck.
            reads: those of the layers read.
            names: of all layers, that of the bottleneck first.

        Raises:
            InputError: a shape differs.
        """
        places = (self.place, *self.reads)
        for name, found, place in zip(names, (features, *reads), places, strict=True):
            shape = tuple(int(size) for size in found.shape[1:])
            if shape != place.shape:
                raise InputError(
                    f"the features of {name!r} have shape {shape}, but the estimated distribution has "
                    f"{place.shape}: estimate it on inputs of the same size"
                )

    def constants(
        self,
        statistics: Statistics,
        read_statistics: Sequence[Statistics],
        settings: BottleneckSettings,
        tensor: Callable[[npt.NDArray[np.generic]], Array],
    ) -> ReadoutConstants:
        """What the formulas need to know before any image.

        Args:
            statistics: distribution of the bottleneck's features.
            read_statistics: those of the layers read.
            settings: `min_std` and `smooth_std` count.
            tensor: makes a tensor of the bottleneck's precision, or a boolean one, of an array.

        Raises:
            InputError: `min_std` is 0, and so is the standard deviation of some features.
        """
        if self.robust:
            pairs = zip(read_statistics, self.reads, strict=True)
            read_statistics = [_pooled(each, read.layout) for each, read in pairs]
        floored = [np.maximum(each.std, settings.min_std) for each in (statistics, *read_statistics)]
        if not (floored[0][statistics.active].all() and all(std.all() for std in floored[1:])):
            raise InputError("min_std=0, but the standard deviation of some features is 0; give more than 0")
        reads = zip(read_statistics, floored[1:], self._resizing(), strict=True)
        smoothing = smoothing_matrices(self.place.shape, self.place.layout, settings.smooth_std)
        return ReadoutConstants(
            mean=tensor(statistics.mean[None]),
            # Features that are set to 0 need none, but a division by it must not spoil the gradients.
            std=tensor(np.where(statistics.active, floored[0], 1.0)[None]),
            active=tensor(statistics.active[None]),
            smoothing=tuple(map(tensor, smoothing)),
            reads=tuple(
                ReadConstants(tensor(each.mean), tensor(std), tuple(map(tensor, matrices)))
                for each, std, matrices in reads
            ),
        )

    def alpha(self, weights: Weights, features: Sequence[Array], constants: ReadoutConstants) -> Array:
        """The network's output: the parameter of the mask, (B, *feature map of the bottleneck).

        The first layer and the resizing are both linear and act on different axes, so the layer comes
        first, where the maps are small.

        Args:
            weights: of the network.
            features: of the layers read, each (B, *feature map), of the dtype of the weights.
            constants: what `constants` gave.
        """
        xp = array_namespace(features[0])
        first, bias, *rest = weights
        images, hidden = int(features[0].shape[0]), self.sizes[0][1]
        start, x = 0, bias
        for place, feature, known in zip(self.reads, features, constants.reads, strict=True):
            normalized = (feature - known.mean) / known.std
            if self.robust:
                normalized = BOUND * xp.tanh(normalized / BOUND)
            normalized = xp.permute_dims(normalized, place.to_channels_last())
            part = xp.matrix_transpose(first[:, start : start + place.channels])
            rows = xp.matmul(xp.reshape(normalized, (-1, place.channels)), part)
            x = x + resize_places(xp.reshape(rows, (images, -1, hidden)), known.resizing)
            start += place.channels
        x = xp.reshape(x, (-1, hidden))
        for weight, bias in zip(rest[::2], rest[1::2], strict=True):
            x = xp.matmul(xp.maximum(x, xp.zeros_like(x)), xp.matrix_transpose(weight)) + bias
        x = xp.reshape(x, (images, *self.place.spatial, self.place.channels))
        return xp.permute_dims(x, self.place.from_channels_last())

    def restrict(
        self,
        alpha: Array,
        features: Array,
        noise: Array,
        constants: ReadoutConstants,
        passing: Array | None = None,
    ) -> Restricted:
        """Restrict the flow through the bottleneck by the mask of `alpha`.

        Args:
            alpha: (B, *feature map).
            features: R, likewise.
            noise: standard normal, likewise: each image has noise of its own.
            constants: what `constants` gave.
            passing: boolean, (*feature map) or (B, *feature map): features that pass unchanged and carry no
                capacity. None for none.
        """
        xp = array_namespace(alpha)
        mask = mask_from_alpha(alpha, constants.smoothing, self.place.layout)
        z, acts = self._mixed(features, mask, noise, constants), constants.active
        z = xp.where(acts, z, xp.zeros_like(z))
        if passing is not None:
            z, acts = xp.where(passing, features, z), xp.logical_and(acts, xp.logical_not(passing))
        if self.relu:
            z = xp.maximum(z, xp.zeros_like(z))
        nats = capacity((features - constants.mean) / constants.std, mask)
        return Restricted(z, xp.where(acts, nats, xp.zeros_like(nats)))

    @staticmethod
    def _mixed(features: Array, mask: Mask, noise: Array, constants: ReadoutConstants) -> Array:
        return restrict(features, mask, constants.mean + constants.std * noise)


def _pooled(statistics: Statistics, layout: Layout) -> Statistics:
    """The distribution of each channel over all places, at every one of them."""
    axes, shape = tuple(layout.spatial_axes), statistics.mean.shape
    mean = statistics.mean.mean(axis=axes, keepdims=True)
    # The variance within the places, and that between them.
    variance = (statistics.std**2 + (statistics.mean - mean) ** 2).mean(axis=axes, keepdims=True)
    mean, std = (np.array(np.broadcast_to(each, shape)) for each in (mean, np.sqrt(variance)))
    return Statistics(mean, std, statistics.active)
