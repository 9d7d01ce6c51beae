"""Formulas of the metrics, over the array namespace: correlation, areas, Gini index, infidelity, masses."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy.stats import rankdata

from iba_core.framework.comparison import epsilon_of
from iba_core.framework.namespace import Array, array_namespace


def pearson(a: Array, b: Array) -> Array:
    """Correlate the rows of two arrays: the mean product of what differs from the means, over its scale.

    Args:
        a: (..., N), floating point.
        b: (..., N).

    Returns:
        Array (...), from -1 to 1; 0 where a row is constant, and so predicts nothing.

    Example:
        >>> pearson(np.array([[1.0, 2.0, 3.0]]), np.array([[2.0, 4.0, 7.0]])).round(4)
        array([0.9934])
    """
    xp = array_namespace(a, b)
    (a, first), (b, second) = (_centred(x) for x in (a, b))
    scale = first * second
    varies = scale > 0
    product = xp.sum(a * b, axis=-1) / xp.where(varies, scale, xp.ones_like(scale))
    return xp.where(varies, product, xp.zeros_like(scale))


def _centred(x: Array) -> tuple[Array, Array]:
    """Rows without their means, and their lengths; a length that is only rounding is 0."""
    xp = array_namespace(x)
    centred = x - xp.mean(x, axis=-1, keepdims=True)
    length, whole = (xp.sqrt(xp.sum(xp.square(rows), axis=-1)) for rows in (centred, x))
    return centred, xp.where(length > 8 * epsilon_of(x) * whole, length, xp.zeros_like(length))


def spearman(a: npt.NDArray[np.floating], b: npt.NDArray[np.floating]) -> npt.NDArray[np.float64]:
    """Correlate the ranks of rows, as `scipy.stats.spearmanr` does; equal values share their mean rank.

    Args:
        a: (B, N), NumPy.
        b: (B, N).

    Returns:
        Array (B,), from -1 to 1; 0 where a row is constant.

    Example:
        >>> spearman(np.array([[1.0, 2.0, 3.0]]), np.array([[2.0, 4.0, 70.0]])).round(6)
        array([1.])
    """
    found: npt.NDArray[np.float64] = pearson(rankdata(a, axis=-1), rankdata(b, axis=-1))
    return found


def area(curve: Array) -> Array:
    """Area under curves (..., K) over an axis from 0 to 1, by the trapezoidal rule.

    Example:
        >>> area(np.array([0.0, 1.0, 1.0]))
        np.float64(0.75)
    """
    xp = array_namespace(curve)
    return xp.mean((curve[..., 1:] + curve[..., :-1]) / 2.0, axis=-1)


def gini(ordered: Array) -> Array:
    """Gini index of rows of numbers of at least 0, in ascending order.

    It is the sum over i of ``(2 i - N - 1) a_i``, divided by N times the sum of a: 0 if all are equal, near 1
    if one has everything. P. Chalasani and others, "Concise Explanations of Neural Networks using Adversarial
    Training", ICML 2020, section 2.3.

    Args:
        ordered: (..., N), ascending, floating point.

    Returns:
        Array (...), from 0 to 1; 0 for a row of zeros.

    Example:
        >>> gini(np.array([[0.0, 0.0, 0.0, 2.0], [1.0, 1.0, 1.0, 1.0]]))
        array([0.75, 0.  ])
    """
    xp = array_namespace(ordered)
    count = int(ordered.shape[-1])
    weights = xp.asarray(2.0 * np.arange(1, count + 1) - count - 1)
    total = xp.sum(ordered, axis=-1)
    some = total > 0
    index = xp.sum(xp.astype(weights, ordered.dtype) * ordered, axis=-1)
    return xp.where(some, index / xp.where(some, count * total, xp.ones_like(total)), xp.zeros_like(total))


def infidelity_of(sums: Array, deltas: Array, normalize: bool) -> Array:
    """Mean squared difference between the sums of a map and the falls of the score.

    Args:
        sums: (..., K), what the map gives to the places that each perturbation takes away.
        deltas: (..., K), how much the score falls.
        normalize: scale each map by the factor that fits best, since bits are no scores.

    Returns:
        Array (...), in units of the score squared.

    Example:
        >>> infidelity_of(np.array([1.0, 2.0]), np.array([0.5, 1.0]), normalize=True)
        np.float64(0.0)
        >>> infidelity_of(np.array([1.0, 2.0]), np.array([0.5, 1.0]), normalize=False)
        np.float64(0.625)
    """
    xp = array_namespace(sums, deltas)
    if normalize:
        squares = xp.sum(xp.square(sums), axis=-1, keepdims=True)
        some = squares > 0
        products = xp.sum(sums * deltas, axis=-1, keepdims=True)
        factor = products / xp.where(some, squares, xp.ones_like(squares))
        sums = sums * xp.where(some, factor, xp.zeros_like(factor))
    return xp.mean(xp.square(sums - deltas), axis=-1)


def share_inside(values: Array, inside: Array) -> Array:
    """Share of the sum of rows that lies inside.

    Args:
        values: (..., N), at least 0.
        inside: (..., N), 1 where inside, else 0, of the same dtype.

    Returns:
        Array (...), from 0 to 1; NaN where a row has no sum, or nothing is inside.

    Example:
        >>> share_inside(np.array([[1.0, 2.0, 1.0]]), np.array([[0.0, 1.0, 1.0]]))
        array([0.75])
    """
    xp = array_namespace(values, inside)
    total = xp.sum(values, axis=-1)
    some = (total > 0) & (xp.sum(inside, axis=-1) > 0)
    share = xp.sum(values * inside, axis=-1) / xp.where(some, total, xp.ones_like(total))
    return xp.where(some, share, xp.zeros_like(share) + np.nan)
