"""Noise from a seed: the same numbers in every framework, on every device, in either data format."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import numpy as np
import numpy.typing as npt

from iba_core.arguments import require_seed
from iba_core.framework.layout import Layout

_AT_ONCE = 2**17
"""Numbers drawn at once. With more, the intermediate results would not stay in the caches."""


def seeded_normal(
    seed: int, step: int, samples: int, shape: Sequence[int], layout: Layout
) -> npt.NDArray[np.float32]:
    """Standard normal noise of one optimiser step, a function of its arguments alone.

    It comes from the counter-based generator Philox: the seed is the key, the step is the counter. It is
    drawn with channels first and then permuted, so a feature gets the same number in either format. All
    images of a batch get the same noise, so a result does not depend on an image's neighbours.

    Args:
        seed: 0 or more.
        step: number of the optimiser step, from 0.
        samples: number of noisy copies.
        shape: shape of the feature map, without a batch axis.
        layout: meaning of its axes.

    Returns:
        Array (samples, *shape), float32.

    Raises:
        InputError: the seed is negative or not a whole number.

    Example:
        >>> seeded_normal(0, 0, 2, (3, 4), Layout.of((3, 4), "channels_first")).shape
        (2, 3, 4)
    """
    require_seed("seed", seed, optional=False)
    generator = np.random.Philox(key=int(seed), counter=np.array([0, 0, 0, step], dtype=np.uint64))
    first = tuple(shape[axis] for axis in layout.to_channels_first())
    noise = np.empty((samples, *shape), np.float32)
    for sample in noise:
        # One by one, so that the intermediate results stay in the caches.
        bits = generator.random_raw((prod(first) + 1) // 2)
        normal = _normal(bits)[: prod(first)].reshape(first)
        sample[...] = normal.transpose(layout.from_channels_first())
    return noise


def keyed_normal(key: int, shape: Sequence[int]) -> npt.NDArray[np.float32]:
    """Standard normal noise of any shape, where layout and steps do not matter.

    It comes from the generator SFC64, which takes half the time of Philox.

    Args:
        key: 0 or more. The same key gives the same noise.
        shape: shape of the array.
    """
    generator = np.random.Generator(np.random.SFC64(key))
    noise = np.empty(prod(shape), np.float32)
    for start in range(0, len(noise), _AT_ONCE):
        part = noise[start : start + _AT_ONCE]
        bits = generator.integers(2**64, size=(len(part) + 1) // 2, dtype=np.uint64)
        part[...] = _normal(bits)[: len(part)]
    return noise.reshape(tuple(shape))


def _normal(bits: npt.NDArray[np.uint64]) -> npt.NDArray[np.float32]:
    """Standard normal numbers by the transform of Box and Muller (1958), two from each number of 64 bits.

    It is arithmetic on whole arrays. Processors do that several times faster than
    `Generator.standard_normal`, which accepts or rejects number by number.
    """
    radius, angle = bits.view(np.uint32).reshape(2, -1).astype(np.float32)
    # From just above 0 to 1: small float32 numbers lie close together, which the far tails need.
    radius += np.float32(0.5)
    radius *= np.float32(2.0**-32)
    np.log(radius, out=radius)
    radius *= np.float32(-2.0)
    np.sqrt(radius, out=radius)
    angle *= np.float32(2.0 * np.pi * 2.0**-32)
    normal = np.empty((2, len(bits)), np.float32)
    np.cos(angle, out=normal[0])
    np.sin(angle, out=normal[1])
    normal *= radius
    return normal.reshape(-1)
