"""The public doors of `iba_core.evaluation`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np

from iba_core import evaluation
from tests.robustness.doors_core import CALLED, OPTIONAL_SEED, SEED
from tests.robustness.doors_models import SIDE, Network
from tests.robustness.walk import Door, door
from tests.robustness.wrong_values import (
    Accepts,
    Argument,
    array,
    boolean,
    either,
    function,
    given,
    name,
    nothing,
    number,
    numbers,
    optional,
    whole,
)

OTHER_SHAPES = (
    *("a list of lists", "an array of one axis", "an array of seven axes"),
    *("with one axis more", "with one axis less", "with each axis longer"),
)
"""What the model itself refuses for its shape, with an error of its own, which passes unchanged."""

RNG = np.random.default_rng(0)
MAPS = RNG.random((2, SIDE, SIDE))
VALUES = RNG.random(6)
MASKS = MAPS > 0.3
SHARES = numbers(each=number(0, 1))

INDEX = either(whole(), array((0, 1)))
TILE = given(4, either(whole(1, 2**14), numbers((2,), whole(1, 2**14))), ("n",))
COUNT = given(2, whole(1))
ORDER = given("morf")
BASELINE = given("mean", either(array(), function), ("inpaint",), passes_on=CALLED)


def _of_maps() -> Iterator[Door]:
    maps = given(MAPS, array(shape=MAPS.shape))
    masks = given(MASKS, _is_mask, ("maps",))
    yield door("iba_core.evaluation.sparseness", maps=given(MAPS, array()))
    yield door("iba_core.evaluation.pointing_game", maps=maps, masks=masks, tolerance=given(1, number(0)))
    yield door("iba_core.evaluation.mass_in_box", maps=maps, masks=masks, quantiles=given((0.0,), SHARES))
    yield door(
        "iba_core.evaluation.boxes_to_masks",
        boxes=given(np.array([[1, 1, 4, 4]]), array(shape=(1, 4))),
        shape=given((SIDE, SIDE), numbers((2,), whole(4))),
    )
    yield door(
        "iba_core.evaluation.agreement",
        first=maps,
        second=given(MAPS, array(shape=MAPS.shape), ("first",)),
        how=given("pearson"),
        top=given(0.1, number(above=0, most=1)),
    )
    # Pictures with a NaN are left out, and there may be none.
    values = given(VALUES, either(array(finite=False), _empty), ("first", "second"))
    yield door(
        "iba_core.evaluation.bootstrap",
        values=values,
        reduce=given(np.mean, passes_on=(*CALLED, "a function")),
        resamples=given(5, whole(1, 10**6)),
        confidence=given(0.95, number(above=0, below=1)),
        seed=SEED,
    )
    mean = given(np.mean, passes_on=(*CALLED, "a function"))
    yield door("iba_core.evaluation.paired", first=values, second=values, reduce=mean)


def _empty(value: Any) -> bool:
    return isinstance(value, (list, tuple, np.ndarray)) and not np.size(value)


def _is_mask(value: Any) -> bool:
    return array(shape=MASKS.shape)(value) and set(np.ravel(value)) <= {0, 1}


def _measured(net: Network) -> dict[str, Argument]:
    """Arguments of all metrics of a model."""
    is_pair: Accepts = lambda value: net.is_images(value) and len(value) == 2  # noqa: E731  # a rule
    return {
        "model": given(net.model),
        "x": given(net.images[:2], is_pair, ("the input", "input", "maps", "a feature map")),
        "maps": given(MAPS, array(shape=MAPS.shape)),
        "target": given(1, optional(INDEX)),
    }


def _of_models(net: Network) -> Iterator[Door]:
    arguments = _measured(net)
    for metric in ("insertion", "deletion"):
        yield door(f"iba_core.evaluation.{metric}[{net.package}]", **arguments)
    yield door(f"iba_core.evaluation.infidelity[{net.package}]", **arguments, normalize=given(True, boolean))
    yield door(
        f"iba_core.evaluation.perturbation_curve[{net.package}]",
        **arguments,
        order=ORDER,
        tile=TILE,
        steps=COUNT,
        baseline=BASELINE,
        blur=given(10.0, number(above=0)),
        noise=given(0.01, number(0)),
        seed=SEED,
    )
    yield door(
        f"iba_core.evaluation.degradation[{net.package}]",
        **arguments,
        tile=TILE,
        steps=COUNT,
        baseline=BASELINE,
        blur=given(10.0, number(above=0)),
        noise=given(0.01, number(0)),
        seed=SEED,
    )
    yield door(
        f"iba_core.evaluation.perturbation_pairs[{net.package}]",
        **arguments,
        n=given(2, optional(either(whole(1, 64), numbers(each=whole(1, 64))))),
        samples=given(3, whole(2)),
        tile=TILE,
        baseline=BASELINE,
        seed=SEED,
    )
    yield door(f"iba_core.evaluation.sensitivity_n[{net.package}]", **arguments, pooled=given(False, boolean))
    for metric in ("road", "road_hits"):
        yield door(
            f"iba_core.evaluation.{metric}[{net.package}]",
            **arguments,
            percentages=given((10, 50), numbers(each=number(0, 100))),
            order=ORDER,
            noise=given(0.01, number(0)),
            seed=SEED,
        )


def _methods(net: Network) -> Iterator[Door]:
    model = given(net.model)
    channels = given("sum")
    yield door(f"iba_core.evaluation.Gradients[{net.package}]", model=model, channels=channels)
    yield door(
        f"iba_core.evaluation.IntegratedGradients[{net.package}]",
        model=model,
        steps=COUNT,
        baseline=given(0.0, array()),
        channels=channels,
    )
    yield door(
        f"iba_core.evaluation.SmoothGrad[{net.package}]",
        model=model,
        samples=COUNT,
        noise=given(0.15, number(0)),
        channels=channels,
    )
    yield door(f"iba_core.evaluation.Occlusion[{net.package}]", model=model, tile=TILE, baseline=BASELINE)
    yield door(f"iba_core.evaluation.RandomMaps[{net.package}]", model=model, cells=COUNT)
    yield door(
        f"iba_core.evaluation.ScoredModel[{net.package}]",
        model=model,
        score=given("probability", function),
        output=given(None, optional(either(name, whole(-1))), why="looked up when the model runs"),
        activation=given(None, optional(name)),
        max_batch=given(2, optional(whole(1))),
    )


def _of_methods(net: Network) -> Iterator[Door]:
    method = given(evaluation.Gradients(net.model), function)
    arguments = {key: rule for key, rule in _measured(net).items() if key in ("x", "target")}
    arguments["x"] = replace(arguments["x"], passes_on=OTHER_SHAPES)
    yield door(
        f"iba_core.evaluation.max_sensitivity[{net.package}]",
        model=given(net.model),
        method=method,
        **arguments,
        radius=given(0.02, number(0)),
        samples=COUNT,
        seed=SEED,
    )
    yield door(
        f"iba_core.evaluation.seed_stability[{net.package}]",
        model=given(net.model),
        method=method,
        **arguments,
        seeds=given((0, 1), numbers(each=whole())),
    )
    yield door(
        f"iba_core.evaluation.survival[{net.package}]",
        method=given(net.explainer),
        **arguments,
        seed=OPTIONAL_SEED,
    )
    yield door(
        f"iba_core.evaluation.grid_pointing_game[{net.package}]",
        model=given(net.model),
        method=method,
        x=given(net.images[:4], net.is_images, ("the input", "input"), passes_on=OTHER_SHAPES),
        target=arguments["target"],
        grid=given((2, 2), numbers((2,), whole(1, SIDE))),
        seed=SEED,
    )
    yield door(f"iba_core.evaluation.ConstantMask[{net.package}]", explainer=given(net.explainer))
    yield door(
        f"iba_core.evaluation.randomization_check[{net.package}]",
        model=given(net.model),
        make=given(evaluation.Gradients, passes_on=(*CALLED, "a function")),
        **arguments,
        layer_order=given("top_down"),
        layers=given(["logits"], optional(nothing), ("layer",)),
        stages=given(1, optional(whole(1))),
        seed=SEED,
    )
    yield door(
        f"iba_core.evaluation.evaluate[{net.package}]",
        methods=given({"gradients": evaluation.Gradients(net.model)}),
        batches=replace(net.batches(), passes_on=OTHER_SHAPES),
        metrics=given(["sparseness"]),
        model=given(None, optional(nothing)),
        target=arguments["target"],
        seed=SEED,
        progbar=given(False, boolean),
    )


def _of_comparisons(net: Network) -> Iterator[Door]:
    yield door(
        f"iba_core.evaluation.compare_models[{net.package}]",
        first=given(net.explainer),
        second=given(net.explainer),
        batches=replace(net.batches(), passes_on=OTHER_SHAPES),
        pairs=given("name", optional(nothing)),
        target=given(1, optional(INDEX), ("target", "class")),
        seed=SEED,
        tolerance=given(None, optional(number(above=0, most=1))),
        convert=given(None, optional(function), passes_on=(*CALLED, "a function", "a class")),
        names=given(("one", "other"), optional(_are_two_names)),
        activation=given(None, optional(nothing)),
    )
    yield door(
        "iba_core.evaluation.model_comparison.where_they_part",
        relative=given(VALUES, array((1,), finite=False)),
        tolerance=given(1e-4, number(above=0)),
        factor=given(10.0, number(1)),
    )


def _are_two_names(value: Any) -> bool:
    return isinstance(value, (list, tuple, np.ndarray)) and len(set(value)) == 2 and all(map(name, value))


def doors(net: Network) -> list[Door]:
    """All doors of metrics and methods, with a model of a backend."""
    return [
        *_of_maps(),
        *_of_models(net),
        *_methods(net),
        *_of_methods(net),
        *_of_comparisons(net),
    ]
