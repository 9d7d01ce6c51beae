"""Prepare pictures for a network, and lay maps over them, as pytorch-grad-cam does, without OpenCV."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from iba_core.errors import InputError, closest
from iba_core.framework.layout import DataFormat, Layout
from iba_core.framework.namespace import host_array
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

    picture, values = host_array(img), host_array(mask)
    if picture.ndim != 3 or picture.shape[2] != 3 or values.shape != picture.shape[:2]:
        raise InputError(
            f"img has shape {picture.shape} and mask {values.shape}; (H, W, 3) and (H, W) were expected"
        )
    for name, array in (("img", picture), ("mask", values)):
        if not (array.min() >= 0 and array.max() <= 1):
            raise InputError(
                f"{name} has values from {array.min()} to {array.max()}; they must be within 0 and 1"
            )
    if not 0 <= image_weight <= 1:
        raise InputError(f"image_weight={image_weight} must be within 0 and 1")
    if not isinstance(colormap, (str, Colormap)):
        if colormap != _OPENCV_JET:
            raise InputError(f"colormap={colormap!r} must be a colour map of matplotlib or the name of one")
        colormap = "jet"
    elif isinstance(colormap, str) and colormap not in mpl.colormaps:
        raise InputError(f"there is no colour map {colormap!r}; {closest(colormap, mpl.colormaps)}")
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
    picture = host_array(img)
    means, stds = np.asarray(mean, np.float64), np.asarray(std, np.float64)
    if picture.ndim != 3 or means.shape != picture.shape[2:] or stds.shape != picture.shape[2:]:
        raise InputError(
            f"img has shape {picture.shape}, mean {means.shape} and std {stds.shape}; (H, W, C), (C,) and "
            "(C,) were expected"
        )
    if not (stds > 0).all():
        raise InputError(f"std={std} must be positive")
    scaled = picture / 255 if picture.dtype == np.uint8 else picture
    normalised = np.asarray((scaled - means) / stds, dtype=np.float32)
    order = Layout.of(picture.shape, data_format).from_channels_first()
    return np.ascontiguousarray(normalised.transpose(2, 0, 1).transpose(order))[None]
