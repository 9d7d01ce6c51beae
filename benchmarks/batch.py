"""Compare a batch of photographs with the same photographs one by one, on a processor.

python -m benchmarks.batch [--rounds N]
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from time import process_time
from typing import Any

import numpy as np

from benchmarks.harness import Case, Results, interleaved, prepare
from benchmarks.networks import PLACES, TARGET, Subject, subject
from benchmarks.tables import Column
from iba_core.pictures.images import sample_crops
from iba_core.zoo.efficientnet_lite import PREPROCESSING

Images = np.ndarray[Any, Any]
Explain = Callable[[Images], object]

BATCH = 8
FRAMEWORKS = ("torch", "tensorflow")
NETWORK = "efficientnet-lite0"

RATIO = 1.0
"""Goal: a batch takes at most as long as its photographs one by one."""
RATIO_WITHIN = 0.05
"""Typical difference between two runs of the same case."""


def measure(results: Results, titles: list[str], rounds: int, budget: float | None = None) -> None:
    """Time the explanation of `BATCH` photographs together and one by one, in turns."""
    table = results.table(
        f"{BATCH} photographs, together and one by one",
        Column("Network"),
        Column("Way"),
        Column("One by one", ".2f", "s"),
        Column("Together", ".2f", "s"),
        Column("Ratio", ".2f"),
        note="Processor seconds of all threads, medians of rounds in turns; ratios within rounds.",
    )
    for title in titles:
        for framework in FRAMEWORKS:
            studied = subject(title, framework)
            for way, explain in _ways(studied).items():
                timings = interleaved(_cases(explain, _photographs(studied)), rounds, budget=budget)
                results.timings(f"{title}, {way}", timings)
                ratio = timings.ratio("together", "one by one")
                table.rows.append(
                    [title, way, timings.median("one by one"), timings.median("together"), ratio]
                )
                results.goal(
                    f"{title}, {way}: a batch against its photographs", ratio, at_most=RATIO + RATIO_WITHIN
                )


def _cases(explain: Explain, photographs: Images) -> dict[str, Case]:
    return {
        "together": _processor_seconds(lambda: explain(photographs)),
        "one by one": _processor_seconds(lambda: [explain(photographs[i : i + 1]) for i in range(BATCH)]),
    }


def _photographs(studied: Subject) -> Images:
    data_format = "channels_first" if studied.framework == "torch" else "channels_last"
    return next(sample_crops(BATCH, PREPROCESSING, BATCH, data_format=data_format))


def _ways(studied: Subject) -> dict[str, Explain]:
    ways: dict[str, Explain] = {
        f"Explainer, {studied.framework}": lambda x: studied.explainer.explain(x, TARGET, seed=0)
    }
    if studied.framework == "torch":
        ways["IBA.analyze"] = _bottleneck(studied)
    return ways


def _bottleneck(studied: Subject) -> Explain:
    import torch

    from iba_torch import IBA

    estimator = studied.explainer.estimator
    iba = IBA(
        studied.model.get_submodule(studied.layer),
        feature_mean=estimator.mean().astype(np.float32),
        feature_std=estimator.std().astype(np.float32),
    )

    def loss(x: torch.Tensor) -> torch.Tensor:
        classes = torch.full((len(x),), TARGET)
        return torch.nn.functional.cross_entropy(studied.model(x), classes, reduction="none")

    return lambda x: iba.analyze(torch.from_numpy(x), loss, seed=0)


def _processor_seconds(function: Callable[[], object]) -> Case:
    def run() -> float:
        started = process_time()
        function()
        return process_time() - started

    return run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    prepare()
    results = Results("batch", batch=BATCH)
    titles = [title for title, place in PLACES.items() if place.network == NETWORK]
    measure(results, titles, rounds)
    results.write()


if __name__ == "__main__":
    main()
