"""Read masks, pictures that mark a concept, in all their usual forms."""

from __future__ import annotations

from os import PathLike
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from iba_core.errors import InputError
from iba_core.framework.arrays import as_array
from iba_core.pictures.images import read_image

_FOREGROUND = 127
"""Grey values and opacities above it are foreground."""

_LOSSY = ("JPEG", "WEBP")
"""Formats in which black may be stored as 1 or 2."""


def mask_picture(source: Image.Image | npt.NDArray[Any] | str | PathLike[str]) -> Image.Image:
    """Convert a mask to a grey picture, white where the concept is and black elsewhere.

    A mask may be

    - a picture with varying opacity, such as a cutout: the concept is where the opacity is above one half;
    - a grey or coloured picture: the concept is where the grey value is above 127 of 255;
    - a picture of labels, with no grey value above 127: the concept is the value 1, or the index 1 of a
      palette;
    - an array (H, W), (H, W, 1), (H, W, 3) or (H, W, 4) of uint8 or uint16, read in the same way, or of
      booleans.

    Args:
        source: a file, a Pillow image or an array.

    Returns:
        An image of mode ``"L"`` with the values 0 and 255. It is black if it does not show the concept.

    Raises:
        InputError: the file cannot be read, or the values are labels of more than one class.

    Example:
        >>> np.asarray(mask_picture(np.array([[0, 1], [1, 0]], np.uint8)))
        array([[  0, 255],
               [255,   0]], dtype=uint8)
    """
    if isinstance(source, (str, PathLike)):
        # Keep the file's format, since the images that Pillow derives from it do not.
        return read_image(source, _of_image)
    if isinstance(source, Image.Image):
        return _of_image(source, source.format, "source")
    return _of_image(_from_array(as_array("source", source)), None, "source")


def _of_image(image: Image.Image, kind: str | None, name: str = "the mask") -> Image.Image:
    values = _values(image)
    marked = values > _FOREGROUND
    if not marked.any() and values.any() and kind not in _LOSSY:
        labels = np.asarray(image) if image.mode == "P" else values
        if labels.max() > 1:
            raise InputError(
                f"{name} has values up to {labels.max()}, none above {_FOREGROUND}; a mask must be black "
                "and white, or transparent, or have the value 1 where the concept is and 0 elsewhere"
            )
        marked = labels == 1
    return Image.fromarray(np.where(marked, 255, 0).astype(np.uint8))


def _values(image: Image.Image) -> npt.NDArray[Any]:
    """Return the opacities if they vary, else the grey values, of 8 bits; or labels of 16 bits."""
    if image.mode.startswith("I;16") or image.mode == "I":
        values = np.asarray(image)
        # Files of 16 bits may contain numbers of 8 bits.
        return values if values.max() <= 255 else values // 257
    if image.has_transparency_data:
        opacity = np.asarray(image.convert("RGBA"))[..., 3]
        if opacity.min() <= _FOREGROUND < opacity.max():
            return opacity
    if image.mode == "F":
        raise InputError("a mask of floating-point numbers has no fixed range; give 8 or 16 bits")
    return np.asarray(image.convert("RGB").convert("L"))


def _from_array(array: npt.NDArray[Any]) -> Image.Image:
    pixels = np.asarray(array)
    pixels = pixels[..., 0] if pixels.ndim == 3 and pixels.shape[2] == 1 else pixels
    if 0 in pixels.shape or not (pixels.ndim == 2 or (pixels.ndim == 3 and pixels.shape[2] in (3, 4))):
        raise InputError(
            f"source has shape {pixels.shape}; (H, W), (H, W, 1), (H, W, 3) or (H, W, 4) was expected"
        )
    if pixels.dtype == bool:
        pixels = pixels * np.uint8(255)
    if pixels.dtype not in (np.uint8, np.uint16):
        raise InputError(f"source is an array of {pixels.dtype}; it must hold booleans, uint8 or uint16")
    return Image.fromarray(np.ascontiguousarray(pixels))
