"""How much of the target is left when only the bits of a map pass."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from iba_core.framework.namespace import NAMESPACES, Array

LEAST = 0.5
"""A target of which less survives is not explained by its map, and a warning says so."""

_LARGEST_LOSS = 87.3
"""In nats; that of the smallest normal probability in float32, about."""

_LARGEST_EXPONENT = 700.0
"""The largest that float64 can raise e to, about."""


def surviving_shares(
    losses: npt.ArrayLike, whole: npt.ArrayLike, nothing: npt.ArrayLike | None = None
) -> npt.NDArray[np.float64]:
    """Share of a target that is left in each of S noisy copies of B restricted images.

    Where the loss is minus the logarithm of a probability p, such as that of a class, the share is
    ``p(restricted) / p(whole)``. For any other loss, the score is s = -loss, and its baseline is the mean of
    the scores when nothing passes: ``(s(restricted) - baseline) / (s(whole) - baseline)``. A share of 1
    means that nothing is lost, and more than 1 that the rest of the image spoke against the target.

    Args:
        losses: (B, S), of the restricted features.
        whole: (B,), of the unrestricted features.
        nothing: (B, N), of N copies of noise alone; None if the loss is minus the logarithm of a probability.

    Returns:
        Array (B, S). NaN where there is nothing to keep: a score that is not above its baseline, or a
        probability that is 0 in float32.

    Example:
        >>> surviving_shares(-np.log([[0.4, 0.6]]), -np.log([0.8])).round(4)
        array([[0.5 , 0.75]])
        >>> surviving_shares([[-4.0]], [-5.0], [[-0.5, -1.5]])  # scores 4 of 5, above a baseline of 1
        array([[0.75]])
    """
    found, full = np.asarray(losses, np.float64), np.asarray(whole, np.float64)[:, None]
    base = None if nothing is None else np.asarray(nothing, np.float64).mean(axis=1, keepdims=True)
    return np.asarray(shares_of(found, full, base))


def shares_of(losses: Array, whole: Array, baseline: Array | None = None) -> Array:
    """The formula of `surviving_shares`, for arrays of any framework that broadcast against each other.

    Args:
        losses: of the restricted features.
        whole: of the unrestricted features.
        baseline: mean loss when nothing passes; None if the loss is minus the logarithm of a probability.
    """
    xp = NAMESPACES[type(losses)]
    if baseline is None:
        gain = whole - losses
        # An exponent for which exp would overflow belongs to a probability of 0.
        shares = xp.exp(xp.where(gain < _LARGEST_EXPONENT, gain, _LARGEST_EXPONENT * xp.ones_like(gain)))
        known = whole < _LARGEST_LOSS
    else:
        rise = baseline - whole
        known = rise > 0
        shares = (baseline - losses) / xp.where(known, rise, xp.ones_like(rise))
    return xp.where(known, shares, math.nan * xp.ones_like(shares))


class Answer(NamedTuple):
    """What the losses of restricted features are compared with."""

    whole: npt.NDArray[np.floating]
    """Losses of the unrestricted features, (B,)."""
    nothing: npt.NDArray[np.floating] | None
    """Losses of noise alone, (B, N); None if the loss is minus the logarithm of a probability."""

    def shares(self, losses: npt.NDArray[np.floating]) -> npt.NDArray[np.float64]:
        """`surviving_shares` of losses (B, S)."""
        return surviving_shares(losses, self.whole, self.nothing)

    def losses(self, shares: npt.NDArray[np.floating]) -> npt.NDArray[np.float64]:
        """The losses (B, S) of which `shares` are made, where the loss is that of a probability."""
        with np.errstate(divide="ignore"):
            return np.asarray(self.whole[:, None] - np.log(shares))
