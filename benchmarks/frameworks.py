"""Where the time of an explanation goes, in either framework: the same network, weights, picture and noise.

python -m benchmarks.frameworks [--rounds N]
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from benchmarks.attribution import FRAMEWORKS
from benchmarks.harness import THREADS, Case, Column, Results, Timings, interleaved, show, use_threads
from benchmarks.methods import SAMPLES, STEPS, explanation
from benchmarks.networks import PLACES, TARGET, Subject, subject
from iba_core.bottleneck.adam import AdamState, adam_step, bias_corrections
from iba_core.bottleneck.settings import BottleneckSettings
from iba_core.bottleneck.statistics import Statistics
from iba_core.bottleneck.noise import seeded_normal
from iba_core.bottleneck.optimization import BottleneckOptimizer
from iba_core.framework.adapter import Head
from iba_core.framework.allocator import memory_kept
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
    """Time the phases in both frameworks for networks of `PLACES` that both have, weights included."""
    for title in titles:
        show(f"  phases, {title}")
        subjects = {framework: subject(title, framework) for framework in FRAMEWORKS}
        works = {
            f"{framework}: {name}": case
            for framework, of in subjects.items()
            for name, case in phases(of).items()
        }
        with memory_kept():  # As in an explanation.
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
    """The parts of an explanation that can be run by themselves, each as often as it takes place."""
    adapter, cut = of.adapter, of.adapter.cut(of.layer)
    inputs = adapter.to_inputs(of.x)
    with cut.open(inputs) as opened:
        features = opened.features
    shape = tuple(int(size) for size in features.shape[1:])
    layout = Layout.of(shape, cut.data_format, of.explainer.tokens)
    copies = array_namespace(features).repeat(features, SAMPLES, axis=0)

    def repeated(function: Callable[..., Any], *arguments: Any) -> Case:
        def run() -> None:
            for _ in range(STEPS):
                result = function(*arguments)
            adapter.to_numpy(result)

        return run

    def head() -> None:
        with cut.open(inputs) as opened:
            adapter.to_numpy(opened.features)

    both_ways = BareTail(adapter, adapter.cut(of.layer))
    tail = adapter.compile(lambda z, carry: main_output(cut.tail(z, carry)))

    def forward() -> None:
        with cut.open(inputs) as opened:
            repeated(tail, copies, opened.carry)()

    settings = BottleneckSettings(steps=STEPS, samples=SAMPLES)
    loop = BottleneckOptimizer(adapter, lambda z, carry, targets: array_namespace(z).sum(z), layout, settings)
    statistics = Statistics.of(of.explainer.estimator)
    state = AdamState(features, features * 0, features * 0)
    correction, rate = (
        adapter.asarray(np.asarray(value), like=features) for value in (bias_corrections(1)[0], 1.0)
    )
    optimiser = adapter.compile(lambda *arguments: adam_step(*arguments).parameter)
    return {
        HEAD: head,
        FORWARD: forward,
        _BOTH_WAYS: lambda: both_ways.seconds(of.x, STEPS, SAMPLES),
        _LOOP: lambda: loop.run(Head(features), statistics),
        NOISE: repeated(lambda: adapter.standard_normal((SAMPLES, *shape), like=features)),
        SEEDED: repeated(lambda: adapter.asarray(seeded_normal(0, 0, SAMPLES, shape, layout), like=features)),
        OPTIMISER: repeated(optimiser, state, features, correction, rate),
        WHOLE: explanation(of).whole,
    }


def _milliseconds(timings: Timings, framework: str) -> dict[str, float]:
    """Phases that add up to an explanation; those that cannot be run alone are differences."""
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
    """A sentence on how alike the results are for the same noise."""
    capacities = [
        of.explainer.explain(of.x, TARGET, seed=0).capacity_channels_first().ravel()
        for of in subjects.values()
    ]
    correlation = np.corrcoef(*capacities)[0, 1]
    return f"From one seed, the features' capacities in the two frameworks correlate with {correlation:.6f}."


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7, help="repetitions, at most")
    options = parser.parse_args()
    use_threads()
    results = Results("frameworks", steps=STEPS, samples=SAMPLES, threads=THREADS)
    titles = [title for title, place in PLACES.items() if place.network == "efficientnet-lite0"]
    measure(results, titles, options.rounds, budget=90)
    results.write()


if __name__ == "__main__":
    main()
