"""Batches of ImageNet images without end."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import count
from os import PathLike
from typing import Any

import numpy as np
import numpy.typing as npt

import iba_tf
from iba_core.arguments import require_choice

_LABELS = {"categorical": "categorical", "binary": "binary", "sparse": "int"}
"""What Keras 3 calls the modes of classes."""


def get_imagenet_generator(
    path: str | PathLike[str],
    target_size: tuple[int, int] = (256, 256),
    crop_size: tuple[int, int] | None = (224, 224),
    batch_size: int = 50,
    seed: int = 0,
    preprocess_input: Callable[[npt.NDArray[np.float32]], npt.NDArray[np.floating]] | None = None,
    *,
    class_mode: str = "categorical",
    classes: Sequence[str] | None = None,
    **kwargs: Any,
) -> Iterator[tuple[npt.NDArray[np.floating], npt.NDArray[Any]]]:
    """Give the images of an ImageNet directory in batches, without end, in a new random order each time.

    Args:
        path: see `iba_tf.get_imagenet_generator`.
        target_size: likewise.
        crop_size: likewise.
        batch_size: likewise.
        seed: of the first order.
        preprocess_input: see `iba_tf.get_imagenet_generator`.
        class_mode: ``"categorical"`` for one-hot targets, ``"binary"`` or ``"sparse"`` for indices.
        classes: names of the folders to take, in the order of their indices; None for all, sorted.
        **kwargs: further arguments of `keras.utils.image_dataset_from_directory`. As the generators of
            Keras 2 do, resizing takes the nearest pixel, unless `interpolation` says otherwise.

    Returns:
        Iterator over (image_batch, targets).

    Example:
        >>> import keras, tempfile
        >>> from pathlib import Path
        >>> folder = Path(tempfile.mkdtemp()) / "cat"
        >>> folder.mkdir()
        >>> keras.utils.save_img(folder / "1.png", np.zeros((300, 400, 3)))
        >>> batches = get_imagenet_generator(folder.parent, crop_size=None)
        >>> [next(batches)[0].shape for _ in range(2)]
        [(1, 256, 256, 3), (1, 256, 256, 3)]
    """
    require_choice("class_mode", class_mode, tuple(_LABELS))
    labels = {"label_mode": _LABELS[class_mode], "class_names": classes}
    options = {**labels, "interpolation": "nearest", **kwargs}

    def epoch(number: int) -> Iterator[tuple[npt.NDArray[np.floating], npt.NDArray[Any]]]:
        batches = iba_tf.get_imagenet_generator(
            path, target_size, crop_size, batch_size, seed + number, preprocess_input, **options
        )
        # Keras 3 gives each binary target an axis of its own.
        return ((images, targets[:, 0] if class_mode == "binary" else targets) for images, targets in batches)

    # The first one is made at once, so that an argument is checked here.
    first = epoch(0)
    return (batch for number in count() for batch in (epoch(number) if number else first))
