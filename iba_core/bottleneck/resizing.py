"""Linear resizing of maps, axis by axis."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import numpy.typing as npt


@lru_cache(maxsize=64)
def resizing_matrix(size: int, target: int, corners: bool = False) -> npt.NDArray[np.float64]:
    """Matrix that resizes an axis linearly between the centres of the places.

    Outside the outermost centres the value stays constant. An axis of length 1 is repeated.

    Args:
        size: length of the axis.
        target: its new length.
        corners: put the first and the last of the new places onto those of the axis, and the others evenly
            between them, instead of dividing the length of the axis evenly.

    Returns:
        Array (target, size), float64, read-only; the rows sum to one.
    """
    centres: npt.NDArray[np.floating]
    if corners:
        centres = np.linspace(0, size - 1, target)
    else:
        centres = (np.arange(target) + 0.5) * (size / target) - 0.5
    matrix = np.stack([np.interp(centres, np.arange(size), column) for column in np.eye(size)], axis=1)
    matrix.flags.writeable = False
    return matrix
