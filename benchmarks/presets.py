"""Compare the presets of the bottleneck on photographs of your own.

    python -m benchmarks.presets --images FOLDER [--presets paper default ...] [--number N] [--seeds N]

EfficientNet-Lite0 in PyTorch. The first 200 photographs of the folder give the statistics of the layer, the
following ones, evenly spaced, are explained with several seeds. A table says, for each preset: copies that
pass the tail, the least and the mean correlation between the maps of two seeds, the largest rise of the loss
between two steps that were kept, survival, bits, and the area between the curves of degradation. The last
table is paired: each preset less the first one, with a 95 % interval over photographs.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.harness import use_threads
from iba_core import Attribution, Explainer
from iba_core.bottleneck.settings import PRESETS, BottleneckSettings
from iba_core.evaluation import bootstrap, degradation, paired
from iba_core.pictures.images import image_files, load_image
from iba_core.zoo.efficientnet_lite import PREPROCESSING

STATISTICS = 200
"""Photographs that the distribution of the features is estimated on."""

BATCH = 8
STEPS = 14
"""Steps of a curve of degradation."""

Array = np.ndarray[Any, Any]


def photograph(path: Path) -> Array:
    """Read one photograph as a batch of one."""
    return PREPROCESSING(load_image(path), "channels_first")[None]


def explainer_of(paths: Sequence[Path], layer: str) -> Explainer:
    """Make an explainer with statistics of photographs."""
    from iba_torch.efficientnet_lite import efficientnet_lite0

    starts = range(0, len(paths), BATCH)
    batches = (np.concatenate([photograph(path) for path in paths[i : i + BATCH]]) for i in starts)
    return Explainer(efficientnet_lite0(), layer).fit(batches, progbar=False)


def largest_rise(found: Attribution) -> float:
    """Rise of the loss from one kept step to the next, in nats, the largest on the way."""
    most, start, rises = found.settings.max_rise, found.model_losses[0, 0], [0.0]
    for loss in found.model_losses[1:, 0]:
        if not most or loss <= start + most:
            rises.append(loss - start)
            start = loss
    return float(max(rises))


def measured(explainer: Explainer, x: Array, preset: str, seeds: int) -> dict[str, float]:
    """Explain one photograph with several seeds, and return its figures."""
    found = [explainer.explain(x, seed=seed, preset=preset) for seed in range(seeds)]
    maps = [each.capacity.sum(axis=1).ravel() for each in found]
    pairs = [np.corrcoef(a, b)[0, 1] for a, b in combinations(maps, 2)]
    bits = np.array([each.total_bits[0] for each in found])
    survival = np.array([np.nan if each.survival is None else each.survival[0] for each in found])
    return {
        "correlation": float(np.mean(pairs)),
        "least": float(np.min(pairs)),
        "rise": max(map(largest_rise, found)),
        "survival": float(survival.mean()),
        "lost": float((survival < 0.5).mean()),
        "bits": float(bits.mean()),
        "bits_spread": float(bits.std() / bits.mean()),
        "degradation": float(degradation(explainer.adapter.model, x, found[0].saliency, steps=STEPS)[0]),
    }


def print_tables(rows: dict[str, list[dict[str, float]]]) -> None:
    """Print the figures of all presets, and the differences from the first."""
    write = sys.stdout.write
    first = next(iter(rows))
    for name, figures in rows.items():
        of = {key: np.array([each[key] for each in figures]) for key in figures[0]}
        copies = sum(BottleneckSettings().override(**PRESETS[name]).schedule)
        write(
            f"{name:8s} n={len(figures)} copies {copies}: seeds {bootstrap(of['correlation'])}, least "
            f"{of['least'].min():.3f}; largest rise {of['rise'].max():.2f} nats; survival, median "
            f"{np.median(of['survival']):.3f}, below 50 % {100 * of['lost'].mean():.0f} %; bits "
            f"{of['bits'].mean():,.0f}, spread {100 * np.median(of['bits_spread']):.1f} %; degradation "
            f"{bootstrap(of['degradation'])}\n"
        )
    for name in list(rows)[1:]:
        for key in ("degradation", "correlation"):
            ours, theirs = ([each[key] for each in rows[which]] for which in (name, first))
            write(f"    {key}, {name} less {first}: {paired(ours, theirs)}\n")
    sys.stdout.flush()


def main() -> None:
    """Read the command line, measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=Path, required=True, help="a folder of photographs")
    parser.add_argument("--presets", nargs="+", default=["paper", "default"], choices=list(PRESETS))
    parser.add_argument("--layer", default="blocks.4")
    parser.add_argument("--number", type=int, default=40, help="of photographs that are explained")
    parser.add_argument("--skip", type=int, default=0, help="of those, to confirm on others than chosen with")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    given = parser.parse_args()
    use_threads(("torch",), given.threads)
    paths = list(image_files(given.images))
    explainer = explainer_of(paths[:STATISTICS], given.layer)
    others = paths[STATISTICS:]
    chosen = others[given.skip :: max(1, len(others) // (given.number + given.skip))][: given.number]
    rows: dict[str, list[dict[str, float]]] = {name: [] for name in given.presets}
    for number, path in enumerate(chosen, 1):
        x = photograph(path)
        for name, figures in rows.items():
            figures.append(measured(explainer, x, name, given.seeds))
        if number % 4 == 0 or number == len(chosen):
            print_tables(rows)


if __name__ == "__main__":
    main()
