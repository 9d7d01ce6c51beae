"""Gaussian smoothing of masks, as a product with one small matrix per spatial axis.

A matrix product runs on every framework and device and serves any number of spatial axes in either data
format. The maps are small, so its quadratic cost does not show.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from scipy.ndimage import gaussian_filter1d

from iba_core.framework.layout import Layout


def smoothing_matrix(size: int, std: float) -> npt.NDArray[np.float64]:
    """Matrix G of a Gaussian filter along an axis, mirrored at the borders: ``G @ x`` is the smoothed x.

    The kernel ends at two standard deviations, as in the reference implementation of the method. The rows sum
    to one, so a mask in (0, 1) stays in it, and ``G @ (1 - x) == 1 - G @ x``.

    Args:
        size: length of the axis.
        std: standard deviation of the Gaussian, in features; more than 0.

    Returns:
        Array (size, size), float64.
    """
    matrix: npt.NDArray[np.float64] = gaussian_filter1d(
        np.eye(size), std, axis=0, mode="mirror", radius=max(1, round(2 * std))
    )
    return matrix


def smoothing_matrices(
    shape: Sequence[int], layout: Layout, std: float | None
) -> tuple[npt.NDArray[np.floating], ...]:
    """Make a matrix for each spatial axis of a feature map; none where `std` is None or 0.

    Tokens on a grid are smoothed on the grid, by one matrix over the token axis.

    Args:
        shape: shape of the feature map, without a batch axis.
        layout: meaning of its axes.
        std: standard deviation of the Gaussian, in features.
    """
    if not std:
        return ()
    matrices = tuple(smoothing_matrix(size, std) for size in layout.places(shape))
    if layout.tokens is None:
        return matrices
    grid: npt.NDArray[np.floating] = matrices[0]
    for matrix in matrices[1:]:
        grid = np.kron(grid, matrix)
    prefix = layout.tokens.prefix
    whole = np.eye(prefix + len(grid))
    whole[prefix:, prefix:] = grid
    return (whole,)
