"""The images of a report: pictures as photographs, maps as levels of grey that the page colours."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image, PngImagePlugin

from iba_core.files import write_atomically

COLOURS: tuple[str, ...] = (
    *("#000004", "#0c0826", "#240c4f", "#420a68", "#5d126e", "#781c6d", "#932667", "#ae305c", "#c73e4c"),
    *("#dd513a", "#ed6925", "#f8850f", "#fca50a", "#fac62d", "#f2e661", "#fcffa4"),
)
"""Sixteen steps of matplotlib's colour map "inferno", in which all maps are drawn."""

OPACITIES: tuple[float, ...] = (0.25, 0.45, 0.6, 0.7, 0.78, 0.85)
"""Opacity of a map over its picture, in equal steps from 0 to the top of the scale."""

_LARGEST = 1024
"""Longest side of a picture in the report, in pixels."""

_QUALITY = 88
_TOP = "bits per pixel at the top"


class MapFile(NamedTuple):
    """A map as an image.

    Attributes:
        top: bits per pixel where the image is white.
        size: (width, height).
    """

    top: float
    size: tuple[int, int]


def write_map(path: Path, saliency: npt.NDArray[np.floating]) -> MapFile:
    """Write a map as an 8-bit grey PNG whose white is the map's maximum.

    Args:
        path: the file.
        saliency: (H, W) in bits per pixel. A signal (T,) becomes one row; of a volume (D, H, W), the maximum
            along the first axis is shown.

    Returns:
        What the image shows.
    """
    flat = np.atleast_2d(np.asarray(saliency, np.float64))
    if flat.ndim > 2:
        flat = flat.reshape(-1, *flat.shape[-2:]).max(axis=0)
    top = float(flat.max(initial=0.0))
    levels = np.rint(255 * np.clip(flat / (top or 1.0), 0, 1)).astype(np.uint8)
    facts = PngImagePlugin.PngInfo()
    facts.add_text(_TOP, repr(top))
    image = Image.fromarray(levels)
    with write_atomically(path, waits=False) as file:
        image.save(file, format="PNG", pnginfo=facts, compress_level=3)
    return MapFile(top, image.size)


def read_map(path: Path) -> MapFile | None:
    """What a file shows that `write_map` has written; None where there is none, or another."""
    try:
        with Image.open(path) as image:
            return MapFile(float(image.text[_TOP]), image.size)  # type: ignore[attr-defined]  # PNG has texts
    except (OSError, KeyError, ValueError, AttributeError, SyntaxError):
        return None


def write_picture(path: Path, source: Path) -> bool:
    """Write the picture that the network has seen as a JPEG, unless it is there.

    Returns:
        Whether it is there.
    """
    if path.exists():
        return True
    try:
        with Image.open(source) as image:
            picture = image.convert("RGB")
    except (OSError, ValueError, Image.DecompressionBombError, SyntaxError):
        return False
    picture.thumbnail((_LARGEST, _LARGEST))
    with write_atomically(path, waits=False) as file:
        picture.save(file, format="JPEG", quality=_QUALITY)
    return True


def channel_tables() -> dict[str, str]:
    """Tables of the colours for the transfer functions of an SVG filter, by channel."""
    numbers = [[int(colour[place : place + 2], 16) / 255 for colour in COLOURS] for place in (1, 3, 5)]
    tables = {name: " ".join(f"{each:.4g}" for each in row) for name, row in zip("RGB", numbers, strict=True)}
    return {**tables, "A": " ".join(f"{each:g}" for each in OPACITIES)}


def is_inside(folder: Path, file: Path) -> bool:
    """Whether a file lies in a folder once all links are followed."""
    return os.path.realpath(file).startswith(os.path.realpath(folder) + os.sep)
