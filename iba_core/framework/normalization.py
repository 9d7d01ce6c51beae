"""Batch normalisation in evaluation mode: a scale and a shift of each channel."""

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
    """Numbers a and b for which batch normalisation with constant statistics is ``a x + b``.

    ``gamma (x + bias - mean) / sqrt(variance + epsilon) + beta`` (S. Ioffe, C. Szegedy,
    https://arxiv.org/abs/1502.03167, algorithm 2).

    Args:
        mean: mean of each channel, (C,).
        variance: variance of each channel, (C,).
        epsilon: added to the variance.
        gamma: learned scale, (C,); None for 1.
        beta: learned shift, (C,); None for 0.
        bias: what the layer before adds to x, (C,), to be added here instead; None for 0.

    Returns:
        a and b, (C,) each.
    """
    scale = 1.0 / array_namespace(variance).sqrt(variance + epsilon)
    if gamma is not None:
        scale = scale * gamma
    shift = -mean * scale if bias is None else (bias - mean) * scale
    return scale, shift if beta is None else shift + beta
