"""The colour maps of OpenCV by their numbers, without OpenCV.

Most are straight lines between a few points, the old colour maps of Octave, in 64 or 256 steps. The
perceptual ones are those of matplotlib. Every entry is that of OpenCV, or the next one.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from iba_core.arguments import given, is_whole_number
from iba_core.errors import InputError
from iba_core.pictures.plotting import require_matplotlib

Points = tuple[tuple[float, float], ...]


class _Lines(NamedTuple):
    """Red, green and blue as lines between points (position, intensity), both from 0 to 1."""

    red: Points
    green: Points
    blue: Points
    steps: int = 256
    power: float = 1.0
    """Exponent of the intensities at the steps."""
    unit: float = 1.0
    """What positions and intensities are divided by."""


_UP: Points = ((0, 0), (1, 1))
_ONE: Points = ((0, 1), (1, 1))
_PINK = (
    ((0, 0), (3 / 8, 7 / 12), (1, 1)),
    ((0, 0), (3 / 8, 1 / 4), (3 / 4, 5 / 6), (1, 1)),
    ((0, 0), (3 / 4, 1 / 2), (1, 1)),
)
_PARULA = (
    (
        (0, 53),
        (32, 3),
        (64, 20),
        (95, 6),
        (115, 36),
        (128, 57),
        (161, 150),
        (192, 218),
        (223, 252),
        (255, 249),
    ),
    ((0, 42), (32, 99), (97, 168), (128, 185), (162, 191), (192, 186), (224, 207), (255, 251)),
    ((0, 135), (32, 225), (96, 198), (141, 140), (160, 114), (194, 83), (226, 43), (255, 14)),
)

_MAPS: dict[str, _Lines | None] = {
    "autumn": _Lines(_ONE, _UP, ((0, 0),)),
    "bone": _Lines(
        ((0, 0), (3 / 4, 21 / 32), (1, 1)),
        ((0, 0), (3 / 8, 21 / 64), (3 / 4, 25 / 32), (1, 1)),
        ((0, 0), (3 / 8, 29 / 64), (1, 1)),
        64,
    ),
    "jet": _Lines(
        ((3 / 8, 0), (5 / 8, 1), (7 / 8, 1), (1, 0.5)),
        ((1 / 8, 0), (3 / 8, 1), (5 / 8, 1), (7 / 8, 0)),
        ((0, 0.5), (1 / 8, 1), (3 / 8, 1), (5 / 8, 0)),
    ),
    "winter": _Lines(((0, 0),), _UP, ((0, 1), (1, 0.5))),
    "rainbow": _Lines(
        ((2 / 5, 1), (3 / 5, 0), (4 / 5, 0), (1, 2 / 3)),
        ((0, 0), (2 / 5, 1), (3 / 5, 1), (4 / 5, 0)),
        ((3 / 5, 0), (4 / 5, 1)),
        64,
    ),
    "ocean": _Lines(((2 / 3, 0), (1, 1)), ((1 / 3, 0), (1, 1)), _UP, 64),
    "summer": _Lines(_UP, ((0, 0.5), (1, 1)), ((0, 0.4),)),
    "spring": _Lines(_ONE, _UP, ((0, 1), (1, 0))),
    "cool": _Lines(_UP, ((0, 1), (1, 0)), _ONE),
    "hsv": _Lines(
        ((1 / 6, 1), (1 / 3, 0), (2 / 3, 0), (5 / 6, 1)),
        ((0, 0), (1 / 6, 1), (1 / 2, 1), (2 / 3, 0)),
        ((1 / 3, 0), (1 / 2, 1), (5 / 6, 1), (1, 0)),
        64,
    ),
    "pink": _Lines(*_PINK, 64, 0.5),
    "hot": _Lines(((0, 0), (2 / 5, 1)), ((2 / 5, 0), (4 / 5, 1)), ((4 / 5, 0), (1, 1)), 64),
    # No formula of this one is published: lines between the entries themselves.
    "parula": _Lines(*_PARULA, unit=255.0),
    "magma": None,
    "inferno": None,
    "plasma": None,
    "viridis": None,
    "cividis": None,
    "twilight": None,
    "twilight_shifted": None,
    "turbo": None,
    "deepgreen": _Lines(((2 / 3, 0), (1, 1)), _UP, ((1 / 3, 0), (1, 1)), 64),
}
"""The maps in the order of their numbers. None: as in matplotlib."""


def opencv_colours(number: int) -> npt.NDArray[np.uint8]:
    """Colours of an OpenCV colour map.

    Args:
        number: number of the map, 0 to 21: ``cv2.COLORMAP_AUTUMN`` is 0, ``COLORMAP_JET`` 2,
            ``COLORMAP_VIRIDIS`` 16, ``COLORMAP_DEEPGREEN`` 21.

    Returns:
        uint8 (256, 3), red, green, blue; read-only. An entry differs from that of OpenCV by 1 at most.

    Raises:
        InputError: there is no map of that number.
        MissingDependencyError: the map is one of matplotlib's (13 to 20), which is not installed.

    Example:
        >>> opencv_colours(2)[[0, 128, 255]]
        array([[  0,   0, 128],
               [130, 255, 126],
               [128,   0,   0]], dtype=uint8)
    """
    if not is_whole_number(number, 0, len(_MAPS) - 1):
        raise InputError(f"{given('colormap', number)} is no number of an OpenCV colour map, 0 to 21")
    return _colours(int(number))


@lru_cache(maxsize=len(_MAPS))
def _colours(number: int) -> npt.NDArray[np.uint8]:
    name, lines = list(_MAPS.items())[number]
    colours = _listed(name) if lines is None else _along(lines)
    # Rounded twice, so that a half that is not exact counts as one, and goes to the even number.
    rounded = np.rint(np.round(255 * colours, 6)).astype(np.uint8)
    rounded.flags.writeable = False
    return rounded


def _along(lines: _Lines) -> npt.NDArray[np.float64]:
    places, entries = np.linspace(0, 1, lines.steps), np.linspace(0, 1, 256)
    channels = []
    for points in (lines.red, lines.green, lines.blue):
        positions, intensities = np.transpose(points) / lines.unit
        channels.append(np.interp(places, positions, intensities) ** lines.power)
    return np.stack([np.interp(entries, places, channel) for channel in channels], axis=1)


def _listed(name: str) -> npt.NDArray[np.float64]:
    require_matplotlib()
    import matplotlib as mpl

    colour_map = mpl.colormaps[name]
    listed = np.asarray(colour_map(np.arange(colour_map.N)))[:, :3]
    places = np.linspace(0, len(listed) - 1, 256)
    return np.stack([np.interp(places, np.arange(len(listed)), channel) for channel in listed.T], axis=1)
