"""Choice of a layer for those who name none."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from iba_core.errors import IBAError, LayerError
from iba_core.framework.adapter import Inputs, LayerInfo, ModelAdapter, Split
from iba_core.framework.framework import Framework
from iba_core.framework.inputs import Shared, arrays_of, map_leaves
from iba_core.framework.layout import Layout
from iba_core.framework.namespace import Array
from iba_core.targets import first_output

_PARTS = 24
_FINEST = 64


def default_layer(adapter: ModelAdapter, inputs: Inputs) -> str:
    """Choose a sensible layer for a bottleneck in an image model.

    Deep layers know objects, shallow layers know places. The choice is among the layers that resolve the
    image in 24 parts a side or a few more (the paper's layers in VGG-16 and ResNet-50 have 28), or else in
    the most parts there are. It takes the layer in the middle, or the nearest to it that all information
    passes: after a layer inside a residual block, the skip connection would not be explained. Of a block and
    the layers in it, it takes the block. Parts are counted by how often the image has been halved, so a
    border of padding adds none.

    Args:
        adapter: adapter of the model.
        inputs: a batch of one input.

    Returns:
        Name of the layer.

    Raises:
        LayerError: no layer qualifies; name one.
    """
    image = tuple(next(arrays_of(inputs)).shape[1:])
    groups: dict[tuple[bool, float, int], list[str]] = {}
    for info in adapter.layers(inputs):
        parts = _parts(adapter, info, image)
        if parts is not None:
            key = (parts < _PARTS, abs(parts - _PARTS), _depth(info))
            groups.setdefault(key, []).append(info.name)
    for _, names in sorted(groups.items()):
        for name in _from_the_middle(names):
            if everything_passes(adapter, name, inputs):
                return name
    raise LayerError("no layer with two spatial axes lets all information pass; name one with layer=")


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
            levels.setdefault(_depth(info), []).append(info.name) if side < whole else unreduced.append(
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


def _depth(info: LayerInfo) -> int:
    return info.name.count(".") + info.name.count("/")


def _from_the_middle(names: list[str]) -> list[str]:
    middle = len(names) // 2
    return [names[i] for i in sorted(range(len(names)), key=lambda i: abs(i - middle))]


def _parts(adapter: ModelAdapter, info: LayerInfo, image: tuple[int, ...]) -> float | None:
    """Parts a side that the layer resolves the image in, None if the layer is no candidate."""
    shape = info.output_shape
    if shape is None or len(shape) != 3 or len(image) != 3:
        return None
    layout = Layout.of(shape, adapter.data_format)
    side = min(layout.spatial_shape(shape))
    whole = min(Layout.of(image, adapter.data_format).spatial_shape(image))
    return float(whole / 2.0 ** round(np.log2(whole / side))) if 1 < side < whole else None


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

    def disturbed(_: Any, x: Array) -> Array:
        if isinstance(x, Shared):
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
    return bool(np.allclose(a, b, rtol=1e-4, atol=1e-4 * float(np.abs(b).max())))
