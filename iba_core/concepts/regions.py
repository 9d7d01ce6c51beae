"""Regions of a picture, as annotations describe them: boxes, polygons, run lengths and labels.

A region marks the pixels whose centre lies in it. The pixel in row i and column j covers the square from
(j, i) to (j + 1, i + 1), as in COCO.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt
from PIL import Image

from iba_core.errors import InputError
from iba_core.pictures.images import read_image

Mask = npt.NDArray[np.bool_]

FARTHEST = 1e6
"""Largest coordinate. Real pictures have far fewer pixels along a side."""

_CROSSINGS = 1 << 22
"""Number of edges times rows to look at in one go."""

_DIGIT, _BITS, _FIRST = 0x1F, 5, ord("0")
"""A letter of compressed run lengths stands for five bits, and is counted from this one."""

_MORE, _SIGN = 0x20, 0x10
"""Bits of a letter: another letter follows; the number is negative."""

_LETTERS = 7
"""Most letters of a number, for numbers of 32 bits."""


class Region(Protocol):
    """A part of a picture."""

    def draw(self, shape: tuple[int, int]) -> Mask:
        """Mark the region in a picture of `shape`, (height, width). What lies outside is left out."""


@dataclass(frozen=True)
class Box:
    """A rectangle, with its edges in pixels.

    Example:
        >>> Box(1, 0, 3, 1).draw((2, 4)).astype(int)
        array([[0, 1, 1, 0],
               [0, 0, 0, 0]])
    """

    left: float
    top: float
    right: float
    bottom: float

    def draw(self, shape: tuple[int, int]) -> Mask:
        """See `Region.draw`."""
        rows, columns = (np.arange(size) + 0.5 for size in shape)
        inside = ((self.top <= rows) & (rows < self.bottom))[:, None]
        return inside & (self.left <= columns) & (columns < self.right)


@dataclass(frozen=True)
class Polygon:
    """The inside of a closed line; where it crosses itself, what an odd number of its turns enclose.

    Attributes:
        points: (x, y) of its corners, in pixels.

    Example:
        >>> Polygon(((0, 0), (3, 0), (0, 3))).draw((3, 3)).astype(int)
        array([[1, 1, 0],
               [1, 0, 0],
               [0, 0, 0]])
    """

    points: tuple[tuple[float, float], ...]

    def draw(self, shape: tuple[int, int]) -> Mask:
        """See `Region.draw`."""
        height, width = shape
        # A pixel is inside if an odd number of edges cross its row at or before its centre.
        changes = np.zeros((height, width + 1), dtype=bool)
        for rows, places in self._crossings(height):
            columns = np.clip(np.ceil(places - 0.5), 0, width).astype(np.int64)
            np.logical_xor.at(changes, (rows, columns), True)
        return np.logical_xor.accumulate(changes, axis=1)[:, :width]

    def _crossings(self, height: int) -> Iterator[tuple[npt.NDArray[np.intp], npt.NDArray[np.float64]]]:
        """Rows whose middle an edge crosses, and the x at which it does, for some edges at a time."""
        starts = np.asarray(self.points, dtype=np.float64)
        ends = np.roll(starts, -1, axis=0)
        centres = np.arange(height) + 0.5
        count = max(_CROSSINGS // max(height, 1), 1)
        for begin in range(0, len(starts), count):
            (x0, y0), (x1, y1) = starts[begin : begin + count].T, ends[begin : begin + count].T
            edges, rows = np.nonzero((y0[:, None] <= centres) != (y1[:, None] <= centres))
            slopes = (x1 - x0)[edges] / (y1 - y0)[edges]
            yield rows, x0[edges] + (centres[rows] - y0[edges]) * slopes


@dataclass(frozen=True)
class RunLengths:
    """Lengths of the runs of unmarked and marked pixels in turn, column by column, as in COCO.

    Attributes:
        counts: the lengths. The first run is not marked.
        shape: (height, width) of the picture.

    Example:
        >>> RunLengths((1, 2, 1), (2, 2)).draw((2, 2)).astype(int)
        array([[0, 1],
               [1, 0]])
    """

    counts: tuple[int, ...]
    shape: tuple[int, int]

    def draw(self, shape: tuple[int, int]) -> Mask:
        """See `Region.draw`."""
        if shape != self.shape:
            raise InputError(f"its run lengths are for a picture of {self.shape[1]} x {self.shape[0]} pixels")
        runs = np.resize([False, True], len(self.counts))
        return np.repeat(runs, self.counts).reshape(shape[::-1]).T


@dataclass(frozen=True)
class Labels:
    """The pixels with one label in a picture of labels.

    Attributes:
        path: image file whose values, or indices of its palette, are the labels.
        label: the label.
    """

    path: Path
    label: int

    def draw(self, shape: tuple[int, int]) -> Mask:
        """See `Region.draw`."""
        mask = labelled(self.path, self.label)
        if mask.shape != shape:
            raise InputError(f"{self.path} has {mask.shape[1]} x {mask.shape[0]} pixels")
        return mask


def labelled(path: Path, label: int) -> Mask:
    """Find the pixels with one label in an image file.

    Raises:
        InputError: the file cannot be read, or its colours are no labels.
    """

    def convert(image: Image.Image, kind: str | None) -> Image.Image:
        if kind == "JPEG" or not (image.mode in ("1", "P", "L", "I") or image.mode.startswith("I;16")):
            raise InputError("a picture of labels is needed, with one number for each pixel")
        return Image.fromarray(np.where(np.asarray(image) == label, 255, 0).astype(np.uint8))

    return np.asarray(read_image(path, convert)) > 0


def union(regions: Sequence[Region], shape: tuple[int, int]) -> Mask:
    """Mark all pixels that lie in one region at least; none without regions."""
    mask = np.zeros(shape, dtype=bool)
    for region in regions:
        mask |= region.draw(shape)
    return mask


def decompressed(text: str) -> list[int]:
    """Read compressed run lengths, the text that COCO's files hold in place of a list.

    A number is written in groups of five bits, the lowest first. From the fourth on, it is the difference
    from the number two before it.

    Raises:
        InputError: the text is damaged.

    Example:
        >>> decompressed("035")
        [0, 3, 5]
    """
    counts: list[int] = []
    number = letters = 0
    for letter in text:
        code = ord(letter) - _FIRST
        if not 0 <= code < 2 * _MORE or letters == _LETTERS:
            raise InputError(f"its compressed run lengths are damaged at {letter!r}")
        number |= (code & _DIGIT) << (_BITS * letters)
        letters += 1
        if code & _MORE:
            continue
        if code & _SIGN:
            number -= 1 << (_BITS * letters)
        counts.append(number + counts[-2] if len(counts) > 2 else number)
        number = letters = 0
    if letters:
        raise InputError("its compressed run lengths end within a number")
    return counts
