"""Places of an input: in which order a map takes them away, and what stands there afterwards.

A map (B, *places) has a value for each pixel, (B, H, W), whatever the channels are, or for each number of the
input, if it has the input's own shape. Places are taken away as tiles.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from math import prod
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from scipy.ndimage import gaussian_filter
from scipy.sparse import coo_array
from scipy.sparse.linalg import splu

from iba_core.arguments import (
    LARGEST_NUMBER,
    given,
    is_whole_number,
    require_number,
    require_sizes,
    require_whole,
)
from iba_core.errors import InputError
from iba_core.evaluation.scoring import ScoredModel
from iba_core.framework.arrays import require_array
from iba_core.framework.layout import Layout
from iba_core.framework.namespace import NAMESPACES, Array

Floats = npt.NDArray[np.floating]
Bools = npt.NDArray[np.bool_]
Tile = int | Sequence[int]

Baseline = (
    Literal["mean", "blur", "noise", "inpaint", "zero"] | npt.ArrayLike | Callable[[Floats], npt.ArrayLike]
)
"""What stands where pixels are taken away: ``"mean"`` of each channel of the picture, the picture's Gaussian
``"blur"``, ``"noise"`` of the mean and standard deviation of each channel, noisy linear imputation from the
pixels around (``"inpaint"``), ``"zero"`` (the value 0 of the model's input, for many models the mean of the
training set), numbers that broadcast to one input, or a function that maps inputs (B, ...) to others."""

BASELINES = ("mean", "blur", "noise", "inpaint", "zero")

BLUR = 10.0
"""Standard deviation in pixels of the blur."""

_LARGEST_TILE = 2**14

NOISE = 0.01
"""Standard deviation of the noise of an imputation, as a share of the picture's own."""


def require_maps(name: str, maps: Any, x: Array, layout: Layout) -> npt.NDArray[np.float64]:
    """Return maps for inputs x as float64.

    Args:
        name: name of the argument.
        maps: (B, *spatial axes of the inputs), or of the inputs' own shape.
        x: the inputs (B, ...).
        layout: meaning of the axes of one input.

    Raises:
        InputError: they have another shape, or a value that is not finite.
    """
    own = tuple(int(size) for size in x.shape)
    spatial = (own[0], *layout.spatial_shape(own[1:]))
    array = require_array(name, maps)
    if array.shape not in (spatial, own):
        raise InputError(
            f"{name} has shape {array.shape} for inputs of shape {own}; {spatial} was expected, a value for "
            f"each place, or {own}, a value for each number"
        )
    return array.astype(np.float64)


def generator_of(seed: int, image: npt.NDArray[Any], layout: Layout) -> np.random.Generator:
    """Random numbers that follow from a seed and a picture.

    So a picture gets the same in every batch, for every method and in every framework.
    """
    first = np.ascontiguousarray(image.transpose(layout.to_channels_first()), np.float32)
    return np.random.default_rng([seed, zlib.crc32(first.tobytes())])


def require_tile(name: str, tile: Any) -> tuple[int, ...]:
    """Return the sides of tiles, one for all axes or one for each.

    Raises:
        InputError: it is no whole number, and no sequence of them.
    """
    if is_whole_number(tile):
        return (require_whole(name, tile, 1, _LARGEST_TILE),)
    sides = require_sizes(name, tile, None)
    if not sides:
        raise InputError(f"{name} is empty; give a side, or one for each axis")
    return sides


def require_baseline(name: str, baseline: Any) -> None:
    """Check a replacement of values that are taken away.

    Raises:
        InputError: it is no name of a baseline, no array and no function.
    """
    if isinstance(baseline, str):
        if baseline not in BASELINES:
            raise InputError(
                f"{given(name, baseline)} is none of {', '.join(map(repr, BASELINES))}; it may also be an "
                "array or a function of the inputs"
            )
    elif not callable(baseline):
        require_array(name, baseline)


# -- tiles ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Tiles:
    """A division of places into tiles.

    Attributes:
        numbers: (*places), the number of the tile of each place.
        sizes: (tiles,), the number of places of each.
    """

    numbers: npt.NDArray[np.intp]
    sizes: npt.NDArray[np.intp]

    @classmethod
    def of(cls, places: Sequence[int], tile: Tile = 1, name: str = "tile") -> Tiles:
        """Divide places into tiles; those at the end of an axis may be smaller.

        Args:
            places: sizes of the axes.
            tile: side of the tiles in places, one for all axes or one for each.
            name: name of the argument.

        Raises:
            InputError: the sides do not fit the axes.

        Example:
            >>> Tiles.of((2, 3), 2).numbers
            array([[0, 0, 1],
                   [0, 0, 1]])
        """
        sides = require_tile(name, tile)
        if len(sides) == 1:
            sides *= len(places)
        else:
            require_sizes(name, sides, len(places))
        counts = [-(-size // side) for size, side in zip(places, sides, strict=True)]
        grids = np.indices(tuple(places), sparse=True)
        numbers = np.ravel_multi_index(
            np.broadcast_arrays(*(grid // side for grid, side in zip(grids, sides, strict=True))), counts
        )
        return cls(numbers, np.bincount(numbers.ravel(), minlength=prod(counts)))

    def __len__(self) -> int:
        """Number of tiles."""
        return len(self.sizes)

    def sums(self, saliency: Floats) -> npt.NDArray[np.float64]:
        """Sums (tiles,) of a map (*places)."""
        weights = saliency.astype(np.float64).ravel()
        return np.asarray(np.bincount(self.numbers.ravel(), weights, len(self)), np.float64)

    def means(self, saliency: Floats) -> npt.NDArray[np.float64]:
        """Means (tiles,) of a map (*places), so that the smaller tiles at the edges are not the last."""
        return self.sums(saliency) / self.sizes

    def ranks(self, saliency: Floats, generator: np.random.Generator) -> npt.NDArray[np.intp]:
        """Ranks (tiles,) of the tiles of a map: 0 for the most relevant. Equal ones are in random order."""
        values = self.means(saliency)
        ranks = np.empty(len(values), np.intp)
        ranks[np.lexsort((generator.permutation(len(values)), -values))] = np.arange(len(values))
        return ranks


# -- baselines -----------------------------------------------------------------------------------------------


class Replacement:
    """What stands in the places of a batch that are taken away.

    Args:
        model: the model, which knows the device and the framework.
        x: the inputs (B, ...), tensors.
        layout: meaning of the axes of one input.
        baseline: see `Baseline`.
        seed: seed of noise.
        blur: standard deviation of the blur in places.
        noise: standard deviation of the noise of imputations, as a share of the picture's.

    Raises:
        InputError: the baseline is none of those, or does not fit the inputs.
    """

    def __init__(
        self,
        model: ScoredModel,
        x: Array,
        layout: Layout,
        baseline: Baseline,
        seed: int,
        blur: float = BLUR,
        noise: float = NOISE,
    ) -> None:
        self.model: ScoredModel = model
        self.x: Array = x
        self.layout: Layout = layout
        self.images: npt.NDArray[Any] = model.host(x)
        self.generators: list[np.random.Generator] = [
            generator_of(seed, image, layout) for image in self.images
        ]
        self.noise: float = require_number("noise", noise, 0, LARGEST_NUMBER)
        require_number("blur", blur, above=0, most=LARGEST_NUMBER)
        require_baseline("baseline", baseline)
        self._fill: Array | None = None
        if not (isinstance(baseline, str) and baseline == "inpaint"):
            fill = _baseline_images(baseline, self.images, layout, self.generators, blur)
            self._fill = model.adapter.framework.asarray(fill.astype(self.images.dtype), like=x)
        elif layout.ndim != 3:
            raise InputError("baseline='inpaint' is for pictures with two spatial axes; choose another")

    def __call__(self, index: int, masks: Bools) -> Array:
        """Inputs in which places are taken away.

        Args:
            index: number of the image.
            masks: (K, *places), True where a place is taken away.

        Returns:
            Tensor (K, *input).
        """
        framework, xp = self.model.adapter.framework, NAMESPACES[type(self.x)]
        if self._fill is None:
            image = self.images[index]
            filled = [
                imputed(image, _of_pixels(mask, self.layout), self.layout, self.noise, self.generators[index])
                for mask in masks
            ]
            return framework.asarray(np.stack(filled), like=self.x)
        if masks.ndim == len(self.x.shape):
            shaped = masks
        else:
            shaped = np.expand_dims(masks, 1 + self.layout.channel_axis)
        taken = framework.asarray(np.ascontiguousarray(shaped), like=self.x)
        return xp.where(taken, self._fill[index : index + 1], self.x[index : index + 1])


def _of_pixels(mask: Bools, layout: Layout) -> Bools:
    if mask.ndim == layout.ndim:
        raise InputError("baseline='inpaint' takes whole pixels away; give maps with a value for each pixel")
    return mask


def _baseline_images(
    baseline: Baseline, images: Floats, layout: Layout, generators: Sequence[np.random.Generator], blur: float
) -> Floats:
    axes = tuple(axis + 1 for axis in layout.spatial_axes) or tuple(range(1, images.ndim))
    if callable(baseline):
        return _like(baseline(images), images)
    if not isinstance(baseline, str):
        return _like(baseline, images)
    if baseline == "zero":
        return np.zeros_like(images)
    if baseline == "blur":
        sigmas = [blur if axis in axes else 0 for axis in range(images.ndim)]
        return np.asarray(gaussian_filter(images, sigmas))
    mean = np.broadcast_to(images.mean(axis=axes, keepdims=True), images.shape)
    if baseline == "mean":
        return mean
    if baseline == "noise":
        std = images.std(axis=axes, keepdims=True)
        order = layout.from_channels_first()
        shape = [images.shape[1 + axis] for axis in layout.to_channels_first()]
        drawn = [generator.normal(size=shape).transpose(order) for generator in generators]
        return np.asarray(mean + std * np.stack(drawn))
    raise AssertionError(baseline)  # checked before


def _like(value: Any, images: Floats) -> Floats:
    array = require_array("baseline", value)
    try:
        return np.broadcast_to(array, images.shape)
    except ValueError:
        raise InputError(
            f"baseline has shape {array.shape}, which does not broadcast to inputs of shape {images.shape}"
        ) from None


# -- imputation ----------------------------------------------------------------------------------------------

_NEIGHBOURS = (((0, 1), 1 / 6), ((1, 0), 1 / 6), ((1, 1), 1 / 12), ((1, -1), 1 / 12))
"""Half of the neighbours of a pixel with their weights; the others are opposite, with the same ones."""


@cache
def _pairs(height: int, width: int) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp], Floats]:
    """Every ordered pair of neighbouring pixels of a picture, with its weight."""
    numbers = np.arange(height * width).reshape(height, width)
    first, second, weights = [], [], []
    for (down, right), weight in _NEIGHBOURS:
        here = numbers[: height - down, max(0, -right) : width - max(0, right)]
        there = numbers[down:, max(0, right) : width + min(0, right)]
        first += [here.ravel(), there.ravel()]
        second += [there.ravel(), here.ravel()]
        weights += [np.full(2 * here.size, weight)]
    return np.concatenate(first), np.concatenate(second), np.concatenate(weights)


def imputed(
    image: Floats,
    mask: Bools,
    layout: Layout,
    noise: float = NOISE,
    generator: np.random.Generator | None = None,
) -> Floats:
    """Fill pixels of a picture in by noisy linear imputation.

    Each missing pixel becomes the weighted mean of its eight neighbours, missing ones too, which is a system
    of linear equations: 1/6 for direct neighbours, 1/12 for diagonal ones. Then noise is added. Y. Rong and
    others, "A Consistent and Efficient Evaluation Strategy for Attribution Methods", ICML 2022, section 4.2.

    Args:
        image: one picture, in the data format of `layout`.
        mask: (H, W), True where a pixel is missing.
        layout: meaning of the axes of the picture.
        noise: standard deviation of the noise, as a share of that of the picture.
        generator: random numbers for the noise; none for no noise.

    Returns:
        The picture. If all pixels are missing, it is the mean of each channel, plus noise.

    Example:
        >>> image = np.array([[[0.0], [9.0], [2.0]]])  # (H, W, C)
        >>> layout = Layout.of(image.shape, "channels_last")
        >>> imputed(image, np.array([[False, True, False]]), layout)[0, :, 0]
        array([0., 1., 2.])
    """
    rows = (
        image.transpose(*layout.spatial_axes, layout.channel_axis).reshape(mask.size, -1).astype(np.float64)
    )
    missing = mask.ravel()
    filled = rows.copy()
    if missing.all():
        filled[:] = rows.mean(axis=0)
    elif missing.any():
        filled[missing] = _solved(rows, missing, mask.shape)
    if generator is not None and noise:
        filled[missing] += noise * image.std() * generator.normal(size=filled[missing].shape)
    last = filled.reshape(*mask.shape, -1)
    # The axes of `last` are the spatial ones, then the channels.
    back = np.argsort((*layout.spatial_axes, layout.channel_axis))
    return np.ascontiguousarray(last.transpose(back), dtype=image.dtype)


def _solved(rows: Floats, missing: Bools, shape: Sequence[int]) -> Floats:
    """Values of the missing pixels (missing, C)."""
    first, second, weights = _pairs(*shape)
    place = np.cumsum(missing) - 1
    concerns = missing[first]
    first, second, weights = first[concerns], second[concerns], weights[concerns]
    count = int(missing.sum())
    # At an edge, the weights of the neighbours that exist are what a pixel divides by.
    total = np.bincount(place[first], weights, minlength=count)
    unknown = missing[second]
    known = np.zeros((count, rows.shape[1]))
    np.add.at(known, place[first[~unknown]], weights[~unknown, None] * rows[second[~unknown]])
    entries = np.concatenate([total, -weights[unknown]])
    row = np.concatenate([np.arange(count), place[first[unknown]]])
    column = np.concatenate([np.arange(count), place[second[unknown]]])
    system = coo_array((entries, (row, column)), shape=(count, count)).tocsc()
    solved: Floats = splu(system, permc_spec="MMD_AT_PLUS_A", options={"SymmetricMode": True}).solve(known)
    return solved
