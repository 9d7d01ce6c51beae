"""Measure the maps of many methods: which of them can be trusted, and how far.

    python -m benchmarks.trust                      # packaged photographs, few methods and metrics
    python -m benchmarks.trust --images FOLDER      # your own photographs, all methods and metrics

EfficientNet-Lite0 is explained by this library and by other methods, in both frameworks. The metrics are
those of `iba_core.evaluation`. The results of packaged photographs go to ``results/trust.json``, which a
``bench:trust`` block of a page shows. Those of a folder are printed only, unless ``--out`` names one.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.harness import RESULTS, THREADS, Results, prepare, show
from benchmarks.networks import subject
from benchmarks.quality import PHOTOGRAPHS
from benchmarks.tables import Column, markdown
from iba_core.cli.evaluate import OURS, methods_to_compare
from iba_core.evaluation import Evaluation, Metric, ScoredModel, evaluate
from iba_core.framework.layout import DataFormat
from iba_core.pictures.images import image_files, load_image, sample_image
from iba_core.zoo.efficientnet_lite import PREPROCESSING

TITLE = "EfficientNet-Lite0, blocks.10"
CROPS = 130
REFERENCE = "Grad-CAM"
FRAMEWORKS = {"torch": "PyTorch", "tensorflow": "TensorFlow"}

METRICS = (
    Metric.of("insertion"),
    Metric.of("deletion"),
    Metric.of("degradation"),
    Metric.of("sensitivity_n"),
    Metric.of("sensitivity_n_pooled"),
    Metric.of("infidelity"),
    Metric.of("sparseness"),
    Metric.of("survival"),
)

QUICK_METHODS = {
    "torch": (OURS, f"{OURS}, fast", REFERENCE, "LayerCAM", "gradients", "constant mask", "random"),
    "tensorflow": (OURS, REFERENCE, "random"),
}
"""What is compared on packaged photographs: what costs little, and less in the second framework."""

QUICK_METRICS = ("insertion", "deletion", "degradation", "sparseness", "survival")


def batches(paths: Sequence[Path] | None, data_format: DataFormat, count: int | None) -> Iterator[Any]:
    """Batches of one photograph: those in files, or the packaged ones."""
    if paths is None:
        pictures = (sample_image(name) for name in PHOTOGRAPHS[:count])
    else:
        pictures = (load_image(path) for path in paths[:count])
    return (PREPROCESSING(picture, data_format)[None] for picture in pictures)


def measured(framework: str, paths: Sequence[Path] | None, count: int | None) -> Evaluation:
    """Evaluate the methods in one framework."""
    explainer = subject(TITLE, framework, CROPS).explainer
    scored = ScoredModel(explainer)
    methods = methods_to_compare(explainer, scored)
    metrics = METRICS
    if paths is None:
        methods = {name: methods[name] for name in QUICK_METHODS[framework]}
        metrics = tuple(metric for metric in METRICS if metric.name in QUICK_METRICS)
    show(f"    {FRAMEWORKS[framework]}: {', '.join(methods)}")
    data_format: DataFormat = "channels_first" if framework == "torch" else "channels_last"
    return evaluate(methods, batches(paths, data_format, count), metrics, model=scored)


def tabulate(results: Results, framework: str, found: Evaluation) -> None:
    """Add the table of methods and metrics, and that of the differences from Grad-CAM."""
    arrows = {True: " ↑", False: " ↓", None: ""}
    heads = [f"{metric.name.replace('_', ' ')}{arrows[metric.higher_is_better]}" for metric in found.metrics]
    where = f"{TITLE}, {FRAMEWORKS[framework]}, n = {len(found)}"
    table = results.table(
        f"Maps of {where}",
        Column("Method"),
        *(Column(head) for head in heads),
        Column("Time", ".2f", "s"),
        note="Means over the photographs with 95 % bootstrap intervals; time of one map.",
    )
    differences = results.table(
        f"Differences from {REFERENCE} on the same photographs, {where}",
        Column("Method"),
        *(Column(head) for head in heads),
        note="Clear where the 95 % interval of the paired difference lacks 0.",
    )
    for method in found.methods:
        cells = [str(found.estimate(method, metric.name)) for metric in found.metrics]
        table.rows.append([method, *cells, float(np.median(found.seconds[method]))])
        if method != REFERENCE:
            pairs = [str(found.compare(method, REFERENCE, metric.name)) for metric in found.metrics]
            differences.rows.append([method, *pairs])
    results.data[framework] = found.to_dict(pictures=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=Path, metavar="FOLDER", help="photographs to use instead")
    parser.add_argument("--count", type=int, help="use so many photographs only")
    parser.add_argument("--frameworks", nargs="+", choices=list(FRAMEWORKS), default=list(FRAMEWORKS))
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="folder for the results")
    options = parser.parse_args()
    prepare()
    paths = None if options.images is None else image_files(options.images)
    available = len(PHOTOGRAPHS) if paths is None else len(paths)
    results = Results("trust", photographs=min(available, options.count or available), threads=THREADS)
    for framework in options.frameworks:
        tabulate(results, framework, measured(framework, paths, options.count))
    if paths is None or options.out is not None:
        results.write(options.out or RESULTS)
        return
    print(markdown(results.as_json()))


if __name__ == "__main__":
    main()
