"""``iba concept locate``: heatmaps of a concept in photographs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from iba_core.attribution import Attribution
from iba_core.bottleneck.settings import BottleneckSettings, preset_settings
from iba_core.cli.concept import CONCEPT_BETA
from iba_core.cli.console import console, folded, notes, plain_table, print_blocks, tracked
from iba_core.cli.explain import pictures_note
from iba_core.cli.network import Network
from iba_core.cli.photographs import find_photographs, make_folder
from iba_core.cli.statistics import fit_on_samples, load_statistics
from iba_core.concepts.embedding import ConceptEmbedding
from iba_core.concepts.locating import locate, save_heatmap
from iba_core.datasets.explaining import percent
from iba_core.default_layer import default_layer
from iba_core.errors import InputError, LayerError
from iba_core.explainer import Explainer
from iba_core.files import shown
from iba_core.framework.adapter import Inputs

_ENDING = "-concept.png"

_HALF = 0.5
"""A concept that is nowhere more probable is not there, and no bits are needed to see it."""


def locate_concept(
    embedding: Path,
    paths: Sequence[Path],
    *,
    bits: bool,
    layer: str | None,
    beta: float | str | None,
    stats: Path | None,
    model: str,
    backend: str | None,
    out: Path,
    preprocess: str | None,
    size: tuple[int, int] | None,
) -> None:
    """Write a heatmap for each photograph, and print the share of its area that shows the concept."""
    for name, value in (("layer", layer), ("beta", beta), ("stats", stats)):
        if value is not None and not bits:
            raise InputError(f"{name}={str(value)!r} is for --bits")
    chosen: dict[str, Any] = {"beta": CONCEPT_BETA if beta is None else beta}
    settings = BottleneckSettings(**{**preset_settings(None, chosen), **chosen})
    plane = ConceptEmbedding.load(embedding)
    name = plane.concept_name or embedding.stem
    photographs = find_photographs(paths)
    network = Network.load(model, backend, preprocess, size)
    if plane.layer_id is None:
        raise InputError(f"layer is missing: {shown(embedding)} does not name the layer of its concept")
    network.adapter.split(plane.layer_id)
    network.require_fit()
    make_folder(out, photographs, (_ENDING,))
    explainer = _explainer(network, plane.layer_id, layer, stats) if bits else None

    table = plain_table(f"Concept: {name}")
    columns = ("Highest probability", "Area above 50 %", *(("Bits", "Survives") if bits else ()))
    table.add_column("Photograph")
    for column in columns:
        table.add_column(folded(column, 12) if bits else column, justify="right")
    with tracked(photographs, "Searching", len(photographs)) as waiting:
        for photograph in waiting:
            image = photograph.load()
            x, seen = network.inputs(image), network.preprocessing.crop(image)
            heatmap = locate(network.adapter.model, plane, x, backend=network.adapter.framework.name)[0]
            needed = _needed(explainer, plane, x, heatmap, settings)
            save_heatmap(
                photograph.output(out, _ENDING),
                seen,
                heatmap,
                f"{name}, {plane.layer_id}",
                None if needed is None else needed.saliency[0],
            )
            table.add_row(
                folded(photograph.name, 36),
                percent(heatmap.max()),
                percent((heatmap > _HALF).mean(), 1),
                *(_bits_cells(needed) if bits else ()),
            )

    entries = [
        ("Network", network.note),
        ("Layer", shown(plane.layer_id)),
        *([] if explainer is None else [("Bits", _bits_note(explainer))]),
        ("Input", pictures_note(network)),
        ("Written", "\n".join(shown(p.output(out, _ENDING)) for p in photographs)),
    ]
    print_blocks(table, notes(entries, console().width))


# -- bits -------------------------------------------------------------------------------------------------


def _explainer(network: Network, end: str, layer: str | None, stats: Path | None) -> Explainer:
    """An explainer at the layer that was named; or at the network's own, or else at that of the concept."""
    if layer is None:
        try:
            layer = default_layer(network.adapter, network.probe())
            _require_before(network, layer, end)
        except LayerError:
            layer = end
    _require_before(network, layer, end)
    explainer = Explainer(network.adapter, layer)
    if stats is None:
        fit_on_samples(explainer, network)
    else:
        load_statistics(explainer, network, stats)
    return explainer


def _require_before(network: Network, layer: str, end: str) -> None:
    """Check that a layer is at or before another one.

    Raises:
        LayerError: it is not.
    """
    with network.adapter.split(layer, end).head(network.probe()) as tail:
        tail.run(tail.features, tail.carry)


def _needed(
    explainer: Explainer | None,
    plane: ConceptEmbedding,
    x: Inputs,
    heatmap: npt.NDArray[np.float32],
    settings: BottleneckSettings,
) -> Attribution | None:
    """What the network needs to see the concept; None where it is not seen."""
    if explainer is None or heatmap.max() <= _HALF:
        return None
    return explainer.explain(x, target=plane, seed=0, **asdict(settings))


def _bits_cells(needed: Attribution | None) -> tuple[str, str]:
    if needed is None:
        return "-", "-"
    survival = "-" if needed.survival is None else percent(float(needed.survival[0]))
    return f"{needed.total_bits[0]:,.0f}", survival


def _bits_note(explainer: Explainer) -> str:
    return (
        f"information at layer {shown(explainer.layer)} that the network needs to see the concept where it "
        "is; a dash where it is not. Survives: share of its probability that remains when only these bits "
        "pass"
    )
