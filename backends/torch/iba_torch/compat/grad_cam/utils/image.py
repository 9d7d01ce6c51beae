"""Pictures for a network, and maps over pictures, without OpenCV and torchvision."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from scipy.ndimage import zoom

from iba_core.concepts.activation_maps import resize_maps, to_unit_range
from iba_core.errors import InputError
from iba_core.framework.arrays import as_array
from iba_core.pictures import cam as pictures
from iba_core.pictures.cam import deprocess_image

__all__ = [
    "create_labels_legend",
    "deprocess_image",
    "preprocess_image",
    "scale_accross_batch_and_channels",
    "scale_cam_image",
    "show_cam_on_image",
]

_EPSILON = 1e-7
"""What the published package adds to the greatest value of a map before it divides by it."""


def preprocess_image(
    img: npt.ArrayLike, mean: Sequence[float] = (0.5, 0.5, 0.5), std: Sequence[float] = (0.5, 0.5, 0.5)
) -> torch.Tensor:
    """Normalise a picture, ``(img - mean) / std`` for each channel, and add a batch axis.

    Args:
        img: (H, W, C); uint8 is divided by 255, other numbers are taken as they are.
        mean: mean of each channel.
        std: standard deviation of each channel.

    Returns:
        Tensor (1, C, H, W), float32; float64 if `img` is.

    Example:
        >>> preprocess_image(np.array([[[0, 255, 255]]], dtype=np.uint8)).flatten()
        tensor([-1.,  1.,  1.])
    """
    picture = as_array("img", img)
    if picture.ndim != 3 or picture.shape[2] != len(mean) or len(mean) != len(std):
        raise InputError(
            f"img has shape {picture.shape}, with {len(mean)} means and {len(std)} deviations; (H, W, C) and "
            "a number for each channel were expected"
        )
    dtype = np.float64 if picture.dtype == np.float64 else np.float32
    normalised = pictures.normalise(picture, mean, std).astype(dtype)
    return torch.from_numpy(np.ascontiguousarray(normalised.transpose(2, 0, 1))[None])


def show_cam_on_image(
    img: npt.ArrayLike,
    mask: npt.ArrayLike,
    use_rgb: bool = False,
    colormap: int = 2,
    image_weight: float = 0.5,
) -> npt.NDArray[np.uint8]:
    """Lay a map over a picture in colours, as `iba_core.pictures.cam.show_cam_on_image` does.

    Args:
        img: (H, W, 3), floating point, at most 1; what is below 0 counts as 0.
        mask: (H, W), from 0 to 1; what lies outside is cut off, and NaN counts as 0.
        use_rgb: whether the channels of the picture are red, green, blue; otherwise they are blue, green,
            red.
        colormap: number of a colour map of OpenCV, such as ``cv2.COLORMAP_JET``, which is 2; or a colour map
            of matplotlib or its name.
        image_weight: share of the picture in the result.

    Returns:
        uint8 (H, W, 3), in the channel order of `img`.

    Example:
        >>> show_cam_on_image(np.zeros((1, 2, 3)), np.array([[0.0, np.nan]]), use_rgb=True)[0, :, 2]
        array([255, 255], dtype=uint8)
    """
    values = np.clip(np.nan_to_num(as_array("mask", mask), nan=0.0), 0, 1)
    picture = np.maximum(as_array("img", img), 0)
    return pictures.show_cam_on_image(picture, values, use_rgb, colormap, image_weight)


def scale_cam_image(cam: Any, target_size: Sequence[int] | None = None) -> npt.NDArray[np.float32]:
    """Scale each map to the range from 0 to 1, and resize it.

    Args:
        cam: maps, (B, H, W) or (B, D, H, W).
        target_size: sizes of the axes of the result, the last one first: (width, height); None for those of
            the maps. Volumes are resized with cubic splines from corner to corner, as `scipy.ndimage.zoom`
            does.

    Returns:
        Array (B, *places), float32.

    Example:
        >>> scale_cam_image(np.array([[[1.0, 3.0]]]), (4, 1)).round(2)
        array([[[0.  , 0.25, 0.75, 1.  ]]], dtype=float32)
    """
    maps = np.asarray(to_unit_range(as_array("cam", cam).astype(np.float32), _EPSILON))
    if target_size is None:
        return maps
    shape = tuple(int(size) for size in reversed(target_size))
    if maps.ndim > 3:
        factors = [wanted / size for size, wanted in zip(maps.shape[1:], shape, strict=True)]
        return np.stack([zoom(one, factors) for one in maps])
    return np.asarray(resize_maps(maps, shape), dtype=np.float32)


def scale_accross_batch_and_channels(tensor: Any, target_size: Sequence[int]) -> npt.NDArray[np.float32]:
    """`scale_cam_image` for each channel of a batch, (B, C, H, W).

    Example:
        >>> scale_accross_batch_and_channels(np.zeros((2, 3, 4, 4)), (6, 5)).shape
        (2, 3, 5, 6)
    """
    array = as_array("tensor", tensor)
    scaled = scale_cam_image(array.reshape(-1, *array.shape[2:]), target_size)
    return scaled.reshape(*array.shape[:2], *scaled.shape[1:])


def create_labels_legend(
    concept_scores: npt.NDArray[np.floating], labels: Mapping[int, str], top_k: int = 2
) -> list[str]:
    """Describe concepts by the classes that they score highest.

    Args:
        concept_scores: (concepts, classes).
        labels: names of the classes, each with synonyms after commas.
        top_k: number of classes for each concept.

    Example:
        >>> create_labels_legend(np.array([[0.25, 0.75]]), {0: "cat", 1: "dog, hound"}, top_k=1)
        ['dog, hound:0.75']
    """
    legends = []
    for scores in concept_scores:
        best = np.argsort(scores)[::-1][:top_k]
        names = (",".join(labels[int(category)].split(",")[:3]) for category in best)
        legends.append("\n".join(f"{name}:{scores[i]:.2f}" for name, i in zip(names, best, strict=True)))
    return legends
