"""The Readout Bottleneck's formulas: from the feature maps of several layers to the parameter of a mask.

K. Schulz, L. Sixt, F. Tombari, T. Landgraf, "Restricting the Flow: Information Bottlenecks for
Attribution", ICLR 2020, section 3.3: a network of three 1x1 convolutions reads, at every place of the
bottleneck, the normalised features of several layers, resized to that place, and gives alpha.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import numpy as np
import numpy.typing as npt

from iba_core.errors import InputError
from iba_core.layout import Layout
from iba_core.namespace import Array, array_namespace


def readout_sizes(inputs: int, outputs: int) -> tuple[tuple[int, int], ...]:
    """Channels (in, out) of the three 1x1 convolutions; a ReLU follows the first two.

    Args:
        inputs: channels of all layers read, together.
        outputs: channels of the bottleneck.
    """
    first, second = max(inputs // 2, 1), 2 * outputs
    return (inputs, first), (first, second), (second, outputs)


def resizing_matrix(size: int, target: int) -> npt.NDArray[np.float64]:
    """Matrix that resizes an axis linearly between the centres of the places.

    Beyond the outermost centres the value stays what it is there. An axis of length 1 is repeated.

    Args:
        size: length of the axis.
        target: its new length.

    Returns:
        Array (target, size), float64; the rows sum to one.
    """
    centres = (np.arange(target) + 0.5) * (size / target) - 0.5
    return np.stack([np.interp(centres, np.arange(size), column) for column in np.eye(size)], axis=1)


def resizing_matrices(
    shape: Sequence[int], layout: Layout, target: Sequence[int]
) -> tuple[npt.NDArray[np.float64], ...]:
    """Matrices that bring a feature map to the places of the bottleneck, one for each axis.

    The features of a dense layer are repeated at every place; where the bottleneck is dense itself, feature
    maps are averaged over their places.

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


def readout_features(
    features: Array, mean: Array, std: Array, layout: Layout, matrices: Sequence[Array]
) -> Array:
    """What the readout network reads of one layer: its features, normalised and resized.

    Args:
        features: (B, *feature map), floating point.
        mean: mean of the features over many images, (*feature map).
        std: their standard deviation, likewise; more than 0.
        layout: meaning of the axes of the feature map.
        matrices: what `resizing_matrices` gave, as arrays of the kind of `features`.

    Returns:
        Array (B, channels, places of the bottleneck), the places flattened; channels first.
    """
    xp = array_namespace(features)
    x = xp.permute_dims((features - mean) / std, (0, *(axis + 1 for axis in layout.to_channels_first())))
    images, channels = int(x.shape[0]), int(x.shape[1])
    after = prod(int(matrix.shape[1]) for matrix in matrices)
    done = 1
    for matrix in matrices:
        target, size = (int(length) for length in matrix.shape)
        after //= size
        x = xp.matmul(matrix, xp.reshape(x, (images * channels * done, size, after)))
        done *= target
    return xp.reshape(x, (images, channels, done))


def readout_alpha(output: Array, shape: Sequence[int], layout: Layout) -> Array:
    """The readout network's output as the parameter of the bottleneck's mask.

    Args:
        output: (B, channels, places), the places flattened.
        shape: shape of the bottleneck's feature map, without a batch axis.
        layout: meaning of its axes.

    Returns:
        Array (B, *shape).
    """
    xp = array_namespace(output)
    first = tuple(int(shape[axis]) for axis in layout.to_channels_first())
    x = xp.reshape(output, (int(output.shape[0]), *first))
    return xp.permute_dims(x, (0, *(axis + 1 for axis in layout.from_channels_first())))
