"""Noise from a seed: the same numbers in every framework, on every device, in either data format."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import numpy as np
import numpy.typing as npt

from iba_core.errors import InputError, is_whole_number
from iba_core.layout import Layout

_AT_ONCE = 2**16
"""Numbers drawn at once: what lies between the random bits and the noise stays in the caches."""


def seeded_normal(
    seed: int, step: int, samples: int, shape: Sequence[int], layout: Layout
) -> npt.NDArray[np.float32]:
    """Standard normal noise of one optimiser step, a function of nothing but its arguments.

    It comes from the counter-based generator Philox, keyed by the seed and counting from the step. It is
    drawn with channels first and then permuted, so that a feature gets the same number in either format.
    All images of a batch get the same noise: a result does not depend on an image's neighbours.

    Args:
        seed: 0 or more.
        step: number of the optimiser step, from 0.
        samples: number of noisy copies.
        shape: shape of the feature map, without a batch axis.
        layout: meaning of its axes.

    Returns:
        Array (samples, *shape), float32.

    Raises:
        InputError: the seed is negative or no whole number.
    """
    require_seed(seed)
    generator = np.random.Philox(key=int(seed), counter=np.array([0, 0, 0, step], dtype=np.uint64))
    first = tuple(shape[axis] for axis in layout.to_channels_first())
    noise = np.empty((samples, *shape), np.float32)
    for sample in noise:
        # One by one: what lies between the random bits and the noise stays in the caches.
        sample[...] = _normal(generator, prod(first)).reshape(first).transpose(layout.from_channels_first())
    return noise


def keyed_normal(key: int, shape: Sequence[int]) -> npt.NDArray[np.float32]:
    """Standard normal noise of any shape from the same generator, without layout and steps.

    Args:
        key: 0 or more, below 2**128; one gives the same noise again.
        shape: of the array.
    """
    generator = np.random.Philox(key=key)
    noise = np.empty(prod(shape), np.float32)
    for start in range(0, len(noise), _AT_ONCE):
        part = noise[start : start + _AT_ONCE]
        part[...] = _normal(generator, len(part))
    return noise.reshape(tuple(shape))


def require_seed(seed: int | None) -> None:
    """Raise an `InputError` if `seed` is neither None nor a seed of `seeded_normal`."""
    if seed is not None and not is_whole_number(seed, 0, 2**64 - 1):
        raise InputError(f"seed={seed!r} must be a whole number from 0 to 2**64 - 1")


def _normal(generator: np.random.Philox, count: int) -> npt.NDArray[np.float32]:
    """Standard normal numbers by the transform of Box and Muller (1958), (count,).

    It is arithmetic on whole arrays, which processors do several times faster than the rejection of
    `Generator.standard_normal` goes from number to number.
    """
    half = (count + 1) // 2
    bits = generator.random_raw(half).view(np.uint32)
    # From just above 0 to 1: a float32 is the finer the smaller it is, which the far tails live on.
    radius = bits[:half].astype(np.float32)
    radius += np.float32(0.5)
    radius *= np.float32(2.0**-32)
    np.log(radius, out=radius)
    radius *= np.float32(-2.0)
    np.sqrt(radius, out=radius)
    angle = bits[half:].astype(np.float32)
    angle *= np.float32(2.0 * np.pi * 2.0**-32)
    normal = np.concatenate([np.cos(angle), np.sin(angle)]).reshape(2, half)
    normal *= radius
    return normal.reshape(-1)[:count]
