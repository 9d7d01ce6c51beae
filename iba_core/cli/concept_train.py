"""``iba concept train``: learn a concept from a folder of pictures and one of masks."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from iba_core.cli.console import console, folded, notes, plain_table, print_blocks
from iba_core.cli.explain import pictures_note
from iba_core.cli.network import Network
from iba_core.concepts.analysis import ConceptAnalysis, ConceptAnalysisResult
from iba_core.concepts.annotations import is_annotation
from iba_core.concepts.data import SegmentationConcept2D
from iba_core.errors import InputError
from iba_core.files import require_writable, shown
from iba_core.pictures.images import image_files
from iba_core.pictures.plotting import save_figure

_HELD_OUT = 1 / 6
"""Share of the pictures for validation, and for the test."""

_ALARMS = (
    "share of the pictures without the concept that are above 50 % at some place, and share of their area"
)

_FOLDS = 5
"""Layers are compared by all pictures but those of the test. With fewer, chance chooses among good ones."""


def train_concept(
    images: Path,
    masks: Path,
    *,
    out: Path,
    name: str,
    category: str | None,
    boxes: bool,
    limit: int | None,
    negatives: Path | None,
    model: str,
    layers: Sequence[str] | None,
    backend: str | None,
    folds: int | None,
    ensemble: int,
    epochs: int,
    seed: int,
    plot: Path | None,
    preprocess: str | None,
    size: tuple[int, int] | None,
) -> None:
    """Learn a concept in several layers and write the best. The options are in `iba_core.cli.concept`."""
    require_writable(out, "out")
    if plot is not None:
        require_writable(plot, "plot")
    network = Network.load(model, backend, preprocess, size)
    network.require_fit()
    options: dict[str, Any] = {
        "validation": _HELD_OUT if folds == 1 else 0.0,
        "test": _HELD_OUT,
        "seed": seed,
    }
    if negatives is not None:
        options["negatives"] = image_files(negatives)
    source = (name, images, masks, network.preprocessing, network.adapter.data_format)
    if category is None and not is_annotation(masks):
        if boxes or limit is not None:
            given = "boxes" if boxes else "limit"
            raise InputError(f"{given} is for annotations; {shown(masks)} holds masks")
        concept = SegmentationConcept2D.from_folders(*source, **options)
    else:
        concept = SegmentationConcept2D.from_annotations(
            *source, category=category, boxes=boxes, limit=limit, **options
        )
    analysis = ConceptAnalysis(
        concept,
        network.adapter.model,
        layers or None,
        folds=min(_FOLDS, max(2, len(concept.train_data))) if folds is None else folds,
        ensemble_count=ensemble,
        backend=network.adapter.framework.name,
        epochs=epochs,
        seed=seed,
    )
    result = analysis.run()
    result.best.embedding.save(out)
    if plot is not None:
        from matplotlib.figure import Figure

        figure = Figure(figsize=(6.4, 4.0), layout="constrained")
        result.plot(figure.subplots())
        save_figure(figure, plot)
    _report(result, concept, network, [out] if plot is None else [out, plot])


def _report(
    result: ConceptAnalysisResult, concept: SegmentationConcept2D, network: Network, written: list[Path]
) -> None:
    table = plain_table(f"Concept: {concept.name}")
    for column, title in enumerate(result.header()):
        lines = title.replace(", ", ",\n").replace("False ", "False\n")
        table.add_column(lines, justify="right" if column > 1 else "left", no_wrap=column > 0)
    for row in result.rows():
        table.add_row(folded(row[0], 18 if result.negatives else 24), *row[1:])
    entries = [
        ("IoU", "common area of heatmaps and masks, relative to the area of their union, over all pictures"),
        *([("False alarms", _ALARMS)] if result.negatives else []),
        ("Best layer", f"{result.best.layer}, by validation"),
        ("Hyperplane", _hyperplane_note(result)),
        ("Network", network.note),
        ("Pictures", _pictures_note(concept)),
        ("Without it", _false_alarms_note(result)),
        ("Input", pictures_note(network)),
        ("Written", "\n".join(map(shown, written))),
    ]
    print_blocks(table, notes(entries, console().width))


def _pictures_note(concept: SegmentationConcept2D) -> str:
    counts = [
        0 if data is None else len(data) for data in (concept.train_data, concept.val_data, concept.test_data)
    ]
    return f"{counts[0]} for training, {counts[1]} for validation, {counts[2]} for the test"


def _false_alarms_note(result: ConceptAnalysisResult) -> str:
    """Say whether the concept is seen where it is not."""
    best = result.best
    if best.false_alarms is None or best.false_area is None:
        return "no picture without the concept was held out, so false alarms are unknown; see --negatives"
    alarms = round(best.false_alarms * result.negatives)
    return (
        f"{best.layer} is above 50 % somewhere in {alarms} of {result.negatives} pictures without the "
        f"concept, on {best.false_area:.1%} of their area"
    )


def _hyperplane_note(result: ConceptAnalysisResult) -> str:
    """Describe the hyperplane in the file, since the table is about all hyperplanes together."""
    members = len(result.best.embeddings)
    if members == 1:
        return "one was learnt"
    note = f"the mean of {members} learnt ones"
    if result.best.embedding_iou is None:
        return note
    return f"{note}; IoU of the mean, {result.held_out}: {result.best.embedding_iou:.3f}"
