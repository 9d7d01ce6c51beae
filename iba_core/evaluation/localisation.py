"""Does a map mark the object? Metrics that need to know where it is."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.ndimage import distance_transform_edt

from iba_core.arguments import require_number, require_numbers, require_seed, require_sizes
from iba_core.errors import InputError
from iba_core.evaluation.formulas import share_inside
from iba_core.evaluation.methods import explained, require_method
from iba_core.evaluation.scoring import ScoredModel
from iba_core.framework.adapter import Inputs, Model
from iba_core.framework.arrays import require_array, require_mask
from iba_core.framework.layout import Layout

Numbers = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]

QUANTILES = tuple(np.arange(10) / 10)
"""Where the effective heat ratio begins to count: at none, at a tenth, ... of the pixels."""


def boxes_to_masks(boxes: Any, shape: Sequence[int]) -> Bools:
    """Make masks of bounding boxes.

    Args:
        boxes: (B, 4): left, top, right and bottom in pixels; right and bottom are no longer inside.
        shape: (height, width) of the masks.

    Returns:
        Array (B, H, W), True inside.

    Raises:
        InputError: they have another shape, or nothing of a box is inside.

    Example:
        >>> boxes_to_masks([[0, 1, 2, 2]], (2, 3)).astype(int)
        array([[[0, 0, 0],
                [1, 1, 0]]])
    """
    height, width = require_sizes("shape", shape)
    array = require_array("boxes", boxes, ndim=2, form="(images, 4)")
    if array.shape[1] != 4:
        raise InputError(f"boxes has shape {array.shape}; (images, 4) was expected: left, top, right, bottom")
    left, top, right, bottom = (array[:, [i], None] for i in range(4))
    rows, columns = np.arange(height)[None, :, None], np.arange(width)[None, None]
    masks = (rows >= top) & (rows < bottom) & (columns >= left) & (columns < right)
    if not masks.any(axis=(1, 2)).all():
        raise InputError(f"boxes holds one outside of the {height} x {width} pixels, or without any inside")
    return masks


def _checked(maps: Any, masks: Any) -> tuple[Numbers, Bools]:
    array = require_array("maps", maps).astype(np.float64)
    if array.ndim < 2:
        raise InputError(f"maps has shape {array.shape}; (images, *places) was expected")
    inside = require_mask("masks", masks)
    if inside.shape != array.shape:
        raise InputError(f"masks has shape {inside.shape}, but maps {array.shape}; give a mask for each map")
    return array, inside


def pointing_game(maps: Any, masks: Any, tolerance: float = 0) -> Numbers:
    """Say whether the highest value of a map lies on the object, 1 or 0.

    J. Zhang and others, "Top-Down Neural Attention by Excitation Backprop", IJCV 2018. Higher is better. Of
    several highest places one on the object is enough, as in Quantus.

    Args:
        maps: (B, *places).
        masks: of the same shape, True on the object; see `boxes_to_masks` for boxes.
        tolerance: how far beside the object still counts, in places. The paper allows 15 pixels.

    Returns:
        Array (B,); NaN where there is no object.

    Raises:
        InputError: the shapes differ.

    Example:
        >>> pointing_game([[[0.1, 0.9]], [[0.8, 0.2]]], [[[0, 1]], [[0, 1]]])
        array([1., 0.])
    """
    array, inside = _checked(maps, masks)
    tolerance = require_number("tolerance", tolerance, 0)
    axes = tuple(range(1, array.ndim))
    some = inside.any(axis=axes)
    near = inside
    if tolerance:
        near = np.stack([distance_transform_edt(~mask) <= tolerance for mask in inside])
    hits = ((array == array.max(axis=axes, keepdims=True)) & near).any(axis=axes)
    return np.where(some, hits, np.nan)


def mass_in_box(maps: Any, masks: Any, quantiles: Sequence[float] = (0.0,)) -> Numbers:
    """Compute the share of a map's positive values that lies on the object.

    It is Quantus' relevance mass accuracy. With ``quantiles=QUANTILES`` it is the effective heat ratio: the
    mean of that share over thresholds below which values do not count, Y. Zhang and others, "Fine-Grained
    Neural Network Explanation by Identifying Input Features with Predictive Information", NeurIPS 2021.
    Higher is better; the share of the picture that the object fills is chance.

    Args:
        maps: (B, *places). Negative values do not count.
        masks: of the same shape, True on the object; see `boxes_to_masks` for boxes.
        quantiles: thresholds, as shares of the places of a map.

    Returns:
        Array (B,), from 0 to 1; NaN where there is no object or no positive value.

    Raises:
        InputError: the shapes differ.

    Example:
        >>> mass_in_box([[[1.0, 3.0]]], [[[0, 1]]])
        array([0.75])
    """
    array, inside = _checked(maps, masks)
    shares = require_numbers("quantiles", quantiles, None, 0, 1)
    if not shares:
        raise InputError("quantiles is empty; give thresholds from 0 to 1")
    positive = np.maximum(array, 0.0).reshape(len(array), -1)
    flat = inside.reshape(len(array), -1).astype(np.float64)
    found = []
    for share in shares:
        threshold = np.quantile(positive, share, axis=1, keepdims=True)
        found.append(share_inside(np.where(positive >= threshold, positive, 0.0), flat))
    return np.asarray(np.mean(found, axis=0))


# -- grids of pictures ---------------------------------------------------------------------------------------


def mosaics(
    images: npt.NDArray[Any],
    classes: npt.NDArray[np.int64],
    layout: Layout,
    grid: Sequence[int] = (2, 2),
    seed: int = 0,
) -> tuple[npt.NDArray[Any], npt.NDArray[np.intp]]:
    """Put pictures of different classes together to pictures of the same size.

    Args:
        images: (B, ...), in the data format of `layout`, with two spatial axes.
        classes: (B,).
        layout: meaning of the axes of one picture.
        grid: (rows, columns).
        seed: seed of the order in which pictures come together.

    Returns:
        Mosaics (M, ...), and the numbers (M, rows * columns) of the pictures in them. A picture is in one at
        most; those for which no others of different classes are left are in none.

    Raises:
        InputError: the pictures have no two spatial axes, or the grid does not divide them.
    """
    rows, columns = require_sizes("grid", grid)
    shape = images.shape[1:]
    spatial = layout.spatial_shape(shape)
    if len(spatial) != 2 or spatial[0] % rows or spatial[1] % columns:
        raise InputError(f"grid={tuple(grid)} does not divide pictures with the spatial axes {spatial}")
    groups = _groups(classes, rows * columns, np.random.default_rng(seed))
    if not groups:
        return np.empty((0, *shape), images.dtype), np.empty((0, rows * columns), np.intp)
    last = images.transpose(0, *(axis + 1 for axis in (*layout.spatial_axes, layout.channel_axis)))
    height, width = spatial[0] // rows, spatial[1] // columns
    # Each pixel of a small picture is the mean of those that it stands for.
    small = last.reshape(len(last), height, rows, width, columns, -1).mean(axis=(2, 4))
    tiled = small[np.array(groups)].reshape(len(groups), rows, columns, height, width, -1)
    whole = tiled.transpose(0, 1, 3, 2, 4, 5).reshape(len(groups), *spatial, -1)
    back = np.argsort((*layout.spatial_axes, layout.channel_axis))
    found = whole.transpose(0, *(axis + 1 for axis in back)).astype(images.dtype)
    return np.ascontiguousarray(found), np.array(groups)


def _groups(classes: npt.NDArray[np.int64], size: int, generator: np.random.Generator) -> list[list[int]]:
    """Numbers of pictures in groups of different classes."""
    waiting: list[int] = [int(index) for index in generator.permutation(len(classes))]
    groups: list[list[int]] = []
    while waiting:
        group: dict[int, int] = {}
        for index in waiting:
            if len(group) < size:
                group.setdefault(int(classes[index]), index)
        if len(group) < size:
            break
        groups.append(list(group.values()))
        waiting = [index for index in waiting if index not in groups[-1]]
    return groups


def grid_pointing_game(
    model: Model,
    method: Callable[[Inputs, Any], Any],
    x: Inputs,
    target: Any = None,
    grid: Sequence[int] = (2, 2),
    seed: int = 0,
) -> Numbers:
    """Explain mosaics of several pictures: the share of a map that lies on the picture of its class.

    M. Böhle, M. Fritz, B. Schiele, "Convolutional Dynamic Alignment Networks for Interpretable
    Classifications", CVPR 2021, section 4.2. Here pictures are made smaller, so that a mosaic has the size
    that the model takes. Higher is better; one part of the grid's parts is chance.

    Args:
        model: a model of any framework, an adapter, an `Explainer`, or a `ScoredModel`.
        method: gives maps (M, H, W) for inputs and classes (M,): an `Explainer`, a class activation map, a
            method of `iba_core.evaluation`, or a function of yours.
        x: pictures (B, ...), of several classes.
        target: class of each picture; None for those predicted.
        grid: (rows, columns).
        seed: seed of the order in which pictures come together.

    Returns:
        Array (B,), from 0 to 1; NaN for pictures that are in no mosaic, or whose map has no positive value.

    Raises:
        InputError: the grid does not divide the pictures.

    Example:
        >>> brightness = lambda x, target: np.abs(x).sum(axis=1)
        >>> grid_pointing_game(model, brightness, x, target=[0, 1], grid=(2, 1)).shape
        (2,)
    """
    require_seed("seed", seed, optional=False)
    require_method("method", method)
    scored = ScoredModel.of(model)
    tensor = scored.tensor(x)
    classes, layout = scored.classes(tensor, target), scored.layout(tensor)
    rows, columns = require_sizes("grid", grid)
    pictures, groups = mosaics(scored.host(tensor), classes, layout, grid, seed)
    shares = np.full(len(classes), np.nan)
    if not len(groups):
        return shares
    height, width = layout.spatial_shape(pictures.shape[1:])
    cells = np.arange(rows * columns).reshape(rows, columns).repeat(height // rows, 0)
    cells = cells.repeat(width // columns, 1)
    for place in range(rows * columns):
        maps = explained(method, pictures, classes[groups[:, place]], seed).maps
        shares[groups[:, place]] = mass_in_box(maps, np.broadcast_to(cells == place, maps.shape))
    return shares
