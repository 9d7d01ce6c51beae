"""Pictures that mark where a concept is, in the ways in which they come."""

from __future__ import annotations

from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from iba_core.errors import InputError
from iba_core.pictures.images import read_image

_FOREGROUND = 127
"""Grey values, or opacities, above it are foreground."""

_LOSSY = ("JPEG", "WEBP")
"""Formats in which black may come as 1 or 2."""


def mask_picture(source: Image.Image | npt.NDArray[Any] | str | PathLike[str]) -> Image.Image:
    """A mask as a grey picture, white where the concept is and black elsewhere.

    Understood are

    - pictures whose opacity varies, such as cut-outs: what is opaque (more than half) is the concept;
    - grey and coloured pictures: grey values above 127 of 255 are the concept;
    - labels, where no grey value is so high: 1 among 0 and 1, or among the indices of a palette;
    - arrays (H, W), (H, W, 1), (H, W, 3) or (H, W, 4) of uint8 or uint16 likewise, or of booleans.

    Args:
        source: a file, a Pillow image or an array.

    Returns:
        An image of mode ``"L"`` that holds 0 and 255 alone; black all over where the concept is not.

    Raises:
        InputError: the file cannot be read, or the values are labels of more than one class.
    """
    if isinstance(source, (str, PathLike)):
        path = Path(source)
        # What the file's format was is forgotten by everything that Pillow makes of it.
        return read_image(path, lambda image, kind: _of_image(image, str(path), kind))
    if isinstance(source, Image.Image):
        return _of_image(source, "the mask", source.format)
    return _of_image(_from_array(source), "the mask", None)


def _of_image(image: Image.Image, name: str, kind: str | None) -> Image.Image:
    values = _values(image)
    marked = values > _FOREGROUND
    if not marked.any() and values.any() and kind not in _LOSSY:
        labels = np.asarray(image) if image.mode == "P" else values
        if labels.max() > 1:
            raise InputError(
                f"{name} has values up to {labels.max()}, none above {_FOREGROUND}; a mask is black and "
                "white, or transparent, or holds 1 where the concept is and 0 elsewhere"
            )
        marked = labels == 1
    return Image.fromarray(np.where(marked, 255, 0).astype(np.uint8))


def _values(image: Image.Image) -> npt.NDArray[Any]:
    """Opacities, where they tell places apart, or grey values; of 8 bits, or labels of 16."""
    if image.mode.startswith("I;16") or image.mode == "I":
        values = np.asarray(image)
        # Files of 16 bits may well hold numbers of 8.
        return values if values.max() <= 255 else values // 257
    if image.has_transparency_data:
        opacity = np.asarray(image.convert("RGBA"))[..., 3]
        if opacity.min() <= _FOREGROUND < opacity.max():
            return opacity
    if image.mode == "F":
        raise InputError("a mask of floating-point numbers has no fixed range; 8 or 16 bits were expected")
    return np.asarray(image.convert("RGB").convert("L"))


def _from_array(array: npt.NDArray[Any]) -> Image.Image:
    pixels = np.asarray(array)
    pixels = pixels[..., 0] if pixels.ndim == 3 and pixels.shape[2] == 1 else pixels
    if 0 in pixels.shape or not (pixels.ndim == 2 or (pixels.ndim == 3 and pixels.shape[2] in (3, 4))):
        raise InputError(
            f"a mask has shape {pixels.shape}; (H, W), (H, W, 1), (H, W, 3) or (H, W, 4) was expected"
        )
    if pixels.dtype == bool:
        pixels = pixels * np.uint8(255)
    if pixels.dtype not in (np.uint8, np.uint16):
        raise InputError(f"a mask is an array of {pixels.dtype}; booleans, uint8 or uint16 were expected")
    return Image.fromarray(np.ascontiguousarray(pixels))
