"""Compare maps at one layer with combinations of layers, over several networks, on photographs of your own.

    python -m benchmarks.layers --images FOLDER [--network NAME[=FILE] ...] [--number N] [--skip N]
    python -m benchmarks.layers --known FILE ... --out FOLDER      # one table of earlier results

The networks are `efficientnet-lite0`; `efficientnet-lite1` and `efficientnet-lite2` with their published
checkpoint as a file; and `dog-breeds`, a MobileNetV2 in a Keras file whose input is 160 pixels wide and goes
from -1 to 1. Each is explained at layers that follow from the resolution of its features alone:

- *chosen*: the first that `Explainer` takes if no layer is named;
- *half*, *quarter*: the last layer that divides the picture into half, or a quarter, as many parts;
- *half, middle*: the one in the middle of those with half as many parts.

The area between the curves of degradation says how good a map is. A table gives its mean for each layer and
combination, another the paired difference from the chosen layer and from Grad-CAM, with 95 % intervals. All
photographs are in a random order of a fixed seed. Those to which a network gives no class half of the
probability are left out. The statistics come from others than those that are explained.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from time import perf_counter
from typing import Any, NamedTuple

import numpy as np

from benchmarks.harness import Results, show, use_threads
from benchmarks.report import load
from benchmarks.tables import Column, markdown
from iba_core import Attribution, Explainer, combine_maps
from iba_core.concepts import GradCAM
from iba_core.default_layer import choose_layer, everything_passes
from iba_core.evaluation import ScoredModel, bootstrap, degradation, paired
from iba_core.framework.adapter import Inputs, ModelAdapter, find_adapter
from iba_core.framework.allocator import keep_freed_memory
from iba_core.framework.layout import DataFormat, Layout
from iba_core.pictures.images import Preprocessing, image_batches, image_files, load_image
from iba_core.zoo import efficientnet_lite as lite

STATISTICS = 128
"""Photographs that the distribution of the features is estimated on."""

KEPT_FOR_STATISTICS = 200
"""Photographs, the first of the folder, that no network but that of dogs is explained on."""

STEPS = 14
"""Steps of a curve of degradation."""

BATCH = 8
DOGS = re.compile(r"n02(08[5-9]|09\d|10\d|11[0-3])")
"""WordNet's numbers of the breeds of dogs."""

REFERENCE, PEER = "chosen, paper", "Grad-CAM"
COMBINATIONS: dict[str, tuple[tuple[str, ...], str, str]] = {
    "chosen + half, fast": (("chosen", "half"), "mean", "fast"),
    "chosen + half, fast, geometric": (("chosen", "half"), "geometric", "fast"),
    "chosen + half, middle, fast": (("chosen", "half, middle"), "mean", "fast"),
    "chosen + quarter, fast": (("chosen", "quarter"), "mean", "fast"),
    "half + quarter, fast": (("half", "quarter"), "mean", "fast"),
    "chosen + half + quarter, fast": (("chosen", "half", "quarter"), "mean", "fast"),
    "chosen + half, paper": (("chosen", "half"), "mean", "paper"),
}
"""Layers, how they are combined, and preset. Two with "fast" take two fifths of the copies of "paper"."""

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Network:
    """A trained network, and what it expects.

    Attributes:
        title: name for readers.
        adapter: of the model.
        preprocessing: how it expects photographs.
        data_format: where its channels are.
        subjects: names of the photographs that it is made for; None for all.
    """

    title: str
    adapter: ModelAdapter
    preprocessing: Preprocessing
    data_format: DataFormat = "channels_first"
    subjects: re.Pattern[str] | None = None

    def photograph(self, path: Path) -> Array:
        """Read one photograph as a batch of one."""
        return self.preprocessing(load_image(path), self.data_format)[None]

    def divided(self, paths: Sequence[Path]) -> tuple[list[Path], list[Path]]:
        """Photographs to explain, in a random order, and those for the statistics."""
        if self.subjects is None:
            others, own = list(paths[:KEPT_FOR_STATISTICS]), list(paths[KEPT_FOR_STATISTICS:])
        else:
            own = [path for path in paths if self.subjects.match(path.name)]
            others = [path for path in paths if path not in own]
        order = np.random.default_rng(0).permutation(len(own))
        picks = np.unique(np.linspace(0, len(others) - 1, STATISTICS).round().astype(int))
        return [own[i] for i in order], [others[i] for i in picks]


def _lite(number: int, width: float, depth: float, side: int) -> Callable[[Path | None], Network]:
    def load(path: Path | None) -> Network:
        import torch

        from iba_torch.efficientnet_lite import efficientnet_lite0, of_blocks

        model = efficientnet_lite0()
        if path is not None:
            blocks = lite.scaled_blocks(width, depth)
            weights = lite.checkpoint_weights(path, blocks)
            model = of_blocks(blocks).eval()
            model.load_state_dict({name: torch.as_tensor(array) for name, array in weights.items()})
        # At sides of 224 and 256 pixels, no halving leaves an odd number, which would be padded differently.
        preprocessing = replace(lite.PREPROCESSING, size=(side, side))
        return Network(f"EfficientNet-Lite{number}", find_adapter(model), preprocessing)

    return load


def _dogs(path: Path | None) -> Network:
    import keras

    model = keras.models.load_model(path, compile=False)
    preprocessing = Preprocessing(
        size=(160, 160), crop_fraction=0.875, scale=1.0, mean=(127.5,), std=(127.5,)
    )
    return Network("MobileNetV2, dogs", find_adapter(model), preprocessing, "channels_last", DOGS)


NETWORKS = {
    "efficientnet-lite0": _lite(0, 1.0, 1.0, 224),
    "efficientnet-lite1": _lite(1, 1.0, 1.1, 224),
    "efficientnet-lite2": _lite(2, 1.1, 1.2, 256),
    "dog-breeds": _dogs,
}


def layers_of(adapter: ModelAdapter, inputs: Inputs, x: Array) -> dict[str, str]:
    """The layers to compare, by their place, see the top of this file."""
    chosen = choose_layer(adapter, inputs).layer
    levels: dict[int, dict[tuple[int, int], list[str]]] = {}
    found: dict[str, str] = {"chosen": chosen}
    whole = min(Layout.of(x.shape[1:], adapter.data_format).spatial_shape(x.shape[1:]))
    level = 0
    for info in adapter.layers(inputs):
        if (shape := info.output_shape) is not None and len(shape) == 3:
            side = min(Layout.of(shape, adapter.data_format).spatial_shape(shape))
            halvings = round(np.log2(whole / side)) if 1 < side <= whole else -1
            # Of equally many parts, a border of padding makes larger maps.
            levels.setdefault(halvings, {}).setdefault((info.depth, side), []).append(info.name)
            level = halvings if info.name == chosen else level
    for name, more in (("half", 1), ("quarter", 2)):
        of_depth = levels.get(level + more)
        if of_depth:
            names = of_depth[min(of_depth)]
            passing = (each for each in reversed(names) if everything_passes(adapter, each, inputs))
            if (last := next(passing, None)) is not None:
                found[name] = last
            if more == 1:
                middle = len(names) // 2
                by_distance = sorted(range(len(names)), key=lambda i: abs(i - middle))
                passing = (names[i] for i in by_distance if everything_passes(adapter, names[i], inputs))
                if (near := next(passing, None)) is not None:
                    found["half, middle"] = near
    return found


class _Maps:
    """Maps of one photograph, each explained once."""

    def __init__(self, parts: dict[str, Explainer], x: Array, target: int) -> None:
        self.parts, self.x, self.target = parts, x, target
        self._known: dict[tuple[str, str], Attribution] = {}

    def of(self, place: str, preset: str) -> Attribution:
        """Explanation at one layer."""
        part = self.parts[place]
        # Two places may be the same layer.
        key = (f"{part.layer}", preset)
        if key not in self._known:
            self._known[key] = part.explain(self.x, self.target, seed=0, preset=preset)
        return self._known[key]


class Found(NamedTuple):
    """What was found of one network."""

    layers: dict[str, str]
    """Names of the layers, by their place."""
    degradation: dict[str, list[float]]
    """For each map, the area of each photograph."""


def measured(network: Network, paths: Sequence[Path], given: argparse.Namespace) -> Found:
    """Measure the area of degradation of the maps, see the command line for the options."""
    end = perf_counter() + 60 * given.minutes
    chosen, others = network.divided(paths)
    adapter, first = network.adapter, network.photograph(chosen[0])
    names = layers_of(adapter, adapter.to_inputs(first), first)
    show(f"{network.title}: {names}")
    unique = list(dict.fromkeys(names.values()))
    batches = image_batches(others, network.preprocessing, BATCH, network.data_format)
    explainer = Explainer(adapter, unique).fit(batches, progbar=False)
    of_layer = {part.layer: part for part in explainer.parts}
    parts = {place: of_layer[name] for place, name in names.items()}
    scored, cam = ScoredModel(explainer.parts[0]), GradCAM(adapter)
    figures: dict[str, list[float]] = {}
    for x, target in islice(_confident(network, scored, chosen), given.skip, given.skip + given.number):
        maps = _Maps(parts, x, target)
        for variant, made in _variants(maps, cam, given.only).items():
            area = degradation(scored, x, made, target, steps=STEPS)[0]
            figures.setdefault(variant, []).append(float(area))
        done = len(figures[REFERENCE])
        if perf_counter() > end:
            break
        if done % 4 == 0:
            show(f"    {done}: " + _means(figures))
    return Found(names, figures)


def _means(figures: dict[str, list[float]]) -> str:
    return ", ".join(f"{name} {np.mean(values):.3f}" for name, values in figures.items())


def _confident(network: Network, scored: ScoredModel, paths: Sequence[Path]) -> Any:
    """Photographs to which the network gives one class half of the probability, with this class."""
    for path in paths:
        x = network.photograph(path)
        target = int(scored.classes(scored.tensor(x), None)[0])
        if float(scored.scores(scored.tensor(x), np.array([target]))[0]) >= 0.5:
            yield x, target


def _variants(maps: _Maps, cam: Any, only: Sequence[str]) -> dict[str, Array]:
    """All maps to compare, by name."""
    makers: dict[str, Callable[[], Array]] = {PEER: lambda: np.asarray(cam(maps.x, [maps.target]))}
    for place in ("chosen", "half", "quarter"):
        for preset in ("paper", "fast"):
            if place in maps.parts:
                makers[f"{place}, {preset}"] = lambda place=place, preset=preset: (
                    maps.of(place, preset).saliency
                )
    for name, (places, combine, preset) in COMBINATIONS.items():
        if all(place in maps.parts for place in places):
            makers[name] = lambda places=places, combine=combine, preset=preset: combine_maps(
                [maps.of(place, preset) for place in places], combine
            )
    return {name: make() for name, make in makers.items() if not only or name in only}


def tabulate(results: Results, found: dict[str, Found]) -> None:
    """Add the table of means, and that of paired differences."""
    variants = list(dict.fromkeys(name for _, figures in found.values() for name in figures))
    heads = [
        f"{title} ({', '.join(names.values())}; n = {len(figures[REFERENCE])})"
        for title, (names, figures) in found.items()
    ]
    table = results.table(
        "Area between the curves of degradation",
        Column("Map"),
        *map(Column, heads),
        note="Means with 95 % bootstrap intervals; higher is better.",
    )
    others = results.table(
        "Paired differences on the same photographs",
        Column("Map"),
        Column("less"),
        *map(Column, heads),
        note="Clear where the 95 % interval lacks 0.",
    )
    for name in variants:
        each = [figures.get(name, []) for _, figures in found.values()]
        table.rows.append([name, *(str(bootstrap(values)) for values in each)])
        for base in (REFERENCE, PEER):
            if name != base:
                bases = [figures.get(base, []) for _, figures in found.values()]
                pairs = [
                    str(paired(ours, theirs)) if ours and theirs else "-"
                    for ours, theirs in zip(each, bases, strict=True)
                ]
                others.rows.append([name, base, *pairs])
    results.data["networks"] = {
        title: {"layers": names, "degradation": figures} for title, (names, figures) in found.items()
    }


def main() -> None:
    """Read the command line, measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=Path, help="a folder of photographs")
    parser.add_argument("--network", nargs="+", metavar="NAME[=FILE]")
    parser.add_argument("--known", nargs="+", type=Path, default=[], help="results to add, of other networks")
    parser.add_argument("--number", type=int, default=16, help="of photographs that are explained")
    parser.add_argument("--skip", type=int, default=0, help="of those, to confirm on others than chosen with")
    parser.add_argument("--only", nargs="+", default=[], metavar="MAP", help="only these rows of the table")
    parser.add_argument("--minutes", type=float, default=600.0, help="for each network, at most")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="folder for the results")
    given = parser.parse_args()
    named = given.network or ([] if given.known else ["efficientnet-lite0"])
    if named and given.images is None:
        parser.error("give --images")
    found: dict[str, Found] = {}
    for path in given.known:
        for title, known in load(path)["data"]["networks"].items():
            found[title] = Found(known["layers"], known["degradation"])
    keep_freed_memory()
    has_keras = any(each.startswith("dog-breeds") for each in named)
    use_threads(("torch", "tensorflow") if has_keras else ("torch",), given.threads)
    results = Results("layers", skipped=given.skip, threads=given.threads)
    for each in named:
        name, _, file = each.partition("=")
        network = NETWORKS[name](Path(file) if file else None)
        found[network.title] = measured(network, list(image_files(given.images)), given)
    tabulate(results, found)
    if given.out is not None:
        results.write(given.out)
        return
    sys.stdout.write(markdown(results.as_json()) + "\n")


if __name__ == "__main__":
    main()
