"""Prepare pictures for a network, and lay maps over them, as pytorch-grad-cam does, without OpenCV."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from iba_core.arguments import given, is_whole_number, require_bool, require_data_format, require_number
from iba_core.errors import InputError, closest
from iba_core.framework.arrays import require_array
from iba_core.framework.layout import DataFormat, Layout
from iba_core.pictures.opencv_colours import opencv_colours
from iba_core.pictures.plotting import require_matplotlib


def show_cam_on_image(
    img: npt.ArrayLike,
    mask: npt.ArrayLike,
    use_rgb: bool = False,
    colormap: Any = "jet",
    image_weight: float = 0.5,
) -> npt.NDArray[np.uint8]:
    """Lay a map over a picture in colours.

    Args:
        img: (H, W, 3), floating point in [0, 1].
        mask: (H, W), in [0, 1].
        use_rgb: whether the channels of the picture are red, green, blue; otherwise they are blue, green,
            red, as in OpenCV.
        colormap: colour map of matplotlib, or its name; or the number of a colour map of OpenCV, see
            `opencv_colours`. The default of pytorch-grad-cam is 2, which is OpenCV's own ``"jet"``.
        image_weight: share of the picture in the result, from 0 to 1. The rest is the map.

    Returns:
        uint8 (H, W, 3), in the channel order of `img`, scaled so that its greatest value is 255.

    Raises:
        InputError: a shape, a range, the weight or the colour map is wrong.
        MissingDependencyError: the colour map is one of matplotlib's, which is not installed.

    Example:
        >>> show_cam_on_image(np.zeros((1, 2, 3)), np.array([[0.0, 1.0]]), use_rgb=True)
        array([[[  0,   0, 255],
                [255,   0,   0]]], dtype=uint8)
    """
    picture = require_array("img", img, ndim=3, least=0, most=1, form="a picture (H, W, 3)")
    values = require_array("mask", mask, ndim=2, least=0, most=1, form="a map (H, W)")
    if picture.shape[2] != 3 or values.shape != picture.shape[:2]:
        raise InputError(
            f"img has shape {picture.shape} and mask {values.shape}; (H, W, 3) and (H, W) were expected"
        )
    require_bool("use_rgb", use_rgb)
    image_weight = require_number("image_weight", image_weight, 0, 1)
    heat = _in_colours(values, colormap)
    blended = (1 - image_weight) * (heat if use_rgb else heat[..., ::-1]) + image_weight * picture
    return np.asarray(255 * blended / (blended.max() or 1.0), dtype=np.uint8)


def _in_colours(values: npt.NDArray[Any], colormap: Any) -> npt.NDArray[np.float64]:
    """Colours (H, W, 3) in [0, 1], red, green, blue, of values in [0, 1]."""
    # Quantise the values first, since a colour map of OpenCV has 256 entries.
    entries = (255 * values).astype(np.uint8)
    if is_whole_number(colormap):
        return np.asarray(opencv_colours(int(colormap))[entries] / 255.0)
    require_matplotlib()
    import matplotlib as mpl
    from matplotlib.colors import Colormap

    if not isinstance(colormap, (str, Colormap)):
        raise InputError(
            f"{given('colormap', colormap)} must be a colour map of matplotlib, the name of one, or the "
            "number of one of OpenCV"
        )
    if isinstance(colormap, str) and colormap not in mpl.colormaps:
        raise InputError(f"colormap={colormap!r} is unknown; {closest(colormap, mpl.colormaps)}")
    colours = mpl.colormaps[colormap] if isinstance(colormap, str) else colormap
    return np.asarray(colours(entries))[..., :3]


def deprocess_image(img: npt.ArrayLike) -> npt.NDArray[np.uint8]:
    """Make a picture of an array of any range, such as a gradient: its mean becomes grey.

    Args:
        img: real numbers of any shape. The mean becomes 0.5 and the standard deviation 0.1, before values
            outside [0, 1] are cut off.

    Returns:
        uint8 array of the same shape.

    Raises:
        InputError: the array is empty or not finite.

    Example:
        >>> deprocess_image([[-7.0, 0.0, 7.0]])
        array([[ 96, 127, 158]], dtype=uint8)
    """
    values = require_array("img", img).astype(np.float64)
    # A constant array has no deviation to divide by.
    standard = (values - values.mean()) / (values.std() + 1e-5)
    return np.asarray(255 * np.clip(0.5 + 0.1 * standard, 0, 1), dtype=np.uint8)


def normalise(picture: npt.NDArray[Any], mean: npt.ArrayLike, std: npt.ArrayLike) -> npt.NDArray[np.floating]:
    """Shift and scale each channel of a picture: ``(picture - mean) / std``.

    Args:
        picture: (..., C); uint8 is divided by 255 before.
        mean: mean of each channel, (C,).
        std: standard deviation of each channel, (C,).

    Returns:
        Array (..., C), float64.

    Example:
        >>> normalise(np.array([[255, 0]], dtype=np.uint8), [0.5, 0.5], [0.5, 0.25])
        array([[ 1., -2.]])
    """
    scaled = picture / 255 if picture.dtype == np.uint8 else picture
    return np.asarray((scaled - np.asarray(mean, np.float64)) / np.asarray(std, np.float64))


def preprocess_image(
    img: npt.ArrayLike,
    mean: Sequence[float] = (0.5, 0.5, 0.5),
    std: Sequence[float] = (0.5, 0.5, 0.5),
    data_format: DataFormat = "channels_first",
) -> npt.NDArray[np.float32]:
    """Normalise a picture for a network, ``(img - mean) / std`` for each channel, and add a batch axis.

    Args:
        img: (H, W, C), floating point in [0, 1], or uint8, which is divided by 255.
        mean: mean of each channel.
        std: standard deviation of each channel, positive.
        data_format: position of the channels in the result.

    Returns:
        float32 (1, C, H, W) or (1, H, W, C).

    Raises:
        InputError: the shapes do not fit, or a standard deviation is not positive.

    Example:
        >>> preprocess_image(np.array([[[0.0, 0.5, 1.0]]])).ravel()
        array([-1.,  0.,  1.], dtype=float32)
    """
    picture = require_array("img", img, ndim=3, form="a picture (H, W, C)")
    means = require_array("mean", mean, ndim=1).astype(np.float64)
    stds = require_array("std", std, ndim=1).astype(np.float64)
    if picture.ndim != 3 or means.shape != picture.shape[2:] or stds.shape != picture.shape[2:]:
        raise InputError(
            f"img has shape {picture.shape}, mean {means.shape} and std {stds.shape}; (H, W, C), (C,) and "
            "(C,) were expected"
        )
    if not (stds > 0).all():
        raise InputError(f"{given('std', std)} must be positive")
    require_data_format("data_format", data_format)
    if picture.dtype != np.uint8 and not (picture.min() >= 0 and picture.max() <= 1):
        raise InputError(
            f"img is a {picture.dtype} array with values from {picture.min():g} to {picture.max():g}; give "
            "values in [0, 1], or uint8"
        )
    normalised = normalise(picture, means, stds).astype(np.float32)
    order = Layout.of(picture.shape, data_format).from_channels_first()
    return np.ascontiguousarray(normalised.transpose(2, 0, 1).transpose(order))[None]
