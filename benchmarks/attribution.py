"""How long one explanation takes, and how much memory, beside everything else that explains.

    python -m benchmarks.attribution [--network SUBSTRING] [--rounds N]

For each network: this library in both frameworks, the bare tail it cannot do without, the published
algorithm, and cruder methods; in one process, in turns.
"""

from __future__ import annotations

import argparse
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.harness import THREADS, Results, Timings, interleaved, show, use_threads
from benchmarks.memory import peaks
from benchmarks.methods import (
    CRUDER,
    FAST,
    IN_EVERY_FRAMEWORK,
    INTEGRATED,
    LABELS,
    METHODS,
    OCCLUSION,
    OURS,
    PUBLISHED,
    SAMPLES,
    STEPS,
    TAIL,
    Work,
    works,
)
from benchmarks.networks import PLACES, subject
from benchmarks.tables import Column

FRAMEWORKS = {"torch": "PyTorch", "tensorflow": "TensorFlow"}

FASTER_THAN_PUBLISHED = {
    "EfficientNet-Lite0, blocks.5": 5.0,
    "EfficientNet-Lite0, blocks.10": 12.0,
    "VGG-16, conv4_1": 4.5,
    "ResNet-50, layer2": 2.7,
}
"""How many times, at least."""

OF_THE_TAIL = {"torch": 1.10, "tensorflow": 1.15}
"""At most so many times as long as the bare tail of the same framework."""

TENSORFLOW_TO_PYTORCH = 1.3
"""At most so many times as long."""

FAST_GAIN = 2.0
"""How many times faster the preset is than the default, at least."""

EXTRA_MAPS = 4
"""Feature maps that an explanation may hold beyond the bare tail, per image."""

FIRST = next(iter(PLACES))
"""The network that the cruder methods are compared on."""

TURN = 2.0
"""Seconds that a turn lasts at least beside the published algorithm, in whose ten seconds the machine is now
fast, now slow: an explanation of one second would see but one of the two."""


def measure(
    results: Results,
    titles: Iterable[str],
    rounds: int,
    budget: float | None = None,
    memory: Collection[str] = METHODS,
) -> None:
    """Compare the methods on networks of `PLACES`, one after another, into `results`.

    Args:
        results: what is measured goes there.
        titles: of the networks.
        rounds: repetitions, at most.
        budget: of `interleaved`.
        memory: the methods whose memory is measured, too.
    """
    for title in titles:
        show(f"  {title}")
        names = [name for name in METHODS if title == FIRST or name not in CRUDER]
        subjects = {framework: subject(title, framework) for framework in PLACES[title].layers}
        ready = {
            f"{framework}: {name}": work
            for framework, of in subjects.items()
            for name, work in works(of, names).items()
        }
        sizes = {framework: of.explainer.estimator.mean().size for framework, of in subjects.items()}
        timings = _timed(ready, rounds, budget)
        results.timings(title, timings.all)
        results.data.setdefault("seconds_beside_others", {})[title] = timings.others.seconds
        # The networks must not be held twice.
        subjects, ready = {}, {}
        held = _peaks(title, sizes, [name for name in names if name in memory]) if memory else {}
        results.data.setdefault("peak_bytes", {})[title] = held
        results.data.setdefault("feature_map_bytes", {})[title] = {f: 4 * size for f, size in sizes.items()}
        _tabulate(results, title, timings, held)
        _judge_time(results, title, timings, sizes)
        if memory:
            _judge_memory(results, title, held, sizes)


class _Timed(NamedTuple):
    """Timings of one network.

    Attributes:
        own: this library in both frameworks, and its yardsticks: how they compare is to be known to a few
            percent.
        others: the other methods, and this library beside them. Most take many times as long, and few rounds
            tell how many.
    """

    own: Timings
    others: Timings

    @property
    def all(self) -> Timings:
        """Of each method those that say most, in the order of `METHODS`."""
        seconds = self.others.seconds | self.own.seconds
        order = [f"{framework}: {name}" for framework in FRAMEWORKS for name in METHODS]
        return Timings({case: seconds[case] for case in order if case in seconds})

    def ratio(self, case: str, to: str) -> float:
        """As `Timings.ratio`."""
        both = {case, to}
        return (self.own if both <= self.own.seconds.keys() else self.others).ratio(case, to)


def _timed(ready: dict[str, Work], rounds: int, budget: float | None) -> _Timed:
    own = [case for case in ready if case.partition(": ")[2] in IN_EVERY_FRAMEWORK]
    others = [f"torch: {OURS}", *(case for case in ready if case not in own)]

    def timed(cases: Iterable[str], rounds: int, least: int, turn: float = 0.0) -> Timings:
        return interleaved(
            {case: ready[case].whole for case in cases},
            rounds,
            warmups={case: ready[case].brief for case in cases},
            budget=budget,
            least=least,
            turn=turn,
        )

    return _Timed(timed(own, rounds, 3), timed(others, max(2, rounds // 2), 2, TURN))


def _peaks(title: str, frameworks: Iterable[str], names: list[str]) -> dict[str, float]:
    return {
        f"{framework}: {name}": held
        for framework in frameworks
        for name, held in peaks(
            "benchmarks.methods", "works_for_memory", title=title, framework=framework, names=names
        ).items()
    }


def _tabulate(results: Results, title: str, timings: _Timed, held: dict[str, float]) -> None:
    table = results.table(
        title,
        Column("Framework"),
        Column("Method"),
        Column("Time", ".2f", "s"),
        Column("Quartiles"),
        Column("Ratio to this library", ".2f"),
        Column("Peak memory", ".0f", "MB"),
    )
    times = timings.all
    for case in times.seconds:
        framework, _, name = case.partition(": ")
        low, high = times.spread(case)
        table.rows.append(
            [
                FRAMEWORKS[framework],
                LABELS[name],
                times.median(case),
                f"{low:.2f} to {high:.2f} s",
                timings.ratio(case, f"{framework}: {OURS}"),
                held[case] / 1e6 if case in held else None,
            ]
        )


def _judge_time(results: Results, title: str, timings: _Timed, frameworks: Iterable[str]) -> None:
    for framework in frameworks:
        ours, name = f"{framework}: {OURS}", f"{title}, {FRAMEWORKS[framework]}"
        results.goal(
            f"{name}: time, as a multiple of the bare tail",
            timings.ratio(ours, f"{framework}: {TAIL}"),
            at_most=OF_THE_TAIL[framework],
        )
        results.goal(
            f'{name}: times that `preset="fast"` is faster',
            timings.ratio(ours, f"{framework}: {FAST}"),
            at_least=FAST_GAIN,
        )
    ours = f"torch: {OURS}"
    if "tensorflow" in frameworks:
        results.goal(
            f"{title}: TensorFlow's time, as a multiple of PyTorch's",
            timings.ratio(f"tensorflow: {OURS}", ours),
            at_most=TENSORFLOW_TO_PYTORCH,
        )
    if title in FASTER_THAN_PUBLISHED:
        results.goal(
            f"{title}: times faster than the published algorithm",
            timings.ratio(f"torch: {PUBLISHED}", ours),
            at_least=FASTER_THAN_PUBLISHED[title],
        )
    if title == FIRST:
        for method in (INTEGRATED, OCCLUSION):
            results.goal(
                f"{title}: times faster than {method}", timings.ratio(f"torch: {method}", ours), at_least=1.0
            )


def _judge_memory(results: Results, title: str, held: dict[str, float], sizes: dict[str, int]) -> None:
    for framework, size in sizes.items():
        results.goal(
            f"{title}, {FRAMEWORKS[framework]}: memory beyond the bare tail, in feature maps",
            (held[f"{framework}: {OURS}"] - held[f"{framework}: {TAIL}"]) / (4 * size),
            at_most=EXTRA_MAPS,
        )


def plot(content: dict[str, Any], path: Path) -> None:
    """Bars: the median time of each method, a panel for each network."""
    from statistics import median

    import matplotlib.pyplot as plt

    panels = content["data"]["seconds"]
    heights = [len(seconds) for seconds in panels.values()]
    figure, axes = plt.subplots(
        len(panels),
        figsize=(8, 0.28 * sum(heights) + 0.8 * len(panels)),
        height_ratios=heights,
        squeeze=False,
    )
    colours = {OURS: "#1b6ca8", FAST: "#1b6ca8", TAIL: "#8fb8d8"}
    for axis, (title, seconds) in zip(axes[:, 0], panels.items(), strict=True):
        names = [case.partition(": ") for case in seconds]
        values = [median(values) for values in seconds.values()]
        bars = axis.barh(
            [f"{FRAMEWORKS[framework]}: {_short(name)}" for framework, _, name in names],
            values,
            color=[colours.get(name, "#b8b8b8") for *_, name in names],
        )
        axis.bar_label(bars, [f" {value:.2f} s" for value in values], fontsize=8)
        axis.invert_yaxis()
        axis.margins(x=0.12)
        axis.set_title(title, loc="left", fontsize=10)
        axis.spines[["top", "right"]].set_visible(False)
    axes[-1, 0].set_xlabel("seconds for one photograph, median")
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)


def _short(name: str) -> str:
    return {OURS: "this library", FAST: "this library, fast"}.get(name, name)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--network", default="", help="only networks whose title holds this")
    parser.add_argument("--rounds", type=int, default=15, help="repetitions of each method, at most")
    options = parser.parse_args()
    use_threads()
    results = Results("attribution", steps=STEPS, samples=SAMPLES, threads=THREADS)
    titles = [title for title in PLACES if options.network in title]
    measure(results, titles, options.rounds, budget=250)
    results.write()


if __name__ == "__main__":
    main()
