"""Measure how time and memory grow with the images, samples, steps and the size of the feature map.

    python -m benchmarks.scale [--rounds N]

The network is small, to allow many images; its feature map is as large as those in the paper. Images are
streamed by `Explainer.explain_iter`, each as a batch of one, so that only their number varies.
"""

from __future__ import annotations

import argparse
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from benchmarks.attribution import FRAMEWORKS
from benchmarks.harness import THREADS, Case, Results, interleaved, prepare, show, use_threads
from benchmarks.memory import peaks
from benchmarks.tables import Column
from iba_core import Explainer

CHANNELS, CLASSES, SIDE = 32, 10, 28
"""Channels of the feature map, number of classes, side of the feature map. The input has twice that side."""
FEW = 8
"""Number of images whose memory is compared with that of the largest number."""
STEPS, SAMPLES = 4, 10
TURN = 0.3
"""Minimum seconds of a turn, since the shortest case affects a slope as much as the longest."""

SWEEPS: dict[str, tuple[int, ...]] = {
    "images": (1, 8, 32, 128),
    "samples": (2, 5, 10, 20, 50),
    "steps": (2, 5, 10, 20, 50),
    "side": (14, 28, 56, 112),
}
"""The varied quantities, one at a time, and their values; `side` is the side of the feature map."""

LABELS = {
    "images": "images",
    "samples": "noisy copies of an image",
    "steps": "optimiser steps",
    "side": "features",
}

SLOPE, SLOPE_WITHIN = 1.0, 0.05
MEMORY_GROWTH = 1.05
"""Goal: the memory for the largest number of images is at most this multiple of that for few."""


def measure(
    results: Results,
    sweeps: dict[str, tuple[int, ...]],
    rounds: int,
    budget: float | None = None,
    memory: bool = True,
) -> None:
    """Vary one quantity at a time, in both frameworks."""
    table = results.table(
        "Scale",
        Column("Framework"),
        Column("Varied"),
        Column("From … to"),
        Column("Time"),
        Column("Slope of the time", ".3f"),
        Column("Peak memory"),
        note="A slope of 1, in logarithms, is growth in proportion.",
    )
    for varied, values in sweeps.items():
        show(f"  scale, {LABELS[varied]}")
        works = {
            f"{framework}: {value}": case
            for framework in FRAMEWORKS
            for value, case in _works(framework, varied, values).items()
        }
        timings = interleaved(works, rounds, budget=budget, turn=TURN)
        results.timings(varied, timings)
        kept = results.data.setdefault("peak_bytes", {}).setdefault(varied, {})
        for framework in FRAMEWORKS:
            held: dict[str, float] = {}
            if memory:
                arguments = {"framework": framework, "varied": varied, "values": values}
                held = peaks("benchmarks.scale", "works_for_memory", **arguments)
            kept |= {f"{framework}: {value}": number for value, number in held.items()}
            sizes = _sizes(varied, values)
            slope = slope_of(sizes, [timings.seconds[f"{framework}: {value}"] for value in values])
            seconds = [timings.median(f"{framework}: {value}") for value in values]
            megabytes = [number / 1e6 for number in held.values()]
            table.rows.append(
                [
                    FRAMEWORKS[framework],
                    LABELS[varied],
                    f"{sizes[0]} … {sizes[-1]}",
                    f"{seconds[0]:.3f} … {seconds[-1]:.3f} s",
                    slope,
                    f"{megabytes[0]:.1f} … {megabytes[-1]:.1f} MB" if held else "",
                ]
            )
            if varied == "images":
                _judge(results, FRAMEWORKS[framework], slope, held, values[-1])


def _judge(results: Results, name: str, slope: float, held: dict[str, float], most: int) -> None:
    """Compare the slope, and the memory for the largest number of images, with the goals."""
    results.goal(
        f"{name}: slope of the time in images, distance from 1", abs(slope - SLOPE), at_most=SLOPE_WITHIN
    )
    if held:
        results.goal(
            f"{name}: memory with {most} images, as a multiple of that with {FEW}",
            held[str(most)] / held[str(FEW)],
            at_most=MEMORY_GROWTH,
        )


def slope_of(sizes: list[int], values: list[list[float]]) -> float:
    """Compute the slope of a straight line through the logarithms, the median over the rounds.

    The machine may be slower in some rounds, which does not change the slope within a round.

    Args:
        sizes: values of the varied quantity.
        values: for each size, the values of all rounds.
    """
    return float(median(np.polyfit(np.log(sizes), np.log(values), 1)[0]))


def works_for_memory(framework: str, varied: str, values: list[int]) -> dict[str, Case]:
    """Make the same cases with fewer steps, since memory does not depend on the steps."""
    use_threads([framework])
    return _works(framework, varied, tuple(values), steps=2)


def _works(framework: str, varied: str, values: tuple[int, ...], steps: int = STEPS) -> dict[str, Case]:
    explainers = {}
    works: dict[str, Case] = {}
    for value in values:
        side = value if varied == "side" else SIDE
        if side not in explainers:
            explainers[side] = _explainer(framework, side)
        works[str(value)] = _work(
            explainers[side],
            _shape(framework, side),
            images=value if varied == "images" else 1,
            samples=value if varied == "samples" else SAMPLES,
            steps=value if varied == "steps" else steps,
        )
    return works


def _work(explainer: Explainer, shape: tuple[int, ...], images: int, samples: int, steps: int) -> Case:
    def stream() -> Iterator[np.ndarray]:
        generator = np.random.default_rng(0)
        for _ in range(images):
            yield generator.standard_normal((1, *shape), np.float32)

    def run() -> None:
        # Drop each result before the next one is computed.
        deque(explainer.explain_iter(stream(), 0, samples=samples, steps=steps, progbar=False), maxlen=0)

    return run


def _explainer(framework: str, side: int) -> Explainer:
    explainer = Explainer(_BUILDERS[framework](side), "features")
    generator = np.random.default_rng(1)
    return explainer.fit(
        [generator.standard_normal((16, *_shape(framework, side)), np.float32)], progbar=False
    )


def _shape(framework: str, side: int) -> tuple[int, ...]:
    return (3, 2 * side, 2 * side) if framework == "torch" else (2 * side, 2 * side, 3)


def _torch_network(side: int) -> Any:
    import torch
    from torch import nn

    torch.manual_seed(0)
    model = nn.Sequential()
    for name, layer in {
        "features": nn.Conv2d(3, CHANNELS, 3, stride=2, padding=1),
        "act1": nn.ReLU(),
        "conv2": nn.Conv2d(CHANNELS, 2 * CHANNELS, 3, stride=2, padding=1),
        "act2": nn.ReLU(),
        "conv3": nn.Conv2d(2 * CHANNELS, 2 * CHANNELS, 3, padding=1),
        "act3": nn.ReLU(),
        "pool": nn.AdaptiveAvgPool2d(1),
        "flatten": nn.Flatten(),
        "classifier": nn.Linear(2 * CHANNELS, CLASSES),
    }.items():
        model.add_module(name, layer)
    return model.eval()


def _keras_network(side: int) -> Any:
    import keras
    from keras import layers

    keras.utils.set_random_seed(0)
    inputs = keras.Input((2 * side, 2 * side, 3))
    x = layers.Conv2D(CHANNELS, 3, 2, padding="same", name="features")(inputs)
    x = layers.Conv2D(2 * CHANNELS, 3, 2, padding="same")(layers.ReLU()(x))
    x = layers.Conv2D(2 * CHANNELS, 3, padding="same")(layers.ReLU()(x))
    x = layers.GlobalAveragePooling2D()(layers.ReLU()(x))
    return keras.Model(inputs, layers.Dense(CLASSES)(x))


_BUILDERS = {"torch": _torch_network, "tensorflow": _keras_network}


def _sizes(varied: str, values: tuple[int, ...]) -> list[int]:
    """Return the values for the horizontal axis: the number of features in place of the side."""
    return [CHANNELS * value**2 for value in values] if varied == "side" else list(values)


def plot(content: dict[str, Any], path: Path) -> None:
    """Draw time above and memory below, on logarithmic axes, in one column for each varied quantity."""
    import matplotlib.pyplot as plt

    kept = content["data"]
    figure, axes = plt.subplots(2, len(kept["seconds"]), figsize=(12, 5.5), sharex="col", squeeze=False)
    for column, (varied, seconds) in enumerate(kept["seconds"].items()):
        rows = ((seconds, 1.0), ({k: [v] for k, v in kept["peak_bytes"][varied].items()}, 1e6))
        for axis, (found, unit) in zip(axes[:, column], rows, strict=True):
            for framework, colour in zip(FRAMEWORKS, ("#d1495b", "#1b6ca8"), strict=True):
                points = {
                    int(case.partition(": ")[2]): values
                    for case, values in found.items()
                    if case.startswith(framework)
                }
                if not points:
                    continue
                sizes, values = _sizes(varied, tuple(points)), list(points.values())
                label = f"{FRAMEWORKS[framework]}, slope {slope_of(sizes, values):.2f}"
                heights = [median(rounds) / unit for rounds in values]
                axis.loglog(sizes, heights, "o-", color=colour, label=label)
            axis.grid(True, which="both", alpha=0.2)
            if axis.lines:
                axis.legend(fontsize=7)
                _label(axis, list(axis.lines[0].get_xdata()))
        axes[1, column].set_xlabel(LABELS[varied])
    axes[0, 0].set_ylabel("seconds")
    axes[1, 0].set_ylabel("peak memory, MB")
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)


def _label(axis: Any, sizes: list[float]) -> None:
    """Label the measured sizes, and show at least one decade, so that slow growth looks slow."""
    from matplotlib.ticker import LogLocator, NullFormatter

    axis.set_xticks(sizes, [f"{size:g}" for size in sizes], fontsize=8)
    axis.xaxis.set_minor_formatter(NullFormatter())
    low, high = axis.get_ylim()
    widen = max(1.0, (10 * low / high) ** 0.5)
    axis.set_ylim(low / widen, high * widen)
    axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.yaxis.set_major_formatter("{x:g}")
    axis.yaxis.set_minor_formatter(NullFormatter())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5, help="maximum number of rounds")
    options = parser.parse_args()
    prepare()
    results = Results("scale", steps=STEPS, samples=SAMPLES, threads=THREADS)
    measure(results, SWEEPS, options.rounds, budget=60)
    results.write()


if __name__ == "__main__":
    main()
