"""``iba explain``: write and print maps of photographs."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy.typing as npt

from iba_core.bottleneck.settings import BottleneckSettings
from iba_core.cli.console import console, folded, notes, paragraph, plain_table, print_blocks, tracked
from iba_core.cli.network import Network
from iba_core.cli.options import PACKAGED
from iba_core.cli.photographs import make_folder
from iba_core.cli.results import LEGEND, Row, require_plotting, results_table
from iba_core.cli.statistics import Origin, load_statistics, statistics_without_data
from iba_core.datasets import Record, Run, explain_dataset
from iba_core.datasets.items import ImageItem, find_images, image_items
from iba_core.datasets.run import SUMMARIES
from iba_core.datasets.workers import require_workers
from iba_core.errors import InputError
from iba_core.explainer import Explainer
from iba_core.files import shown
from iba_core.pictures.images import load_image
from iba_core.readout.bottleneck import ReadoutBottleneck
from iba_core.readout.packaged import packaged_readout, readout_from
from iba_core.report import write_report
from iba_core.report.writing import require_jinja2
from iba_core.targets import ClassTarget

_ROWS = 20
"""Most results that are printed one by one, and most errors."""


@dataclass(frozen=True)
class Choices:
    """The options of ``iba explain``, see `iba_core.cli.app`."""

    model: str
    backend: str | None
    layer: str | Sequence[str] | None
    targets: Sequence[str]
    classes: Path | None
    activation: str | None
    stats: Path | None
    out: Path
    seed: int
    preprocess: str | None
    size: tuple[int, int] | None
    device: str | None
    preset: str | None
    settings: Mapping[str, Any]
    readout: str | None
    vmax: float | None
    jobs: int | None
    ray: str | None
    gpus: float
    strict: bool
    as_json: bool
    with_report: bool
    use_cache: bool


def explain_photographs(paths: Sequence[Path], choices: Choices) -> int:
    """Explain photographs and print the results.

    Returns:
        The exit code: 1 if a photograph could not be explained, else 0.
    """
    require_plotting()
    if choices.with_report:
        require_jinja2()
    require_workers(choices.jobs, choices.ray, choices.gpus)
    files = find_images(paths, besides=choices.out)
    if choices.strict:
        for _, path in files:
            load_image(path)
    network = Network.load(
        choices.model, choices.backend, choices.preprocess, choices.size, choices.classes, choices.device
    )
    indices = [network.class_index(target) for target in choices.targets] or [None]
    targets = [ClassTarget(index, choices.activation) for index in dict.fromkeys(indices)]
    readout = _readout(network, choices.readout)
    explainer = Explainer(
        network.adapter, choices.layer, warm_start=readout, preset=choices.preset, **choices.settings
    )
    if choices.stats is not None:
        load_statistics(explainer, network, choices.stats)
    network.require_fit()
    items = image_items(files, network.preprocessing, network.adapter.data_format)
    outputs = explainer.predict(_first(items))
    for target in targets:
        _require_class(target, outputs)
    if network.class_names is not None and len(network.class_names) >= max(2, outputs.shape[-1]):
        explainer.class_names = tuple(network.class_names)
    make_folder(choices.out)
    origin = (
        statistics_without_data(explainer, network, keep=choices.use_cache) if choices.stats is None else None
    )
    before = Run(choices.out)
    with tracked(items, "Explaining", len(items)) as waiting:
        run = explain_dataset(
            explainer,
            waiting,
            choices.out,
            targets,
            preprocessing=network.preprocessing,
            seed=choices.seed,
            jobs=choices.jobs,
            ray=choices.ray,
            gpus=choices.gpus,
            strict=choices.strict,
            vmax=choices.vmax,
            class_names=network.class_names,
            model=network.source,
            statistics=None if origin is None else origin.text,
            progbar=False,
        )
    if choices.with_report:
        write_report(run, progbar=console(stderr=True).is_terminal)
    found = _Found()
    for record in _of_this_run(run, items, targets):
        if choices.as_json:
            print("," if found.count else "[", json.dumps(record.to_dict(), indent=1), sep="\n")
        found.add(record, before)
    if choices.as_json:
        print("]" if found.count else "[]")
    else:
        _print(found, network, explainer, choices, origin)
    if found.failed:
        print(f"iba: {found.failed} of {found.count} could not be explained", file=sys.stderr)
    return int(found.failed > 0)


def _readout(network: Network, source: str | None) -> ReadoutBottleneck | None:
    """The readout that is asked for, if one is."""
    if source is None:
        return None
    if source == PACKAGED:
        return packaged_readout(network.adapter.model)
    return readout_from(source, network.adapter.model)


def _first(items: Sequence[ImageItem]) -> Any:
    """The first input that can be read.

    Raises:
        InputError: that of the first file, if none can be read.
    """
    first: InputError | None = None
    for item in items:
        try:
            return item.load()[0]
        except InputError as error:
            first = first or error
    assert first is not None, "there are items"
    raise first


def _of_this_run(run: Run, items: Sequence[ImageItem], targets: Sequence[ClassTarget]) -> Iterator[Record]:
    """The records of what was asked for, in the order in which it was, each read when its turn comes."""
    setup = run.settings["id"]
    labels = ["predicted" if target.classes is None else str(target.classes) for target in targets]
    for item in items:
        for label in labels:
            if (record := run.at(item.path, label, setup)) is not None:
                yield record


@dataclass
class _Found:
    """What came of a run: the first results and errors, and how many there are.

    Attributes:
        explained: number of results.
        failed: number of errors.
        earlier: how many of the results were there before.
        good: the first results.
        bad: the first errors.
    """

    explained: int = 0
    failed: int = 0
    earlier: int = 0
    good: list[Record] = field(default_factory=list)
    bad: list[Record] = field(default_factory=list)

    @property
    def count(self) -> int:
        """Number of results and errors."""
        return self.explained + self.failed

    def add(self, record: Record, before: Run) -> None:
        """Count a record, beside those of the run as it was before."""
        if record.error is None:
            self.explained += 1
            self.earlier += before.holds(record.key)
            first = self.good
        else:
            self.failed += 1
            first = self.bad
        if len(first) < _ROWS:
            first.append(record)


def _print(
    found: _Found,
    network: Network,
    explainer: Explainer,
    choices: Choices,
    origin: Origin | None,
) -> None:
    width = console().width
    entries = [
        ("Network", network.note),
        ("Pictures", pictures_note(network)),
        ("Layer", layer_note(explainer, choices.layer, choices.stats)),
        *_readout_notes(choices.readout, explainer.settings),
        ("Statistics", _statistics_note(explainer, network, choices.stats, origin)),
        ("Results", _results_note(found)),
        ("Written", _written_note(found, choices.out, choices.with_report)),
    ]
    blocks: list[Any] = []
    if 0 < found.explained <= _ROWS:
        rows = [Row.of(record) for record in found.good]
        blocks += [results_table(rows), paragraph(LEGEND, width)]
    if found.bad:
        table = plain_table()
        table.add_column("Not explained", max_width=24)
        table.add_column("", max_width=max(20, width - 25))
        for record in found.bad:
            table.add_row(folded(record.name, 24), folded(record.error or "", max(20, width - 25)))
        blocks.append(table)
    print_blocks(*blocks, notes(entries, width))


def _readout_notes(source: str | None, settings: BottleneckSettings) -> list[tuple[str, str]]:
    if source is None:
        return []
    steps = settings.steps if settings.learning_rate else 0
    how = "the masks are as it gives them" if not steps else f"{steps} steps from the mask that it gives"
    return [("Readout", f"{source if source == PACKAGED else shown(source)}: {how}")]


def _results_note(found: _Found) -> str:
    parts = [f"{found.explained} explained"]
    if found.earlier:
        parts.append(f"{found.earlier} of them earlier")
    if found.failed:
        parts.append(f"{found.failed} not")
    return ", ".join(parts)


def _written_note(found: _Found, out: Path, with_report: bool) -> str:
    tables = f"to {shown(out)}: {', '.join(SUMMARIES)}{', report/index.html' if with_report else ''}"
    if found.explained > _ROWS:
        return f"{tables}, and a picture and an attribution for each"
    return "\n".join([tables, *(record.picture for record in found.good if record.picture is not None)])


def _require_class(target: ClassTarget, outputs: npt.NDArray[Any]) -> None:
    """Check the class before the features are estimated; one probability stands for two classes.

    Raises:
        InputError: it does not fit the outputs.
    """
    if target.activation is None and outputs.ndim == 2 and outputs.shape[1] == 1:
        if not 0 <= outputs.min() <= outputs.max() <= 1:
            raise InputError(
                "the network has one output, which could be the logit of a class or a score: give "
                "--activation sigmoid_logits if its sigmoid is the probability of class 1; a score is "
                "explained in Python, with LogitTarget(0)"
            )
        target = replace(target, activation="sigmoid")
    target.resolve(outputs)


def pictures_note(network: Network) -> str:
    """Describe the preprocessing, and where it comes from."""
    return f"{network.preprocessing_summary}; {network.preprocessing_origin}"


def layer_note(explainer: Explainer, layer: str | Sequence[str] | None, stats: Path | None = None) -> str:
    """Name the layer, and how it was chosen."""
    if len(explainer.parts) > 1:
        how = ", chosen automatically" if layer is None and stats is None else ""
        return f"{explainer.layer}{how}: geometric mean of their maps, mean of their bits, least survival"
    if layer is not None:
        return f"{explainer.layer}"
    if stats is not None:
        return f"{explainer.layer}, the layer of the statistics"
    if explainer.warm_start is not None:
        return f"{explainer.layer}, the layer of the readout"
    return f"{explainer.layer}, chosen automatically; iba layers lists all, --layer chooses another"


def _statistics_note(
    explainer: Explainer, network: Network, stats: Path | None, origin: Origin | None
) -> str:
    if origin is None:
        return f"{shown(stats)}, of {explainer.parts[0].estimator.n_samples():,} images"
    if origin.are_settled:
        return f"of {origin.text}"
    return (
        f"of {origin.text}, enough for a first look. For reliable numbers, estimate them on your own "
        f"pictures: iba estimate {network.source} FOLDER --out STATS"
    )
