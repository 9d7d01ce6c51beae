"""The padding of a window. The published transformations of images are left out."""

from __future__ import annotations

from collections.abc import Sequence

from iba_core.arguments import require_bool, require_sizes
from iba_core.concepts.hyperplanes import same_padding as padding_of

__all__ = ["same_padding"]


def same_padding(kernel_size: Sequence[int], hang_front: bool = False) -> tuple[int, ...]:
    """Compute the zeros before and after each axis that keep the size of a map in a convolution of stride 1.

    Args:
        kernel_size: size of the window along each axis.
        hang_front: put the larger half of an odd number before the map instead of after it.

    Returns:
        The zeros before and after each axis, in one row.

    Raises:
        InputError: a size is no whole number of at least 1.

    Example:
        >>> same_padding((3, 4)), same_padding((3, 4), hang_front=True)
        ((1, 1, 1, 2), (1, 1, 2, 1))
    """
    sides = require_sizes("kernel_size", kernel_size, count=None)
    order = -1 if require_bool("hang_front", hang_front) else 1
    return tuple(zeros for side in sides for zeros in padding_of((side, 1))[0][::order])
