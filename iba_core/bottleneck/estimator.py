"""Running mean and standard deviation of feature maps, in batches, in float64. Two estimates can be merged.

Batches are merged by the parallel form of Welford's algorithm: T. F. Chan, G. H. Golub, R. J. LeVeque,
"Updating formulae and a pairwise algorithm for computing sample variances", 1979, eq. 2.1.
"""

from __future__ import annotations

from collections.abc import Mapping
from os import PathLike
from typing import Any, NamedTuple, Self

import numpy as np
import numpy.typing as npt

from iba_core.arguments import given, require_number, require_sizes, require_type
from iba_core.errors import InputError, NotEstimatedError, StateError
from iba_core.framework.arrays import as_array, require_array
from iba_core.framework.comparison import all_close
from iba_core.framework.namespace import Array, array_namespace
from iba_core.state import read_state, taken_out, write_state

KIND = "estimator"
"""Kind of the state files."""
STATE = ("n_samples", "mean", "m2", "nonzero")
"""Entries of the state."""

PUBLISHED = {"m": "mean", "s": "m2", "neuron_nonzero": "nonzero"}
"""What the published implementation calls the entries that have another name there."""

_BLOCK = 2**18
"""Numbers whose moments are computed at once, 2 MB in float64."""


class Moments(NamedTuple):
    """Sufficient statistics of a set of samples. The arrays have the shape of one feature map."""

    count: Any
    """Number of samples."""
    mean: Array
    m2: Array
    """Sum of squared distances from the mean."""
    nonzero: Array
    """Number of samples in which the neuron was not 0."""


def batch_moments(x: Array) -> Moments:
    """Moments of one batch in two passes.

    Args:
        x: (B, *feature map), floating point, B at least 1. It is used in its own precision: widen it
            before to accumulate in float64. Its memory is used for the squared distances, so its values are
            lost.
    """
    xp = array_namespace(x)
    mean = xp.mean(x, axis=0)
    nonzero = xp.sum(x != 0, axis=0, dtype=xp.int32)
    x -= mean
    x *= x
    return Moments(x.shape[0], mean, xp.sum(x, axis=0), nonzero)


def merge_moments(a: Moments, b: Moments) -> Moments:
    """Moments of the union of two sets of samples, exact and independent of the order."""
    count = a.count + b.count
    delta = b.mean - a.mean
    share = b.count / count
    return Moments(
        count,
        a.mean + delta * share,
        a.m2 + b.m2 + delta * delta * (a.count * share),
        a.nonzero + b.nonzero,
    )


def moments_of_state(state: Mapping[str, npt.ArrayLike]) -> Moments:
    """Check a state that `WelfordEstimator.state_dict` gave, and make moments of it.

    The published implementation's states are taken as well, see `PUBLISHED`.

    Raises:
        StateError: entries are missing, their shapes do not fit together, or they hold what no
            samples can give.

    Example:
        >>> moments_of_state({"n_samples": 2.7, "mean": [0.0], "m2": [1.0], "nonzero": [2.0]})
        Traceback (most recent call last):
        iba_core.errors.StateError: the state of an estimator has n_samples=2.7; a whole number, 1 or...
    """
    if not isinstance(state, Mapping):
        raise StateError(f"{given('state', state)} must be a dict with {', '.join(STATE)}")
    if "m" in state:
        state = {PUBLISHED.get(name, name): value for name, value in state.items()}
    missing = [name for name in STATE if name not in state]
    if missing:
        raise StateError(f"the state of an estimator lacks {', '.join(missing)}")
    try:
        count, mean, m2, nonzero = (require_array(name, state[name]).astype(np.float64) for name in STATE)
    except InputError as error:
        raise StateError(f"the state of an estimator is malformed: {error}") from error
    if not mean.shape == m2.shape == nonzero.shape or not mean.ndim:
        raise StateError(
            f"the state of an estimator has shapes {mean.shape}, {m2.shape} and {nonzero.shape}; they must "
            "be equal, with one axis or more"
        )
    if count.size != 1 or not (count >= 1).all() or (count % 1).any():
        raise StateError(
            f"the state of an estimator has n_samples={count.tolist()}; a whole number, 1 or more, was "
            "expected"
        )
    if (m2 < 0).any():
        raise StateError(f"the state of an estimator has a negative sum of squares, m2={m2.min():g}")
    if (nonzero % 1).any() or (nonzero < 0).any() or (nonzero > count).any():
        raise StateError(
            f"the state of an estimator counts in nonzero from {nonzero.min():g} to {nonzero.max():g} of "
            f"{int(count.item())} samples; whole numbers within these were expected"
        )
    return Moments(int(count.item()), mean, m2, nonzero)


def _wide_moments(x: npt.NDArray[Any], before: Moments | None) -> Moments:
    """Moments of a batch on the host together with the samples before it, in float64.

    They are computed in blocks of features that fit into the caches. Allocating an array as large as the
    batch in float64 would take longer than computing with it.
    """
    rows = x.reshape(len(x), -1)
    known = [] if before is None else [moment.reshape(-1) for moment in before[1:]]
    result = np.empty((3, rows.shape[1]))
    width = max(1, _BLOCK // len(rows))
    for start in range(0, rows.shape[1], width):
        block = slice(start, start + width)
        found = batch_moments(rows[:, block].astype(np.float64))
        if before is not None:
            found = merge_moments(Moments(before.count, *(moment[block] for moment in known)), found)
        for moment, values in zip(result, found[1:], strict=True):
            moment[block] = values
    count = len(x) if before is None else before.count + len(x)
    return Moments(count, *result.reshape(3, *x.shape[1:]))


class WelfordEstimator:
    """Estimates mean and standard deviation of every feature, and which neurons are active.

    Everything is held in float64. The result does not depend on how the samples are batched. Two estimators
    that saw different samples can be merged into one that saw all of them.

    Args:
        *shape: shape of one sample, as separate numbers. Without them, the first batch decides.

    Example:
        >>> import numpy as np
        >>> estimator = WelfordEstimator(3, 8, 8)
        >>> for batch in np.random.default_rng(0).normal(size=(5, 10, 3, 8, 8)):
        ...     _ = estimator.fit(batch)
        >>> estimator.n_samples(), estimator.mean().shape
        (50, (3, 8, 8))
    """

    def __init__(self, *shape: int) -> None:
        self._shape: tuple[int, ...] | None = require_sizes("shape", shape, None, most=2**31) or None
        self._given_shape = self._shape
        self._moments: Moments | None = None

    @property
    def shape(self) -> tuple[int, ...] | None:
        """Shape of one sample; None until it is given or seen."""
        return self._shape

    @property
    def moments(self) -> Moments | None:
        """Moments of all samples, a new object whenever they change. None before the first sample."""
        return self._moments

    @property
    def m(self) -> npt.NDArray[np.float64] | None:
        """Mean of every feature, as `mean` gives it. None before the first sample."""
        return None if self._moments is None else self.mean()

    @property
    def s(self) -> npt.NDArray[np.float64] | None:
        """Sum of squared distances from the mean. None before the first sample."""
        return None if self._moments is None else np.array(self._moments.m2)

    def reset(self) -> None:
        """Forget every sample, and their shape if it was not given to the constructor."""
        self._moments, self._shape = None, self._given_shape

    def fit(self, x: Any) -> Any:
        """Add a batch of samples. `x` is not changed.

        Args:
            x: (B, *shape), anything NumPy can read; integers are allowed. B may be 0.

        Returns:
            `x` itself, so that the estimator can be part of a chain.

        Raises:
            InputError: the shape is not (B, *shape), or a value is not finite.
        """
        batch = as_array("x", x)
        if batch.ndim < 2 or (self._shape is not None and batch.shape[1:] != self._shape):
            wanted = "(batch, ...)" if self._shape is None else f"(batch, {str(self._shape)[1:-1]})"
            raise InputError(f"x has shape {batch.shape}, the estimator takes {wanted}")
        if not batch.shape[0]:
            return x
        moments = _wide_moments(batch, self._moments)
        # NaN and infinity both survive a sum of squares, so the small arrays tell for the large one.
        if not np.isfinite(moments.m2).all():
            raise InputError("x holds NaN or infinite values; every feature must be finite")
        self._shape = batch.shape[1:]
        self._moments = moments
        return x

    def __call__(self, x: Any) -> Any:
        """Add a batch of samples and return it unchanged, see `fit`."""
        return self.fit(x)

    def merge(self, other: WelfordEstimator) -> None:
        """Add all samples of another estimator, exactly as if this one had seen them.

        Raises:
            InputError: the shapes differ.
        """
        require_type("other", other, WelfordEstimator, "a WelfordEstimator")
        if other._moments is None:
            return
        if self._shape is not None and self._shape != other._shape:
            raise InputError(
                f"other is of features of shape {other._shape}, and this estimator of {self._shape}; they "
                "must be of one layer"
            )
        self._shape = other._shape
        self._moments = (
            other._moments if self._moments is None else merge_moments(self._moments, other._moments)
        )

    def n_samples(self) -> int:
        """Number of samples seen."""
        return 0 if self._moments is None else int(self._moments.count)

    def mean(self) -> npt.NDArray[np.float64]:
        """Mean of every feature, shape of one sample, float64.

        Raises:
            NotEstimatedError: no sample has been seen.
        """
        return np.array(self._seen(1).mean)

    def std(self) -> npt.NDArray[np.float64]:
        """Standard deviation of every feature (with n - 1), shape of one sample, float64.

        Raises:
            NotEstimatedError: fewer than two samples have been seen.
        """
        moments = self._seen(2)
        std: npt.NDArray[np.float64] = np.sqrt(moments.m2 / (moments.count - 1))
        return std

    def active_neurons(self, threshold: float = 0.01) -> npt.NDArray[np.bool_]:
        """Mask of the neurons that are nonzero in more than the share `threshold` of the samples.

        Raises:
            NotEstimatedError: no sample has been seen.
            InputError: `threshold` is not between 0 and 1.
        """
        require_number("threshold", threshold, 0, 1)
        moments = self._seen(1)
        active: npt.NDArray[np.bool_] = moments.nonzero / moments.count > threshold
        return active

    def _seen(self, least: int) -> Moments:
        if self._moments is None or self._moments.count < least:
            raise NotEstimatedError(
                f"the estimator has seen {self.n_samples()} samples, at least {least} are needed: "
                "call fit first"
            )
        return self._moments

    def state_dict(self) -> dict[str, npt.NDArray[Any]]:
        """State as arrays: ``n_samples`` (int64), ``mean``, ``m2`` and ``nonzero`` (float64).

        Raises:
            NotEstimatedError: no sample has been seen.
        """
        count, *arrays = self._seen(1)
        values = (np.asarray(count, dtype=np.int64), *(np.array(array) for array in arrays))
        return dict(zip(STATE, values, strict=True))

    def load_state_dict(self, state: dict[str, npt.ArrayLike]) -> None:
        """Replace the state by one that `state_dict` gave, here or in the published implementation.

        Raises:
            StateError: entries are missing, their shapes do not fit together, or they hold what no samples
                can give, such as a negative sum of squares. Nothing has changed then.
        """
        moments = moments_of_state(state)
        self._shape = moments.mean.shape
        self._moments = moments

    def save(self, path: str | PathLike[str], metadata: Mapping[str, Any] | None = None) -> None:
        """Write the state to a safetensors file.

        Args:
            path: file to write.
            metadata: further facts to keep with it, such as the name of the layer.
        """
        write_state(path, self.state_dict(), KIND, metadata)

    @classmethod
    def load(cls, path: str | PathLike[str]) -> Self:
        """Read an estimator that `save` wrote.

        Raises:
            StateError: the file is missing, truncated or of another kind.
        """
        state, _ = read_state(path, KIND, required=STATE)
        estimator = cls()
        estimator.load_state_dict(dict(state))
        return estimator


class Halves(NamedTuple):
    """Estimates from either half of the samples, which show how much of an estimate is chance.

    Example:
        >>> halves = Halves(WelfordEstimator(), WelfordEstimator())
        >>> for half, x in zip(halves, np.arange(8.0).reshape(2, 4, 1)):
        ...     _ = half.fit(x)
        >>> halves.merged().mean()
        array([3.5])
    """

    first: WelfordEstimator
    second: WelfordEstimator

    def merged(self) -> WelfordEstimator:
        """The estimate from all samples."""
        whole = WelfordEstimator()
        for half in self:
            whole.merge(half)
        return whole

    def make_up(self, whole: WelfordEstimator) -> bool:
        """Whether an estimate is that of both halves together, and of nothing else."""
        return (
            self.first.shape == self.second.shape == whole.shape
            and self.first.n_samples() + self.second.n_samples() == whole.n_samples()
            and all_close(self.merged().mean(), whole.mean())
        )

    def state_dict(self) -> dict[str, npt.NDArray[Any]]:
        """State of both, by the names of `WelfordEstimator.state_dict` after that of the half."""
        if not self.second.n_samples():
            return {}
        states = zip(self._fields, self, strict=True)
        return {f"{half}.{name}": x for half, each in states for name, x in each.state_dict().items()}

    @classmethod
    def of_state(cls, state: Mapping[str, npt.NDArray[Any]], whole: WelfordEstimator) -> Self | None:
        """Halves of a state; None where it has none.

        Args:
            state: arrays by name.
            whole: the estimate from all samples.

        Raises:
            StateError: the halves are not those of the whole.
        """
        halves = cls(WelfordEstimator(), WelfordEstimator())
        for name, half in zip(cls._fields, halves, strict=True):
            if not (own := taken_out(state, name)):
                return None
            half.load_state_dict({**own})
        if not halves.make_up(whole):
            raise StateError("the statistics of the halves are not those of the whole")
        return halves
