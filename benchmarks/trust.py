"""Measure the maps of many methods: which of them can be trusted, and how far.

    python -m benchmarks.trust                      # packaged photographs, few methods and metrics
    python -m benchmarks.trust --images FOLDER      # your own photographs, all methods and metrics

EfficientNet-Lite0 is explained by this library and by other methods, in both frameworks. *bottleneck* is what
`Explainer` does by default, at two layers; *one layer* is its default at one. The metrics are those of
`iba_core.evaluation`. Further tables give the paired differences from Grad-CAM and from the paper's setting,
the grid pointing game, and what is left of maps and bits once the network's weights are randomised.
``--masks FOLDER``, with a mask of the object for each photograph, adds the share of a map on the object. The
results of packaged photographs go to ``results/trust.json``, which a ``bench:trust`` block of a page shows.
Those of a folder are printed only, unless ``--out`` names a folder for ``trust_photographs.json``.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from copy import copy
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.harness import RESULTS, THREADS, Results, prepare, show
from benchmarks.networks import packaged
from benchmarks.tables import Column, markdown
from iba_core import Explainer
from iba_core.cli.evaluate import OURS, methods_to_compare
from iba_core.concepts import GradCAM
from iba_core.evaluation import (
    Evaluation,
    Gradients,
    Metric,
    ScoredModel,
    bootstrap,
    evaluate,
    grid_pointing_game,
    paired,
    randomization_check,
)
from iba_core.evaluation.methods import Method
from iba_core.framework.layout import DataFormat
from iba_core.pictures.images import SAMPLE_IMAGES, image_files, load_image, sample_crops, sample_image
from iba_core.zoo.efficientnet_lite import PREPROCESSING

NETWORK, LAYER = "EfficientNet-Lite0", "blocks.4"
ONE, PAPER = f"{OURS}, one layer", f"{OURS}, one layer, paper"
REFERENCE = "Grad-CAM"
FRAMEWORKS = {"torch": "PyTorch", "tensorflow": "TensorFlow"}

CURVE: dict[str, Any] = {"steps": 14}
TILES: dict[str, Any] = {"samples": 5}
METRICS: dict[str, dict[str, Any]] = {
    "insertion": CURVE,
    "deletion": CURVE,
    "degradation": CURVE,
    "road": {},
    "sensitivity_n": TILES,
    "sensitivity_n_pooled": TILES,
    "infidelity": TILES,
    "sparseness": {},
    "survival": {},
}
"""Metrics and their options. With these, 60 photographs should take about an hour; that is an estimate."""
MASKED_METRICS = ("mass_in_box", "pointing_game")
"""Metrics that need masks."""

METHODS: dict[str, tuple[str, ...] | None] = {
    "torch": None,
    "tensorflow": (OURS, ONE, PAPER, REFERENCE, "LayerCAM", "gradients", "constant mask", "random"),
}
"""What is compared on photographs of a folder, None for all: less in the second framework, which gives the
same maps."""

QUICK_METHODS = {
    "torch": (OURS, ONE, PAPER, REFERENCE, "gradients", "constant mask", "random"),
    "tensorflow": (OURS, ONE, REFERENCE, "random"),
}
"""What is compared on packaged photographs: what costs little."""

QUICK_METRICS = ("insertion", "degradation", "sparseness", "survival")

TEXTURES = ("bricks", "grass", "gravel")
"""Sample images without an object."""
PHOTOGRAPHS = tuple(name for name in SAMPLE_IMAGES if name not in TEXTURES)

STAGES, CROPS = 3, 64
"""Stages of the randomisation: the classifier alone, half of the other layers too, and all. A network with
other weights needs other statistics; they are of so many crops of packaged photographs."""
RANDOMISED = {"quick": 2, "whole": 8}
"""Number of photographs that are explained after each stage."""

Array = np.ndarray[Any, Any]


class Photographs:
    """The photographs that are explained.

    Args:
        paths: their files; None for the packaged ones.
        masks: folder with a mask for each, an image file of the same stem; None for none.
        data_format: where the network has its channels.
    """

    def __init__(self, paths: Sequence[Path] | None, masks: Path | None, data_format: DataFormat) -> None:
        self._paths, self._data_format = paths, data_format
        self._masks = {} if masks is None else {path.stem: path for path in image_files(masks)}

    def __len__(self) -> int:
        return len(PHOTOGRAPHS if self._paths is None else self._paths)

    def __getitem__(self, number: int) -> Array:
        """One photograph as a batch."""
        if self._paths is None:
            picture = sample_image(PHOTOGRAPHS[number])
        else:
            picture = load_image(self._paths[number])
        return PREPROCESSING(picture, self._data_format)[None]

    def batches(self) -> Iterator[Any]:
        """Batches of one photograph, with its mask if there are masks."""
        for number in range(len(self)):
            x = self[number]
            yield (x, None, self._mask(self._paths[number])) if self._paths and self._masks else x

    def first(self, count: int) -> Array:
        """The first photographs in one batch."""
        return np.concatenate([self[number] for number in range(min(count, len(self)))])

    def _mask(self, path: Path) -> Array:
        """Mask of a photograph, prepared as the photograph is, so that the two lie on each other."""
        if path.stem not in self._masks:
            raise SystemExit(f"there is no mask for {path.name}")
        prepared = PREPROCESSING(load_image(self._masks[path.stem]), "channels_last")
        return np.asarray(prepared.mean(axis=-1) > 0)[None]  # pixels are from -1 to 1


def methods_of(explainer: Explainer, scored: ScoredModel, names: Sequence[str] | None) -> dict[str, Method]:
    """The methods that are compared, by name: the default, and at one layer, those of an explainer."""
    paper = copy(explainer)
    paper.settings = explainer.settings.chosen("paper", {})
    ours = Explainer(explainer.adapter).load_packaged()
    others = methods_to_compare(explainer, scored)
    others[f"{ONE}, fast"] = others.pop(f"{OURS}, fast")
    known = {**others, OURS: ours, ONE: explainer, PAPER: paper}
    known = {name: known[name] for name in dict.fromkeys((OURS, ONE, PAPER, *known))}
    return known if names is None else {name: known[name] for name in names}


def tabulate(results: Results, where: str, found: Evaluation) -> None:
    """Add the table of methods and metrics, and those of the differences from two of the methods."""
    arrows = {True: " ↑", False: " ↓", None: ""}
    heads = [f"{metric.name.replace('_', ' ')}{arrows[metric.higher_is_better]}" for metric in found.metrics]
    table = results.table(
        f"Maps of {where}, n = {len(found)}",
        Column("Method"),
        *(Column(head) for head in heads),
        Column("Time", ".2f", "s"),
        note="Means over the photographs with 95 % bootstrap intervals; time of one map.",
    )
    for method in found.methods:
        cells = [str(found.estimate(method, metric.name)) for metric in found.metrics]
        table.rows.append([method, *cells, float(np.median(found.seconds[method]))])
    for reference in (REFERENCE, PAPER):
        if reference in found.methods:
            differences = results.table(
                f"Differences from {reference} on the same photographs, {where}, n = {len(found)}",
                Column("Method"),
                *(Column(head) for head in heads),
                note="Clear where the 95 % interval of the paired difference lacks 0.",
            )
            for method in found.methods:
                if method != reference:
                    pairs = [str(found.compare(method, reference, metric.name)) for metric in found.metrics]
                    differences.rows.append([method, *pairs])


def play(results: Results, where: str, methods: dict[str, Method], scored: ScoredModel, x: Array) -> None:
    """Add the table of the grid pointing game."""
    shares = {}
    for name, method in methods.items():
        show(f"    mosaics: {name}")
        shares[name] = grid_pointing_game(scored, method, x)
    known = np.isfinite(np.stack(list(shares.values()))).all(axis=0)
    if not known.any():
        show("    no mosaics: the photographs show too few classes")
        return
    table = results.table(
        f"Grid pointing game of {where}, n = {known.sum()}",
        Column("Method"),
        Column("share on the right picture ↑"),
        Column(f"less that of {REFERENCE}"),
        note="Mosaics of four photographs, a chance of 0.25.",
    )
    for name, share in shares.items():
        difference = "" if name == REFERENCE else str(paired(share[known], shares[REFERENCE][known]))
        table.rows.append([name, str(bootstrap(share[known])), difference])


def randomise(results: Results, where: str, explainer: Explainer, x: Array) -> None:
    """Add the table of what is left when the weights are randomised from the classifier down."""
    layer, data_format = explainer.layer, explainer.adapter.data_format
    layers = [part.layer for part in Explainer(explainer.adapter).load_packaged().parts]

    def ours(model: Any, layer: Any) -> Explainer:
        crops = sample_crops(CROPS, PREPROCESSING, data_format=data_format)
        return Explainer(model, layer).fit(crops, progbar=False)

    makers = {
        OURS: lambda model: ours(model, layers),
        ONE: lambda model: ours(model, layer),
        REFERENCE: GradCAM,
        "gradients": lambda model: Gradients(ScoredModel(model)),
    }
    table = results.table(
        f"Weights randomised from the classifier down, {where}, n = {len(x)}",
        Column("Method"),
        Column("classifier: rank correlation"),
        Column("bits"),
        Column("all layers: rank correlation"),
        Column("bits"),
        note="Spearman correlation with the trained network's map, and bits as a share of its bits; means.",
    )
    for name, make in makers.items():
        show(f"    randomised: {name}")
        found = randomization_check(explainer.adapter, make, x, stages=STAGES)
        cells: list[str] = []
        for stage in (0, -1):
            bits = found.bits[stage]
            share = f"{100 * bits.mean():.0f} %" if np.isfinite(bits).all() else ""
            cells += [f"{found.correlation[stage].mean():.3f}", share]
        table.rows.append([name, *cells])


def measure(results: Results, framework: str, options: argparse.Namespace, paths: list[Path] | None) -> None:
    """Measure everything in one framework."""
    explainer = packaged(framework, options.layer)
    scored = ScoredModel(explainer)
    data_format: DataFormat = "channels_first" if framework == "torch" else "channels_last"
    photographs = Photographs(paths, options.masks, data_format)
    quick = paths is None
    wanted = QUICK_METHODS if quick else METHODS
    methods = methods_of(explainer, scored, options.methods or wanted[framework])
    names = (
        *(options.metrics or (QUICK_METRICS if quick else METRICS)),
        *(MASKED_METRICS if options.masks else ()),
    )
    metrics = [Metric.of(name, **METRICS.get(name, {})) for name in names]
    where = f"{NETWORK}, {FRAMEWORKS[framework]}, one layer: {options.layer}"
    show(f"    {where}: {', '.join(methods)}")
    found = evaluate(methods, photographs.batches(), metrics, model=scored)
    tabulate(results, where, found)
    results.data[framework] = found.to_dict(pictures=True)
    if options.grid:
        few = {name: methods[name] for name in (OURS, ONE, PAPER, REFERENCE, "gradients") if name in methods}
        play(results, where, few, scored, photographs.first(len(photographs)))
    if options.randomise:
        randomise(results, where, explainer, photographs.first(RANDOMISED["quick" if quick else "whole"]))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=Path, metavar="FOLDER", help="photographs to use instead")
    parser.add_argument("--masks", type=Path, metavar="FOLDER", help="masks of the objects on them")
    parser.add_argument("--count", type=int, help="use so many photographs only, evenly spaced")
    parser.add_argument("--skip", type=int, default=0, metavar="N", help="begin after the first N files")
    parser.add_argument("--layer", default=LAYER, help="of the maps at one layer; with packaged statistics")
    parser.add_argument("--frameworks", nargs="+", choices=list(FRAMEWORKS), default=list(FRAMEWORKS))
    parser.add_argument("--methods", nargs="+", metavar="NAME", help="compare these only")
    parser.add_argument("--metrics", nargs="+", metavar="NAME", help="compute these only")
    parser.add_argument("--grid", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--randomise", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--threads", type=int, default=THREADS)
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="folder for the results")
    options = parser.parse_args()
    if options.masks is not None and options.images is None:
        parser.error("--masks needs --images")
    prepare(options.threads)
    paths = None if options.images is None else list(image_files(options.images))[options.skip :]
    if paths is not None and options.count:
        paths = paths[:: max(1, len(paths) // options.count)][: options.count]
    results = Results(
        "trust" if paths is None else "trust_photographs",
        photographs=len(PHOTOGRAPHS if paths is None else paths),
        threads=options.threads,
    )
    for framework in options.frameworks:
        measure(results, framework, options, paths)
    if paths is None or options.out is not None:
        results.write(options.out or RESULTS)
        return
    print(markdown(results.as_json()))


if __name__ == "__main__":
    main()
