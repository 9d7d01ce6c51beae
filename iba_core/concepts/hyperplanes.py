"""Formulas of hyperplanes: signed distances, and the windows of a feature map that they are computed for.

Every formula runs on the arrays of any framework.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from iba_core.framework.namespace import Array, array_namespace

Padding = tuple[tuple[int, int], tuple[int, int]]
"""Zeros ((above, below), (left, right))."""

NO_PADDING: Padding = ((0, 0), (0, 0))


def signed_distance(points: Array, normal_vec: Array, bias: Array, scaling_factor: Array = 1.0) -> Array:
    """Compute ``scaling_factor * (points · normal_vec + bias)``, positive on the side of the concept.

    This is the Euclidean distance from the hyperplane, times the length of the normal vector, times the
    scaling factor.

    Args:
        points: (..., D), of any framework.
        normal_vec: (D,).
        bias: scalar.
        scaling_factor: scalar.

    Returns:
        Array (...).

    Example:
        >>> signed_distance(np.array([[2.0, 1.0], [0.0, 0.0]]), np.array([3.0, 4.0]), -10.0)
        array([  0., -10.])
    """
    xp = array_namespace(points, normal_vec)
    return scaling_factor * (xp.sum(points * normal_vec, axis=-1) + bias)


def same_padding(kernel_size: Sequence[int]) -> Padding:
    """Compute the zeros around a map that keep its size through a convolution of stride 1.

    A kernel with an even side needs an odd number of zeros. The larger half goes below and to the right.

    Args:
        kernel_size: (height, width).

    Returns:
        Zeros ((above, below), (left, right)).

    Example:
        >>> same_padding((3, 4))
        ((1, 1), (1, 2))
    """
    (above, below), (left, right) = (((side - 1) // 2, side // 2) for side in kernel_size)
    return (above, below), (left, right)


def window_size(rel_size: Sequence[float], map_shape: Sequence[int]) -> tuple[int, int]:
    """Convert the relative size of a concept to pixels of a feature map, at least (1, 1).

    Args:
        rel_size: (height, width) relative to the image.
        map_shape: (height, width) of the feature map.

    Example:
        >>> window_size((0.25, 0.01), (14, 14))
        (4, 1)
    """
    height, width = (max(1, round(share * size)) for share, size in zip(rel_size, map_shape, strict=True))
    return height, width


def windows(features: Array, kernel_size: Sequence[int], padding: Padding) -> Array:
    """Collect the window around every position of a batch of feature maps.

    A convolution then is a matrix product: ``windows @ weight + bias``.

    Args:
        features: (B, H, W, C).
        kernel_size: (kh, kw).
        padding: zeros to put around the maps first.

    Returns:
        (B, H', W', C * kh * kw). The entries of a window have the order of a normal vector (C, kh, kw).

    Example:
        >>> windows(np.arange(3.0).reshape(1, 1, 3, 1), (1, 2), ((0, 0), (0, 0)))[0, 0]
        array([[0., 1.],
               [1., 2.]])
    """
    if tuple(kernel_size) == (1, 1):
        return features
    xp = array_namespace(features)
    for axis, (before, after) in zip((1, 2), padding, strict=True):
        line = xp.zeros_like(features[:, :1] if axis == 1 else features[:, :, :1])
        features = xp.concat([line] * before + [features] + [line] * after, axis=axis)
    batch, height, width, channels = (int(size) for size in features.shape)
    rows, columns = height - kernel_size[0] + 1, width - kernel_size[1] + 1
    shifted = [
        features[:, i : i + rows, j : j + columns]
        for i in range(kernel_size[0])
        for j in range(kernel_size[1])
    ]
    return xp.reshape(xp.stack(shifted, axis=-1), (batch, rows, columns, channels * len(shifted)))


def fan_in_bound(kernel_size: Sequence[int], in_channels: int) -> float:
    """Compute ``1 / sqrt(fan in)``, the bound of the uniform distribution of initial weights and biases."""
    return float(1.0 / np.sqrt(in_channels * kernel_size[0] * kernel_size[1]))
