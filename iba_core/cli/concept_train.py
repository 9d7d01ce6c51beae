"""``iba concept train``: a concept of a folder of pictures and one of masks."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from iba_core.cli.console import console, folded, notes, plain_table
from iba_core.cli.explain import pictures_note
from iba_core.cli.network import Network
from iba_core.concepts.analysis import ConceptAnalysis, ConceptAnalysisResult
from iba_core.concepts.data import SegmentationConcept2D
from iba_core.default_layer import default_layer
from iba_core.errors import InputError

_HELD_OUT = 1 / 6
"""Share of the pictures that is set aside for each purpose."""


def train_concept(
    images: Path,
    masks: Path,
    *,
    out: Path,
    name: str,
    model: str,
    layers: Sequence[str] | None,
    backend: str | None,
    folds: int,
    ensemble: int,
    epochs: int,
    seed: int,
    plot: Path | None,
    preprocess: str | None,
    size: tuple[int, int] | None,
) -> None:
    """Learn a concept in some layers and write the best; the options are those of the command line."""
    for option, file in (("out", out), ("plot", plot)):
        if file is not None and not file.parent.is_dir():
            raise InputError(f"{option}={str(file)!r} cannot be written: its folder does not exist")
        if file is not None and file.is_dir():
            raise InputError(f"{option}={str(file)!r} is a folder; a file was expected")
    network = Network.load(model, backend, preprocess, size)
    network.require_fit()
    concept = SegmentationConcept2D.from_folders(
        name,
        images,
        masks,
        network.preprocessing,
        network.adapter.data_format,
        validation=_HELD_OUT if folds == 1 else 0.0,
        test=_HELD_OUT,
        seed=seed,
    )
    analysis = ConceptAnalysis(
        concept,
        network.adapter.model,
        layers or [default_layer(network.adapter, network.probe())],
        folds=folds,
        ensemble_count=ensemble,
        backend=network.adapter.name,
        epochs=epochs,
        seed=seed,
    )
    result = analysis.run()
    result.best.embedding.save(out)
    if plot is not None:
        from matplotlib.figure import Figure

        figure = Figure(figsize=(6.4, 4.0), layout="constrained")
        result.plot(figure.subplots())
        figure.savefig(plot, format="png", dpi=150)
    _report(result, concept, network, [out] if plot is None else [out, plot])


def _report(
    result: ConceptAnalysisResult, concept: SegmentationConcept2D, network: Network, written: list[Path]
) -> None:
    table = plain_table(f"Concept: {concept.name}")
    for column, title in enumerate(result.header()):
        table.add_column(folded(title, 14), justify="right" if column > 1 else "left")
    for row in result.rows():
        table.add_row(folded(row[0], 24), *row[1:])
    parts = (concept.train_data, concept.val_data, concept.test_data)
    counts = [0 if data is None else len(data) for data in parts]
    terminal = console()
    terminal.print()
    terminal.print(table)
    terminal.print()
    entries = [
        ("IoU", "area that heatmap and masks share, relative to the area of both, over all pictures"),
        ("Best layer", f"{result.best.layer}, by validation"),
        ("Hyperplane", _hyperplane_note(result)),
        ("Network", f"{network.source}, in {network.framework}"),
        ("Pictures", f"{counts[0]} to learn from, {counts[1]} to validate with, {counts[2]} to judge by"),
        ("Input", pictures_note(network)),
        ("Written", "\n".join(map(str, written))),
    ]
    terminal.print(notes(entries, terminal.width))


def _hyperplane_note(result: ConceptAnalysisResult) -> str:
    """What is written, and how it does, which the table says of all hyperplanes together."""
    members = len(result.best.embeddings)
    if members == 1:
        return "the one that was learnt"
    note = f"the mean of the {members} that were learnt"
    if result.best.embedding_iou is None:
        return note
    return f"{note}; IoU, {result.held_out}, of it alone: {result.best.embedding_iou:.3f}"
