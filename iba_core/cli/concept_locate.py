"""``iba concept locate``: heatmaps of a concept in photographs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from iba_core.cli.console import console, folded, notes, plain_table, print_blocks, tracked
from iba_core.cli.explain import pictures_note
from iba_core.cli.network import Network
from iba_core.cli.photographs import find_photographs, make_folder
from iba_core.concepts.embedding import ConceptEmbedding
from iba_core.concepts.locating import locate, save_heatmap
from iba_core.datasets.explaining import percent
from iba_core.errors import InputError
from iba_core.files import shown


def locate_concept(
    embedding: Path,
    paths: Sequence[Path],
    *,
    model: str,
    backend: str | None,
    out: Path,
    preprocess: str | None,
    size: tuple[int, int] | None,
) -> None:
    """Write a heatmap for each photograph, and print the share of its area that shows the concept."""
    plane = ConceptEmbedding.load(embedding)
    name = plane.concept_name or embedding.stem
    photographs = find_photographs(paths)
    network = Network.load(model, backend, preprocess, size)
    if plane.layer_id is None:
        raise InputError(f"layer is missing: {shown(embedding)} does not name the layer of its concept")
    network.adapter.split(plane.layer_id)
    network.require_fit()
    make_folder(out, photographs, ("-concept.png",))

    table = plain_table(f"Concept: {name}")
    table.add_column("Photograph")
    table.add_column("Highest probability", justify="right")
    table.add_column("Area above 50 %", justify="right")
    with tracked(photographs, "Searching", len(photographs)) as waiting:
        for photograph in waiting:
            image = photograph.load()
            heatmap = locate(
                network.adapter.model, plane, network.inputs(image), backend=network.adapter.framework.name
            )[0]
            seen = network.preprocessing.crop(image)
            save_heatmap(photograph.output(out, "-concept.png"), seen, heatmap, f"{name}, {plane.layer_id}")
            table.add_row(
                folded(photograph.name, 36), percent(heatmap.max()), percent((heatmap > 0.5).mean(), 1)
            )

    entries = [
        ("Network", network.note),
        ("Layer", shown(plane.layer_id)),
        ("Input", pictures_note(network)),
        ("Written", "\n".join(shown(p.output(out, "-concept.png")) for p in photographs)),
    ]
    print_blocks(table, notes(entries, console().width))
