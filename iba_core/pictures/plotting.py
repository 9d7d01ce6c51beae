"""Plots of saliency maps. Matplotlib is imported when the first one is drawn."""

from __future__ import annotations

import base64
import math
import os
import re
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.util import find_spec
from io import BytesIO
from os import PathLike
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from iba_core.arguments import (
    given,
    require_choice,
    require_number,
    require_sequence,
    require_text,
    require_type,
    require_whole,
)
from iba_core.errors import InputError, MissingDependencyError
from iba_core.files import require_writable, shown, write_atomically
from iba_core.framework.arrays import require_array
from iba_core.pictures.images import to_unit_interval

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colors import Colormap, Normalize
    from matplotlib.figure import Figure

COLORMAP = "inferno"
"""Colour map of all maps. Its lightness grows evenly, and its hues differ from a grey picture."""

_ALPHAS = (0.2, 0.7)
"""Opacity of a map over a picture, where the map is 0 and where it is greatest."""

_SIDE, _GAP, _PAD, _BAR = 480, 24, 30, 24
"""Lengths of a picture that is written, in pixels: longer side of a panel, gaps, border, colour bar."""

_LETTER, _TITLE, _SPACE, _MARGIN = 22, 27, 8, 30
"""Heights of letters, in pixels, and the space between lines and around the colour bar."""

_COMPRESSION = 1
"""Of PNG files: the fastest."""

_SHARE = re.compile(r"\d+(\.\d*)?%")
"""A size relative to the axes."""

_WORD = np.array([240, 110, 60])
"""Colour (RGB) of the word with the most bits; a word with 0 bits is white."""

_LUMA = np.array([0.299, 0.587, 0.114])
"""Perceived brightness of red, green and blue (ITU-R BT.601)."""


def require_matplotlib() -> None:
    """Check that matplotlib is installed.

    Raises:
        MissingDependencyError: it is not.
    """
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise MissingDependencyError("plotting needs matplotlib: pip install 'iba-core[plot]'") from error


def caption(text: object) -> str:
    """Text for a figure, which has its line breaks and nothing else that is not shown as itself.

    Draw it with ``parse_math=False``: a name may hold dollar signs.
    """
    return "\n".join(map(shown, str(text).split("\n")))


def save_figure(figure: Figure, path: str | PathLike[str], **options: Any) -> None:
    """Write a figure as a PNG, whole or not at all.

    Args:
        figure: the figure.
        path: the file.
        **options: of matplotlib's ``savefig``.

    Raises:
        InputError: the file cannot be written.
    """
    with write_atomically(path) as file:
        figure.savefig(file, format="png", dpi=150, **options)


def axes_to_draw_into(ax: Axes | None) -> Axes:
    """Return `ax`, or the axes of a new figure of pyplot if it is None.

    Raises:
        MissingDependencyError: matplotlib is not installed.
    """
    require_matplotlib()
    _require_axes(ax)
    if ax is None:
        from matplotlib import pyplot

        ax = pyplot.subplots(layout="constrained")[1]
    return ax


def plot_saliency_map(
    saliency_map: npt.ArrayLike,
    img: npt.ArrayLike | None = None,
    ax: Axes | None = None,
    colorbar_label: str = "Bits / Pixel",
    colorbar_fontsize: float = 14,
    min_alpha: float = 0.2,
    max_alpha: float = 0.7,
    vmax: float | None = None,
    colorbar_size: Any = 0.3,
    colorbar_pad: Any = 0.08,
) -> Axes:
    """Draw a saliency map with a colour bar, over the picture in grey if one is given.

    Args:
        saliency_map: (H, W), or (1, H, W), in bits per pixel.
        img: picture (H, W), (H, W, 1) or (H, W, 3), with the height and width of the map. Floating-point
            values outside [0, 1] are scaled to that range.
        ax: axes to draw into; a new figure of pyplot if None.
        colorbar_label: text beside the colour bar.
        colorbar_fontsize: size of that text in points.
        min_alpha: opacity of the map where it is 0. Only used with a picture.
        max_alpha: opacity of the map where it is `vmax`. Only used with a picture.
        vmax: value at the top of the colour bar, in bits per pixel; the maximum of the map if None.
        colorbar_size: width of the colour bar: inches, or a size of ``mpl_toolkits.axes_grid1``.
        colorbar_pad: distance of the colour bar: inches, or a size of ``mpl_toolkits.axes_grid1``.

    Returns:
        The axes.

    Raises:
        InputError: a shape, an opacity or `vmax` is wrong, or the map is not finite.
        MissingDependencyError: matplotlib is not installed.

    Example:
        >>> ax = plot_saliency_map(np.array([[0.0, 0.5], [1.0, 2.0]]))
        >>> ax.get_images()[0].get_clim()
        (0.0, 2.0)
    """
    saliency = _as_map(saliency_map, "saliency_map")
    grey = None if img is None else _as_grey(img, saliency.shape)
    min_alpha, max_alpha = (
        require_number("min_alpha", min_alpha, 0, 1),
        require_number("max_alpha", max_alpha, 0, 1),
    )
    if min_alpha > max_alpha:
        raise InputError(f"min_alpha={min_alpha} is greater than max_alpha={max_alpha}")
    require_type("colorbar_label", colorbar_label, str, "a text")
    require_number("colorbar_fontsize", colorbar_fontsize, above=0, most=1000)
    colorbar_size = _axes_size("colorbar_size", colorbar_size, above=0)
    colorbar_pad = _axes_size("colorbar_pad", colorbar_pad, least=0)
    _require_axes(ax)
    cmap, norm = _scale(vmax, saliency)
    from mpl_toolkits.axes_grid1 import make_axes_locatable

    if ax is None:
        from matplotlib import pyplot

        # Leave room on the right for the labels of the colour bar, even beside a wide map.
        margins = {"left": 0.04, "right": 0.82, "bottom": 0.06, "top": 0.92}
        ax = pyplot.subplots(figsize=(5.5, 4.0), gridspec_kw=margins)[1]
    figure = ax.figure
    current = figure.gca()
    cax = make_axes_locatable(ax).append_axes("right", size=colorbar_size, pad=colorbar_pad)
    # Make the axes current again that were before the colour bar, for users of pyplot.
    figure.sca(current)

    alphas = (1.0, 1.0) if grey is None else (min_alpha, max_alpha)
    _draw_map(ax, saliency, grey, cmap, norm, alphas)
    _draw_colorbar(cax, norm, alphas, colorbar_label, colorbar_fontsize)
    return ax


def plot_signal_map(
    saliency_map: npt.ArrayLike,
    signal: npt.ArrayLike | None = None,
    ax: Axes | None = None,
    label: str = "Bits / Sample",
) -> Axes:
    """Draw the map of a signal as bars over time, with the signal as a line if one is given.

    Args:
        saliency_map: (T,), bits at each point in time.
        signal: (T,), or (T, C) or (C, T) for C channels.
        ax: axes to draw into; a new figure of pyplot if None.
        label: text beside the axis of the bits.

    Returns:
        The axes of the bars. The signal has axes of its own on the right.

    Raises:
        InputError: a shape is wrong, or a number is not finite.
        MissingDependencyError: matplotlib is not installed.

    Example:
        >>> ax = plot_signal_map([0.0, 2.0, 1.0], [0.1, 0.9, 0.2])
        >>> len(ax.patches)
        3
    """
    bits = require_array("saliency_map", saliency_map, ndim=1, form="one map (T,)").astype(np.float64)
    require_type("label", label, str, "a text")
    lines = None if signal is None else channels_last(signal, bits.shape, "signal")
    if lines is not None and (lines.ndim > 2 or lines.shape[:1] != bits.shape):
        raise InputError(
            f"signal has shape {lines.shape}; (T,), (T, C) or (C, T) with T={len(bits)} was expected"
        )
    ax = axes_to_draw_into(ax)
    ax.bar(np.arange(len(bits)), bits, width=1.0, color="#d9622b", alpha=0.8)
    ax.set_ylabel(label)
    ax.set_ylim(0, None)
    ax.margins(x=0)
    if lines is not None:
        beside = ax.twinx()
        beside.plot(np.arange(len(bits)), lines, color="#888888", linewidth=0.8)
        # The bars in front of the signal.
        ax.set_zorder(beside.get_zorder() + 1)
        ax.patch.set_visible(False)
        beside.tick_params(labelright=False, right=False)
    return ax


def plot_volume_map(
    saliency_map: npt.ArrayLike,
    volume: npt.ArrayLike | None = None,
    ax: Axes | None = None,
    view: Literal["slice", "max"] = "slice",
    axis: int = 0,
    position: int | None = None,
    **options: Any,
) -> Axes:
    """Draw a slice through the map of a volume, or its maximum along an axis.

    Args:
        saliency_map: (D, H, W), in bits per voxel.
        volume: (D, H, W), (D, H, W, 1) or (1, D, H, W), drawn in grey under the map.
        ax: axes to draw into; a new figure of pyplot if None.
        view: ``"slice"``, or ``"max"`` for the maximum of map and volume along the axis.
        axis: the axis to look along: 0 for the depth, 1 for the height, 2 for the width.
        position: number of the slice; that of the voxel with the most bits if None.
        **options: see `plot_saliency_map`. `vmax` is the maximum of the whole map unless it is given, so
            that the colours of all slices mean the same.

    Returns:
        The axes.

    Raises:
        InputError: a shape is wrong, a number is not finite, or an option has a value that it cannot have.
        MissingDependencyError: matplotlib is not installed.

    Example:
        >>> ax = plot_volume_map(np.arange(24.0).reshape(2, 3, 4))
        >>> ax.get_title()
        'slice 1 of 0 to 1, axis 0'
    """
    bits = require_array("saliency_map", saliency_map, ndim=3, form="one map (D, H, W)").astype(np.float64)
    require_choice("view", view, ("slice", "max"))
    axis = require_whole("axis", axis, 0, 2)
    last = bits.shape[axis] - 1
    if position is None:
        position = int(np.unravel_index(int(bits.argmax()), bits.shape)[axis])
    position = require_whole("position", position, 0, last)
    grey = None if volume is None else channels_last(volume, bits.shape, "volume")
    if grey is not None:
        grey = grey[..., 0] if grey.ndim == 4 and grey.shape[3] == 1 else grey
        if grey.shape != bits.shape:
            raise InputError(f"volume has shape {grey.shape}, which does not fit the map's {bits.shape}")
        grey = to_unit_interval(grey.astype(np.float64))

    def seen(values: npt.NDArray[Any]) -> npt.NDArray[Any]:
        return np.asarray(values.max(axis=axis) if view == "max" else values.take(position, axis=axis))

    options = {"vmax": float(bits.max()) or None, "colorbar_label": "Bits / Voxel", **options}
    ax = plot_saliency_map(seen(bits), None if grey is None else seen(grey), ax, **options)
    ax.set_title(
        f"maximum, axis {axis}" if view == "max" else f"slice {position} of 0 to {last}, axis {axis}"
    )
    return ax


def plot_words(
    words: Sequence[str],
    bits: npt.ArrayLike,
    ax: Axes | None = None,
    columns: int = 60,
    vmax: float | None = None,
) -> Axes:
    """Draw a text with a colour for the bits of each word, and the bits below it.

    Args:
        words: N words, or tokens.
        bits: (N,), bits of each.
        ax: axes to draw into, which should be wide; a new figure of pyplot if None.
        columns: characters in a line.
        vmax: bits of the strongest colour; the maximum of the text if None.

    Returns:
        The axes.

    Raises:
        InputError: the numbers of words and bits differ, or a number is not finite.
        MissingDependencyError: matplotlib is not installed.

    Example:
        >>> ax = plot_words(["a", "kitten"], [0.5, 3.0])
        >>> [text.get_text() for text in ax.texts]
        ['a', '0.5', 'kitten', '3']
    """
    require_sequence("words", words, "words")
    for word in words:
        require_text("words", word, "a list of words")
    texts = [caption(word) for word in words]
    values = require_array("bits", bits, ndim=1, form="one number per word").astype(np.float64)
    if len(values) != len(texts):
        raise InputError(
            f"there are {len(texts)} words and {len(values)} bits; give one number for each word"
        )
    columns = max(require_whole("columns", columns, 1, 1000), *map(len, texts), 4)
    colours = word_colours(values, vmax) / 255
    places, rows = _lines(texts, columns)
    require_matplotlib()
    _require_axes(ax)
    if ax is None:
        from matplotlib import pyplot

        figsize = (columns * 0.13 + 0.2, rows * 0.5 + 0.2)
        ax = pyplot.subplots(figsize=figsize, gridspec_kw={"left": 0, "right": 1, "bottom": 0, "top": 1})[1]
    # Letters of this font are three fifths as wide as they are high.
    size = 0.9 * ax.get_window_extent().width / ax.figure.dpi * 72 / (0.6 * (columns + 1))
    ax.set(xlim=(-0.5, columns + 0.5), ylim=(rows - 0.3, -0.5))
    ax.set_axis_off()
    style: dict[str, Any] = {"ha": "center", "va": "center", "family": "monospace", "parse_math": False}
    for text, value, colour, (middle, row) in zip(texts, values, colours, places, strict=True):
        back = {"facecolor": colour, "edgecolor": "none", "pad": 2}
        ax.text(middle, row, text, fontsize=size, color="#111111", bbox=back, **style)
        ax.text(middle, row + 0.42, f"{value:.2g}", fontsize=0.6 * size, color="#666666", **style)
    return ax


def _lines(words: Sequence[str], columns: int) -> tuple[list[tuple[float, int]], int]:
    """The middle and the line of each word, in letters, and the number of lines."""
    places, row, column = [], 0, 0
    for word in words:
        # The number below a word may be longer than the word.
        width = max(len(word), 4)
        if column and column + width > columns:
            row, column = row + 1, 0
        places.append((column + width / 2, row))
        column += width + 1
    return places, row + 1


def word_colours(bits: npt.NDArray[np.floating], vmax: float | None = None) -> npt.NDArray[np.uint8]:
    """RGB colours (N, 3) of words, from white for 0 bits to orange for `vmax`, or for the most bits.

    Args:
        bits: (N,).
        vmax: bits of the strongest colour; the maximum if None.

    Example:
        >>> word_colours(np.array([0.0, 2.0])).tolist()
        [[255, 255, 255], [240, 110, 60]]
    """
    peak = bits.max(initial=0.0) if vmax is None else require_number("vmax", vmax, above=0)
    shares = np.clip(bits / peak if peak else bits, 0, 1)
    return np.asarray(np.round(255 + shares[:, None] * (_WORD - 255)).astype(np.uint8))


def channels_last(picture: npt.ArrayLike, shape: tuple[int, ...], name: str = "image") -> npt.NDArray[Any]:
    """A picture or signal with the axes of its map first, whether its channels came first or last.

    Args:
        picture: (*shape), (*shape, C) or (C, *shape).
        shape: of the map. Where both readings fit, the channels are last.
        name: of the argument, for messages.

    Raises:
        InputError: it holds something else than numbers.

    Example:
        >>> channels_last(np.zeros((3, 8, 8)), (8, 8)).shape
        (8, 8, 3)
    """
    pixels = require_array(name, picture)
    if pixels.ndim == len(shape) + 1 and pixels.shape[:-1] != shape and pixels.shape[1:] == shape:
        return np.moveaxis(pixels, 0, -1)
    return pixels


def maps_as_html(maps: npt.NDArray[np.floating]) -> str:
    """Maps (B, H, W) beside each other, as the picture of an HTML page; nothing without matplotlib.

    All have one scale. Maps with other axes give no picture.
    """
    if maps.ndim != 3 or not maps.size or find_spec("matplotlib") is None:
        return ""
    import matplotlib as mpl

    scaled = np.clip(maps / (maps.max() or 1.0), 0, 1)
    gap = np.ones((maps.shape[1], max(1, maps.shape[2] // 20), 3))
    panels = [panel for each in scaled for panel in (mpl.colormaps[COLORMAP](each)[..., :3], gap)]
    pixels = (np.concatenate(panels[:-1], axis=1) * 255).round().astype(np.uint8)
    content = BytesIO()
    Image.fromarray(pixels).save(content, "PNG")
    text = base64.b64encode(content.getvalue()).decode("ascii")
    alt = f"saliency maps, {maps.max():.3g} bits per pixel at most"
    return f'<img alt="{alt}" src="data:image/png;base64,{text}">'


def save_overlay(
    path: str | PathLike[str],
    picture: npt.ArrayLike,
    maps: Mapping[str, npt.ArrayLike],
    *,
    title: str = "",
    subtitle: str = "",
    vmax: float | None = None,
) -> None:
    """Write a PNG with the picture and, beside it, each saliency map over the picture in grey.

    All maps share one scale and one colour bar. This takes some hundredths of a second.

    Args:
        path: path of the file, ending in ``.png``.
        picture: (H, W) or (H, W, 3), uint8, or floating point in [0, 1].
        maps: maps (H, W) in bits per pixel, by the line to write above each. The line may be empty.
        title: line above the whole figure.
        subtitle: line above the picture.
        vmax: value at the top of the colour bar, in bits per pixel; the maximum of all maps if None.

    Raises:
        InputError: there is no map, a shape is wrong, a map is not finite, or the file cannot be written.
        MissingDependencyError: matplotlib is not installed.

    Example:
        >>> import tempfile
        >>> saliency = np.array([[0.0, 0.5], [1.0, 2.0]])
        >>> save_overlay(tempfile.mkdtemp() + "/map.png", np.zeros((2, 2)), {"3.5 bits": saliency})
    """
    require_writable(path)
    if not isinstance(maps, Mapping) or not maps or not all(isinstance(line, str) for line in maps):
        raise InputError(f"{given('maps', maps)} must be a dict of saliency maps by the line above each")
    for name, text in (("title", title), ("subtitle", subtitle)):
        require_type(name, text, str, "a text")
    saliencies = {name: _as_map(values, f"maps[{name!r}]") for name, values in maps.items()}
    greys = [_as_grey(picture, saliency.shape, "picture") for saliency in saliencies.values()]
    _, norm = _scale(vmax, *saliencies.values())
    panels = [(_as_panel(_as_colours(picture, "picture")), subtitle)]
    for (line, saliency), grey in zip(saliencies.items(), greys, strict=True):
        panels.append((_as_panel(blended(np.asarray(norm(saliency)), grey)), line))
    sheet = _Sheet(panels, caption(title), norm.vmax or 1.0).drawn()
    with write_atomically(path) as file:
        sheet.save(file, "PNG", compress_level=_COMPRESSION)


def blended(levels: npt.NDArray[Any], grey: Any, alphas: tuple[float, float] = _ALPHAS) -> npt.NDArray[Any]:
    """Colours of a map over a grey picture: the more opaque, the higher the map.

    Args:
        levels: the map, of any shape, in [0, 1].
        grey: the picture in [0, 1], of the same shape, or one number.
        alphas: opacity where the map is 0 and where it is 1.

    Returns:
        Red, green and blue in [0, 1], on a last axis.

    Example:
        >>> blended(np.array([0.0, 1.0]), 0.5, (0.0, 1.0)).round(2)
        array([[0.5 , 0.5 , 0.5 ],
               [0.99, 1.  , 0.64]])
    """
    import matplotlib as mpl

    opacity = np.interp(levels, (0, 1), alphas)[..., None]
    colours = mpl.colormaps[COLORMAP](levels)[..., :3]
    return np.asarray(opacity * colours + (1 - opacity) * np.asarray(grey)[..., None])


class _Sheet:
    """Panels side by side, a colour bar, and text. It is drawn by Pillow, since matplotlib takes 0.6 s.

    Args:
        panels: pictures of one size, each with the lines above it.
        title: lines above everything.
        top: value at the top of the colour bar.
    """

    def __init__(self, panels: Sequence[tuple[Image.Image, str]], title: str, top: float) -> None:
        self._panels = [(panel, caption(lines)) for panel, lines in panels]
        self._title = title
        self._ticks = _ticks(top)
        self._top = top

    def drawn(self) -> Image.Image:
        """The sheet."""
        lines, bold = _font(False), _font(True)
        width, height = self._panels[0][0].size
        texts = [_text_size(text, lines) for _, text in self._panels]
        title = _text_size(self._title, bold)
        above = max(size[1] for size in texts) + _SPACE
        top = _PAD + (title[1] + 2 * _SPACE if self._title else 0) + above
        # Lines may be wider than their panel, and a title wider than everything.
        overhang = max(0, (texts[0][0] - width) // 2)
        across = max(width, *(size[0] for size in texts)) if len(texts) > 1 else width
        step = max(width, across) + _GAP
        bar_left = _PAD + overhang + step * (len(self._panels) - 1) + width + _GAP
        bar = self._colour_bar(height)
        right = max(bar_left + bar.width, _PAD + title[0]) + _PAD
        sheet = Image.new("RGB", (right, top + height + _PAD), "white")
        draw = ImageDraw.Draw(sheet)
        draw.multiline_text((_PAD, _PAD), self._title, "black", bold, spacing=_SPACE)
        for index, (panel, text) in enumerate(self._panels):
            left = _PAD + overhang + index * step
            sheet.paste(panel, (left, top))
            place = (left + width / 2, top - _SPACE)
            draw.multiline_text(place, text, "black", lines, "md", spacing=_SPACE, align="center")
        sheet.paste(bar, (bar_left, top - _MARGIN))
        return sheet

    def _colour_bar(self, height: int) -> Image.Image:
        """The colours over a medium grey, with ticks and a label; `_MARGIN` longer at both ends."""
        font = _font(False)
        exponent, labels = self._ticks
        widest = max(_text_size(text, font)[0] for _, text in labels)
        label = Image.new("RGB", (height + 2 * _MARGIN, _LETTER + _SPACE), "white")
        ImageDraw.Draw(label).text((label.width / 2, 0), "bits / pixel", "black", font, "ma")
        left = _BAR + 2 * _SPACE + widest + _SPACE
        image = Image.new("RGB", (left + label.height, height + 2 * _MARGIN), "white")
        draw = ImageDraw.Draw(image)
        colours = blended(np.linspace(1, 0, height)[:, None].repeat(_BAR, axis=1), 0.5)
        image.paste(Image.fromarray((colours * 255).round().astype(np.uint8)), (0, _MARGIN))
        for value, text in labels:
            y = _MARGIN + (1 - value / self._top) * (height - 1)
            draw.line([(_BAR, y), (_BAR + _SPACE, y)], "black")
            draw.text((_BAR + 2 * _SPACE, y), text, "black", font, "lm")
        if exponent:
            draw.text((0, 0), f"1e{exponent}", "black", font, "la")
        image.paste(label.rotate(90, expand=True), (left, 0))
        return image


def _ticks(top: float) -> tuple[int, list[tuple[float, str]]]:
    """Round values from 0 to `top` with their texts, and the power of ten that these leave out."""
    from matplotlib.ticker import MaxNLocator

    power = int(np.floor(np.log10(top)))
    exponent = 0 if -2 <= power < 4 else power
    values = [
        float(value)
        for value in MaxNLocator(6, steps=(1, 2, 5, 10)).tick_values(0, top)
        if value <= top * (1 + 1e-9)
    ]
    step = values[1] / 10.0**exponent if len(values) > 1 else 1.0
    digits = max(0, -int(np.floor(np.log10(step) + 1e-9)), len(f"{step:.4g}".partition(".")[2]))
    return exponent, [(value, f"{value / 10.0**exponent:.{digits}f}") for value in values]


@cache
def _font(bold: bool) -> ImageFont.FreeTypeFont:
    """The font of matplotlib's figures."""
    import matplotlib as mpl

    name = f"DejaVuSans{'-Bold' if bold else ''}.ttf"
    return ImageFont.truetype(
        os.path.join(mpl.get_data_path(), "fonts", "ttf", name), _TITLE if bold else _LETTER
    )


def _text_size(text: str, font: ImageFont.FreeTypeFont) -> tuple[int, int]:
    """Width and height of lines of text."""
    if not text:
        return 0, 0
    left, _, right, bottom = ImageDraw.Draw(Image.new("RGB", (1, 1))).multiline_textbbox(
        (0, 0), text, font, spacing=_SPACE
    )
    return math.ceil(right - left), math.ceil(bottom)


def as_pixels(picture: npt.ArrayLike) -> npt.NDArray[np.uint8]:
    """A picture as uint8, (H, W) or (H, W, 3).

    Args:
        picture: (H, W), (H, W, 1) or (H, W, 3), uint8 or floating point; outside [0, 1] it is scaled.

    Raises:
        InputError: it has another shape.

    Example:
        >>> as_pixels(np.array([[0.0, 1.0]])).tolist()
        [[0, 255]]
    """
    return (_as_colours(picture, "picture") * 255).round().astype(np.uint8)


def _as_panel(colours: npt.NDArray[Any]) -> Image.Image:
    """A picture in [0, 1] as a panel, whose longer side has `_SIDE` pixels."""
    image = Image.fromarray((colours * 255).round().astype(np.uint8)).convert("RGB")
    scale = _SIDE / max(image.size)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    # Few large features keep their edges.
    return image.resize(size, Image.Resampling.NEAREST if scale >= 3 else Image.Resampling.BICUBIC)


def _draw_map(
    ax: Axes,
    saliency: npt.NDArray[np.float64],
    grey: npt.NDArray[np.float64] | None,
    cmap: Colormap,
    norm: Normalize,
    alphas: tuple[float, float],
) -> None:
    if grey is not None:
        ax.imshow(grey, cmap="gray", vmin=0, vmax=1)
    opacity = np.interp(np.asarray(norm(saliency)), (0, 1), alphas)
    ax.imshow(saliency, cmap=cmap, norm=norm, alpha=opacity)
    ax.set_axis_off()


def _draw_colorbar(
    cax: Axes, norm: Normalize, alphas: tuple[float, float], label: str, fontsize: float
) -> None:
    """Draw a colour bar with the colours as they look over a medium grey."""
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import ListedColormap

    colours = ListedColormap(blended(np.linspace(0, 1, 256), 0.5, alphas))
    bar = cax.figure.colorbar(ScalarMappable(norm, colours), cax=cax)
    bar.set_label(label, fontsize=fontsize)
    bar.outline.set_visible(False)
    bar.ax.tick_params(length=3)
    bar.ax.ticklabel_format(axis="y", scilimits=(-2, 4))


def _scale(vmax: float | None, *maps: npt.NDArray[np.float64]) -> tuple[Colormap, Normalize]:
    """Choose the colours, and the range of values that they show."""
    if vmax is not None:
        vmax = require_number("vmax", vmax, above=0)
    require_matplotlib()
    import matplotlib as mpl
    from matplotlib.colors import Normalize

    # The colour bar of a map of zeros needs a range as well.
    top = vmax or max(float(saliency.max()) for saliency in maps) or 1.0
    return mpl.colormaps[COLORMAP], Normalize(0, top, clip=True)


def _as_map(values: npt.ArrayLike, argument: str) -> npt.NDArray[np.float64]:
    array = require_array(argument, values)
    # A batch of one map is taken as well.
    one = array[0] if array.ndim == 3 and len(array) == 1 else array
    return require_array(argument, one, ndim=2, form="one map (H, W)").astype(np.float64)


def _axes_size(name: str, value: Any, **limits: float) -> Any:
    """A size of ``mpl_toolkits.axes_grid1``: inches, or a size of its own, such as ``"5%"``."""
    from mpl_toolkits.axes_grid1 import axes_size

    if isinstance(value, str) and not _SHARE.fullmatch(value):
        raise InputError(f"{name}={value!r} must be inches, or a share such as '5%'")
    if isinstance(value, (str, axes_size._Base)):
        return value
    return axes_size.Fixed(require_number(name, value, most=100, **limits))


def _require_axes(ax: Any) -> None:
    from matplotlib.axes import Axes

    require_type("ax", ax, Axes, "axes of matplotlib", optional=True)


def _as_colours(picture: npt.ArrayLike, name: str = "img") -> npt.NDArray[np.float64]:
    """Convert the picture to [0, 1], (H, W) or (H, W, 3)."""
    pixels = require_array(name, picture)
    if pixels.ndim == 3 and pixels.shape[2] == 1:
        pixels = pixels[..., 0]
    if pixels.ndim != 2 and not (pixels.ndim == 3 and pixels.shape[2] == 3):
        raise InputError(f"{name} has shape {pixels.shape}; (H, W), (H, W, 1) or (H, W, 3) was expected")
    if pixels.dtype == np.uint8:
        return pixels / 255
    scaled = pixels.astype(np.float64)
    return scaled if scaled.min() >= 0 and scaled.max() <= 1 else np.asarray(to_unit_interval(scaled))


def _as_grey(picture: npt.ArrayLike, shape: tuple[int, ...], name: str = "img") -> npt.NDArray[np.float64]:
    colours = _as_colours(picture, name)
    if colours.shape[:2] != shape:
        raise InputError(
            f"{name} has shape {colours.shape}, but the saliency map {shape}; resize one of them"
        )
    return colours if colours.ndim == 2 else colours @ _LUMA
