"""Time the phases of an explanation in both frameworks, for the same network, weights, picture and noise.

python -m benchmarks.frameworks [--rounds N]
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from benchmarks.attribution import FRAMEWORKS
from benchmarks.harness import THREADS, Case, Results, Timings, interleaved, prepare, show
from benchmarks.methods import SAMPLES, STEPS, explanation
from benchmarks.networks import PLACES, TARGET, Subject, subject
from benchmarks.tables import Column
from iba_core.bottleneck.adam import AdamState, adam_step, bias_corrections
from iba_core.bottleneck.noise import seeded_normal
from iba_core.bottleneck.optimization import BottleneckOptimizer
from iba_core.bottleneck.settings import BottleneckSettings
from iba_core.bottleneck.statistics import Statistics
from iba_core.framework.adapter import Tail
from iba_core.framework.layout import Layout
from iba_core.framework.namespace import array_namespace
from iba_core.targets import main_output
from iba_core.timing import BareTail

HEAD = "head, once"
FORWARD = "tail, forward"
BACKWARD = "tail, backward"
NOISE = "noise, without a seed"
OPTIMISER = "optimiser"
BOTTLENECK = "bottleneck: mask, mixing, capacity, their gradients"
SEEDED = "(noise from a seed, in its place)"
WHOLE = "explanation"
REST = "the rest: checks, prediction, maps"

_BOTH_WAYS = "tail, forward and backward"
_LOOP = "loop without tail"


def measure(results: Results, titles: Iterable[str], rounds: int, budget: float | None = None) -> None:
    """Time the phases in both frameworks, for networks of `PLACES` that have the same weights in both."""
    for title in titles:
        show(f"  phases, {title}")
        subjects = {framework: subject(title, framework) for framework in FRAMEWORKS}
        works = {
            f"{framework}: {name}": case
            for framework, of in subjects.items()
            for name, case in phases(of).items()
        }
        timings = interleaved(works, rounds, budget=budget)
        results.timings(f"phases, {title}", timings)
        table = results.table(
            f"Phases of an explanation, {title}",
            Column("Phase"),
            *(Column(framework, ".1f", "ms") for framework in FRAMEWORKS.values()),
            Column("TensorFlow / PyTorch", ".2f"),
            note=_agreement(subjects),
        )
        columns = [_milliseconds(timings, framework) for framework in FRAMEWORKS]
        for phase in columns[0]:
            ours = [column[phase] for column in columns]
            table.rows.append([phase, *ours, ours[1] / ours[0] if ours[0] > 0 else None])


def phases(of: Subject) -> dict[str, Case]:
    """Make the separable phases of an explanation as cases, each repeated as often as in an explanation."""
    framework, split = of.adapter.framework, of.adapter.split(of.layer)
    inputs = of.adapter.to_inputs(of.x)
    features = split.features(inputs)
    shape = tuple(int(size) for size in features.shape[1:])
    layout = Layout.of(shape, split.data_format, of.explainer.tokens)
    with split.head(inputs) as tail:
        ordered = tail.in_memory_order().features
        copies = array_namespace(ordered).repeat(ordered, SAMPLES, axis=0)

    def repeated(function: Callable[..., Any], *arguments: Any) -> Case:
        def run() -> None:
            for _ in range(STEPS):
                result = function(*arguments)
            framework.to_numpy(result)

        return run

    def head() -> None:
        with split.head(inputs) as tail:
            framework.to_numpy(tail.features)

    both_ways = BareTail(of.adapter, split)
    one_way = framework.compile(lambda run, z, carry: main_output(run(z, carry)))

    def forward() -> None:
        with split.head(inputs) as tail:
            ordered = tail.in_memory_order()
            repeated(one_way, ordered.run, copies, ordered.carry)()

    settings = BottleneckSettings(steps=STEPS, samples=SAMPLES)
    loop = BottleneckOptimizer(framework, lambda z: array_namespace(z).sum(z), layout, by_image=False)
    empty_tail = Tail(features, lambda z, carry: z)
    statistics = Statistics.of(of.explainer.estimator)
    state = AdamState(features, features * 0, features * 0)
    correction, rate = (
        framework.asarray(np.asarray(value), like=features) for value in (bias_corrections(1)[0], 1.0)
    )
    optimiser = framework.compile(lambda *arguments: adam_step(*arguments).parameter)
    return {
        HEAD: head,
        FORWARD: forward,
        _BOTH_WAYS: lambda: both_ways.seconds(of.x, STEPS, SAMPLES),
        _LOOP: lambda: loop.run(empty_tail, statistics, settings=settings),
        NOISE: repeated(lambda: framework.standard_normal((SAMPLES, *shape), like=features)),
        SEEDED: repeated(
            lambda: framework.asarray(seeded_normal(0, 0, SAMPLES, shape, layout), like=features)
        ),
        OPTIMISER: repeated(optimiser, state, features, correction, rate),
        WHOLE: explanation(of).whole,
    }


def _milliseconds(timings: Timings, framework: str) -> dict[str, float]:
    """Compute the times of phases that add up to an explanation, some of them as differences."""
    ran = {
        name: 1e3 * timings.median(f"{framework}: {name}")
        for name in (HEAD, FORWARD, _BOTH_WAYS, _LOOP, NOISE, SEEDED, OPTIMISER, WHOLE)
    }
    forward = ran[FORWARD] - ran[HEAD]
    return {
        HEAD: ran[HEAD],
        FORWARD: forward,
        BACKWARD: ran[_BOTH_WAYS] - forward,
        BOTTLENECK: ran[_LOOP] - ran[NOISE] - ran[OPTIMISER],
        NOISE: ran[NOISE],
        OPTIMISER: ran[OPTIMISER],
        REST: ran[WHOLE] - ran[HEAD] - ran[_BOTH_WAYS] - ran[_LOOP],
        WHOLE: ran[WHOLE],
        SEEDED: ran[SEEDED],
    }


def _agreement(subjects: dict[str, Subject]) -> str:
    """Describe the agreement of the results for the same noise in a sentence."""
    capacities = [
        of.explainer.explain(of.x, TARGET, seed=0).capacity_channels_first().ravel()
        for of in subjects.values()
    ]
    correlation = np.corrcoef(*capacities)[0, 1]
    return f"From one seed, the features' capacities in the two frameworks correlate with {correlation:.6f}."


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7, help="maximum number of rounds")
    options = parser.parse_args()
    prepare()
    results = Results("frameworks", steps=STEPS, samples=SAMPLES, threads=THREADS)
    titles = [title for title, place in PLACES.items() if place.network == "efficientnet-lite0"]
    measure(results, titles, options.rounds, budget=90)
    results.write()


if __name__ == "__main__":
    main()
