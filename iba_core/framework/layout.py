"""Meaning of the axes of a feature map: channels and places. No formula branches on it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from math import prod
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from iba_core.arguments import DATA_FORMATS, require_bool, require_data_format, require_sizes, require_whole
from iba_core.errors import InputError, LayerError

DataFormat = Literal["channels_first", "channels_last"]


def input_format_by(data_format: DataFormat, rank: int, axes: Sequence[int | None]) -> DataFormat | None:
    """Where the channels of a model's input are, by where those of a feature map are.

    Args:
        data_format: where the channels of the feature map are.
        rank: number of the feature map's axes.
        axes: for each axis of the input, the axis of the feature map that it is; None for one that is not
            among them. Neither counts that of the images.

    Returns:
        None if the axes do not show it.

    Example:
        >>> input_format_by("channels_last", 3, [2, 0, 1])  # the input was permuted
        'channels_first'
    """
    if len(axes) < 2:
        return None
    channels = 0 if data_format == "channels_first" else rank - 1
    first, last = axes[0], axes[-1]
    if (first == channels) != (last == channels):
        return "channels_first" if first == channels else "channels_last"
    # What is a place in the feature map is one in the input.
    if (first is None) != (last is None):
        return "channels_first" if first is None else "channels_last"
    return None


@dataclass(frozen=True)
class Tokens:
    """How to read the token axis of a sequence of tokens.

    Attributes:
        prefix: number of first tokens that stand for no place, such as the class token of a vision
            transformer. The bottleneck acts on them, but they are not smoothed and not on the map.
        grid: (rows, columns) of the other tokens; None for a sequence.
        any_length: whether the tokens of all places have one distribution, so that sequences may have any
            length, as sentences do. The bottleneck then leaves out what the model's input
            ``attention_mask`` marks as padding.

    Raises:
        InputError: `any_length` is given with a prefix or a grid, or a number is wrong.

    Example:
        >>> Tokens(prefix=1, grid=(14, 14))  # ViT-B/16 at 224 pixels
        Tokens(prefix=1, grid=(14, 14), any_length=False)
    """

    prefix: int = 0
    grid: tuple[int, ...] | None = None
    any_length: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "prefix", require_whole("prefix", self.prefix))
        if self.grid is not None:
            sizes = require_sizes("grid", self.grid, None)
            if not 1 <= len(sizes) <= 3:
                raise InputError(f"grid={self.grid!r} has {len(sizes)} axes; it must have 1 to 3")
            object.__setattr__(self, "grid", sizes)
        if require_bool("any_length", self.any_length) and (self.prefix or self.grid is not None):
            raise InputError(
                "any_length=True is for tokens without prefix= and grid=, which fix their number"
            )

    def places(self, count: int) -> tuple[int, ...]:
        """Shape of the places of `count` tokens.

        Raises:
            InputError: the tokens do not fill the grid.
        """
        rest = count - self.prefix
        grid = (rest,) if self.grid is None else self.grid
        if rest < 1 or prod(grid) != rest:
            raise InputError(f"{count} tokens, {self.prefix} of them in front, do not fit the grid {grid}")
        return grid


@dataclass(frozen=True)
class Layout:
    """Meaning of the axes of one image's feature map (no batch axis).

    Attributes:
        ndim: number of axes of the feature map.
        channel_axis: the axis of the channels, counted from 0.
        tokens: how to read the spatial axis of a token sequence; None for other maps.

    The other axes are spatial: none for a dense layer, one for a sequence, two for an image, three for a
    volume.

    Example:
        >>> Layout.of((64, 28, 28), "channels_first").spatial_shape((64, 28, 28))
        (28, 28)
        >>> Layout.of((28, 28, 64), "channels_last").spatial_axes
        (0, 1)
    """

    ndim: int
    channel_axis: int
    tokens: Tokens | None = None

    def __post_init__(self) -> None:
        if not 1 <= self.ndim <= 4:
            raise InputError(
                f"a feature map has 1 to 4 axes (channels and up to 3 spatial ones), not {self.ndim}"
            )
        if not 0 <= self.channel_axis < self.ndim:
            raise InputError(
                f"channel_axis={self.channel_axis} is not an axis of a map with {self.ndim} axes"
            )
        if self.tokens is not None and self.ndim != 2:
            raise InputError(
                f"tokens={self.tokens} is for maps (tokens, channels), not for maps with {self.ndim} axes"
            )

    @classmethod
    def of(cls, shape: Sequence[int], data_format: DataFormat, tokens: Tokens | None = None) -> Layout:
        """Layout of a feature map of `shape` (no batch axis) in the given data format.

        Raises:
            InputError: `data_format` is neither ``"channels_first"`` nor ``"channels_last"``, or the
                shape does not have one to four axes.
        """
        if not (isinstance(data_format, str) and data_format in DATA_FORMATS):
            require_data_format("data_format", data_format)
        ndim = len(shape)
        return cls(ndim, 0 if data_format == "channels_first" else ndim - 1, tokens)

    @cached_property
    def spatial_axes(self) -> tuple[int, ...]:
        """All axes but that of the channels, in order."""
        return tuple(axis for axis in range(self.ndim) if axis != self.channel_axis)

    def spatial_shape(self, shape: Sequence[int]) -> tuple[int, ...]:
        """Sizes of the spatial axes of a feature map of `shape`."""
        return tuple(shape[axis] for axis in self.spatial_axes)

    def places(self, shape: Sequence[int]) -> tuple[int, ...]:
        """Shape of a saliency map at the resolution of a feature map of `shape`.

        Raises:
            InputError: the tokens do not fill their grid.
        """
        spatial = self.spatial_shape(shape)
        return spatial if self.tokens is None else self.tokens.places(spatial[0])

    def permuted(self, axes: Sequence[int]) -> Layout:
        """Layout after a permutation of a map's axes. The spatial axes must stay in their order."""
        return Layout(self.ndim, tuple(axes).index(self.channel_axis), self.tokens)

    def to_channels_first(self) -> tuple[int, ...]:
        """Permutation of the axes from this layout to channels first."""
        return (self.channel_axis, *self.spatial_axes)

    def from_channels_first(self) -> tuple[int, ...]:
        """Permutation of the axes from channels first to this layout."""
        return tuple(int(axis) for axis in np.argsort(self.to_channels_first()))


class AxisPart(NamedTuple):
    """A part of an axis of a feature map: one of the axes that were merged into it.

    Attributes:
        size: its length; None where that is open.
        sources: the axes of the input that it comes of, without that of the images, each with whether the
            part runs against it.
    """

    size: int | None
    sources: frozenset[tuple[int, bool]] = frozenset()


class FeatureAxes(NamedTuple):
    """What the axes of a feature map come of.

    Attributes:
        parts: for each axis, without that of the images, its parts from the outermost to the innermost.
        input_ndim: number of axes of the input, without that of the images.
        before: the axes of other tensors before it, some of which may be in another order than those of the
            input.
    """

    parts: Sequence[tuple[AxisPart, ...]]
    input_ndim: int
    before: Sequence[Sequence[tuple[AxisPart, ...]]] = ()


@dataclass(frozen=True)
class MapOrder:
    """How a map of a layer's places is turned, so that its axes are those of the input.

    Attributes:
        axes: the axes of the map, in the order of the input's.
        against: the axes of the turned map that run against those of the input.

    Example:
        >>> MapOrder((1, 0), (1,)).turn(np.array([[1, 2], [3, 4]]))
        array([[3, 1],
               [4, 2]])
    """

    axes: tuple[int, ...]
    against: tuple[int, ...] = ()

    @classmethod
    def unchanged(cls, layout: Layout) -> MapOrder:
        """The order of a map that stays as it is."""
        grid = layout.tokens and layout.tokens.grid
        return cls(tuple(range(len(grid or layout.spatial_axes))))

    @classmethod
    def of(cls, layout: Layout, axes: FeatureAxes, wanted: Sequence[int], layer: str) -> MapOrder:
        """Learn it from what the axes of a feature map come of.

        Where it is not known, and no tensor before has axes in another order, the map stays as it is.

        Args:
            layout: meaning of the feature map's axes.
            axes: what they come of.
            wanted: the axes of the input that are places, in order.
            layer: name of the layer, for the error.

        Raises:
            LayerError: axes are in another order than those of the input, but not all of them are known.

        Example:
            >>> rows, columns = (AxisPart(4, frozenset({(axis, False)})) for axis in (1, 2))
            >>> axes = FeatureAxes([(AxisPart(8),), (columns,), (rows,)], 3)
            >>> MapOrder.of(Layout(3, 0), axes, (1, 2), "conv")
            MapOrder(axes=(1, 0), against=())
        """
        sources = _sources_of_places(layout, axes.parts)
        lies_over = len(sources) == len(wanted)
        found = _only_sources(sources, wanted if lies_over else None)
        if lies_over and found.count(None) == 1:
            found[found.index(None)] = next(axis for axis in wanted if axis not in found)
        order = list(range(len(found)))
        if None not in found:
            order.sort(key=lambda place: found[place] or 0)
        elif lies_over and (
            any(axis not in (None, own) for axis, own in zip(found, wanted, strict=True))
            or (
                # Nothing is known of an axis. One that comes of several lies as well one way as the other.
                any(not {axis for axis, _ in own} & {*wanted} for own in sources)
                and any(_are_moved(each, wanted) for each in axes.before)
            )
        ):
            raise LayerError(
                f"the model exchanges or reverses axes of the input before layer {layer!r}, and does not "
                "show where all of them are there, so a map cannot be laid over the input; do that in front "
                "of the model"
            )
        runs = [{turned for axis, turned in own if axis == found[place]} for place, own in enumerate(sources)]
        against = (number for number, place in enumerate(order) if runs[place] == {True})
        return cls(tuple(order), tuple(against))

    @property
    def is_unchanged(self) -> bool:
        """Whether maps stay as they are."""
        return not self.against and self.axes == tuple(range(len(self.axes)))

    def turn(self, maps: npt.NDArray[np.floating]) -> npt.NDArray[np.floating]:
        """Turn maps (..., *places)."""
        lead = maps.ndim - len(self.axes)
        turned = np.transpose(maps, (*range(lead), *(lead + axis for axis in self.axes)))
        return maps if self.is_unchanged else np.flip(turned, tuple(lead + axis for axis in self.against))


def _sources_of_places(
    layout: Layout, parts: Sequence[tuple[AxisPart, ...]]
) -> list[frozenset[tuple[int, bool]]]:
    """What each place axis of a map comes of."""
    tokens = layout.tokens
    if tokens is None or tokens.grid is None:
        return [frozenset().union(*(part.sources for part in parts[axis])) for axis in layout.spatial_axes]
    merged = parts[layout.spatial_axes[0]]
    if not tokens.prefix and tuple(part.size for part in merged) == tokens.grid:
        return [part.sources for part in merged]
    return [frozenset() for _ in tokens.grid]


def _are_moved(parts: Sequence[tuple[AxisPart, ...]], wanted: Sequence[int]) -> bool:
    """Whether axes come of all those of the input that are places, in another order or reversed."""
    whole = [axis[0].sources if len(axis) == 1 else frozenset[tuple[int, bool]]() for axis in parts]
    found = _only_sources(whole, wanted)
    order = [axis for axis in found if axis is not None]
    reverses = any(
        {turned for axis, turned in own if axis == only} == {True}
        for own, only in zip(whole, found, strict=True)
        if only is not None
    )
    return sorted(order) == sorted(wanted) and (order != sorted(order) or reverses)


def _only_sources(
    sources: Sequence[frozenset[tuple[int, bool]]], among: Sequence[int] | None
) -> list[int | None]:
    """For each axis, the one of the input that it alone comes of, and of which no other comes."""
    axes = [{axis for axis, _ in own if among is None or axis in among} for own in sources]
    single = [next(iter(own)) if len(own) == 1 else None for own in axes]
    return [axis if single.count(axis) == 1 else None for axis in single]
