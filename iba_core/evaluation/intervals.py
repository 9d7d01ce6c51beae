"""How sure a mean is: bootstrap intervals and paired comparisons."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from iba_core.arguments import LARGEST_COUNT, require_callable, require_number, require_seed, require_whole
from iba_core.errors import InputError
from iba_core.framework.arrays import as_array

Numbers = npt.NDArray[np.float64]
Reduce = Callable[[Numbers], float]
"""Makes one number of those of n pictures, (n, ...)."""

RESAMPLES = 1000
CONFIDENCE = 0.95


@dataclass(frozen=True)
class Estimate:
    """A number with its uncertainty.

    Attributes:
        value: the number; NaN if there is nothing to compute it from.
        low: lower end of the interval; NaN from fewer than two pictures.
        high: upper end of the interval.
        n: number of pictures.

    Example:
        >>> print(Estimate(0.478, 0.412, 0.551, 40))
        0.478 [0.412, 0.551]
    """

    value: float
    low: float
    high: float
    n: int

    def __str__(self) -> str:
        interval = "" if np.isnan(self.low) else f" [{self.low:.3f}, {self.high:.3f}]"
        return "-" if np.isnan(self.value) else f"{self.value:.3f}{interval}"


def mean_of(values: Numbers) -> float:
    """Arithmetic mean of the numbers of pictures."""
    return float(values.mean())


def bootstrap(
    values: Any,
    reduce: Reduce = mean_of,
    *,
    resamples: int = RESAMPLES,
    confidence: float = CONFIDENCE,
    seed: int = 0,
) -> Estimate:
    """Estimate how sure a number is, by drawing the pictures anew.

    The interval is between percentiles of the number over samples of as many pictures, drawn with
    replacement: B. Efron, "Bootstrap Methods: Another Look at the Jackknife", 1979. With fewer than twenty
    pictures it is too narrow.

    Args:
        values: (n, ...), what each picture gives. Pictures with a NaN are left out.
        reduce: makes one number of them.
        resamples: number of samples.
        confidence: share of the interval.
        seed: seed of the samples.

    Returns:
        The number, its interval, and the number of pictures.

    Raises:
        InputError: there is no axis of pictures, or an argument is wrong.

    Example:
        >>> estimate = bootstrap([0.2, 0.4, 0.6, 0.8])
        >>> estimate.value, estimate.n, estimate.low < 0.5 < estimate.high
        (0.5, 4, True)
    """
    require_callable("reduce", reduce)
    resamples = require_whole("resamples", resamples, 1, LARGEST_COUNT)
    confidence = require_number("confidence", confidence, above=0, below=1)
    require_seed("seed", seed, optional=False)
    array = as_array("values", values).astype(np.float64)
    if not array.ndim:
        raise InputError("values is one number; give those of several pictures")
    array = array[~np.isnan(array).any(axis=tuple(range(1, array.ndim)))]
    n = len(array)
    if not n:
        return Estimate(np.nan, np.nan, np.nan, 0)
    value = reduce(array)
    if n == 1:
        return Estimate(value, np.nan, np.nan, 1)
    drawn = np.random.default_rng(seed).integers(0, n, (resamples, n))
    if reduce is mean_of:
        found = array.reshape(n, -1).mean(axis=1)[drawn].mean(axis=1)
    else:
        found = np.array([reduce(array[indices]) for indices in drawn])
    tail = 100 * (1 - confidence) / 2
    low, high = np.percentile(found, [tail, 100 - tail])
    return Estimate(float(value), float(low), float(high), n)


def paired(first: Any, second: Any, reduce: Reduce = mean_of, **options: Any) -> Estimate:
    """Estimate the difference of two methods on the same pictures.

    The pictures are drawn together for both, so what makes one harder than another cancels.

    Args:
        first: (n, ...), what each picture gives for one method.
        second: (n, ...), for the other.
        reduce: makes one number of them.
        **options: `resamples`, `confidence` and `seed`, see `bootstrap`.

    Returns:
        The number of `first` less that of `second`. The difference is clear if the interval lacks 0.

    Raises:
        InputError: the shapes differ.

    Example:
        >>> paired([0.5, 0.7, 0.9], [0.4, 0.6, 0.8]).value.__round__(6)
        0.1
    """
    require_callable("reduce", reduce)
    a, b = as_array("first", first).astype(np.float64), as_array("second", second).astype(np.float64)
    if a.shape != b.shape:
        raise InputError(f"first has shape {a.shape} and second {b.shape}; give the same pictures to both")
    if reduce is mean_of:
        return bootstrap(a - b, reduce, **options)

    def difference(both: Numbers) -> float:
        return reduce(both[:, 0]) - reduce(both[:, 1])

    return bootstrap(np.stack([a, b], axis=1), difference, **options)
