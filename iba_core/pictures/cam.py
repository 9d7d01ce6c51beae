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
from iba_core.pictures.plotting import require_matplotlib

_OPENCV_JET = 2


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
        colormap: colour map of matplotlib, or its name. 2, the number of OpenCV's default in
            pytorch-grad-cam, means ``"jet"``.
        image_weight: share of the picture in the result, from 0 to 1. The rest is the map.

    Returns:
        uint8 (H, W, 3), in the channel order of `img`, scaled so that its greatest value is 255.

    Raises:
        InputError: a shape, a range, the weight or the colour map is wrong.
        MissingDependencyError: matplotlib is not installed.

    Example:
        >>> show_cam_on_image(np.zeros((1, 2, 3)), np.array([[0.0, 1.0]]), use_rgb=True)
        array([[[  0,   0, 255],
                [255,   0,   0]]], dtype=uint8)
    """
    require_matplotlib()
    import matplotlib as mpl
    from matplotlib.colors import Colormap

    picture = require_array("img", img, ndim=3, least=0, most=1, form="a picture (H, W, 3)")
    values = require_array("mask", mask, ndim=2, least=0, most=1, form="a map (H, W)")
    if picture.shape[2] != 3 or values.shape != picture.shape[:2]:
        raise InputError(
            f"img has shape {picture.shape} and mask {values.shape}; (H, W, 3) and (H, W) were expected"
        )
    require_bool("use_rgb", use_rgb)
    image_weight = require_number("image_weight", image_weight, 0, 1)
    if not isinstance(colormap, (str, Colormap)):
        if not (is_whole_number(colormap) and colormap == _OPENCV_JET):
            raise InputError(
                f"{given('colormap', colormap)} must be a colour map of matplotlib or the name of one"
            )
        colormap = "jet"
    elif isinstance(colormap, str) and colormap not in mpl.colormaps:
        raise InputError(f"colormap={colormap!r} is unknown; {closest(colormap, mpl.colormaps)}")
    colours = mpl.colormaps[colormap] if isinstance(colormap, str) else colormap
    # Quantise the values first, since a colour map of OpenCV has 256 entries.
    heat = np.asarray(colours((255 * values).astype(np.uint8)))[..., :3]
    blended = (1 - image_weight) * (heat if use_rgb else heat[..., ::-1]) + image_weight * picture
    return np.asarray(255 * blended / (blended.max() or 1.0), dtype=np.uint8)


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
    scaled = picture / 255 if picture.dtype == np.uint8 else picture
    normalised = np.asarray((scaled - means) / stds, dtype=np.float32)
    order = Layout.of(picture.shape, data_format).from_channels_first()
    return np.ascontiguousarray(normalised.transpose(2, 0, 1).transpose(order))[None]
