"""Pictures on their way into a network, and maps laid over them. OpenCV is not needed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from iba_core.errors import InputError, MissingDependencyError, closest
from iba_core.framework.layout import DataFormat, Layout
from iba_core.framework.namespace import host_array

_OPENCV_JET = 2


def show_cam_on_image(
    img: npt.ArrayLike,
    mask: npt.ArrayLike,
    use_rgb: bool = False,
    colormap: Any = "jet",
    image_weight: float = 0.5,
) -> npt.NDArray[np.uint8]:
    """A picture with a map laid over it in colours.

    Args:
        img: (H, W, 3), floating point in [0, 1].
        mask: (H, W), in [0, 1].
        use_rgb: the picture is in the order red, green, blue; otherwise, as in OpenCV, blue, green, red.
        colormap: a colour map of matplotlib or its name. (OpenCV's map 2, the default of the function
            that this one stands in for, is taken to be ``"jet"``.)
        image_weight: share of the picture, from 0 to 1; the rest are the colours of the map.

    Returns:
        uint8 (H, W, 3), in the order of `img`, scaled so that its greatest value is 255.

    Raises:
        InputError: a shape, a range, the weight or the colour map is wrong.
        MissingDependencyError: matplotlib is not installed.
    """
    try:
        import matplotlib as mpl
        from matplotlib.colors import Colormap
    except ImportError as error:
        raise MissingDependencyError("plotting needs matplotlib: pip install 'iba-core[plot]'") from error
    picture, values = host_array(img), host_array(mask)
    if picture.ndim != 3 or picture.shape[2] != 3 or values.shape != picture.shape[:2]:
        raise InputError(
            f"img has shape {picture.shape} and mask {values.shape}; (H, W, 3) and (H, W) were expected"
        )
    for name, array in (("img", picture), ("mask", values)):
        if not (array.min() >= 0 and array.max() <= 1):
            raise InputError(f"{name} reaches from {array.min()} to {array.max()}, not from 0 to 1 at most")
    if not 0 <= image_weight <= 1:
        raise InputError(f"image_weight={image_weight} must lie within 0 and 1")
    if not isinstance(colormap, (str, Colormap)):
        if colormap != _OPENCV_JET:
            raise InputError(f"colormap={colormap!r} is no colour map of matplotlib, nor the name of one")
        colormap = "jet"
    elif isinstance(colormap, str) and colormap not in mpl.colormaps:
        raise InputError(f"there is no colour map {colormap!r}; {closest(colormap, mpl.colormaps)}")
    colours = mpl.colormaps[colormap] if isinstance(colormap, str) else colormap
    # Values are quantised first, for a colour map of OpenCV has 256 entries.
    heat = np.asarray(colours((255 * values).astype(np.uint8)))[..., :3]
    blended = (1 - image_weight) * (heat if use_rgb else heat[..., ::-1]) + image_weight * picture
    return np.asarray(255 * blended / (blended.max() or 1.0), dtype=np.uint8)


def preprocess_image(
    img: npt.ArrayLike,
    mean: Sequence[float] = (0.5, 0.5, 0.5),
    std: Sequence[float] = (0.5, 0.5, 0.5),
    data_format: DataFormat = "channels_first",
) -> npt.NDArray[np.float32]:
    """A batch of one picture, normalised as networks want it: ``(img - mean) / std`` for each channel.

    Args:
        img: (H, W, C), floating point in [0, 1], or uint8, which is divided by 255.
        mean: of each channel.
        std: of each channel, positive.
        data_format: where the channels go.

    Returns:
        Array (1, C, H, W) or (1, H, W, C).

    Raises:
        InputError: the shapes do not fit, or a standard deviation is not positive.
    """
    picture = host_array(img)
    means, stds = np.asarray(mean, np.float64), np.asarray(std, np.float64)
    if picture.ndim != 3 or means.shape != picture.shape[2:] or stds.shape != picture.shape[2:]:
        raise InputError(
            f"img has shape {picture.shape}, mean {means.shape} and std {stds.shape}; (H, W, C) and twice "
            "(C,) were expected"
        )
    if not (stds > 0).all():
        raise InputError(f"std={std} must be positive")
    scaled = picture / 255 if picture.dtype == np.uint8 else picture
    normalised = np.asarray((scaled - means) / stds, dtype=np.float32)
    order = Layout.of(picture.shape, data_format).from_channels_first()
    return np.ascontiguousarray(normalised.transpose(2, 0, 1).transpose(order))[None]
