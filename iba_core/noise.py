"""Noise from a seed: the same numbers in every framework, on every device, in either data format."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from iba_core.errors import InputError
from iba_core.layout import Layout


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
    if isinstance(seed, bool) or int(seed) != seed or not 0 <= seed < 2**64:
        raise InputError(f"seed={seed!r} must be a whole number from 0 to 2**64 - 1")
    counter = np.array([0, 0, 0, step], dtype=np.uint64)
    generator = np.random.Generator(np.random.Philox(key=int(seed), counter=counter))
    to_first = layout.to_channels_first()
    noise = generator.standard_normal((samples, *(shape[axis] for axis in to_first)), dtype=np.float32)
    return noise.transpose(0, *(axis + 1 for axis in layout.from_channels_first()))
