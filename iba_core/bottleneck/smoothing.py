"""Gaussian smoothing of masks, and resizing of shared ones, as a product with one matrix per spatial axis.

A matrix product runs on every framework and device and serves any number of spatial axes in either data
format. The matrix of a long axis is zero but for a band around its diagonal. It is kept as blocks of rows, so
that the cost grows with the length of the axis, not with its square.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from math import prod

import numpy as np
import numpy.typing as npt
from scipy.ndimage import gaussian_filter1d

from iba_core.framework.layout import Layout
from iba_core.framework.namespace import NAMESPACES, Array, Namespace

_ROWS = 32
"""Rows of a block. Fewer make products that are too small, more make blocks with more zeros."""

_LONG = 4
"""An axis is long if it has this many times the entries of a block's row. Below, dense is as fast."""

_MANY_TOKENS = 512
"""Number of tokens from which their grid is smoothed axis by axis, instead of by one matrix."""


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
        np.eye(size), std, axis=0, mode="mirror", radius=_radius(std)
    )
    return matrix


def banded_matrix(size: int, std: float) -> npt.NDArray[np.float64]:
    """`smoothing_matrix` of a long axis, and its transpose, as blocks of rows without the zeros far away.

    Args:
        size: length of the axis.
        std: standard deviation of the Gaussian, in features; more than 0.

    Returns:
        Array (2, blocks, L, L + 2 r), float64: G and its transpose. Block i has the rows from ``i L`` on, and
        the columns from ``i L - r`` on. Outside of the matrix it is 0.
    """
    radius = _radius(std)
    rows = max(_ROWS, radius)
    count = -(-size // rows)
    # The blocks away from the borders are all equal, so those of a shorter axis tell them.
    repeated = max(0, count - 6)
    matrix = smoothing_matrix(size - repeated * rows, std)
    blocks = np.zeros((2, count - repeated, rows, rows + 2 * radius))
    for of_one, one in zip(blocks, (matrix, matrix.T), strict=True):
        padded = np.zeros((len(of_one) * rows, len(of_one) * rows + 2 * radius))
        padded[: len(one), radius : radius + len(one)] = one
        for index, block in enumerate(of_one):
            first = index * rows
            block[:] = padded[first : first + rows, first : first + rows + 2 * radius]
    return np.concatenate([blocks[:, :3], *[blocks[:, 2:3]] * repeated, blocks[:, 3:]], axis=1)


def averaging_matrix(size: int, target: int) -> npt.NDArray[np.float64]:
    """Matrix that resizes an axis to fewer places: each is the mean of the part of the axis that it covers.

    Args:
        size: length of the axis.
        target: its new length, at most `size`.

    Returns:
        Array (target, size), float64; the rows sum to one.

    Example:
        >>> averaging_matrix(3, 2) * 3
        array([[2., 1., 0.],
               [0., 1., 2.]])
    """
    # In parts of which `size` make a new place and `target` an old one, so that all numbers are whole.
    first, start = np.arange(target)[:, None] * size, np.arange(size) * target
    covered = np.minimum(first + size, start + target) - np.maximum(first, start)
    return np.asarray(np.maximum(covered, 0) / size)


def smoothing_matrices(
    shape: Sequence[int], layout: Layout, std: float | None, finer: Sequence[int] | None = None
) -> tuple[npt.NDArray[np.floating], ...]:
    """Make the matrices for `smooth`; none where there is nothing to do.

    Args:
        shape: shape of the feature map, without a batch axis.
        layout: meaning of its axes. Tokens on a grid are smoothed on the grid.
        std: standard deviation of the Gaussian, in features. None or 0 for no smoothing.
        finer: sizes of the spatial axes of the map that is smoothed, at least those of the feature map, to
            which it is resized first. Tokens are not resized. None for those of the feature map.

    Returns:
        For each spatial axis of n features a matrix (n, n), or (n, m) from a size of m; or the blocks of a
        band, see `banded_matrix`.
    """
    if finer is not None and tuple(finer) != layout.spatial_shape(shape):
        return tuple(
            (smoothing_matrix(size, std) if std else np.eye(size)) @ averaging_matrix(of, size)
            for of, size in zip(finer, layout.places(shape), strict=True)
        )
    if not std:
        return ()
    places = layout.places(shape)
    if layout.tokens is None or _has_many_tokens(shape, layout):
        return tuple(_matrix(size, std) for size in places)
    grid: npt.NDArray[np.floating] = reduce(np.kron, [smoothing_matrix(size, std) for size in places])
    prefix = layout.tokens.prefix
    whole = np.eye(prefix + len(grid))
    whole[prefix:, prefix:] = grid
    return (whole,)


def smooth(x: Array, matrices: Sequence[Array], layout: Layout, *, transposed: bool = False) -> Array:
    """Smooth a batch of maps along their spatial axes.

    Args:
        x: (B, *feature map), of any number of channels.
        matrices: the result of `smoothing_matrices`, as arrays of the kind of `x`. Without any, `x` is
            returned.
        layout: meaning of the axes of one map.
        transposed: multiply by the transpose of each matrix, as the chain rule does.

    Returns:
        Array of the shape of `x`, or with the places that the matrices resize to.
    """
    if not matrices:
        return x
    xp = NAMESPACES[type(x)]
    shape = tuple(int(size) for size in x.shape)
    if layout.tokens is None or not _has_many_tokens(shape[1:], layout):
        axes = [axis + 1 for axis in layout.spatial_axes]
        return _along_axes(xp, x, shape, axes, matrices, transposed)
    axis, prefix = layout.spatial_axes[0] + 1, layout.tokens.prefix
    grid = layout.places(shape[1:])
    rest = x[(slice(None),) * axis + (slice(prefix, None),)]
    inner = (*shape[:axis], *grid, *shape[axis + 1 :])
    axes = [axis + place for place in range(len(grid))]
    smoothed = _along_axes(xp, xp.reshape(rest, inner), inner, axes, matrices, transposed)
    smoothed = xp.reshape(smoothed, (*shape[:axis], prod(grid), *shape[axis + 1 :]))
    return xp.concat([x[(slice(None),) * axis + (slice(0, prefix),)], smoothed], axis=axis)


def _along_axes(
    xp: Namespace,
    x: Array,
    shape: tuple[int, ...],
    axes: list[int],
    matrices: Sequence[Array],
    transposed: bool,
) -> Array:
    for axis, matrix in zip(axes, matrices, strict=True):
        sides = prod(shape[:axis]), shape[axis], prod(shape[axis + 1 :])
        if len(matrix.shape) == 2:
            x = _dense_product(xp, matrix, x, sides, transposed)
            shape = (*shape[:axis], int(matrix.shape[int(transposed)]), *shape[axis + 1 :])
        else:
            x = _banded_product(xp, matrix[int(transposed)], x, sides)
    return xp.reshape(x, shape)


def _dense_product(
    xp: Namespace, matrix: Array, x: Array, sides: tuple[int, int, int], transposed: bool
) -> Array:
    """``matrix @ x`` along the middle axis of x, (before, size, after)."""
    before, size, after = sides
    turned = xp.permute_dims(matrix, (1, 0))
    if after == 1:
        return xp.matmul(xp.reshape(x, (before, size)), matrix if transposed else turned)
    return xp.matmul(turned if transposed else matrix, xp.reshape(x, sides))


def _banded_product(xp: Namespace, blocks: Array, x: Array, sides: tuple[int, int, int]) -> Array:
    """The product of a band along the middle axis of x, (before, size, after), one block for itself."""
    before, size, after = sides
    count, rows, columns = (int(length) for length in blocks.shape)
    radius = (columns - rows) // 2
    x = xp.reshape(x, sides)
    if count * rows > size:
        x = xp.concat([x, xp.zeros_like(x[:, : count * rows - size])], axis=1)
    # One product for each block, with all that stands before and after the axis.
    own = xp.permute_dims(xp.reshape(x, (before, count, rows, after)), (1, 2, 0, 3))
    none = xp.zeros_like(own[:1, :radius])
    left = xp.concat([none, own[:-1, rows - radius :]], axis=0)
    right = xp.concat([own[1:, :radius], none], axis=0)
    if after == 1:
        # Nothing is turned over: the columns stay next to each other in memory.
        windows = xp.concat([xp.permute_dims(part, (0, 2, 1, 3)) for part in (left, own, right)], axis=2)
        windows = xp.reshape(windows, (count, before, columns))
        product = xp.matmul(windows, xp.permute_dims(blocks, (0, 2, 1)))
        product = xp.permute_dims(product, (1, 0, 2))
    else:
        windows = xp.reshape(xp.concat([left, own, right], axis=1), (count, columns, before * after))
        product = xp.reshape(xp.matmul(blocks, windows), (count, rows, before, after))
        product = xp.permute_dims(product, (2, 0, 1, 3))
    return xp.reshape(product, (before, count * rows, after))[:, :size]


def _matrix(size: int, std: float) -> npt.NDArray[np.floating]:
    radius = _radius(std)
    is_long = size >= _LONG * (max(_ROWS, radius) + 2 * radius)
    return banded_matrix(size, std) if is_long else smoothing_matrix(size, std)


def _radius(std: float) -> int:
    return max(1, round(2 * std))


def _has_many_tokens(shape: Sequence[int], layout: Layout) -> bool:
    return layout.tokens is not None and layout.spatial_shape(shape)[0] >= _MANY_TOKENS
