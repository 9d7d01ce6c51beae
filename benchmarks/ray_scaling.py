"""Measure what a Ray cluster on this machine explains: throughput of one and two workers, memory, bytes.

python -m benchmarks.ray_scaling [--rounds N] [--photographs N] [--counts N ...]

Each worker has one thread. One worker and two work side by side, so that other programs slow both, and the
ratio is that of what they explain in the same time. It begins when all have explained two photographs each,
since it takes seconds to start them. Then small inputs are explained by a small network, in a process of
their own for each number of them, and the memory of the program that gives out the work is taken at the end,
beyond what it was before. It prints what it finds.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median
from time import perf_counter, process_time
from typing import Any

import numpy as np
import psutil

from benchmarks.dataset import write_photographs
from benchmarks.harness import ROOT, show
from iba_core.datasets.items import Item, find_images, image_items
from iba_core.explainer import Explainer
from iba_core.framework.adapter import load_backend
from iba_core.pictures.images import sample_crops
from iba_core.zoo.efficientnet_lite import PREPROCESSING

GOAL = 1.7
"""Times the throughput of one worker, at least, that two have."""

WARM = 2
"""Photographs that each worker explains before its time counts."""

COUNTS = (100, 1_000, 10_000)
SIDE = 16


def stamped(items: Iterable[Item], stamps: list[float]) -> Iterator[Item]:
    """The items, with the times at which a worker was free for them."""
    for item in items:
        stamps.append(perf_counter())
        yield item


def explained(explainer: Explainer, items: list[Item], workers: int, out: Path) -> list[float]:
    """The times at which workers were free for the next photograph, once they are warm."""
    stamps: list[float] = []
    run = explainer.map(
        stamped(items, stamps),
        out,
        ray="auto",
        jobs=workers,
        preprocessing=PREPROCESSING,
        preset="fast",
        progbar=False,
    )
    assert not run.failed, run.failed
    return stamps[WARM * workers :]


def side_by_side(explainer: Explainer, items: list[Item], count: int, out: Path) -> dict[int, float]:
    """Photographs per second of one worker and of two, in the time in which both are at work."""
    with ThreadPoolExecutor(2) as pool:
        futures = {
            workers: pool.submit(explained, explainer, items[: count * workers], workers, out / f"{workers}")
            for workers in (1, 2)
        }
        stamps = {workers: future.result() for workers, future in futures.items()}
    start, end = max(each[0] for each in stamps.values()), min(each[-1] for each in stamps.values())
    return {
        workers: sum(start < stamp <= end for stamp in each) / (end - start)
        for workers, each in stamps.items()
    }


def measure_throughput(rounds: int, photographs: int) -> None:
    """Compare one worker with two, and count the bytes that a photograph leaves."""
    import ray

    explainer = Explainer(load_backend("torch").load("efficientnet-lite0"), "blocks.10")
    explainer.fit(sample_crops(64, PREPROCESSING, 16, data_format="channels_first"), progbar=False)
    found: list[dict[int, float]] = []
    ray.init("local", num_cpus=3, include_dashboard=False, log_to_driver=False, logging_level="error")
    try:
        with tempfile.TemporaryDirectory() as place:
            folder = Path(place)
            write_photographs(folder / "in", 2 * photographs)
            files = find_images([folder / "in"])
            items = image_items(files, PREPROCESSING, "channels_first")
            for number in range(rounds):
                out = folder / f"{number}"
                found.append(side_by_side(explainer, items, photographs, out))
                show(f"round {number}: {found[-1][1]:.3f} and {found[-1][2]:.3f} per second")
            sizes(out / "2", len(items), "photograph")
    finally:
        ray.shutdown()
    ratios = [each[2] / each[1] for each in found]
    one, two = (median(each[workers] for each in found) for workers in (1, 2))
    print(f"per second, median: one worker {one:.3f}, two {two:.3f}")
    print(f"ratio: median {median(ratios):.2f} of {[round(each, 2) for each in ratios]}; goal {GOAL}")


def sizes(folder: Path, count: int, what: str) -> None:
    """Print the bytes that each result takes on disk."""
    found = {part.name: of_files(part) / count for part in sorted(folder.iterdir()) if part.name != "setups"}
    print(f"bytes per {what}: " + ", ".join(f"{name} {size:,.0f}" for name, size in found.items()))


def of_files(path: Path) -> int:
    """Bytes in a file, or in all of a folder."""
    return sum(each.stat().st_size for each in ([path] if path.is_file() else path.rglob("*")))


# -- many small inputs ----------------------------------------------------------------------------------


def small_inputs(count: int) -> Iterator[tuple[str, Any]]:
    """Names and inputs, made when they are asked for."""
    generator = np.random.default_rng(0)
    for number in range(count):
        yield f"input{number:07}", generator.normal(size=(3, SIDE, SIDE)).astype(np.float32)


def measure_memory(count: int) -> None:
    """Explain small inputs in this process, and print what that took as JSON."""
    import ray
    import torch
    from torch import nn

    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3, stride=2), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)
    ).eval()
    explainer = Explainer(model, "0").fit([np.stack([x for _, x in small_inputs(64)])], progbar=False)
    ray.init("local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="error")
    options: dict[str, Any] = {"steps": 2, "samples": 2, "pictures": False, "progbar": False}
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        explainer.map(small_inputs(10), folder / "first", ray="auto", jobs=2, **options)
        before, start, busy = psutil.Process().memory_info().rss, perf_counter(), process_time()
        run = explainer.map(small_inputs(count), folder / "run", ray="auto", jobs=2, **options)
        seconds, busy = perf_counter() - start, process_time() - busy
        after = psutil.Process().memory_info().rss
        assert len(run) == count, run
        assert not run.failed, run.failed
        sizes(folder / "run", count, "small input")
    ray.shutdown()
    print(json.dumps({"memory": after - before, "seconds": seconds, "processor": busy}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--photographs", type=int, default=20, help="for each worker")
    parser.add_argument("--counts", type=int, nargs="*", default=COUNTS)
    parser.add_argument("--memory", type=int, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ["OMP_NUM_THREADS"] = "1"
    if chosen.memory:
        measure_memory(chosen.memory)
        return
    show(f"load of the machine before: {os.getloadavg()[0]:.1f} on {os.cpu_count()} processors")
    if chosen.rounds:
        measure_throughput(chosen.rounds, chosen.photographs)
    for count in chosen.counts:
        command = [sys.executable, "-m", "benchmarks.ray_scaling", "--memory", str(count)]
        done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, check=True, text=True)
        *lines, last = done.stdout.splitlines()
        found = json.loads(last)
        print("\n".join(lines))
        print(
            f"{count:,} small inputs: {found['seconds']:.1f} s; of the program that gives out the work, "
            f"{1e3 * found['processor'] / count:.2f} ms of a processor for each, memory "
            f"{found['memory'] / 2**20:+.1f} MiB, {found['memory'] / count:,.0f} bytes for each"
        )


if __name__ == "__main__":
    main()
