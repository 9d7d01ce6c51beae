"""A test input and a few numbers of its features, which tell a model from others in any framework."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from iba_core.bottleneck.noise import keyed_normal
from iba_core.framework.comparison import all_close
from iba_core.framework.layout import Layout

_KEY = 2023
"""Of the noise that the test input is."""

_CHANNELS = 16
_TOLERANCE = 0.02
"""More than rounding, and half precision, and less than a few steps of training make."""


def noise_input(shape: Sequence[int], layout: Layout) -> npt.NDArray[np.float32]:
    """Noise as an input, the same numbers in either data format.

    Args:
        shape: of one input.
        layout: meaning of its axes.

    Example:
        >>> first, last = (Layout.of(shape, kind) for shape, kind in (
        ...     ((2, 4, 5), "channels_first"), ((4, 5, 2), "channels_last")))
        >>> a, b = noise_input((2, 4, 5), first), noise_input((4, 5, 2), last)
        >>> bool((np.moveaxis(a, 0, -1) == b).all())
        True
    """
    drawn = keyed_normal(_KEY, [shape[axis] for axis in layout.to_channels_first()])
    return np.ascontiguousarray(drawn.transpose(layout.from_channels_first()))


def summary(features: npt.NDArray[np.floating], layout: Layout) -> list[float] | None:
    """Mean and mean square over the places of the first channels.

    Args:
        features: of the test input, (*feature map).
        layout: meaning of their axes.

    Returns:
        Twice 16 numbers, or fewer where there are fewer channels; None if one is not finite.

    Example:
        >>> summary(np.array([[1.0, 3.0]]), Layout.of((1, 2), "channels_first"))
        [2.0, 5.0]
    """
    by_channel = features.transpose(layout.to_channels_first()).astype(np.float64)
    rows = by_channel.reshape(len(by_channel), -1)[:_CHANNELS]
    numbers = np.concatenate([rows.mean(axis=1), np.square(rows).mean(axis=1)])
    return [float(x) for x in numbers] if np.isfinite(numbers).all() else None


def same_summary(a: Sequence[float], b: Sequence[float]) -> bool:
    """Whether two summaries are of one model, up to rounding.

    Example:
        >>> same_summary([1.0, 2.0], [1.001, 2.0]), same_summary([1.0, 2.0], [1.5, 2.0])
        (True, False)
    """
    largest = max(map(abs, b), default=0.0)
    return len(a) == len(b) and all_close(a, b, rtol=_TOLERANCE, atol=_TOLERANCE * largest)
