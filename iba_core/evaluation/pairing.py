"""Which layers of two models stand for the same."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

import numpy as np

from iba_core.arguments import require_choice, require_text, require_type
from iba_core.errors import InputError, LayerError, closest
from iba_core.framework.adapter import LayerInfo
from iba_core.framework.layout import DataFormat, Layout

Pairing = Literal["name", "order", "shape"]
"""What pairs layers: equal names, equal places in the order, or equal shapes in the same order."""

_LEAST_NAMED = 1 / 3
"""Share of the smaller model's layers that must have a partner of the same name."""

_SAME_KIND = 0.5
"""What the same kind of layer counts beside the same shape."""


def pair_layers(
    first: Sequence[LayerInfo],
    second: Sequence[LayerInfo],
    by: Pairing | Mapping[str, str] | None = None,
    formats: tuple[DataFormat, DataFormat] = ("channels_last", "channels_last"),
) -> tuple[list[tuple[str, str]], str]:
    """Pair the layers of two models, in the order in which the first one finishes them.

    Names are compared without case and with one sign between their parts, so that ``layer1.0.conv`` is
    ``layer1_0_conv``. Only layers whose outputs may have the same shape in one layout make a pair.

    Args:
        first: layers of the first model, as `ModelAdapter.layers` lists them.
        second: layers of the second.
        by: ``"name"``, ``"order"`` or ``"shape"``; the pairs themselves, a dict from names to names; None
            for names if at least a third of the layers have one in common, else shapes.
        formats: where the channels of each model's features are.

    Returns:
        The pairs of names, and what has paired them: ``"name"``, ``"order"``, ``"shape"`` or ``"you"``.

    Raises:
        InputError: no layers make a pair, or ``"order"`` is given and the models have different numbers.
        LayerError: a dict names a layer that a model does not have.

    Example:
        >>> torch = [LayerInfo("conv", "Conv2d", (8, 4, 4)), LayerInfo("fc", "Linear", (3,))]
        >>> keras = [LayerInfo("Conv", "Conv2D", (4, 4, 8)), LayerInfo("probabilities", "Dense", (3,))]
        >>> pair_layers(torch, keras, formats=("channels_first", "channels_last"))
        ([('conv', 'Conv')], 'name')
        >>> pair_layers(torch, keras, "shape", ("channels_first", "channels_last"))[0]
        [('conv', 'Conv'), ('fc', 'probabilities')]
    """
    if isinstance(by, Mapping):
        return _given(first, second, by), "you"
    if by is not None:
        require_choice("pairs", by, ("name", "order", "shape"), "way to pair layers")
    ours, theirs = _leaves(first), _leaves(second)
    if by in (None, "name"):
        pairs = _by_name(_finished(first), _finished(second), formats)
        smaller = min(len(ours), len(theirs))
        if pairs and (by == "name" or len(pairs) >= _LEAST_NAMED * smaller):
            return pairs, "name"
    if by == "order":
        pairs = _by_order(ours, theirs, formats)
    else:
        pairs = [] if by == "name" else _by_shape(ours, theirs, formats)
    if not pairs:
        raise InputError(
            f"no layers of the two models make a pair by {by or 'name or shape'}; "
            "give pairs={'layer of the first': 'layer of the second'}"
        )
    return pairs, by or "shape"


def turned(shape: Sequence[int], data_format: DataFormat) -> tuple[int, ...]:
    """A shape without the batch axis with its channels first; that of more than four axes as it is.

    Example:
        >>> turned((28, 28, 64), "channels_last")
        (64, 28, 28)
    """
    if not 2 <= len(shape) <= 4:
        return tuple(shape)
    return tuple(shape[axis] for axis in Layout.of(shape, data_format).to_channels_first())


def _given(
    first: Sequence[LayerInfo], second: Sequence[LayerInfo], pairs: Mapping[str, str]
) -> list[tuple[str, str]]:
    require_type("pairs", pairs, Mapping, "a dict from layers of the first model to those of the second")
    if not pairs:
        raise InputError("pairs is empty; give at least one layer of each model")
    places = {info.name: place for place, info in enumerate(_finished(first))}
    known = {info.name for info in second}
    for ours, theirs in pairs.items():
        for name, names in ((ours, places), (theirs, known)):
            require_text("pairs", name, "a dict from names of layers to names of layers")
            if name not in names:
                raise LayerError(f"pairs names the layer {name!r}; {closest(name, names)}")
    return sorted(pairs.items(), key=lambda pair: places[pair[0]])


def _finished(layers: Sequence[LayerInfo]) -> list[LayerInfo]:
    """Layers with a single output in the order in which they end: a block comes after the layers in it."""
    ends: list[tuple[int, int]] = []
    for place, info in enumerate(layers):
        inside = [place]
        inside += [other for other in range(place + 1, len(layers)) if _is_inside(layers[other], info)]
        ends.append((max(inside), -info.depth))
    ordered = sorted(range(len(layers)), key=lambda place: ends[place])
    return [layers[place] for place in ordered if layers[place].output_shape is not None]


def _is_inside(info: LayerInfo, block: LayerInfo) -> bool:
    return info.name.startswith((f"{block.name}.", f"{block.name}/"))


def _leaves(layers: Sequence[LayerInfo]) -> list[LayerInfo]:
    """Layers that hold no others. A block is listed before what is in it, where a framework lists blocks."""
    return [
        info
        for place, info in enumerate(layers)
        if info.output_shape is not None and not any(_is_inside(other, info) for other in layers[place + 1 :])
    ]


def _fit(one: LayerInfo, other: LayerInfo, formats: tuple[DataFormat, DataFormat]) -> bool:
    """Whether the outputs of two layers may have the same shape in one layout."""
    ours, theirs = one.output_shape, other.output_shape
    assert ours is not None, "others are left out"
    assert theirs is not None, "others are left out"
    return ours == theirs or turned(ours, formats[0]) == turned(theirs, formats[1])


def _by_name(
    first: Iterable[LayerInfo], second: Iterable[LayerInfo], formats: tuple[DataFormat, DataFormat]
) -> list[tuple[str, str]]:
    ours, theirs = _unique(first), _unique(second)
    return [
        (info.name, theirs[key].name)
        for key, info in ours.items()
        if key in theirs and _fit(info, theirs[key], formats)
    ]


def _unique(layers: Iterable[LayerInfo]) -> dict[str, LayerInfo]:
    """Layers by their names in one spelling, without those that share it."""
    spelled = [(re.sub(r"[^a-z0-9]+", ".", info.name.casefold()).strip("."), info) for info in layers]
    times = Counter(key for key, _ in spelled)
    return {key: info for key, info in spelled if times[key] == 1}


def _by_order(
    first: Sequence[LayerInfo], second: Sequence[LayerInfo], formats: tuple[DataFormat, DataFormat]
) -> list[tuple[str, str]]:
    if len(first) != len(second):
        raise InputError(
            f"pairs='order' needs as many layers in both models, which have {len(first)} and {len(second)}; "
            "pair them by 'shape', or give pairs={'layer of the first': 'layer of the second'}"
        )
    pairs = zip(first, second, strict=True)
    return [(one.name, other.name) for one, other in pairs if _fit(one, other, formats)]


def _by_shape(
    first: Sequence[LayerInfo], second: Sequence[LayerInfo], formats: tuple[DataFormat, DataFormat]
) -> list[tuple[str, str]]:
    """The longest sequence of pairs that is in order in both models; of equal ones, that of equal kinds."""
    worth = np.zeros((len(first), len(second)))
    for i, one in enumerate(first):
        for j, other in enumerate(second):
            if _fit(one, other, formats):
                worth[i, j] = 1 + _SAME_KIND * (_kind(one) == _kind(other))
    best = np.zeros((len(first) + 1, len(second) + 1))
    for i in range(len(first) - 1, -1, -1):
        for j in range(len(second) - 1, -1, -1):
            taken = worth[i, j] + best[i + 1, j + 1] if worth[i, j] else 0.0
            best[i, j] = max(taken, best[i + 1, j], best[i, j + 1])
    pairs, i, j = [], 0, 0
    while i < len(first) and j < len(second):
        if worth[i, j] and best[i, j] == worth[i, j] + best[i + 1, j + 1]:
            pairs.append((first[i].name, second[j].name))
            i, j = i + 1, j + 1
        elif best[i, j] == best[i + 1, j]:
            i += 1
        else:
            j += 1
    return pairs


def _kind(info: LayerInfo) -> str:
    """A kind of layer by the beginning of its name, in which the frameworks agree, or nearly."""
    beginning = info.kind.casefold()[:4]
    return _KINDS.get(beginning, beginning)


_KINDS = {"line": "dense", "dens": "dense", "acti": "relu", "zero": "pad", "cons": "pad"}
