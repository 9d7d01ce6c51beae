"""Methods that give maps: those to compare with, and one face for all.

A method is anything that gives maps for inputs and classes: an `Explainer`, a class activation map, or a
function ``maps = f(x, target)``. Those here are short, and go through the model's adapter, so they run in
every framework.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from iba_core.arguments import (
    given,
    require_choice,
    require_number,
    require_seed,
    require_whole,
)
from iba_core.errors import InputError
from iba_core.evaluation.places import (
    Baseline,
    Replacement,
    Tile,
    Tiles,
    generator_of,
    require_baseline,
    require_tile,
)
from iba_core.evaluation.scoring import Classes, ScoredModel
from iba_core.framework.adapter import Inputs, Model
from iba_core.framework.arrays import as_array, require_array
from iba_core.framework.inputs import batch_size
from iba_core.framework.layout import Layout

Numbers = npt.NDArray[np.float64]

Reduction = Literal["absolute", "sum", "none"]
"""What becomes of the channels of a gradient: the sum of the absolute values, the plain sum, or all stay."""


@runtime_checkable
class Explains(Protocol):
    """What gives attributions with bits, such as an `Explainer`."""

    def explain(self, x: Inputs, target: Any = None, *, seed: int | None = None, **settings: Any) -> Any:
        """Explain inputs (B, ...); the result has `saliency` (B, *places) and `total_bits` (B,)."""


Method = Explains | Callable[[Inputs, Any], Any]
"""An object with `explain`, or what gives maps (B, *places) when called with inputs and classes (B,)."""


@dataclass(frozen=True)
class Found:
    """What a method gives for a batch.

    Attributes:
        maps: (B, *places), float64.
        bits: (B,), total bits; None if the method does not count any.
        survival: (B,), share of the target that is left when only these bits pass; None if it is not known.
    """

    maps: Numbers
    bits: Numbers | None = None
    survival: Numbers | None = None


def explained(method: Method, x: Inputs, classes: npt.NDArray[np.int64], seed: int | None = 0) -> Found:
    """Explain a batch by any method.

    Args:
        method: see `Method`.
        x: inputs (B, ...), NumPy.
        classes: (B,), what to explain.
        seed: given to methods that draw random numbers: an `Explainer`, or those with ``has_seed = True``.

    Raises:
        InputError: it is no method, or gives something else than maps.

    Example:
        >>> explained(explainer, x, np.array([0, 1])).maps.shape
        (2, 8, 8)
    """
    if isinstance(method, Explains):
        result = method.explain(x, classes, seed=seed)
        survival = getattr(result, "survival", None)
        return Found(
            _as_maps(result.saliency, batch_size(x)),
            np.asarray(result.total_bits, np.float64),
            None if survival is None else np.asarray(survival, np.float64),
        )
    require_method("method", method)
    options = {"seed": seed} if getattr(method, "has_seed", False) and seed is not None else {}
    return Found(_as_maps(method(x, classes, **options), len(classes)))


def require_method(name: str, method: Any) -> None:
    """Check that something can give maps.

    Raises:
        InputError: it is no explainer and no function.
    """
    if not isinstance(method, Explains) and (not callable(method) or isinstance(method, type)):
        raise InputError(
            f"{given(name, method)} must be an Explainer, a class activation map or f(x, target)"
        )


def is_random(method: Method) -> bool:
    """Whether a method takes a seed, so that its maps may differ from one to the next."""
    return isinstance(method, Explains) or bool(getattr(method, "has_seed", False))


def _as_maps(value: Any, images: int) -> Numbers:
    maps = as_array("what the method gives", value).astype(np.float64)
    if maps.ndim < 2 or len(maps) != images:
        raise InputError(
            f"the method gives shape {maps.shape} for {images} inputs; maps (images, *places) were expected"
        )
    return maps


# -- gradients -----------------------------------------------------------------------------------------------


class _OfModel(ABC):
    """A method over one model.

    Args:
        model: a model of any framework, an adapter, an `Explainer`, or a `ScoredModel`.
    """

    has_seed = False

    def __init__(self, model: Model) -> None:
        self.model: ScoredModel = ScoredModel.of(model)

    def __call__(self, x: Inputs, target: Classes = None, *, seed: int = 0) -> Numbers:
        """Compute the maps of a batch.

        Args:
            x: inputs (B, ...), one array.
            target: index of the class, one for all or one for each; None for the class predicted.
            seed: seed of random numbers, where the method draws some.

        Returns:
            Array (B, *spatial axes), float64; with ``channels="none"`` of the shape of `x`.

        Raises:
            InputError: inputs or target do not fit the model.
        """
        require_seed("seed", seed, optional=False)
        tensor = self.model.tensor(x)
        classes = self.model.classes(tensor, target)
        return self.maps(self.model.host(tensor), classes, self.model.layout(tensor), seed)

    @abstractmethod
    def maps(
        self, images: npt.NDArray[Any], classes: npt.NDArray[np.int64], layout: Layout, seed: int
    ) -> Numbers:
        """Maps of images (B, ...), NumPy."""


class Gradients(_OfModel):
    """Gradients of the class's output with respect to the input.

    K. Simonyan, A. Vedaldi, A. Zisserman, "Deep Inside Convolutional Networks", 2013. The output is taken as
    it is: a logit, or a probability if the model ends in one.

    Args:
        model: a model of any framework, an adapter, an `Explainer`, or a `ScoredModel`.
        channels: ``"absolute"`` for the sum of the absolute values over the channels, ``"sum"`` for the plain
            sum, ``"none"`` for the values as they are.

    Raises:
        InputError: an argument is wrong.

    Example:
        >>> Gradients(model)(x, target=1).shape
        (2, 8, 8)
    """

    def __init__(self, model: Model, channels: Reduction = "absolute") -> None:
        super().__init__(model)
        require_choice("channels", channels, ("absolute", "sum", "none"))
        self.channels: Reduction = channels

    def maps(
        self, images: npt.NDArray[Any], classes: npt.NDArray[np.int64], layout: Layout, seed: int
    ) -> Numbers:
        """See `__call__`."""
        return self._reduced(self.gradients(images, classes), layout)

    def gradients(self, images: npt.NDArray[Any], classes: npt.NDArray[np.int64]) -> Numbers:
        """Gradients of the shape of `images`, float64."""
        adapter = self.model.adapter
        most = self.model.max_batch(adapter.to_inputs(images[:1]))
        parts = []
        for start in range(0, len(images), most):
            tensor = adapter.to_inputs(images[start : start + most])
            score = self.model.class_score(classes[start : start + most])
            parts.append(self.model.host(adapter.gradient(tensor, score)).astype(np.float64))
        return np.concatenate(parts)

    def _reduced(self, values: Numbers, layout: Layout) -> Numbers:
        if self.channels == "none":
            return values
        axis = layout.channel_axis + 1
        return np.asarray((np.abs(values) if self.channels == "absolute" else values).sum(axis=axis))


class SmoothGrad(Gradients):
    """Mean of the gradients for noisy copies of the input.

    D. Smilkov and others, "SmoothGrad: removing noise by adding noise", 2017.

    Args:
        model: see `Gradients`.
        samples: number of copies.
        noise: standard deviation of the noise, as a share of the range of the picture's values.
        channels: see `Gradients`.

    Raises:
        InputError: an argument is wrong.

    Example:
        >>> SmoothGrad(model, samples=3)(x, target=1).shape
        (2, 8, 8)
    """

    has_seed = True

    def __init__(
        self, model: Model, samples: int = 25, noise: float = 0.15, channels: Reduction = "absolute"
    ) -> None:
        super().__init__(model, channels)
        self.samples: int = require_whole("samples", samples, 1)
        self.noise: float = require_number("noise", noise, 0)

    def maps(
        self, images: npt.NDArray[Any], classes: npt.NDArray[np.int64], layout: Layout, seed: int
    ) -> Numbers:
        """See `__call__`."""
        order = layout.from_channels_first()
        found = []
        for image, wanted in zip(images, classes, strict=True):
            generator = generator_of(seed, image, layout)
            shape = (self.samples, *(image.shape[axis] for axis in layout.to_channels_first()))
            drawn = generator.normal(size=shape).transpose(0, *(axis + 1 for axis in order))
            copies = (image + self.noise * np.ptp(image) * drawn).astype(image.dtype)
            found.append(self.gradients(copies, np.full(self.samples, wanted)).mean(axis=0))
        return self._reduced(np.stack(found), layout)


class IntegratedGradients(Gradients):
    """Gradients along the straight line from a baseline to the input, times their difference.

    M. Sundararajan, A. Taly, Q. Yan, "Axiomatic Attribution for Deep Networks", ICML 2017. The line is
    divided as by Gauss and Legendre, as Captum does.

    Args:
        model: see `Gradients`.
        steps: number of points on the line.
        baseline: numbers that broadcast to the inputs; 0 is what most models call grey.
        channels: see `Gradients`; the plain sum, so that a map sums to the difference of the outputs.

    Raises:
        InputError: an argument is wrong.

    Example:
        >>> maps = IntegratedGradients(model)(x, target=1)
        >>> outputs = [explainer.predict(each)[:, 1] for each in (x, 0 * x)]
        >>> bool(np.allclose(maps.sum(axis=(1, 2)), outputs[0] - outputs[1], atol=1e-2))
        True
    """

    def __init__(
        self, model: Model, steps: int = 50, baseline: npt.ArrayLike = 0.0, channels: Reduction = "sum"
    ) -> None:
        super().__init__(model, channels)
        self.steps: int = require_whole("steps", steps, 1)
        self.baseline: npt.NDArray[Any] = require_array("baseline", baseline)

    def maps(
        self, images: npt.NDArray[Any], classes: npt.NDArray[np.int64], layout: Layout, seed: int
    ) -> Numbers:
        """See `__call__`."""
        points, weights = np.polynomial.legendre.leggauss(self.steps)
        shares = ((points + 1) / 2).reshape(-1, *[1] * (images.ndim - 1))
        try:
            starts = np.broadcast_to(self.baseline, images.shape)
        except ValueError:
            raise InputError(
                f"baseline has shape {self.baseline.shape}, which does not broadcast to inputs {images.shape}"
            ) from None
        found = []
        for image, start, wanted in zip(images, starts, classes, strict=True):
            line = (start + shares * (image - start)).astype(image.dtype)
            gradients = self.gradients(line, np.full(self.steps, wanted))
            found.append(np.tensordot(weights / 2, gradients, axes=1) * (image - start))
        return self._reduced(np.stack(found), layout)


class Occlusion(_OfModel):
    """How much the score falls when a tile of the input is replaced, for each tile.

    M. Zeiler, R. Fergus, "Visualizing and Understanding Convolutional Networks", ECCV 2014, with tiles that
    do not overlap.

    Args:
        model: see `Gradients`; with a `ScoredModel`, the fall of its score, else of the output as it is.
        tile: side of the tiles in pixels, one number or one for each axis.
        baseline: what stands in the tile, see `iba_core.evaluation.places.Baseline`.

    Raises:
        InputError: an argument is wrong.

    Example:
        >>> Occlusion(model, tile=4)(x, target=1).shape
        (2, 8, 8)
    """

    def __init__(self, model: Model, tile: Tile = 16, baseline: Baseline = "zero") -> None:
        super().__init__(model if isinstance(model, ScoredModel) else ScoredModel(model, score="logit"))
        require_tile("tile", tile)
        require_baseline("baseline", baseline)
        self.tile: Tile = tile
        self.baseline: Baseline = baseline

    def maps(
        self, images: npt.NDArray[Any], classes: npt.NDArray[np.int64], layout: Layout, seed: int
    ) -> Numbers:
        """See `__call__`."""
        tensor = self.model.tensor(images)
        places = layout.spatial_shape(images.shape[1:])
        tiles = Tiles.of(places, self.tile)
        replace = Replacement(self.model, tensor, layout, self.baseline, seed)
        whole = self.model.scores(tensor, classes)
        most = self.model.max_batch(tensor)
        found = []
        for index, wanted in enumerate(classes):
            falls = []
            for start in range(0, len(tiles), most):
                numbers = np.arange(start, min(start + most, len(tiles)))
                masks = tiles.numbers == numbers.reshape(-1, *[1] * len(places))
                scores = self.model.scores(replace(index, masks), np.full(len(numbers), wanted))
                falls.append(whole[index] - scores)
            # Each pixel has its share, so that tiles of any size sum to what they count.
            found.append((np.concatenate(falls) / tiles.sizes)[tiles.numbers])
        return np.stack(found)


# -- what any method must beat -------------------------------------------------------------------------------


class RandomMaps(_OfModel):
    """Maps of random numbers, the first thing that a method must beat.

    Args:
        model: a model of any framework, an adapter, an `Explainer`, or a `ScoredModel`.
        cells: numbers along each axis; each stands for a block of places, as those of a coarse layer do.

    Raises:
        InputError: an argument is wrong.

    Example:
        >>> RandomMaps(model, cells=4)(x, seed=0).shape
        (2, 8, 8)
    """

    has_seed = True

    def __init__(self, model: Model, cells: int = 14) -> None:
        super().__init__(model)
        self.cells: int = require_whole("cells", cells, 1)

    def maps(
        self, images: npt.NDArray[Any], classes: npt.NDArray[np.int64], layout: Layout, seed: int
    ) -> Numbers:
        """See `__call__`; values are from 0 to 1."""
        places = layout.spatial_shape(images.shape[1:])
        found = []
        for image in images:
            coarse = generator_of(seed, image, layout).random([min(self.cells, size) for size in places])
            # Each place reads the cell that it lies in.
            rows = [np.arange(size) * min(self.cells, size) // size for size in places]
            found.append(coarse[np.ix_(*rows)])
        return np.stack(found)


@dataclass(frozen=True)
class ConstantMask:
    """Maps of a bottleneck whose mask is the same everywhere: how unusual the features are.

    The model's answer and the class play no part. A map that is no better does not come from the answer.

    Attributes:
        explainer: a fitted `Explainer`.

    Example:
        >>> ConstantMask(explainer)(x, 1).shape
        (2, 8, 8)
    """

    explainer: Explains

    def __post_init__(self) -> None:
        if not isinstance(self.explainer, Explains):
            raise InputError(f"{given('explainer', self.explainer)} must be an Explainer")

    def __call__(self, x: Inputs, target: Classes = None) -> Numbers:
        """Maps (B, *places), in bits per place."""
        found = self.explainer.explain(x, target, seed=0, steps=1, samples=1, learning_rate=_STANDS_STILL)
        return np.asarray(found.saliency, np.float64)


_STANDS_STILL = 1e-9
"""Learning rate at which the mask stays where it begins, to nine digits."""
