"""Saliency maps in Keras' data format."""

from __future__ import annotations

from collections.abc import Sequence

import keras
import numpy as np
import numpy.typing as npt

from iba_core.bottleneck import saliency
from iba_core.framework.layout import DataFormat


def to_saliency_map(
    capacity: npt.ArrayLike,
    shape: Sequence[int] | None = None,
    data_format: DataFormat | None = None,
) -> npt.NDArray[np.floating]:
    """Saliency map of one image from the capacity of its features.

    Args:
        capacity: (H, W, C), or (C, H, W) with ``data_format="channels_first"``, in nats. Any number of
            spatial axes from 0 to 3 will do.
        shape: (height, width) of the image; the map keeps the size of the feature map if None.
        data_format: ``"channels_first"`` or ``"channels_last"``; that of
            `keras.config.image_data_format` if None.

    Returns:
        Array of `shape`, in bits per pixel. Its sum equals the bits of the capacity.

    Raises:
        InputError: the shapes do not fit, or `data_format` is unknown.
    """
    return saliency.to_saliency_map(capacity, shape, data_format or keras.config.image_data_format())
