"""From the capacity of a layer's features, in nats, to a map of the input, in bits per pixel."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt
from scipy.sparse import csr_array

from iba_core.arguments import require_sizes, require_type
from iba_core.bottleneck.resizing import resizing_matrix
from iba_core.errors import InputError
from iba_core.framework.arrays import require_array
from iba_core.framework.layout import DataFormat, Layout, MapOrder

NATS_PER_BIT = float(np.log(2.0))

Combine = Literal["mean", "geometric"]
"""How one map is made of those of several layers."""

COMBINE = get_args(Combine)

CombineLayers = Literal[Combine, "shared"]
"""How one map is made at several layers: of maps, or with one mask that the layers share."""

COMBINE_LAYERS = get_args(CombineLayers)


def to_bits(nats: npt.ArrayLike) -> npt.NDArray[np.floating]:
    """Convert nats to bits: divide by the natural logarithm of 2.

    Example:
        >>> float(to_bits(np.log(2.0)))
        1.0
    """
    return np.asarray(nats) / NATS_PER_BIT


def resize_maps(maps: npt.NDArray[np.floating], shape: Sequence[int]) -> npt.NDArray[np.floating]:
    """Resize maps (B, *places) to (B, *shape), linearly between the centres of the places."""
    resized = maps
    for axis, wanted in enumerate(shape, start=1):
        # Not a product of dense matrices: NumPy gives those to OpenBLAS, whose threads spin for a while
        # afterwards, on the cores that the framework needs for the next explanation.
        matrix = csr_array(resizing_matrix(maps.shape[axis], wanted))
        rows = np.moveaxis(resized, axis, 0)
        product = matrix @ rows.reshape(len(rows), prod(rows.shape[1:]))
        resized = np.moveaxis(product.reshape(wanted, *rows.shape[1:]), 0, axis)
    return np.ascontiguousarray(resized, dtype=maps.dtype)


def saliency_maps(
    capacity: npt.NDArray[np.floating],
    layout: Layout,
    shape: Sequence[int] | None = None,
    order: MapOrder | None = None,
) -> npt.NDArray[np.floating]:
    """Saliency maps of a batch: bits summed over the channels, resized to the input.

    The maps are resized linearly between the centres of the features. Then they are scaled so that the sum of
    a map equals the bits of its image, without those of prefix tokens, which are not on the map.

    Args:
        capacity: (B, *feature map), in nats, floating point.
        layout: meaning of the axes of one feature map.
        shape: spatial shape of the maps; None for that of the features.
        order: how the maps are turned to lie over the input; None if they are not.

    Returns:
        Array (B, *shape), in bits per pixel (per feature position if `shape` is None).

    Raises:
        InputError: `shape` has another number of axes than the feature map has spatial ones, or an axis
            of length 0.
    """
    maps = to_bits(np.sum(capacity, axis=layout.channel_axis + 1))
    if layout.tokens is not None:
        maps = maps[:, layout.tokens.prefix :].reshape(-1, *layout.places(capacity.shape[1:]))
    maps = maps if order is None else order.turn(maps)
    if shape is None or maps.shape[1:] == tuple(shape):
        return maps
    if len(shape) != maps.ndim - 1 or min(shape) < 1:
        raise InputError(f"shape={tuple(shape)} cannot hold a map with spatial shape {maps.shape[1:]}")
    resized = resize_maps(maps, shape)
    axes = tuple(range(1, maps.ndim))
    bits = maps.sum(axis=axes, keepdims=True)
    total = resized.sum(axis=axes, keepdims=True)
    scale = np.divide(bits, total, out=np.ones_like(bits), where=total != 0)
    scaled: npt.NDArray[np.floating] = resized * scale
    return scaled


def combined_shares(
    maps: Sequence[npt.NDArray[np.floating]], combine: Combine = "geometric"
) -> npt.NDArray[np.float64]:
    """Make one map for each image of the maps at several layers, in shares of its sum.

    Args:
        maps: for each layer (B, *places), of as many axes. They are resized to the largest, and each is
            scaled to a sum of 1, so that a layer with more bits does not outweigh the others.
        combine: the geometric mean, which is high only where all maps are, or the mean.

    Returns:
        Array (B, *places) whose maps sum to 1, float64. A map stays empty where nothing is left.

    Example:
        >>> combined_shares([np.array([[1.0, 3.0]]), np.array([[40.0, 40.0]])], "mean")
        array([[0.375, 0.625]])
    """
    shape = max((each.shape[1:] for each in maps), key=prod)
    scaled = np.stack([_shares(resize_maps(each, shape)) for each in maps])
    if combine == "mean":
        return _shares(scaled.mean(axis=0))
    logarithms = np.log(scaled, out=np.full_like(scaled, -np.inf), where=scaled > 0)
    return _shares(np.exp(logarithms.mean(axis=0)))


def _shares(maps: npt.NDArray[np.floating]) -> npt.NDArray[np.float64]:
    """Maps (B, ...) scaled to a sum of 1; an empty map stays empty."""
    positive = np.maximum(maps.astype(np.float64), 0.0)
    total = positive.sum(axis=tuple(range(1, maps.ndim)), keepdims=True)
    return np.asarray(positive / np.where(total > 0, total, 1.0))


def to_saliency_map(
    capacity: npt.ArrayLike,
    shape: Sequence[int] | None = None,
    data_format: DataFormat = "channels_first",
    *,
    order: MapOrder | None = None,
) -> npt.NDArray[np.floating]:
    """Saliency map of one image from the capacity of its features.

    Args:
        capacity: (C, H, W), or (H, W, C) with ``data_format="channels_last"``, in nats. It may have 0 to 3
            spatial axes.
        shape: (height, width) of the image; None for the size of the feature map.
        data_format: ``"channels_first"`` or ``"channels_last"``.
        order: how the map is turned where the model exchanges or reverses axes before the layer, such as
            `map_order` of the TensorFlow classes; None if it does not.

    Returns:
        Array of `shape`, in bits per pixel. Its sum equals the bits of the capacity.

    Raises:
        InputError: the shapes do not fit, or `data_format` is unknown.

    Example:
        >>> to_saliency_map(np.full((3, 2, 2), np.log(2.0)), shape=(4, 4)).sum()
        np.float64(12.0)
    """
    array = require_array("capacity", capacity, ndim=(1, 2, 3, 4))
    if not np.issubdtype(array.dtype, np.floating):
        array = array.astype(np.float64)
    layout = Layout.of(array.shape, data_format)
    if shape is not None:
        shape = require_sizes("shape", shape, array.ndim - 1)
    require_type("order", order, MapOrder, "a MapOrder", optional=True)
    if order is not None and len(order.axes) != array.ndim - 1:
        raise InputError(f"order={order} is not for a map with {array.ndim - 1} axes")
    saliency: npt.NDArray[np.floating] = saliency_maps(array[None], layout, shape, order)[0]
    return saliency
