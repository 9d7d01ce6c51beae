"""Batches of ImageNet, prepared for Keras' own networks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from os import PathLike
from pathlib import Path
from typing import Any

import keras
import numpy as np
import numpy.typing as npt

from iba_core.errors import InputError


def get_imagenet_generator(
    path: str | PathLike[str],
    target_size: tuple[int, int] = (256, 256),
    crop_size: tuple[int, int] = (224, 224),
    batch_size: int = 50,
    seed: int = 0,
    preprocess_input: Callable[[npt.NDArray[np.float32]], npt.NDArray[np.floating]] | None = None,
    **kwargs: Any,
) -> Iterator[tuple[npt.NDArray[np.floating], npt.NDArray[Any]]]:
    """Batches of the images in an ImageNet directory, each image once, in random order.

    Args:
        path: the train or the validation directory, with a folder of images for each class.
        target_size: (height, width) that images are scaled to.
        crop_size: (height, width) of the centre that is cut out of them.
        batch_size: images in a batch; the last one may be smaller.
        seed: of the order.
        preprocess_input: what the network wants done to images (B, height, width, 3) with values 0 to 255;
            `keras.applications.resnet50.preprocess_input` if None, as most of Keras' networks have it.
        **kwargs: of `keras.utils.image_dataset_from_directory`.

    Returns:
        Iterator over (image_batch, targets): float32 (B, height, width, 3), and the classes one-hot,
        float32 (B, classes), in the order of the folders' names; `label_mode="int"` gives their numbers.

    Raises:
        InputError: there is no such directory, it holds no images, or `crop_size` exceeds `target_size`.
    """
    if not Path(path).is_dir():
        raise InputError(
            f"path={str(path)!r} is no directory; give the train or validation directory of ImageNet"
        )
    margins = [(whole - part) // 2 for whole, part in zip(target_size, crop_size, strict=True)]
    if min(margins) < 0:
        raise InputError(f"crop_size={crop_size} exceeds target_size={target_size}")
    options = {"label_mode": "categorical", "verbose": False, **kwargs}
    try:
        batches = keras.utils.image_dataset_from_directory(
            path, image_size=target_size, batch_size=batch_size, seed=seed, **options
        )
    except ValueError as error:
        raise InputError(f"path={str(path)!r} cannot be read as images in folders: {error}") from error
    prepare = preprocess_input or keras.applications.resnet50.preprocess_input
    rows, columns = (slice(start, start + size) for start, size in zip(margins, crop_size, strict=True))
    # Copied, since what prepares images may work in place.
    return (
        (prepare(images[:, rows, columns].copy()), labels) for images, labels in batches.as_numpy_iterator()
    )
