"""Compare the time of estimating the features' distribution with the passes of the head alone.

python -m benchmarks.estimation [--network SUBSTRING] [--rounds N]
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable

import numpy as np

from benchmarks.attribution import FRAMEWORKS
from benchmarks.harness import THREADS, Case, Results, Timings, interleaved, prepare, show
from benchmarks.networks import PLACES, Subject, subject
from benchmarks.tables import Column, Table
from iba_core.pictures.images import sample_crops
from iba_core.zoo.efficientnet_lite import PREPROCESSING

BATCHES, BATCH = 2, 16
GOAL = 1.05
FIT, HEAD = "fit", "head"

TURN = 1.0
"""Minimum seconds of a turn, since single runs of a third of a second are less precise than the goal."""


def measure(results: Results, titles: Iterable[str], rounds: int, budget: float | None = None) -> None:
    """Compare `Explainer.fit` with the head alone, for networks of `PLACES`."""
    table = results.table(
        "Estimation",
        Column("Network"),
        Column("Framework"),
        Column("Images", "d"),
        Column("Features", "d"),
        Column("Head alone", ".2f", "s"),
        Column("`fit`", ".2f", "s"),
        Column("Ratio", ".3f"),
    )
    for title in titles:
        show(f"  estimation, {title}")
        subjects = {framework: subject(title, framework) for framework in PLACES[title].layers}
        works = {
            f"{framework}: {name}": case
            for framework, of in subjects.items()
            for name, case in cases(of).items()
        }
        timings = interleaved(works, rounds, budget=budget, turn=TURN)
        results.timings(f"estimation, {title}", timings)
        for framework, of in subjects.items():
            _tabulate(results, table, title, framework, of, timings)


def cases(of: Subject) -> dict[str, Case]:
    """Make the estimation, and the passes of the head over the same batches, as cases."""
    data_format = "channels_first" if of.framework == "torch" else "channels_last"
    batches = [
        np.asarray(batch)
        for batch in sample_crops(BATCHES * BATCH, PREPROCESSING, BATCH, data_format=data_format)
    ]
    adapter, split = of.adapter, of.adapter.split(of.layer)
    tensors = [adapter.to_inputs(batch) for batch in batches]

    def head() -> None:
        for batch in tensors:
            # Fetch the numbers, since a device may still be computing.
            adapter.framework.to_numpy(split.features(batch))

    return {HEAD: head, FIT: lambda: of.explainer.fit(batches, progbar=False)}


def _tabulate(
    results: Results, table: Table, title: str, framework: str, of: Subject, timings: Timings
) -> None:
    head, fit = f"{framework}: {HEAD}", f"{framework}: {FIT}"
    ratio = timings.ratio(fit, head)
    table.rows.append(
        [
            title,
            FRAMEWORKS[framework],
            BATCHES * BATCH,
            of.explainer.estimator.mean().size,
            timings.median(head),
            timings.median(fit),
            ratio,
        ]
    )
    results.goal(
        f"{title}, {FRAMEWORKS[framework]}: estimation, as a multiple of the bare head", ratio, at_most=GOAL
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--network", default="", help="only networks whose title contains this")
    parser.add_argument("--rounds", type=int, default=12, help="maximum number of rounds")
    options = parser.parse_args()
    prepare()
    results = Results("estimation", threads=THREADS)
    titles = [title for title in PLACES if options.network in title]
    measure(results, titles, options.rounds, budget=250)
    results.write()


if __name__ == "__main__":
    main()
