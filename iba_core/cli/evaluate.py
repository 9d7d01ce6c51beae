"""``iba evaluate``: compare methods on your photographs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from copy import copy
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

from iba_core.arguments import require_choice
from iba_core.cli.console import console, folded, notes, paragraph, plain_table, print_blocks, tracked
from iba_core.cli.explain import layer_note, pictures_note
from iba_core.cli.network import Network
from iba_core.cli.photographs import Photograph, find_photographs, make_folder
from iba_core.cli.results import require_plotting
from iba_core.cli.statistics import load_statistics, statistics_without_data
from iba_core.concepts import EigenCAM, GradCAM, GradCAMPlusPlus, HiResCAM, LayerCAM, XGradCAM
from iba_core.errors import InputError
from iba_core.evaluation import (
    ConstantMask,
    Evaluation,
    Gradients,
    IntegratedGradients,
    Occlusion,
    RandomMaps,
    ScoredModel,
    SmoothGrad,
    evaluate,
)
from iba_core.evaluation.methods import Method
from iba_core.evaluation.metrics import DEFAULT_METRICS, Metric
from iba_core.explainer import Explainer
from iba_core.files import shown

OURS = "bottleneck"

NAMES = ("evaluation.csv", "evaluation.json", "evaluation.png")
"""Files that are written."""

_BATCH = 4
_COLUMNS = 4
"""Metrics side by side in 80 columns."""
_METHOD_WIDTH, _HEAD_WIDTH = 22, 13

LEGEND = (
    "Means over the photographs; below each, its 95 % interval. Arrows show which direction is better. "
    "A method must beat the random maps and the constant mask before it says anything about the network."
)


def methods_to_compare(explainer: Explainer, scored: ScoredModel | None = None) -> dict[str, Method]:
    """The methods that an evaluation compares, by name: ours, those of others, and what all must beat.

    Args:
        explainer: a fitted explainer.
        scored: its model, made once for all methods.
    """
    adapter = explainer.adapter
    model = ScoredModel(explainer) if scored is None else scored
    cams = (GradCAM, GradCAMPlusPlus, XGradCAM, LayerCAM, HiResCAM, EigenCAM)
    fast = copy(explainer)
    fast.settings = explainer.settings.chosen("fast", {})
    return {
        OURS: explainer,
        f"{OURS}, fast": fast,
        **{_NAMES_OF_CAMS[kind.__name__]: kind(adapter) for kind in cams},
        "gradients": Gradients(model),
        "SmoothGrad": SmoothGrad(model),
        "Integrated Gradients": IntegratedGradients(model),
        "occlusion": Occlusion(adapter),
        "constant mask": ConstantMask(explainer),
        "random": RandomMaps(model),
    }


_NAMES_OF_CAMS = {
    "GradCAM": "Grad-CAM",
    "GradCAMPlusPlus": "Grad-CAM++",
    "XGradCAM": "XGrad-CAM",
    "LayerCAM": "LayerCAM",
    "HiResCAM": "HiResCAM",
    "EigenCAM": "Eigen-CAM",
}


def evaluate_methods(
    paths: Sequence[Path],
    *,
    model: str,
    backend: str | None,
    layer: str | None,
    target: str | None,
    stats: Path | None,
    out: Path,
    seed: int,
    methods: str | None,
    metrics: str | None,
    use_cache: bool,
    preprocess: str | None,
    size: tuple[int, int] | None,
) -> None:
    """Compare methods on photographs and print the table. The options are in `iba_core.cli.app`."""
    require_plotting()
    columns = _metrics(metrics)
    photographs = find_photographs(paths)
    network = Network.load(model, backend, preprocess, size)
    index = network.class_index(target)
    explainer = Explainer(network.adapter, layer)
    if stats is not None:
        load_statistics(explainer, network, stats)
    network.require_fit()
    scored = ScoredModel(explainer)
    scored.classes(scored.tensor(network.inputs(photographs[0].load())), index)
    make_folder(out)
    if stats is None:
        statistics_without_data(explainer, network, keep=use_cache)
    chosen = _chosen(methods_to_compare(explainer, scored), methods)
    with tracked(_batches(network, photographs), "Evaluating", len(photographs)) as batches:
        table = evaluate(chosen, batches, columns, model=scored, target=index, seed=seed, progbar=False)
    _write(table, out)
    width = console().width
    entries = [
        ("Network", network.note),
        ("Pictures", f"{len(photographs)}; {pictures_note(network)}"),
        ("Layer", layer_note(explainer, layer, stats)),
        ("Written", f"to {shown(out)}: {', '.join(NAMES)}"),
    ]
    print_blocks(*tables(table), paragraph(LEGEND, width), notes(entries, width))


def _batches(network: Network, photographs: Sequence[Photograph]) -> Iterator[Any]:
    for start in range(0, len(photographs), _BATCH):
        batch = photographs[start : start + _BATCH]
        yield np.concatenate([network.inputs(photograph.load()) for photograph in batch])


def _metrics(names: str | None) -> list[Metric]:
    wanted = DEFAULT_METRICS if names is None else _listed(names, "metrics")
    found = [Metric.of(name) for name in wanted]
    for metric in found:
        if metric.needs_masks:
            raise InputError(f"metrics={metric.name!r} needs masks of the objects; use it in Python")
    return found


def _chosen(known: Mapping[str, Method], names: str | None) -> dict[str, Method]:
    if names is None:
        # By default, several layers are explained with the preset fast: that is one method.
        return {name: method for name, method in known.items() if not _is_repeated(name, known)}
    return {name: known[require_choice("methods", name, known, "method")] for name in _methods(names, known)}


def _is_repeated(name: str, known: Mapping[str, Method]) -> bool:
    ours, method = known[OURS], known[name]
    if name == OURS or not isinstance(ours, Explainer) or not isinstance(method, Explainer):
        return False
    return method.settings == ours.settings


def _methods(names: str, known: Mapping[str, Method]) -> list[str]:
    """Names from a list with commas, one of which may be part of a name."""
    listed = _listed(names, "methods")
    found: list[str] = []
    for name in listed:
        if found and f"{found[-1]}, {name}" in known:
            found[-1] = f"{found[-1]}, {name}"
        else:
            found.append(name)
    return found


def _listed(names: str, argument: str) -> list[str]:
    listed = [name.strip() for name in names.split(",") if name.strip()]
    if not listed:
        raise InputError(f"{argument}={names!r} names none; give names with commas between")
    return listed


def _write(table: Evaluation, out: Path) -> None:
    table.to_csv(out / NAMES[0])
    table.to_json(out / NAMES[1])
    table.plot(out / NAMES[2])


def tables(found: Evaluation) -> list[Table]:
    """Make tables that fit into 80 columns, of a few metrics each."""
    return [
        _table(found, found.metrics[start : start + _COLUMNS])
        for start in range(0, len(found.metrics), _COLUMNS)
    ]


def _table(found: Evaluation, metrics: Sequence[Metric]) -> Table:
    table = plain_table()
    table.add_column("Method", max_width=_METHOD_WIDTH)
    for metric in metrics:
        arrow = {True: " ↑", False: " ↓", None: ""}[metric.higher_is_better]
        table.add_column(folded(metric.name.replace("_", " ") + arrow, _HEAD_WIDTH), justify="right")
    for method in found.methods:
        cells = []
        for metric in metrics:
            estimate = found.estimate(method, metric.name)
            value = "-" if np.isnan(estimate.value) else f"{estimate.value:.3f}"
            interval = "" if np.isnan(estimate.low) else f"\n{estimate.low:.3f}-{estimate.high:.3f}"
            cells.append(value + interval)
        table.add_row(folded(method, _METHOD_WIDTH), *cells)
    return table
