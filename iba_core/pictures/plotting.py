"""Plots of saliency maps. Matplotlib is imported when the first one is drawn."""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from io import BytesIO
from os import PathLike
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt
from PIL import Image

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
    _draw_colorbar(cax, cmap, norm, alphas, colorbar_label, colorbar_fontsize)
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

    All maps share one scale and one colour bar. This needs no pyplot and no display.

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
    cmap, norm = _scale(vmax, *saliencies.values())
    from matplotlib.figure import Figure

    height, width = greys[0].shape
    # Use inches for all lengths, so that text keeps its size beside pictures of any shape.
    scale = 3.2 / max(height, width)
    panel_width, panel_height = width * scale, height * scale
    gap, bar = 0.15, 0.16
    total_width = (1 + len(maps)) * (panel_width + gap) + bar
    figure = Figure(figsize=(total_width, panel_height), facecolor="white")

    def axes(left: float, width: float) -> Axes:
        return figure.add_axes((left / total_width, 0, width / total_width, 1))

    ax = axes(0, panel_width)
    ax.imshow(_as_colours(picture, "picture"), cmap="gray", vmin=0, vmax=1)
    ax.set_axis_off()
    ax.set_title(caption(subtitle), fontsize=11, parse_math=False)
    for index, (line, saliency) in enumerate(saliencies.items(), start=1):
        ax = axes(index * (panel_width + gap), panel_width)
        _draw_map(ax, saliency, greys[index - 1], cmap, norm, _ALPHAS)
        ax.set_title(caption(line), fontsize=11, parse_math=False)
    _draw_colorbar(axes(total_width - bar, bar), cmap, norm, _ALPHAS, "bits / pixel", 11)
    if title:
        lines = max(text.count("\n") + 1 for text in (subtitle, *maps))
        above = 0.2 + 0.18 * lines
        text = caption(title)
        figure.text(0, 1 + above / panel_height, text, fontsize=13, fontweight="bold", parse_math=False)
    # "tight" makes room for the text around the panels.
    save_figure(figure, path, bbox_inches="tight", pad_inches=0.2)


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
    cax: Axes, cmap: Colormap, norm: Normalize, alphas: tuple[float, float], label: str, fontsize: float
) -> None:
    """Draw a colour bar with the colours as they look over a medium grey."""
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import ListedColormap

    levels = np.linspace(0, 1, 256)
    opacity = np.interp(levels, (0, 1), alphas)[:, None]
    blended = ListedColormap(opacity * cmap(levels)[:, :3] + (1 - opacity) * 0.5)
    bar = cax.figure.colorbar(ScalarMappable(norm, blended), cax=cax)
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
