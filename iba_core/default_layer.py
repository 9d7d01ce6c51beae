"""Choice of a layer for those who name none."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from math import log2, prod
from typing import Any

import numpy as np
import numpy.typing as npt

from iba_core.errors import IBAError, LayerError
from iba_core.framework.adapter import Inputs, LayerInfo, ModelAdapter, Split
from iba_core.framework.comparison import all_close
from iba_core.framework.framework import Framework
from iba_core.framework.inputs import PADDING_MASKS, Shared, arrays_of, map_leaves
from iba_core.framework.layout import Layout, Tokens
from iba_core.framework.namespace import Array
from iba_core.targets import first_output

_PARTS = 24
_FINEST = 64

_CELLS = 8
"""Places of an input that are changed to see which token follows them."""

_MOST_PREFIX = 16
"""Most tokens in front of those that stand for places: a class token, and registers."""

_TRIES = 6
"""Groups of blocks, or layers of words, that are tried."""

_NUMBER = re.compile(r"\d+")


@dataclass(frozen=True)
class LayerChoice:
    """A layer for a bottleneck, and how to read its features.

    Attributes:
        layer: name of the layer.
        tokens: how to read its features where they are a sequence of tokens; None for other features.
    """

    layer: str
    tokens: Tokens | None = None


def choose_layer(adapter: ModelAdapter, inputs: Inputs) -> LayerChoice:
    """Choose a sensible layer for a bottleneck, in a model of images, signals, volumes or words.

    Of a transformer, it takes a block at a third of the depth, and for words the first one, after which a
    vector is mostly about its own word. Which token stands for which place of the
    input is asked of the model: a place of the input is changed, and its own token must change the most. Of
    other models of words, it takes the first layer with a vector for each word.

    Of all other models: deep layers know objects, shallow layers know places. The choice is among the layers
    that resolve the input in 24 parts a side or a few more (the paper's layers in VGG-16 and ResNet-50 have
    28), or else in the most parts there are. It takes the layer in the middle, or the nearest to it that all
    information passes: after a layer inside a residual block, the skip connection would not be explained. Of
    a block and the layers in it, it takes the block. Parts are counted by how often the input has been
    halved, so a border of padding adds none. Layers as fine as the input itself are taken where there are no
    others.

    Args:
        adapter: adapter of the model.
        inputs: a batch of one input.

    Returns:
        The layer, and how to read its tokens.

    Raises:
        LayerError: no layer qualifies; name one.
    """
    return _chosen(_Probe(adapter, inputs), adapter.layers(inputs))


def choose_layers(adapter: ModelAdapter, inputs: Inputs) -> tuple[LayerChoice, ...]:
    """Choose the layers whose maps are combined by ``Explainer(model)``.

    They are the one that `choose_layer` takes, and the last one that all information passes of those that
    divide the input into half as many parts a side. The first knows places, the second knows more of objects.
    With the preset ``"fast"`` for both, their map is better by most metrics than that of the first alone on
    EfficientNet-Lite0, in less time, and about as good on other networks, see `benchmarks.trust`,
    `benchmarks.quick` and `benchmarks.layers`.

    Args:
        adapter: adapter of the model.
        inputs: a batch of one input.

    Returns:
        Both layers. In a transformer, or where no layer divides the input so, the first alone.

    Raises:
        LayerError: no layer qualifies; name one.
    """
    infos, probe = adapter.layers(inputs), _Probe(adapter, inputs)
    first = _chosen(probe, infos)
    second = None if first.tokens is not None or probe.is_text else _coarser(probe, infos, first.layer)
    return (first,) if second is None else (first, LayerChoice(second))


def _chosen(probe: _Probe, infos: Sequence[LayerInfo]) -> LayerChoice:
    other = _words if probe.is_text else _in_parts
    return _required(_block(probe, infos) or other(probe, infos))


def _coarser(probe: _Probe, infos: Sequence[LayerInfo], layer: str) -> str | None:
    """The last layer with half as many parts as another, of those that are the least nested."""
    halvings = {info.name: found for info in infos if (found := probe.halvings(info)) is not None}
    groups: dict[tuple[int, int], list[str]] = {}
    for info in infos:
        places = probe.places(info)
        if places is None or halvings.get(info.name) != halvings[layer] + 1:
            continue
        # Of equally many parts, a border of padding makes larger maps.
        groups.setdefault((info.depth, min(places[0])), []).append(info.name)
    for _, names in sorted(groups.items()):
        for name in reversed(names):
            if everything_passes(probe.adapter, name, probe.inputs):
                return name
    return None


def default_layer(adapter: ModelAdapter, inputs: Inputs) -> str:
    """Choose a layer as `choose_layer` does, among those with features that need no `Tokens`.

    Args:
        adapter: adapter of the model.
        inputs: a batch of one input.

    Returns:
        Name of the layer.

    Raises:
        LayerError: no layer qualifies; name one.
    """
    return _required(_in_parts(_Probe(adapter, inputs), adapter.layers(inputs))).layer


def _required(found: LayerChoice | None) -> LayerChoice:
    if found is None:
        raise LayerError(
            "no layer with a value for each place lets all information pass; name one with layer="
        )
    return found


class _Probe:
    """A model and one of its inputs, to ask the model about its layers."""

    def __init__(self, adapter: ModelAdapter, inputs: Inputs) -> None:
        self.adapter, self.inputs = adapter, inputs
        first = next(arrays_of(inputs))
        self.shape = tuple(int(size) for size in first.shape[1:])
        numbers = adapter.framework.to_numpy(first)
        self.is_text = len(self.shape) == 1 and not np.issubdtype(numbers.dtype, np.floating)
        self._numbers = numbers
        self._splits: dict[str, Split] = {}
        self._format_of: dict[tuple[int, ...], Split] = {}

    def split(self, name: str) -> Split | None:
        """The model split at a layer that has run on the input once; None where that cannot be."""
        if name not in self._splits:
            try:
                split = self.adapter.split(name)
                split.features(self.inputs)
            except IBAError:
                return None
            self._splits[name] = split
        return self._splits[name]

    def places(self, info: LayerInfo) -> tuple[tuple[int, ...], tuple[int, ...]] | None:
        """Sizes of the spatial axes of a layer's features and of the input, if they are as many."""
        shape = info.output_shape
        if shape is None or not 2 <= len(shape) <= 4:
            return None
        data_format, input_format, has_channels = self.adapter.data_format, self.adapter.data_format, True
        if len(shape) == 2:
            if len(self.shape) > 2:
                return None
            # Signals have their channels first as often as last, which the model tells.
            split = self._format_of.get(shape) or self.split(info.name)
            if split is None:
                return None
            if shape[0] != shape[1]:
                self._format_of[shape] = split
            data_format, input_format = split.data_format, split.input_format
            has_channels = split.input_has_channels and len(self.shape) > 1
        own = Layout.of(shape, data_format).spatial_shape(shape)
        whole = Layout.of(self.shape, input_format).spatial_shape(self.shape) if has_channels else self.shape
        return (own, whole) if len(own) == len(whole) else None

    def halvings(self, info: LayerInfo) -> int | None:
        """How often the input has been halved in a layer's features; None if they have no places, or one."""
        places = self.places(info)
        if places is None or not 1 < (side := min(places[0])) <= (whole := min(places[1])):
            return None
        return round(log2(whole / side))

    def is_input(self, name: str) -> bool:
        """Whether a layer gives the input as it is, as the input layers of Keras do."""
        split = self.split(name)
        if split is None:
            return False
        features = self.adapter.framework.to_numpy(split.features(self.inputs))
        return features.shape == self._numbers.shape and bool(np.array_equal(features, self._numbers))

    def follow(self, name: str, tokens: Tokens) -> bool:
        """Whether each token of a layer is about its own place of the input.

        A place of the input is changed, and the token that changes the most must be the place's own.
        """
        split = self.split(name)
        if split is None or split.data_format != "channels_last":
            return False
        count = int(split.features(self.inputs).shape[1])
        grid = tokens.places(count)
        wide = Layout.of(self.shape, split.input_format).spatial_axes if len(self.shape) > 1 else (0,)
        if len(wide) != len(grid) or any(self.shape[axis] < n for axis, n in zip(wide, grid, strict=True)):
            return False
        before = self._features(split, self._numbers)
        cells = np.unique(np.linspace(0, prod(grid) - 1, min(_CELLS, prod(grid))).round().astype(int))
        right = 0
        for cell in cells:
            found = self._features(split, self._changed(cell, grid, wide)) - before
            moved = int(np.abs(found).reshape(count, -1).sum(axis=1).argmax()) - tokens.prefix
            # A window without padding lies half a step beside its place.
            whole = all(self.shape[a] % n == 0 for a, n in zip(wide, grid, strict=True))
            # Of a small grid, every cell lies beside every other.
            slack = 0 if whole or min(grid) < 4 else 1
            right += moved >= 0 and _distance(moved, int(cell), grid) <= slack
        return right >= 0.75 * len(cells)

    def _features(self, split: Split, numbers: npt.NDArray[Any]) -> npt.NDArray[Any]:
        framework, first = self.adapter.framework, next(arrays_of(self.inputs))

        def replaced(_: Any, x: Array) -> Array:
            return framework.asarray(numbers, like=x) if x is first else x

        found = framework.to_numpy(split.features(map_leaves(replaced, self.inputs)))
        return np.asarray(found[0], np.float64)

    def _changed(self, cell: int, grid: tuple[int, ...], axes: tuple[int, ...]) -> npt.NDArray[Any]:
        """The input with other numbers at one cell of a grid."""
        numbers, where = self._numbers.copy(), [slice(0, 1), *[slice(None)] * len(self.shape)]
        for axis, count, index in zip(axes, grid, np.unravel_index(cell, grid), strict=True):
            size = self.shape[axis]
            where[1 + axis] = slice(int(index) * size // count, (int(index) + 1) * size // count)
        part = numbers[tuple(where)]
        if self.is_text:
            # Only words that are there are sure to be known.
            others = self._numbers[self._numbers != part.reshape(-1)[0]]
            part[:] = others.reshape(-1)[0] if others.size else part
        else:
            part += 3 * np.random.default_rng(0).standard_normal(part.shape).astype(part.dtype)
        return numbers


def _distance(found: int, cell: int, grid: tuple[int, ...]) -> int:
    if found >= prod(grid):
        return prod(grid)
    pairs = zip(np.unravel_index(found, grid), np.unravel_index(cell, grid), strict=True)
    return max(abs(int(a) - int(b)) for a, b in pairs)


def _block(probe: _Probe, infos: Sequence[LayerInfo]) -> LayerChoice | None:
    """A block of a transformer at a third of its depth, and which token is about which place."""
    blocks: dict[tuple[str, str, tuple[int, ...]], list[str]] = {}
    for info in infos:
        if info.output_shape is not None and len(info.output_shape) == 2:
            key = (_NUMBER.sub("#", info.name), info.kind, info.output_shape)
            blocks.setdefault(key, []).append(info.name)
    ordered = sorted(blocks.items(), key=lambda item: item[0][0].count(".") + item[0][0].count("/"))
    for (_, _, (count, _)), names in [item for item in ordered if len(item[1]) > 1][:_TRIES]:
        # A vector has looked at the other words the less, the earlier it is taken.
        third = 0 if probe.is_text else max(0, round(len(names) / 3) - 1)
        for name in dict.fromkeys((names[third], names[0])):
            for tokens in _readings(probe, infos, count):
                if probe.follow(name, tokens) and everything_passes(probe.adapter, name, probe.inputs):
                    return LayerChoice(name, tokens)
    return None


def _readings(probe: _Probe, infos: Sequence[LayerInfo], count: int) -> list[Tokens]:
    """Ways in which `count` tokens may stand for places of the input. The model has the last word."""
    if probe.is_text:
        return _text_readings(probe, count)
    axes = len(probe.shape)
    if axes <= 2:
        return [Tokens()] if axes == 1 else [Tokens(), *_prefixed(probe, count)]
    grids = [
        sizes
        for info in infos
        if (shape := info.output_shape) is not None and len(shape) == axes
        for sizes in [Layout.of(shape, probe.adapter.data_format).spatial_shape(shape)]
    ]
    side = int(count ** (1 / (axes - 1)) + 1e-9)
    # Patches that are made by a reshape have no layer of their own.
    grids.append((side,) * (axes - 1))
    fits = [grid for grid in dict.fromkeys(reversed(grids)) if 0 <= count - prod(grid) <= _MOST_PREFIX]
    return [Tokens(prefix=count - prod(grid), grid=grid) for grid in fits if prod(grid) > 1]


def _prefixed(probe: _Probe, count: int) -> list[Tokens]:
    more = {count - size for size in probe.shape}
    return [Tokens(prefix=each) for each in sorted(more) if 0 < each <= _MOST_PREFIX]


def _text_readings(probe: _Probe, count: int) -> list[Tokens]:
    (length,) = probe.shape
    if count == length:
        return [Tokens(any_length=True)]
    return [Tokens(prefix=count - length)] if 0 < count - length <= _MOST_PREFIX else []


def _words(probe: _Probe, infos: Sequence[LayerInfo]) -> LayerChoice | None:
    """The first layer that has a vector for each word, such as an embedding."""
    names = [
        (info.name, tokens)
        for info in infos
        if info.output_shape is not None and len(info.output_shape) == 2
        for tokens in _text_readings(probe, info.output_shape[0])
    ]
    for name, tokens in names[:_TRIES]:
        if probe.follow(name, tokens) and everything_passes(probe.adapter, name, probe.inputs):
            return LayerChoice(name, tokens)
    return None


def _in_parts(probe: _Probe, infos: Sequence[LayerInfo]) -> LayerChoice | None:
    """A layer that resolves the input in about 24 parts a side, in the middle of those that do."""
    groups: dict[tuple[bool, bool, float, int], list[str]] = {}
    for info in infos:
        places, halvings = probe.places(info), probe.halvings(info)
        if places is not None and halvings is not None:
            side, whole = min(places[0]), min(places[1])
            parts = whole / 2.0**halvings
            key = (side == whole, parts < _PARTS, abs(parts - _PARTS), info.depth)
            groups.setdefault(key, []).append(info.name)
    for (is_whole, *_), names in sorted(groups.items()):
        for name in _from_the_middle(names):
            if everything_passes(probe.adapter, name, probe.inputs) and not (
                is_whole and probe.is_input(name)
            ):
                return LayerChoice(name)
    return None


def layers_over_depth(adapter: ModelAdapter, inputs: Inputs, count: int = 8) -> list[str]:
    """Choose layers to compare, from the first to the last that has places.

    They are equally far from each other, in the order in which the model lists them. Of blocks and the layers
    in them, it takes the blocks if there are enough. Finer maps than 64 places a side are left out: they know
    edges, no objects, and take most of the time.

    Args:
        adapter: adapter of the model.
        inputs: a batch of one input, an image.
        count: the most layers.

    Returns:
        Names of the layers, at least one.

    Raises:
        LayerError: no layer has two spatial axes; name the layers.
    """
    image = tuple(next(arrays_of(inputs)).shape[1:])
    whole = min(Layout.of(image, adapter.data_format).spatial_shape(image)) if len(image) == 3 else 0
    levels: dict[int, list[str]] = {}
    unreduced: list[str] = []
    for info in adapter.layers(inputs):
        shape = info.output_shape
        if shape is None or len(shape) != 3:
            continue
        side = min(Layout.of(shape, adapter.data_format).spatial_shape(shape))
        if 1 < side <= _FINEST:
            # The input itself is a layer of Keras models.
            levels.setdefault(info.depth, []).append(info.name) if side < whole else unreduced.append(
                info.name
            )
    if not levels and not unreduced:
        raise LayerError("no layer has maps with two spatial axes; name the layers with layers=")
    enough = [names for _, names in sorted(levels.items()) if len(names) >= count]
    names = enough[0] if enough else max([*levels.values(), unreduced], key=len)
    picks = np.linspace(0, len(names) - 1, min(count, len(names)))
    return [names[round(pick)] for pick in picks]


def everything_passes(adapter: ModelAdapter, name: str, inputs: Inputs) -> bool:
    """Whether a model can be split at a layer, and its output depends on the input through that alone.

    Args:
        adapter: adapter of the model.
        name: name of the layer.
        inputs: a batch of one input.
    """
    try:
        return bool(nothing_passes_by(adapter.framework, adapter.split(name), inputs))
    except IBAError:
        return False


def _from_the_middle(names: list[str]) -> list[str]:
    middle = len(names) // 2
    return [names[i] for i in sorted(range(len(names)), key=lambda i: abs(i - middle))]


def nothing_passes_by(framework: Framework, split: Split, inputs: Inputs) -> bool | None:
    """Whether the output depends on the input through the layer of a split alone.

    The features of the input replace those of another, noisy input. If the outputs are equal, nothing has
    reached the tail another way.

    Args:
        framework: the model's framework.
        split: the model, split at the layer.
        inputs: a batch of one input.

    Returns:
        The answer; None where the outputs for the same features differ each time.
    """
    generator = np.random.default_rng(0)

    def disturbed(path: tuple[Any, ...], x: Array) -> Array:
        # Where padding is stays as it is: it is not what is asked about.
        if isinstance(x, Shared) or (path and path[-1] in PADDING_MASKS):
            return x
        array = framework.to_numpy(x)
        if np.issubdtype(array.dtype, np.floating):
            other = np.asarray(array + generator.standard_normal(array.shape), dtype=array.dtype)
        else:
            # Of whole numbers, such as those of words, only the ones that are there are sure to be known.
            other = np.roll(array, 1, axis=-1) if array.ndim > 1 else array
        return framework.asarray(other, like=x)

    with split.open_head(inputs) as tail:
        features = tail.features
        expected = framework.to_numpy(first_output(tail(features)))
    with split.open_head(map_leaves(disturbed, inputs)) as tail:
        if _alike(framework.to_numpy(first_output(tail(features))), expected):
            return True
    with split.open_head(inputs) as tail:
        again = framework.to_numpy(first_output(tail(features)))
    return False if _alike(again, expected) else None


def _alike(a: npt.NDArray[Any], b: npt.NDArray[Any]) -> bool:
    # Some devices add in another order each time; a real leak changes the outputs by far more.
    return all_close(a, b, rtol=1e-4, atol=1e-4 * float(np.abs(b).max()))
