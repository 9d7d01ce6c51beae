"""Time and memory of one explanation, compared with other methods.

    python -m benchmarks.attribution [--network SUBSTRING] [--rounds N]

For each network, it compares this library in both frameworks, the bare tail, the published algorithm, and
simpler methods. All run in one process, in turns.
"""

from __future__ import annotations

import argparse
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.harness import THREADS, Results, Timings, interleaved, prepare, show
from benchmarks.memory import peaks
from benchmarks.methods import (
    DEFAULT,
    FAST,
    IN_EVERY_FRAMEWORK,
    INTEGRATED,
    LABELS,
    METHODS,
    OCCLUSION,
    OF_THE_FIRST,
    ONE,
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
"""Goal: the library is at least this many times faster than the published algorithm."""

OF_THE_TAIL = {"torch": 1.10, "tensorflow": 1.15}
"""Goal: an explanation takes at most this many times as long as the bare tail of the same framework."""

TENSORFLOW_TO_PYTORCH = 1.3
"""Goal: TensorFlow takes at most this many times as long as PyTorch."""

FAST_GAIN = 2.0
"""Goal: the preset ``"fast"`` is at least this many times faster than the paper's setting."""

OF_THE_PAPERS = 1.0
"""Goal: the default takes at most this many times as long as the paper's setting at the layer."""

EXTRA_MAPS = 4
"""Goal: an explanation holds at most this many feature maps more than the bare tail, per image."""

FIRST = next(iter(PLACES))
"""The network on which the simpler methods are compared."""

TURN = 2.0
"""Minimum seconds of a turn in rounds with the published algorithm. That one takes ten seconds, in which the
speed of the machine varies, so a single explanation of one second would not be comparable."""


def measure(
    results: Results,
    titles: Iterable[str],
    rounds: int,
    budget: float | None = None,
    memory: Collection[str] = METHODS,
) -> None:
    """Compare the methods on networks of `PLACES`, one after the other.

    Args:
        results: object to add the results to.
        titles: titles of the networks.
        rounds: maximum number of rounds.
        budget: see `interleaved`.
        memory: methods whose memory is measured as well.
    """
    for title in titles:
        show(f"  {title}")
        names = [name for name in METHODS if title == FIRST or name not in OF_THE_FIRST]
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
        # Free the networks before another process loads them.
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
        own: this library in both frameworks, and its bare tails. Their ratios must be precise to a few
            percent.
        others: the other methods, together with this library. Most take many times as long, so few rounds
            are enough.
    """

    own: Timings
    others: Timings

    @property
    def all(self) -> Timings:
        """The more precise timings of each method, in the order of `METHODS`."""
        seconds = self.others.seconds | self.own.seconds
        order = [f"{framework}: {name}" for framework in FRAMEWORKS for name in METHODS]
        return Timings({case: seconds[case] for case in order if case in seconds})

    def ratio(self, case: str, to: str) -> float:
        """Compute a ratio as `Timings.ratio` does."""
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
        Column("Ratio to the paper's setting", ".2f"),
        Column("Peak memory", ".0f", "MB"),
    )
    times = timings.all
    for case in times.seconds:
        framework, _, name = case.partition(": ")
        low, high = times.quartiles(case)
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
        for method, what in ((DEFAULT, "the default's time"), (ONE, "the default's time at one layer")):
            if (case := f"{framework}: {method}") in timings.own.seconds:
                results.goal(
                    f"{name}: {what}, as a multiple of the paper's setting",
                    timings.ratio(case, ours),
                    at_most=OF_THE_PAPERS,
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
            f"{title}, {FRAMEWORKS[framework]}: memory beyond the bare tail, in feature maps "
            "(less than 0: the bare tail needs more)",
            (held[f"{framework}: {OURS}"] - held[f"{framework}: {TAIL}"]) / (4 * size),
            at_most=EXTRA_MAPS,
        )


def plot(content: dict[str, Any], path: Path) -> None:
    """Draw the median time of each method as bars, in one panel for each network."""
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
    colours = {OURS: "#1b6ca8", DEFAULT: "#1b6ca8", ONE: "#1b6ca8", FAST: "#1b6ca8", TAIL: "#8fb8d8"}
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
    ours = {
        OURS: "this library",
        DEFAULT: "this library, two layers",
        ONE: "this library, default",
        FAST: "this library, fast",
    }
    return ours.get(name, name)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--network", default="", help="only networks whose title contains this")
    parser.add_argument("--rounds", type=int, default=15, help="maximum number of runs of each method")
    options = parser.parse_args()
    prepare()
    results = Results("attribution", steps=STEPS, samples=SAMPLES, threads=THREADS)
    titles = [title for title in PLACES if options.network in title]
    measure(results, titles, options.rounds, budget=250)
    results.write()


if __name__ == "__main__":
    main()
