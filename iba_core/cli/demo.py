"""``iba demo``: explain three photographs in two frameworks, and compare."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from time import perf_counter

import numpy as np
import numpy.typing as npt
from PIL import Image
from rich.table import Table

from iba_core.attribution import Attribution
from iba_core.cli.console import console, notes, paragraph, plain_table, print_blocks, tracked
from iba_core.cli.explain import pictures_note
from iba_core.cli.network import Network, import_backend
from iba_core.cli.photographs import make_folder
from iba_core.cli.results import LEGEND, Row, require_plotting, results_table
from iba_core.cli.statistics import statistics_without_data
from iba_core.datasets import Record
from iba_core.datasets.explaining import facts_of, percent
from iba_core.errors import MissingDependencyError
from iba_core.explainer import Explainer
from iba_core.files import shown, write_atomically
from iba_core.pictures.images import sample_image
from iba_core.pictures.plotting import save_overlay
from iba_core.timing import BareTail
from iba_core.zoo.efficientnet_lite import NAME

PHOTOGRAPHS = ("cat", "coffee", "rocket")
BACKENDS = ("torch", "tensorflow")
LAYER = "blocks.4"
"""Its 28 x 28 feature maps are fine enough to tell an eye from a nose."""

SEED = 0
_ROUNDS = 2


@dataclass(frozen=True)
class Result:
    """One explained photograph.

    Attributes:
        picture: the part of the photograph that the network sees.
        attribution: its attribution.
        record: the numbers that follow from it.
    """

    picture: npt.NDArray[np.uint8]
    attribution: Attribution
    record: Record

    @property
    def bits(self) -> float:
        """Sum of the bits that pass."""
        return float(self.attribution.total_bits[0])


@dataclass(frozen=True)
class Half:
    """The results of one framework.

    Attributes:
        network: the network.
        statistics: what the statistics of its features are of.
        results: one for each photograph.
        first_seconds: time of the first explanation, including compilation.
        seconds: median time of an explanation.
        tail_seconds: median time of the forward and backward passes of the tail alone.
    """

    network: Network
    statistics: str
    results: tuple[Result, ...]
    first_seconds: float
    seconds: float
    tail_seconds: float


def run_demo(out: Path) -> None:
    """Explain the sample photographs with every framework, compare, and write pictures."""
    require_plotting()
    _require_backends()
    make_folder(out)
    runs = [_run(backend) for backend in BACKENDS]
    pictures = [_save_comparison(out / f"{name}.png", runs, index) for index, name in enumerate(PHOTOGRAPHS)]
    overview = _save_overview(out / "overview.png", pictures)

    network = runs[0].network
    entries = [
        ("Network", f"{NAME}, ImageNet weights, explained at {LAYER}"),
        ("Pictures", pictures_note(network)),
        ("Statistics", f"of {runs[0].statistics}, the same in each framework"),
        ("Noise", f"from seed {SEED}, the same numbers in each framework"),
        ("Machine", f"{os.cpu_count()} processors"),
        ("Written", "\n".join(map(shown, [*pictures, overview]))),
    ]
    width = console().width
    print_blocks(
        *(
            results_table([Row.of(result.record) for result in run.results], run.network.framework)
            for run in runs
        ),
        paragraph(LEGEND, width),
        _agreement_table(*runs),
        _time_table(runs),
        notes(entries, width),
    )


def _require_backends() -> None:
    missing = []
    for backend in BACKENDS:
        try:
            import_backend(backend)
        except MissingDependencyError as error:
            missing.append(str(error))
    if missing:
        raise MissingDependencyError(
            f"the demonstration compares two frameworks: pip install 'iba-core[all]' ({'; '.join(missing)})"
        )


def _run(backend: str) -> Half:
    network = Network.load(NAME, backend)
    explainer = Explainer(network.adapter.model, LAYER)
    origin = statistics_without_data(explainer, network, f"{network.framework}: estimating the features")
    images = {name: sample_image(name) for name in PHOTOGRAPHS}
    inputs = {name: network.inputs(image) for name, image in images.items()}

    start = perf_counter()
    explainer.explain(inputs[PHOTOGRAPHS[0]], seed=SEED)
    first_seconds = perf_counter() - start
    tail = BareTail(explainer.adapter, explainer.adapter.split(LAYER))
    tail.seconds(inputs[PHOTOGRAPHS[0]], steps=1)

    results: dict[str, Result] = {}
    seconds, tail_seconds = [], []
    order = [name for _ in range(_ROUNDS) for name in PHOTOGRAPHS]
    with tracked(order, f"{network.framework}: explaining", len(order)) as names:
        for name in names:
            start = perf_counter()
            attribution = explainer.explain(inputs[name], seed=SEED)
            seconds.append(perf_counter() - start)
            facts = facts_of(attribution, network.class_names)
            record = Record("", name, "predicted", "", LAYER, seconds=seconds[-1], **facts)
            results[name] = Result(network.preprocessing.crop(images[name]), attribution, record)
            tail_seconds.append(tail.seconds(inputs[name]))
    return Half(
        network=network,
        statistics=origin.text,
        results=tuple(results.values()),
        first_seconds=first_seconds,
        seconds=median(seconds),
        tail_seconds=median(tail_seconds),
    )


def _agreement_table(one: Half, other: Half) -> Table:
    table = plain_table(f"Agreement of {one.network.framework} and {other.network.framework}")
    table.add_column("Photograph")
    table.add_column("Correlation of the\nfeatures' capacities", justify="right")
    table.add_column("Difference\nof the bits", justify="right")
    table.add_column("Difference of the\nlogits, relative", justify="right")
    for a, b in zip(one.results, other.results, strict=True):
        capacities = [result.attribution.capacity_channels_first().ravel() for result in (a, b)]
        logits = [result.attribution.outputs[0] for result in (a, b)]
        table.add_row(
            a.record.name,
            f"{np.corrcoef(capacities[0], capacities[1])[0, 1]:.6f}",
            f"{100 * abs(b.bits / a.bits - 1):.3f} %",
            f"{np.abs(logits[1] - logits[0]).max() / np.abs(logits[0]).max():.1e}",
        )
    return table


def _time_table(runs: Sequence[Half]) -> Table:
    table = plain_table("Time per picture, median")
    table.add_column("")
    table.add_column("Explaining", justify="right")
    table.add_column("Bare passes\nof the tail", justify="right")
    table.add_column("Ratio", justify="right")
    table.add_column("First picture,\nwith compilation", justify="right")
    for run in runs:
        table.add_row(
            run.network.framework,
            f"{run.seconds:.2f} s",
            f"{run.tail_seconds:.2f} s",
            f"{run.seconds / run.tail_seconds:.2f}",
            f"{run.first_seconds:.2f} s",
        )
    return table


def _save_comparison(path: Path, halves: Sequence[Half], index: int) -> Path:
    """Write one photograph and its maps from all frameworks, side by side."""
    results = [(half.network.framework, half.results[index]) for half in halves]
    first = results[0][1]
    maps = {
        f"{framework}: {each.bits:,.0f} bits": each.attribution.saliency[0] for framework, each in results
    }
    probability = f"probability {percent(first.record.probability or 0.0)}"
    save_overlay(path, first.picture, maps, title=first.record.class_name or "", subtitle=probability)
    return path


def _save_overview(path: Path, pictures: Sequence[Path]) -> Path:
    """Write pictures one above the other."""
    opened = [Image.open(picture).convert("RGB") for picture in pictures]
    # The pictures differ in width, with the numbers at their colour bars.
    size = max(picture.width for picture in opened), sum(picture.height for picture in opened)
    overview = Image.new("RGB", size, "white")
    top = 0
    for picture in opened:
        overview.paste(picture, (0, top))
        top += picture.height
    with write_atomically(path) as file:
        overview.save(file, "PNG", optimize=True)
    return path
