"""Batches of ImageNet images, prepared for Keras's own networks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from os import PathLike
from pathlib import Path
from typing import Any

import keras
import numpy as np
import numpy.typing as npt

from iba_core.arguments import LARGEST_COUNT, require_callable, require_seed, require_sizes, require_whole
from iba_core.errors import InputError
from iba_core.files import as_path
from iba_tf.framework import eagerly, runs_eagerly


def get_imagenet_generator(
    path: str | PathLike[str],
    target_size: tuple[int, int] = (256, 256),
    crop_size: tuple[int, int] | None = (224, 224),
    batch_size: int = 50,
    seed: int = 0,
    preprocess_input: Callable[[npt.NDArray[np.float32]], npt.NDArray[np.floating]] | None = None,
    **kwargs: Any,
) -> Iterator[tuple[npt.NDArray[np.floating], npt.NDArray[Any]]]:
    """Give the images of an ImageNet directory in batches, each image once, in random order.

    Args:
        path: the train or validation directory, with a folder of images for each class.
        target_size: (height, width) that images are resized to.
        crop_size: (height, width) of the centre that is then cut out; None for the whole image.
        batch_size: number of images in a batch. The last batch may have fewer.
        seed: seed of the order.
        preprocess_input: function of images (B, height, width, 3) with values 0 to 255 that prepares them for
            the network; None for `keras.applications.resnet50.preprocess_input`.
        **kwargs: further arguments of `keras.utils.image_dataset_from_directory`.

    Returns:
        Iterator over (image_batch, targets): images, float32 (B, height, width, 3), and one-hot classes,
        float32 (B, classes), in the order of the folders' names. `label_mode="int"` gives indices instead.

    Raises:
        InputError: there is no such directory, it contains no images, or `crop_size` exceeds `target_size`.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp()) / "cat"
        >>> folder.mkdir()
        >>> keras.utils.save_img(folder / "1.png", np.zeros((300, 400, 3)))
        >>> images, targets = next(get_imagenet_generator(folder.parent))
        >>> images.shape, targets
        ((1, 224, 224, 3), array([[1.]], dtype=float32))
    """
    folder: Path = as_path(path)
    if not folder.is_dir():
        raise InputError(
            f"path={str(path)!r} is not a directory; give the train or validation directory of ImageNet"
        )
    require_sizes("target_size", target_size)
    crop_size = target_size if crop_size is None else crop_size
    require_sizes("crop_size", crop_size)
    # TensorFlow makes room for all of a batch at once, and crashes where it cannot.
    require_whole("batch_size", batch_size, 1, LARGEST_COUNT)
    require_seed("seed", seed, 2**31 - 1, optional=False)
    require_callable("preprocess_input", preprocess_input, "a function of images", optional=True)
    margins = [(whole - part) // 2 for whole, part in zip(target_size, crop_size, strict=True)]
    if min(margins) < 0:
        raise InputError(f"crop_size={crop_size} exceeds target_size={target_size}")
    options = {"label_mode": "categorical", "verbose": False, **kwargs}
    try:
        # Graphs of TensorFlow 1 have no data sets that can be iterated.
        with eagerly():
            batches = keras.utils.image_dataset_from_directory(
                path, image_size=target_size, batch_size=batch_size, seed=seed, **options
            ).as_numpy_iterator()
    except ValueError as error:
        raise InputError(f"path={str(path)!r} cannot be read as images in folders: {error}") from error
    prepare = preprocess_input or keras.applications.resnet50.preprocess_input
    rows, columns = (slice(start, start + size) for start, size in zip(margins, crop_size, strict=True))
    # Copy the images, since `prepare` may change them in place.
    return (
        (prepare(images[:, rows, columns].copy()), labels)
        for images, labels in iter(runs_eagerly(partial(next, batches, None)), None)
    )
