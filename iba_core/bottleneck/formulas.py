"""The formulas of the bottleneck: mask, restricted features, capacity.

They are those of K. Schulz, L. Sixt, F. Tombari, T. Landgraf, "Restricting the Flow: Information Bottlenecks
for Attribution", ICLR 2020, https://arxiv.org/abs/2001.00396. Each is written once over the array namespace.
Features R of an image have mean mu and standard deviation sigma over many images. A mask lambda in (0, 1)
mixes them with noise of that distribution. The capacity says how much information about R is left.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import scipy.special

from iba_core.bottleneck.smoothing import smooth
from iba_core.framework.layout import Layout
from iba_core.framework.namespace import NAMESPACES, Array


class Mask(NamedTuple):
    """The mask of a bottleneck and its complement, each (B, *feature map) in [0, 1] up to rounding.

    The complement is computed directly. In float32, ``1 - passed`` rounds to 0 long before the share of noise
    is 0, and its logarithm, which the capacity needs, would be infinite.
    """

    passed: Array
    """lambda, the share of the features that passes."""
    blocked: Array
    """1 - lambda, the share that is replaced by noise; more than 0."""


def expit(x: Array) -> Array:
    """Logistic function of the framework. It is faster than `sigmoid`, but not meant for gradients."""
    own = getattr(NAMESPACES[type(x)], "sigmoid", None)
    return scipy.special.expit(x) if own is None else own(x)


def mask_from_alpha(alpha: Array, matrices: Sequence[Array], layout: Layout) -> Mask:
    """Mask of the bottleneck's parameter: ``G * sigmoid(alpha)``, with a Gaussian G (paper, eq. 8).

    G sums to one, so the complement is ``G * sigmoid(-alpha)``.

    Args:
        alpha: (B, *feature map), any real numbers. An alpha that all channels share has one channel, and then
            so has the mask; its places may be those of a finer map, see `smoothing_matrices`.
        matrices: G along each spatial axis, from `smoothing_matrices`; none for no smoothing.
        layout: meaning of the axes of a feature map.
    """
    blocked = smooth(expit(-alpha), matrices, layout)
    return Mask(1.0 - blocked, blocked)


def alpha_slope(of_blocked: Array, alpha: Array, matrices: Sequence[Array], layout: Layout) -> Array:
    """Turn a derivative with respect to the mask's complement into one with respect to alpha.

    This is the chain rule for `mask_from_alpha`: the result is ``-sigmoid(alpha) sigmoid(-alpha)`` times the
    derivative, smoothed by the transpose of G. It is summed over the channels where these share alpha.

    Args:
        of_blocked: derivative with respect to 1 - lambda, (B, *feature map).
        alpha: the bottleneck's parameter, as in `mask_from_alpha`.
        matrices: as in `mask_from_alpha`.
        layout: as in `mask_from_alpha`.
    """
    axis = layout.channel_axis + 1
    if int(alpha.shape[axis]) < int(of_blocked.shape[axis]):
        of_blocked = NAMESPACES[type(of_blocked)].sum(of_blocked, axis=axis, keepdims=True)
    # Relatively exact on both sides, also where one of the two factors rounds to 1.
    return -expit(alpha) * expit(-alpha) * smooth(of_blocked, matrices, layout, transposed=True)


def restrict(features: Array, mask: Mask, noise: Array) -> Array:
    """Features with a share replaced by noise: ``lambda R + (1 - lambda) eps`` (paper, eq. 2).

    Args:
        features: R.
        mask: lambda and its complement.
        noise: eps, drawn from N(mu, sigma^2). All arguments broadcast against each other.
    """
    return mask.passed * features + mask.blocked * noise


def capacity(normalized: Array, mask: Mask) -> Array:
    """Information that passes each feature, ``KL(P(Z|R) || Q(Z))`` with Q = N(mu, sigma^2) (paper, eq. 5).

    With r = (R - mu) / sigma this is ``-1/2 (1 + log (1 - lambda)^2 - (r lambda)^2 - (1 - lambda)^2)``. It is
    computed such that a small lambda, of which it is nearly the square, is not lost in the rounding of 1.

    Args:
        normalized: r, of the shape of the mask or broadcasting to it.
        mask: lambda and its complement.

    Returns:
        Array of the shape of the mask, in nats, not negative up to rounding.
    """
    xp, passed, blocked = NAMESPACES[type(normalized)], mask.passed, mask.blocked
    is_small = passed < 0.5
    small = xp.where(is_small, passed, 0.5 * xp.ones_like(passed))
    minus_log = xp.where(is_small, -xp.log1p(-small), -xp.log(blocked))
    return xp.square(normalized * passed) / 2.0 + (minus_log - passed * (1.0 + blocked) / 2.0)


def capacity_slope(normalized: Array, mask: Mask) -> Array:
    """Derivative of `capacity` with respect to b = 1 - lambda: ``b - 1 / b - r^2 (1 - b)``.

    Args:
        normalized: as in `capacity`.
        mask: as in `capacity`.

    Returns:
        Array of the shape of the mask, in nats, not positive up to rounding.
    """
    passed = mask.passed
    return -(passed * (1.0 + mask.blocked) / mask.blocked) - normalized * (normalized * passed)
