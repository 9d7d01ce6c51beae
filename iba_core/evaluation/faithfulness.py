"""Does the model need what a map marks? Metrics that take places away and follow the score."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from iba_core.arguments import (
    LARGEST_COUNT,
    require_bool,
    require_choice,
    require_numbers,
    require_seed,
    require_sequence,
    require_whole,
)
from iba_core.errors import InputError
from iba_core.evaluation.formulas import area, infidelity_of, pearson
from iba_core.evaluation.places import (
    BLUR,
    NOISE,
    Baseline,
    Replacement,
    Tile,
    Tiles,
    generator_of,
    require_maps,
)
from iba_core.evaluation.scoring import Classes, ScoredModel
from iba_core.framework.adapter import Inputs, Model
from iba_core.framework.namespace import NAMESPACES, Array

Numbers = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]

Order = Literal["morf", "lerf", "insertion"]
"""``"morf"`` takes the most relevant places away first, ``"lerf"`` the least relevant. ``"insertion"`` puts
the most relevant first into what remains when all are taken away."""

STEPS = 16
PERCENTAGES = (10, 30, 50, 70, 90)


class _Work(NamedTuple):
    """A batch with its maps, checked."""

    model: ScoredModel
    x: Array
    maps: Numbers
    classes: npt.NDArray[np.int64]
    tiles: Tiles
    replace: Replacement
    seed: int

    @classmethod
    def of(
        cls,
        model: Model,
        x: Inputs,
        maps: Any,
        target: Classes,
        tile: Tile,
        baseline: Baseline,
        seed: int,
        **options: float,
    ) -> _Work:
        require_seed("seed", seed, optional=False)
        scored = ScoredModel.of(model)
        inputs = scored.tensor(x)
        layout = scored.layout(inputs)
        array = require_maps("maps", maps, inputs, layout)
        tiles = Tiles.of(array.shape[1:], tile)
        replace = Replacement(scored, inputs, layout, baseline, seed, **options)
        return cls(scored, inputs, array, scored.classes(inputs, target), tiles, replace, seed)

    def generator(self, index: int) -> np.random.Generator:
        """Random numbers of one picture, the same for every method."""
        return generator_of(self.seed, self.replace.images[index], self.replace.layout)

    def outputs(self, taken: Sequence[Bools]) -> list[npt.NDArray[Any]]:
        """Outputs of the model with tiles taken away.

        Args:
            taken: for each image (K, tiles), True where a tile is taken away.

        Returns:
            For each image, the outputs (K, ...).
        """
        xp = NAMESPACES[type(self.x)]
        found: list[npt.NDArray[Any]] = []
        waiting: list[Array] = []
        count, most = 0, self.model.max_batch(self.x)
        # Pictures of several images share a pass of the model, and few are in memory at once.
        for pictures in self._pictures(taken):
            waiting.append(pictures)
            count += int(pictures.shape[0])
            if count >= most:
                found.append(self.model.outputs(xp.concat(waiting, axis=0)))
                waiting, count = [], 0
        if waiting:
            found.append(self.model.outputs(xp.concat(waiting, axis=0)))
        return np.split(np.concatenate(found), np.cumsum([len(each) for each in taken])[:-1])

    def _pictures(self, taken: Sequence[Bools]) -> Iterator[Array]:
        most = self.model.max_batch(self.x)
        for index, masks in enumerate(taken):
            for start in range(0, len(masks), most):
                yield self.replace(index, masks[start : start + most][:, self.tiles.numbers])

    def scores(self, taken: Sequence[Bools]) -> list[Numbers]:
        """Scores (K,) of each image with tiles taken away."""
        return [
            self.model.scores_of(outputs, np.full(len(outputs), wanted))
            for outputs, wanted in zip(self.outputs(taken), self.classes, strict=True)
        ]


def perturbation_curve(
    model: Model,
    x: Inputs,
    maps: Any,
    target: Classes = None,
    *,
    order: Order = "morf",
    tile: Tile = 1,
    steps: int = STEPS,
    baseline: Baseline = "blur",
    blur: float = BLUR,
    noise: float = NOISE,
    seed: int = 0,
) -> Numbers:
    """Follow the score while the places of a picture are taken away, or put in, in the order of a map.

    Args:
        model: a model of any framework, an adapter, an `Explainer`, or a `ScoredModel`, which says what the
            score is; else it is the probability of the class.
        x: inputs (B, ...), one array.
        maps: (B, *spatial axes) for whole pixels, or of the shape of `x` for each number. Places of equal
            value come in random order.
        target: index of the class, one for all images or one for each; None for the class predicted.
        order: ``"morf"``, ``"lerf"`` or ``"insertion"``, see `Order`.
        tile: side of the tiles that are taken away whole, in pixels, one number or one for each axis. A tile
            is as relevant as the mean of the map in it.
        steps: number of equal steps from all to nothing; fewer where there are fewer tiles.
        baseline: what stands where pixels are taken away, see `Baseline`.
        blur: standard deviation in pixels of ``baseline="blur"``.
        noise: standard deviation of the noise of ``baseline="inpaint"``, as a share of the picture's.
        seed: seed of noise and of the order of equal places. A picture gets the same in any batch, for every
            method and in every framework.

    Returns:
        Array (B, steps + 1): the score after each step; the first is that before.

    Raises:
        InputError: an argument is wrong, or maps and inputs do not fit.

    Example:
        >>> perturbation_curve(model, x, np.ones((2, 8, 8)), 1, steps=4).shape
        (2, 5)
    """
    require_choice("order", order, ("morf", "lerf", "insertion"))
    steps = require_whole("steps", steps, 1)
    work = _Work.of(model, x, maps, target, tile, baseline, seed, blur=blur, noise=noise)
    return _curve(work, order, steps)


def _curve(work: _Work, order: Order, steps: int) -> Numbers:
    count = len(work.tiles)
    steps = min(steps, count)
    # Rounded up in whole numbers, where floating point would take one too many.
    ends = -(-np.arange(steps + 1) * count // steps)
    taken = []
    for index, saliency in enumerate(work.maps):
        ranks = work.tiles.ranks(-saliency if order == "lerf" else saliency, work.generator(index))
        away = ranks < ends[:, None]
        taken.append(~away if order == "insertion" else away)
    return np.stack(work.scores(taken))


def insertion(model: Model, x: Inputs, maps: Any, target: Classes = None, **options: Any) -> Numbers:
    """Compute the area under the score while the most relevant places are put into the baseline.

    V. Petsiuk, A. Das, K. Saenko, "RISE: Randomized Input Sampling for Explanation of Black-box Models", BMVC
    2018. Higher is better.

    Args:
        model: see `perturbation_curve`, also for the other arguments.
        x: inputs (B, ...).
        maps: (B, *spatial axes).
        target: the class.
        **options: `tile`, `steps`, `baseline`, `blur`, `noise` and `seed`.

    Returns:
        Array (B,), the mean score on the way, from 0 to 1 for a probability.

    Example:
        >>> insertion(model, x, np.ones((2, 8, 8)), 1, steps=4).shape
        (2,)
    """
    return np.asarray(area(perturbation_curve(model, x, maps, target, order="insertion", **options)))


def deletion(model: Model, x: Inputs, maps: Any, target: Classes = None, **options: Any) -> Numbers:
    """Compute the area under the score while the most relevant places are taken away.

    See `insertion` for the paper and the arguments. Lower is better.

    Args:
        model: see `perturbation_curve`, also for the other arguments.
        x: inputs (B, ...).
        maps: (B, *spatial axes).
        target: the class.
        **options: `tile`, `steps`, `baseline`, `blur`, `noise` and `seed`.

    Returns:
        Array (B,), the mean score on the way.

    Example:
        >>> deletion(model, x, np.ones((2, 8, 8)), 1, steps=4).shape
        (2,)
    """
    return np.asarray(area(perturbation_curve(model, x, maps, target, order="morf", **options)))


def degradation(
    model: Model,
    x: Inputs,
    maps: Any,
    target: Classes = None,
    *,
    tile: Tile = 16,
    steps: int = STEPS,
    baseline: Baseline = "mean",
    blur: float = BLUR,
    noise: float = NOISE,
    seed: int = 0,
) -> Numbers:
    """Compute the area between the scores when the least and when the most relevant tiles go first.

    M. Ancona and others; K. Schulz and others, "Restricting the Flow", ICLR 2020, section 4.3. Here the score
    is not rescaled, so a picture of which the model is sure counts more. Higher is better; 0 is chance.

    Args:
        model: see `perturbation_curve`, also for the other arguments.
        x: inputs (B, ...).
        maps: (B, *spatial axes).
        target: the class.
        tile: side of the tiles in pixels.
        steps: number of equal steps.
        baseline: what stands where tiles are taken away.
        blur: standard deviation in pixels of ``baseline="blur"``.
        noise: of ``baseline="inpaint"``.
        seed: of noise and of the order of equal tiles.

    Returns:
        Array (B,), from -1 to 1 for a probability.

    Example:
        >>> degradation(model, x, np.ones((2, 8, 8)), 1, tile=2, steps=4).shape
        (2,)
    """
    steps = require_whole("steps", steps, 1)
    work = _Work.of(model, x, maps, target, tile, baseline, seed, blur=blur, noise=noise)
    lerf, morf = area(_curve(work, "lerf", steps)), area(_curve(work, "morf", steps))
    return np.asarray(lerf - morf)


def road(
    model: Model,
    x: Inputs,
    maps: Any,
    target: Classes = None,
    *,
    percentages: Sequence[float] = PERCENTAGES,
    order: Literal["morf", "lerf"] = "morf",
    noise: float = NOISE,
    seed: int = 0,
) -> Numbers:
    """Remove the most relevant pixels, debiased: how often the class survives noisy linear imputation.

    Y. Rong and others, "A Consistent and Efficient Evaluation Strategy for Attribution Methods", ICML 2022.
    Imputed pixels look like their surroundings, so their shape gives no class away. Lower is better; with
    ``order="lerf"``, higher is better.

    Args:
        model: see `perturbation_curve`, also for `x`, `maps` and `target`.
        x: pictures (B, ...).
        maps: (B, H, W).
        target: the class.
        percentages: shares of the pixels that are removed, in percent.
        order: ``"morf"`` to remove the most relevant pixels, ``"lerf"`` for the least.
        noise: standard deviation of the noise, as a share of the picture's.
        seed: seed of the noise and of the order of equal pixels.

    Returns:
        Array (B,): the share of the percentages at which the model still predicts the class.

    Example:
        >>> road(model, x, np.ones((2, 8, 8)), percentages=(25, 50)).shape
        (2,)
    """
    options: dict[str, Any] = {"percentages": percentages, "order": order, "noise": noise, "seed": seed}
    return np.asarray(road_hits(model, x, maps, target, **options).mean(axis=1))


def road_hits(
    model: Model,
    x: Inputs,
    maps: Any,
    target: Classes = None,
    *,
    percentages: Sequence[float] = PERCENTAGES,
    order: Literal["morf", "lerf"] = "morf",
    noise: float = NOISE,
    seed: int = 0,
) -> Numbers:
    """Say at each percentage whether the model still predicts the class, 1 or 0; see `road`.

    Args:
        model: see `road`, also for the other arguments.
        x: pictures (B, ...).
        maps: (B, H, W).
        target: the class.
        percentages: shares of the pixels.
        order: ``"morf"`` or ``"lerf"``.
        noise: standard deviation of the noise.
        seed: seed of the noise.

    Returns:
        Array (B, percentages). Its mean over pictures is the accuracy that Quantus gives.

    Example:
        >>> road_hits(model, x, np.ones((2, 8, 8)), percentages=(25, 50)).shape
        (2, 2)
    """
    require_choice("order", order, ("morf", "lerf"))
    require_sequence("percentages", percentages, "percentages")
    shares = require_numbers("percentages", percentages, None, 0, 100)
    work = _Work.of(model, x, maps, target, 1, "inpaint", seed, noise=noise)
    counts = np.array([int(len(work.tiles) * share / 100) for share in shares])
    taken = []
    for index, saliency in enumerate(work.maps):
        ranks = work.tiles.ranks(-saliency if order == "lerf" else saliency, work.generator(index))
        taken.append(ranks < counts[:, None])
    return np.array(
        [
            outputs.argmax(axis=1) == wanted
            for outputs, wanted in zip(work.outputs(taken), work.classes, strict=True)
        ],
        np.float64,
    )


# -- random places -------------------------------------------------------------------------------------------


def perturbation_pairs(
    model: Model,
    x: Inputs,
    maps: Any,
    target: Classes = None,
    *,
    n: int | Sequence[int] | None = None,
    samples: int = 20,
    tile: Tile = 16,
    baseline: Baseline = "mean",
    seed: int = 0,
) -> Numbers:
    """Take random sets of tiles away: what a map gives to them, and how much the score falls.

    Args:
        model: see `perturbation_curve`, also for `x`, `maps` and `target`.
        x: inputs (B, ...).
        maps: (B, *spatial axes).
        target: the class.
        n: how many tiles are taken away at once, or several numbers in turn; None for an eighth, a quarter
            and a half of all.
        samples: number of sets for each `n`.
        tile: side of the tiles in pixels.
        baseline: what stands where tiles are taken away.
        seed: seed of the sets. They are the same for every method.

    Returns:
        Array (B, numbers n, samples, 2): the sum of the map, in its own unit, and the fall of the score.

    Raises:
        InputError: an argument is wrong, or there are fewer tiles than `n`.

    Example:
        >>> perturbation_pairs(model, x, np.ones((2, 8, 8)), 1, n=4, samples=5, tile=2).shape
        (2, 1, 5, 2)
    """
    samples = require_whole("samples", samples, 2, LARGEST_COUNT)
    work = _Work.of(model, x, maps, target, tile, baseline, seed)
    numbers = _numbers(n, len(work.tiles))
    taken = [
        _sets(work.generator(index), numbers, samples, len(work.tiles)) for index in range(len(work.maps))
    ]
    whole = work.model.scores(work.x, work.classes)
    pairs = []
    for saliency, sets, before, after in zip(work.maps, taken, whole, work.scores(taken), strict=True):
        sums = sets @ work.tiles.sums(saliency)
        pairs.append(np.stack([sums, before - after], axis=-1).reshape(len(numbers), samples, 2))
    return np.stack(pairs)


def _numbers(n: int | Sequence[int] | None, count: int) -> list[int]:
    if n is None:
        wanted: list[Any] = sorted({max(1, count // share) for share in (8, 4, 2)})
    elif isinstance(n, np.ndarray):
        wanted = list(np.atleast_1d(n))
    elif isinstance(n, Sequence) and not isinstance(n, (str, bytes)):
        wanted = list(n)
    else:
        wanted = [n]
    numbers = [require_whole("n", number, 1) for number in wanted]
    if not numbers or max(numbers) > count:
        raise InputError(f"n={n!r} must be numbers of tiles from 1 to {count}; smaller tiles are more")
    return numbers


def _sets(generator: np.random.Generator, numbers: Sequence[int], samples: int, count: int) -> Bools:
    """Random sets (numbers * samples, tiles) of so many tiles each."""
    order = generator.random((len(numbers), samples, count)).argsort(axis=-1).argsort(axis=-1)
    return (order < np.array(numbers)[:, None, None]).reshape(-1, count)


def sensitivity_n(
    model: Model, x: Inputs, maps: Any, target: Classes = None, *, pooled: bool = False, **options: Any
) -> Any:
    """Correlate what a map gives to random sets of n tiles with how much the score falls without them.

    M. Ancona and others, "Towards better understanding of gradient-based attribution methods for Deep Neural
    Networks", ICLR 2018, section 4. Higher is better.

    Within a picture, only the shape of a map counts. Pooled over pictures, its total counts as well: a method
    that knows which pictures hang by little does better. The order of methods often reverses between the two,
    so say which one you report.

    Args:
        model: see `perturbation_curve`, also for `x`, `maps` and `target`.
        x: inputs (B, ...).
        maps: (B, *spatial axes).
        target: the class.
        pooled: correlate over all pictures together instead of within each.
        **options: `n`, `samples`, `tile`, `baseline` and `seed`, see `perturbation_pairs`.

    Returns:
        Array (B,), the mean of the correlations over the numbers `n`; or one number if pooled.

    Example:
        >>> sensitivity_n(model, x, np.ones((2, 8, 8)), 1, n=4, samples=5, tile=2)
        array([0., 0.])
    """
    pairs = perturbation_pairs(model, x, maps, target, **options)
    return pooled_correlation(pairs) if require_bool("pooled", pooled) else correlation_within(pairs)


def correlation_within(pairs: Numbers) -> Numbers:
    """Mean over n of the correlations (B,) within pictures; `pairs` as of `perturbation_pairs`."""
    return np.asarray(pearson(pairs[..., 0], pairs[..., 1]).mean(axis=-1))


def pooled_correlation(pairs: Numbers) -> float:
    """Mean over n of the correlation over all pictures together; `pairs` as of `perturbation_pairs`."""
    by_number = np.moveaxis(pairs, 1, 0).reshape(pairs.shape[1], -1, 2)
    return float(pearson(by_number[..., 0], by_number[..., 1]).mean())


def infidelity(
    model: Model, x: Inputs, maps: Any, target: Classes = None, *, normalize: bool = True, **options: Any
) -> Numbers:
    """Compare what a map gives to random sets of tiles with how much the score falls, squared.

    C.-K. Yeh and others, "On the (In)fidelity and Sensitivity of Explanations", NeurIPS 2019, definition 2.1,
    with the removal of tiles as perturbation. Lower is better.

    Args:
        model: see `perturbation_curve`, also for `x`, `maps` and `target`.
        x: inputs (B, ...).
        maps: (B, *spatial axes).
        target: the class.
        normalize: scale each map by the factor that fits best, as Captum's argument of the same name does.
            Otherwise a map in bits is compared with a probability.
        **options: `n`, `samples`, `tile`, `baseline` and `seed`, see `perturbation_pairs`.

    Returns:
        Array (B,), in units of the score squared.

    Example:
        >>> infidelity(model, x, np.ones((2, 8, 8)), 1, n=4, samples=5, tile=2).shape
        (2,)
    """
    require_bool("normalize", normalize)
    pairs = perturbation_pairs(model, x, maps, target, **options)
    flat = pairs.reshape(len(pairs), -1, 2)
    return np.asarray(infidelity_of(flat[..., 0], flat[..., 1], normalize))
