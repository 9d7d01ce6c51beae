"""Batch normalisation where nothing is learnt: a scale and a shift of each channel."""

from __future__ import annotations

from iba_core.framework.namespace import Array, array_namespace


def scale_and_shift(
    mean: Array,
    variance: Array,
    epsilon: float,
    gamma: Array | None = None,
    beta: Array | None = None,
    bias: Array | None = None,
) -> tuple[Array, Array]:
    """The numbers a and b with which batch normalisation is ``a x + b``, with constant statistics.

    ``gamma (x + bias - mean) / sqrt(variance + epsilon) + beta`` (S. Ioffe, C. Szegedy,
    https://arxiv.org/abs/1502.03167, algorithm 2).

    Args:
        mean: of each channel, (C,), as are all others.
        variance: likewise.
        epsilon: added to the variance.
        gamma: scale that was learnt; None for 1.
        beta: shift that was learnt; None for 0.
        bias: what a layer before adds to x, to be added here instead; None for 0.

    Returns:
        a and b, (C,) each.
    """
    scale = 1.0 / array_namespace(variance).sqrt(variance + epsilon)
    if gamma is not None:
        scale = scale * gamma
    shift = -mean * scale if bias is None else (bias - mean) * scale
    return scale, shift if beta is None else shift + beta
