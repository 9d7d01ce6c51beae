"""Explaining one item of a data set into the folder of a run, in this process or another."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from math import isnan
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
from PIL import Image

from iba_core.attribution import Attribution
from iba_core.bottleneck.saliency import CombineLayers
from iba_core.bottleneck.settings import BottleneckSettings
from iba_core.datasets.items import Item, Pixels
from iba_core.datasets.run import INPUTS, PICTURES, RESULTS, Record, digest, file_stem, settings_dict
from iba_core.datasets.targets import LabelledTarget
from iba_core.errors import IBAError, InputError, StateError
from iba_core.files import write_atomically
from iba_core.framework.adapter import ModelAdapter
from iba_core.pictures.images import Preprocessing
from iba_core.pictures.plotting import as_pixels, save_overlay
from iba_core.version import VERSION

_TOP = 3
"""Most probable classes that a record names."""

FAILED = (IBAError, OSError, MemoryError)
"""What one input may raise without ending the run."""


@runtime_checkable
class Explains(Protocol):
    """What a run needs of an `iba_core.Explainer`, whose module imports this one."""

    adapter: ModelAdapter
    settings: BottleneckSettings
    combine: CombineLayers
    output: str | int | None
    class_names: tuple[str, ...] | None
    warm_start: Any

    @property
    def layer(self) -> str | None:
        """Name of the layer, or of all."""

    @property
    def parts(self) -> tuple[Any, ...]:
        """An explainer for each layer."""

    def explain(self, x: Any, target: Any = None, *, seed: int | None = None, **options: Any) -> Attribution:
        """Explain a batch."""


@dataclass(frozen=True)
class Options:
    """What the explanations of a run have in common.

    Attributes:
        folder: folder of the run.
        setup: id of the setup.
        layer: name of the layer.
        seed: seed of the noise.
        settings: the hyperparameters.
        class_names: names of the model's classes; None if they have none.
        pictures: whether to draw pictures.
        vmax: value at the top of their colour bars, in bits per pixel; None for the map's own maximum.
    """

    folder: Path
    setup: str
    layer: str
    seed: int
    settings: BottleneckSettings
    class_names: Sequence[str] | None
    pictures: bool
    vmax: float | None

    def key(self, content: str, target: LabelledTarget) -> str:
        """What names the result of an input and a target."""
        return digest(self.setup, content, target.identity)


@dataclass(frozen=True)
class Task:
    """One item to explain.

    Attributes:
        item: the item.
        content: hash of its content.
        targets: what to explain it for.
        known: records of targets, by label, whose pictures alone are to be drawn again.
    """

    item: Item
    content: str
    targets: tuple[LabelledTarget, ...]
    known: Mapping[str, Record] = field(default_factory=dict)


class Outcome(NamedTuple):
    """What came of a task.

    Attributes:
        records: one for each target.
        errors: what was raised, in place of results.
        warnings: what the library warned of.
    """

    records: list[Record]
    errors: list[Exception]
    warnings: list[str]


def new_setup(
    explainer: Explains,
    settings: BottleneckSettings,
    seed: int,
    preprocessing: Preprocessing | None,
    model: str | None = None,
    statistics: str | None = None,
) -> dict[str, Any]:
    """Describe what the explanations of a run have in common.

    Args:
        explainer: a fitted explainer.
        settings: the hyperparameters.
        seed: seed of the noise.
        preprocessing: that of image files.
        model: name of the model.
        statistics: what stands for the numbers of the estimated statistics, where these may differ by
            rounding.

    Returns:
        What JSON can store. Its ``"id"`` is a hash of everything that a result depends on but the input
        and the target; so names, versions and times are no part of it.
    """
    framework = explainer.adapter.framework.name
    parts = explainer.parts
    estimated = [
        [(name, array.tobytes().hex()) for name, array in part.estimator.state_dict().items()]
        for part in parts
    ]
    decisive = {
        "fingerprint": explainer.adapter.fingerprint(),
        "framework": framework,
        "layer": explainer.layer,
        "data_format": [part.data_format for part in parts],
        "tokens": [part.tokens and settings_dict(part.tokens) for part in parts],
        "combine": explainer.combine if len(parts) > 1 else None,
        "output": explainer.output,
        "statistics": digest(estimated) if statistics is None else statistics,
        "settings": settings_dict(settings),
        "seed": seed,
    }
    if explainer.warm_start is not None:
        decisive["readout"] = explainer.warm_start.fingerprint()
    return {
        "id": digest(decisive)[:16],
        "model": type(explainer.adapter.model).__qualname__ if model is None else model,
        **decisive,
        "samples": parts[0].estimator.n_samples(),
        "preprocessing": None if preprocessing is None else settings_dict(preprocessing),
        "version": VERSION,
        "started": datetime.now(UTC).isoformat(timespec="microseconds"),
    }


def explain_item(explainer: Explains, task: Task, options: Options) -> Outcome:
    """Explain an item for each of its targets, and write what comes out.

    Each file appears whole or not at all. The record is for the caller to add to the run once they are there.

    Args:
        explainer: a fitted explainer.
        task: what to explain.
        options: what the explanations have in common.

    Returns:
        A record for each target. Errors of the library, and of reading and writing, become records.
    """
    outcome = Outcome([], [], [])
    blank = [
        task.known.get(target.label) or blank_record(task.item, target, task.content, options)
        for target in task.targets
    ]
    try:
        x, picture = task.item.load()
    except FAILED as error:
        return Outcome([failed(record, error) for record in blank], [], [])
    for record, target in zip(blank, task.targets, strict=True):
        try:
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("default")
                found = _explained(explainer, x, picture, target, record, task.content, options)
            spoken = tuple(str(each.message) for each in caught if each.category is UserWarning)
            outcome.records.append(replace(found, warnings=(*record.warnings, *spoken)))
            outcome.warnings.extend(spoken)
        except FAILED as error:
            outcome.records.append(failed(record, error))
            outcome.errors.append(error)
    return outcome


def explain_lost(task: Task, options: Options, error: IBAError) -> Outcome:
    """What came of an item that workers have died of."""
    blank = [blank_record(task.item, target, task.content, options) for target in task.targets]
    return Outcome([failed(record, error) for record in blank], [], [])


def blank_record(item: Item, target: LabelledTarget, content: str, options: Options) -> Record:
    """The record of an item and a target before it has been explained."""
    return Record(
        key=options.key(content, target),
        name=item.name,
        path=item.path,
        target=target.label,
        setup=options.setup,
        layer=options.layer,
        folder=options.folder,
    )


def failed(record: Record, error: BaseException) -> Record:
    """The record of what could not be explained."""
    return replace(record, error=str(error) or type(error).__name__)


def _explained(
    explainer: Explains,
    x: Any,
    picture: Callable[[tuple[int, ...]], Pixels | None],
    target: LabelledTarget,
    record: Record,
    content: str,
    options: Options,
) -> Record:
    attribution = None
    if record.bits is not None:  # it has been explained
        with suppress(StateError):  # a damaged result is made again
            attribution = record.attribution()
    if attribution is None:
        start = time.perf_counter()
        attribution = explainer.explain(x, target.target, seed=options.seed, **asdict(options.settings))
        seconds = time.perf_counter() - start
        if len(attribution) != 1:
            raise InputError(f"{record.name!r} holds {len(attribution)} inputs; give them one by one")
        record = replace(record, seconds=seconds, **facts_of(attribution, options.class_names))
    pixels = picture(attribution.saliency.shape[1:]) if options.pictures else None
    record = replace(record, drawn=record.drawn or options.pictures)
    if pixels is not None:
        record = _with_pictures(record, pixels, attribution, content, options)
    # The last, so that nothing is missing where it is there.
    attribution.save(options.folder / RESULTS / f"{record.key}.safetensors")
    return record


def facts_of(attribution: Attribution, class_names: Sequence[str] | None) -> dict[str, Any]:
    """The fields of a record that follow from an attribution of one input."""
    survival = None if attribution.survival is None else float(attribution.survival[0])
    facts: dict[str, Any] = {
        "bits": float(attribution.total_bits[0]),
        "bits_per_pixel": float(attribution.total_bits[0]) / attribution.saliency[0].size,
        "survival": None if survival is None or isnan(survival) else survival,
    }
    if attribution.classes is None:
        return facts
    index = int(attribution.classes[0])
    facts |= {"class_index": index, "class_name": _name(index, class_names)}
    if attribution.outputs.ndim == 2:
        probabilities = attribution.probabilities[0]
        order = [int(each) for each in np.argsort(-probabilities, kind="stable")[:_TOP]]
        order += [index] if index not in order else []
        facts["probability"] = float(probabilities[index])
        facts["top"] = tuple((i, _name(i, class_names), float(probabilities[i])) for i in order)
    return facts


def with_names(record: Record, class_names: Sequence[str] | None) -> Record:
    """A record with the names that its classes have now; as it is where they have none.

    Example:
        >>> record = Record("k", "a", "predicted", "s", "conv", class_index=1, top=((1, None, 0.9),))
        >>> with_names(record, ["cat", "dog"]).top
        ((1, 'dog', 0.9),)
    """
    if class_names is None or record.class_index is None:
        return record
    top = tuple([(index, _name(index, class_names), share) for index, _, share in record.top])
    return replace(record, class_name=_name(record.class_index, class_names), top=top)


def _name(index: int, class_names: Sequence[str] | None) -> str | None:
    return class_names[index] if class_names is not None and 0 <= index < len(class_names) else None


def _with_pictures(
    record: Record, pixels: Pixels, attribution: Attribution, content: str, options: Options
) -> Record:
    """Draw the map over the picture, and write the picture alone once for all targets."""
    if record.class_index is None:
        label = record.target
    else:
        label = f"{record.class_index}-{record.class_name}" if record.class_name else str(record.class_index)
    drawn = f"{PICTURES}/{file_stem(record.name, label, record.key)}.png"
    plain = f"{INPUTS}/{file_stem(record.name, digest(content))}.png"
    share = (
        "" if record.survival is None or record.probability is None else record.survival * record.probability
    )
    whole = "" if record.probability is None else f"whole picture: probability {percent(record.probability)}"
    alone = "" if share == "" else f"these bits alone: probability {percent(float(share))}"
    title = record.class_name or (
        record.target if record.class_index is None else f"class {record.class_index}"
    )
    save_overlay(
        options.folder / drawn,
        pixels,
        {alone: attribution.saliency[0]},
        title=f"{title} · {record.bits:,.0f} bits",
        subtitle=whole,
        vmax=options.vmax,
    )
    if record.picture not in (None, drawn):
        (options.folder / str(record.picture)).unlink(missing_ok=True)  # it has another name now
    if not (options.folder / plain).exists():
        with write_atomically(options.folder / plain) as file:
            Image.fromarray(as_pixels(pixels)).save(file, "PNG")
    return replace(record, picture=drawn, vmax=options.vmax, input=plain)


def percent(share: float, digits: int = 0) -> str:
    """Format a share of 1 in percent; a dash for NaN, the share of nothing.

    Example:
        >>> percent(0.256), percent(float("nan"))
        ('26 %', '-')
    """
    return "-" if isnan(share) else f"{100 * share:.{digits}f} %"
