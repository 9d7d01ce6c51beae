"""Compare the presets of the bottleneck on photographs of your own.

    python -m benchmarks.presets --images FOLDER --rows FILE [--methods paper:1 default:3 Grad-CAM]
        [--number N] [--framework torch] [--layer NAME] [--statistics packaged] [--without NAME ...]
    python -m benchmarks.presets --rows FILE ... --out benchmarks/results

EfficientNet-Lite0 in either framework, at the layers that `Explainer` chooses, or at one. A method is a
preset, with the number of seeds that each photograph is explained with, or Grad-CAM; *default* is what
`Explainer` does without a preset. What is measured is appended to a file of JSON lines, one for each
photograph and method, so that a run can be stopped and continued. The second form only makes tables of such
files.

The statistics of the layer are the packaged ones, or those of the first photographs of the folder. The first
200 are never explained. Of the others, evenly spaced ones are, without those whose names begin as given by
``--without``: with them, the presets were chosen.

A table says for each method: the least and the mean correlation between the maps of two seeds, the largest
rise of the loss from one step that was kept to the next, survival, bits, CPU time, and the area between the
curves of degradation. The second is paired: each method less the others, with a 95 % interval over
photographs.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from itertools import combinations, permutations
from pathlib import Path
from time import process_time
from typing import Any

import numpy as np

from benchmarks.harness import Results, use_threads
from benchmarks.tables import Column, markdown
from iba_core import Attribution, CombinedAttribution, Explainer
from iba_core.bottleneck.control import RiseGuard
from iba_core.bottleneck.settings import PRESETS
from iba_core.concepts import GradCAM
from iba_core.evaluation import ScoredModel, bootstrap, degradation, paired
from iba_core.framework.layout import DataFormat
from iba_core.pictures.images import image_batches, image_files, load_image
from iba_core.zoo.efficientnet_lite import PREPROCESSING

CHOSEN = "chosen"
"""In place of a layer: those that `Explainer` chooses."""

KEPT_FOR_STATISTICS = 200
"""Photographs, the first of the folder, that are never explained."""

BATCH = 8
STEPS = 14
"""Steps of a curve of degradation."""

PEER, DEFAULT = "Grad-CAM", "default"
FRAMEWORKS = {"torch": "PyTorch", "tensorflow": "TensorFlow"}

Array = np.ndarray[Any, Any]
Row = dict[str, Any]


def photograph(path: Path, data_format: DataFormat = "channels_first") -> Array:
    """Read one photograph as a batch of one."""
    return PREPROCESSING(load_image(path), data_format)[None]


def network(framework: str) -> Any:
    """EfficientNet-Lite0 in one framework."""
    if framework == "torch":
        from iba_torch.efficientnet_lite import efficientnet_lite0
    else:
        from iba_tf.efficientnet_lite import efficientnet_lite0
    return efficientnet_lite0()


def explainer_of(framework: str, layer: str, statistics: str, paths: Sequence[Path]) -> Explainer:
    """Make an explainer with the packaged statistics, or with those of so many photographs."""
    explainer = Explainer(network(framework), None if layer == CHOSEN else layer)
    if statistics == "packaged":
        return explainer.load_packaged()
    batches = image_batches(paths[: int(statistics)], PREPROCESSING, BATCH, explainer.adapter.data_format)
    return explainer.fit(batches, progbar=False)


def largest_rise(found: Attribution) -> float:
    """Rise of the loss from one kept step to the next, in nats, the largest on the way to any layer's map."""
    if isinstance(found, CombinedAttribution):
        return max(map(largest_rise, found.parts))
    guard, losses, kept = RiseGuard(found.settings.max_rise or np.inf), found.model_losses, []
    for step, loss in enumerate(losses):
        _, guard.parameter = guard.kept(np.array([step]), loss)
        kept.append(int(guard.parameter[0]))
    return float(max(0.0, *np.diff(losses[kept, 0])))


def measured(explainer: Explainer, scored: ScoredModel, x: Array, preset: str, seeds: int) -> Row:
    """Explain one photograph with several seeds, and return its figures."""
    start = process_time()
    wanted = None if preset == DEFAULT else preset
    found = [explainer.explain(x, seed=seed, preset=wanted) for seed in range(seeds)]
    seconds = (process_time() - start) / seeds
    maps = [explainer_map(each) for each in found]
    return {
        "correlations": [float(np.corrcoef(a, b)[0, 1]) for a, b in combinations(maps, 2)],
        "rises": [largest_rise(each) for each in found],
        "survival": [float(each.survival[0]) for each in found if each.survival is not None],
        "bits": [float(each.total_bits[0]) for each in found],
        "degradation": float(degradation(scored, x, found[0].saliency, steps=STEPS)[0]),
        "seconds": seconds,
        "copies": sum(found[0].settings.schedule) * len(explainer.parts),
    }


def explainer_map(found: Attribution) -> Array:
    """Nats of each place, as one row; of several layers, those of each pixel, up to a factor."""
    if isinstance(found, CombinedAttribution):
        return found.saliency[0].ravel()
    channel = 0 if found.data_format == "channels_first" else -1
    return np.asarray(found.capacity[0].sum(axis=channel).ravel())


def lines(paths: Sequence[Path]) -> list[Row]:
    """The rows of files, those that there are."""
    return [json.loads(line) for path in paths if path.exists() for line in path.read_text().splitlines()]


def measure(given: argparse.Namespace, known: list[Row]) -> Iterator[Row]:
    """Measure what is not known yet."""
    paths = list(image_files(given.images))
    explainer = explainer_of(given.framework, given.layer, given.statistics, paths[:KEPT_FOR_STATISTICS])
    adapter, scored = explainer.adapter, ScoredModel(explainer)
    cam: Callable[[Array], Any] = GradCAM(adapter)
    where = {"framework": given.framework, "layer": given.layer, "statistics": given.statistics}
    done = {tuple(row[key] for key in (*where, "photograph", "method")) for row in known}
    for path in chosen(paths[KEPT_FOR_STATISTICS:], given):
        x = photograph(path, adapter.data_format)
        for method in given.methods:
            name, _, seeds = method.partition(":")
            if (*where.values(), path.name, name) in done:
                continue
            if name == PEER:
                figures: Row = {"degradation": float(degradation(scored, x, cam(x), steps=STEPS)[0])}
            else:
                figures = measured(explainer, scored, x, name, int(seeds or 3))
            yield {**where, "photograph": path.name, "method": name, **figures}


def chosen(paths: Sequence[Path], given: argparse.Namespace) -> list[Path]:
    """The photographs to explain."""
    others = [path for path in paths if not path.name.startswith(tuple(given.without))]
    picks = np.unique(np.linspace(0, len(others) - 1, min(given.number, len(others))).round().astype(int))
    # In a random order, so that a run that is stopped has seen all kinds.
    return [others[i] for i in np.random.default_rng(0).permutation(picks)]


def tabulate(results: Results, rows: list[Row]) -> None:
    """Add the table of figures, and that of paired differences."""
    table = results.table(
        "Presets, EfficientNet-Lite0",
        *map(Column, ("Framework", "Layer", "Method", "Photographs")),
        Column("Copies"),
        Column("CPU time", ".2f", "s"),
        Column("Least correlation of seeds", ".3f"),
        Column("Mean", ".3f"),
        Column("Largest rise", ".2f", "nats"),
        Column("Survival", ".3f"),
        Column("Below 50 %", ".1%"),
        Column("Bits", ",.0f"),
        Column("Degradation"),
        note="Least over all photographs; survival is the median, time the median of one explanation; the "
        "area between the curves of degradation is the mean with a 95 % interval, higher is better.",
    )
    differences = results.table(
        "Paired differences of the area of degradation",
        *map(Column, ("Framework", "Layer", "Method", "less", "Photographs", "Difference")),
        note="Clear where the 95 % interval lacks 0.",
    )
    for framework, layer, statistics in dict.fromkeys(
        (row["framework"], row["layer"], row["statistics"]) for row in rows
    ):
        here = [
            row
            for row in rows
            if (row["framework"], row["layer"], row["statistics"]) == (framework, layer, statistics)
        ]
        of: dict[str, dict[str, Row]] = {row["method"]: {} for row in here}
        for row in here:
            of[row["method"]][row["photograph"]] = row
        place = [FRAMEWORKS[framework], layer]
        for method, found in of.items():
            table.rows.append([*place, method, len(found), *_figures(list(found.values()))])
        for ours, theirs in permutations(of, 2):
            if ours == PEER or (theirs != PEER and list(of).index(ours) < list(of).index(theirs)):
                continue
            both = [name for name in of[ours] if name in of[theirs]]
            a, b = ([of[which][name]["degradation"] for name in both] for which in (ours, theirs))
            differences.rows.append([*place, ours, theirs, len(both), str(paired(a, b))])


def _figures(rows: list[Row]) -> list[Any]:
    """The cells of one method, from the copies on."""
    area = str(bootstrap([row["degradation"] for row in rows]))
    if "bits" not in rows[0]:
        return [None] * 8 + [area]
    pairs = [row["correlations"] for row in rows if row["correlations"]]
    survival = np.concatenate([row["survival"] for row in rows])
    return [
        rows[0]["copies"],
        float(np.median([row["seconds"] for row in rows])),
        float(min(map(min, pairs))) if pairs else None,
        float(np.mean([np.mean(each) for each in pairs])) if pairs else None,
        float(max(max(row["rises"]) for row in rows)),
        float(np.median(survival)),
        float(np.mean(survival < 0.5)),
        float(np.mean([np.mean(row["bits"]) for row in rows])),
        area,
    ]


def main() -> None:
    """Read the command line, measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=Path, help="a folder of photographs")
    parser.add_argument(
        "--rows", type=Path, nargs="+", required=True, help="JSON lines; new ones go to the first"
    )
    parser.add_argument(
        "--methods", nargs="+", default=["paper:1", "default:3", PEER], metavar="PRESET:SEEDS"
    )
    parser.add_argument("--framework", choices=list(FRAMEWORKS), default="torch")
    parser.add_argument("--layer", default=CHOSEN, metavar="NAME")
    parser.add_argument("--statistics", default="packaged", metavar="packaged|NUMBER")
    parser.add_argument("--number", type=int, default=40, help="of photographs that are explained")
    parser.add_argument(
        "--without", nargs="+", default=[], metavar="NAME", help="beginnings of names to leave out"
    )
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="folder for the results")
    given = parser.parse_args()
    unknown = {each.partition(":")[0] for each in given.methods} - {*PRESETS, PEER}
    if unknown:
        parser.error(f"no such method: {', '.join(unknown)}")
    rows = lines(given.rows)
    if given.images is not None:
        use_threads((given.framework,), given.threads)
        with given.rows[0].open("a", encoding="utf-8") as file:
            for row in measure(given, rows):
                rows.append(row)
                file.write(json.dumps(row) + "\n")
                file.flush()
    results = Results("presets", threads=given.threads)
    tabulate(results, rows)
    if given.out is not None:
        results.write(given.out)
        return
    sys.stdout.write(markdown(results.as_json()) + "\n")


if __name__ == "__main__":
    main()
