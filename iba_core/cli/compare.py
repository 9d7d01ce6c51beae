"""``iba compare``: two networks of one task beside each other."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
from rich.table import Table

from iba_core.cli.console import console, folded, notes, paragraph, plain_table, print_blocks, tracked
from iba_core.cli.explain import pictures_note
from iba_core.cli.network import Network
from iba_core.cli.photographs import Photograph, find_photographs, make_folder
from iba_core.cli.results import require_plotting
from iba_core.cli.statistics import fit_on_samples
from iba_core.default_layer import default_layer
from iba_core.errors import LayerError, closest
from iba_core.evaluation import ModelComparison, compare_models
from iba_core.evaluation.pairing import pair_layers
from iba_core.explainer import Explainer
from iba_core.files import shown, write_atomically

NAMES = ("comparison.json", "comparison.png")
"""Files that are written."""

_BATCH = 4
_LAYERS = 12
"""Layers that the table shows, and those about the first difference."""

_LAYER_WIDTH = 28


def compare_networks(
    models: tuple[str, str],
    paths: Sequence[Path],
    *,
    backends: tuple[str | None, str | None],
    layer: str | None,
    pairs: str | None,
    target: str | None,
    maps: bool,
    tolerance: float | None,
    out: Path,
    seed: int,
    preprocess: str | None,
    size: tuple[int, int] | None,
) -> None:
    """Compare two networks on photographs and print the tables. The options are in `iba_core.cli.app`."""
    require_plotting()
    photographs = find_photographs(paths)
    first, second = _of_one_preprocessing(
        *(Network.load(m, b, preprocess, size) for m, b in zip(models, backends, strict=True))
    )
    index = first.class_index(target)
    for network in (first, second):
        network.require_fit()
    make_folder(out)
    both: tuple[Any, Any] = (first.adapter, second.adapter)
    seconds: dict[str, tuple[float, float]] = {}
    if maps:
        both, seconds = _fitted(first, second, layer, pairs)
    others = _batches(second, photographs)
    with tracked(_batches(first, photographs), "Comparing", len(photographs)) as batches:
        found = compare_models(
            *both,
            batches,
            pairs=pairs,  # type: ignore[arg-type]  # checked there
            target=index,
            seed=seed,
            tolerance=tolerance,
            convert=lambda _: next(others),
            names=_named(first, second),
        )
    found = replace(found, seconds={**found.seconds, **seconds})
    with write_atomically(out / NAMES[0]) as file:
        file.write(found.to_json().encode())
    pictures = [first.preprocessing.crop(photograph.load()) for photograph in photographs[:_BATCH]]
    found.plot(out / NAMES[1], pictures if maps else None)
    _print(found, first, second, out)


def _of_one_preprocessing(first: Network, second: Network) -> tuple[Network, Network]:
    """Both networks, with the pictures of the other where one does not say which it expects."""
    for one, other in ((first, second), (second, first)):
        if one.preprocessing_origin.startswith("assumed") and not other.preprocessing_origin.startswith(
            "assumed"
        ):
            told = replace(
                one, preprocessing=other.preprocessing, preprocessing_origin="as for the other network"
            )
            return (told, second) if one is first else (first, told)
    return first, second


def _fitted(
    first: Network, second: Network, layer: str | None, pairs: str | None
) -> tuple[tuple[Explainer, Explainer], dict[str, tuple[float, float]]]:
    """Explainers at paired layers, and the seconds that their statistics took."""
    networks = first, second
    probes = [network.probe() for network in networks]
    listed = [network.adapter.layers(probe) for network, probe in zip(networks, probes, strict=True)]
    formats = first.adapter.data_format, second.adapter.data_format
    how: Any = pairs  # checked there
    known = dict(pair_layers(listed[0], listed[1], how, formats)[0])
    ours = layer or default_layer(first.adapter, probes[0])
    if ours not in known:
        raise LayerError(
            f"layer {ours!r} of the first network has no partner in the second; {closest(ours, known)}; give "
            "one of these with --layer, or --no-maps"
        )
    explainers, seconds = [], []
    for network, name in zip(networks, (ours, known[ours]), strict=True):
        explainer = Explainer(network.adapter, name)
        start = perf_counter()
        fit_on_samples(explainer, network, f"{shown(network.source)}: estimating the features")
        seconds.append(perf_counter() - start)
        explainers.append(explainer)
    return (explainers[0], explainers[1]), {"statistics": (seconds[0], seconds[1])}


def _batches(network: Network, photographs: Sequence[Photograph]) -> Iterator[Any]:
    for start in range(0, len(photographs), _BATCH):
        batch = photographs[start : start + _BATCH]
        yield np.concatenate([network.inputs(photograph.load()) for photograph in batch])


def _named(first: Network, second: Network) -> tuple[str, str]:
    """What tells the two networks apart: their frameworks, else their sources, else their places."""
    for ours, theirs in ((first.framework, second.framework), (first.source, second.source)):
        if ours != theirs:
            return ours, theirs
    return "first", "second"


def _print(found: ModelComparison, first: Network, second: Network, out: Path) -> None:
    width = console().width
    alike = first.preprocessing == second.preprocessing
    pictures = pictures_note(first) if alike else f"{pictures_note(first)}\n{pictures_note(second)}"
    entries = [
        ("First", first.note),
        ("Second", second.note),
        ("Pictures", f"{found.inputs}; {pictures}"),
        (
            "Layers",
            f"{len(found.layers)} pairs, by {found.paired_by}; rounding may make {found.tolerance:.2g}",
        ),
        ("Written", f"to {shown(out)}: {', '.join(NAMES)}"),
    ]
    if found.maps is not None:
        ours, theirs = found.maps.layers
        entries.insert(4, ("Maps", f"at {ours}" if ours == theirs else f"at {ours}, and at {theirs}"))
    print_blocks(_numbers(found), _layers(found), paragraph(found.verdict, width), notes(entries, width))


def _numbers(found: ModelComparison) -> Table:
    table = plain_table()
    table.add_column("")
    for name in found.names:
        table.add_column(folded(name, 20), justify="right")
    for name, ours, theirs in found.rows():
        table.add_row(name, ours, theirs)
    return table


def _layers(found: ModelComparison) -> Table:
    table = plain_table()
    table.add_column("Layer")
    table.add_column("Partner")
    table.add_column("Relative\ndifference", justify="right")
    table.add_column("Largest\ndifference", justify="right")
    for place in found.shown_layers(_LAYERS):
        layer = found.layers[place]
        begins = layer.first == found.begins_at
        partner = "" if layer.second == layer.first else layer.second
        table.add_row(
            folded(layer.first, _LAYER_WIDTH),
            folded(partner, _LAYER_WIDTH),
            f"{layer.relative:.2g}",
            f"{layer.largest:.2g}",
            style="bold" if begins else "",
        )
    return table
