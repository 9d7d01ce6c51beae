"""Explaining a data set: skip what is there, explain the rest, note each result as it comes."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from os import PathLike
from os.path import basename
from typing import Any

from iba_core.arguments import (
    require_bool,
    require_number,
    require_seed,
    require_sequence,
    require_text,
    require_type,
)
from iba_core.datasets.explaining import (
    FAILED,
    Explains,
    Options,
    Outcome,
    Task,
    blank_record,
    explain_item,
    explain_lost,
    failed,
    new_setup,
    with_names,
)
from iba_core.datasets.items import Item, items_of
from iba_core.datasets.run import Record, Run
from iba_core.datasets.targets import LabelledTarget, labelled
from iba_core.datasets.work import Work
from iba_core.datasets.workers import Workers, require_workers, spread
from iba_core.errors import InputError
from iba_core.files import as_path, shown
from iba_core.pictures.images import Preprocessing
from iba_core.pictures.plotting import require_matplotlib
from iba_core.utils import get_tqdm


def explain_dataset(
    explainer: Explains,
    inputs: Any,
    out: str | PathLike[str],
    targets: Any = None,
    *,
    preprocessing: Preprocessing | None = None,
    seed: int = 0,
    jobs: int | None = None,
    ray: str | None = None,
    gpus: float = 0.0,
    strict: bool = False,
    pictures: bool = True,
    vmax: float | None = None,
    class_names: Sequence[str] | None = None,
    model: str | None = None,
    statistics: str | None = None,
    progbar: bool = True,
    preset: str | None = None,
    **settings: Any,
) -> Run:
    """Explain many inputs one by one, and write each result as it comes.

    A run that ended early, even by a kill, goes on where it was when it is started again: what has been
    explained with the same model, statistics, settings and target is skipped. An input that cannot be read or
    explained gets a record with the error, and is tried again the next time.

    Args:
        explainer: a fitted explainer.
        inputs: a folder of image files, or a list of files and folders; a dict of inputs by name; or an
            iterable of pairs (name, input), read one at a time. An input is one, as `Explainer.explain`
            takes it.
        out: folder to write to, see `Run`. It may hold results of other runs.
        targets: None for the predicted class; the index or the name of a class; a list of these; or a dict
            of any targets by name. A name stands for its target: another target needs another name.
        preprocessing: how the network expects image files.
        seed: seed of the noise.
        jobs: number of workers, processes with a copy of the model each. On one machine, they share its
            processors; None is one, and programs that ask for more need ``if __name__ == "__main__":``. On a
            cluster, each has a processor; None is as many as there is room for.
        ray: address of a Ray cluster whose machines share the work: ``"auto"`` for that of this machine,
            ``"local"`` for one that begins and ends with the call, or ``"host:port"``. `out` and image files
            must have the same paths on all machines. The results come in the order in which they are done.
        gpus: share of a GPU that each worker on the cluster gets, 0.25 for four workers on each. The model is
            moved there.
        strict: raise the error of the first input that fails.
        pictures: draw each map over its picture, where the inputs are images.
        vmax: value at the top of the pictures' colour bars, in bits per pixel; each map's maximum if None.
        class_names: names of the classes; those of the explainer if None.
        model: name of the model, to be noted.
        statistics: a word for the estimated statistics. If None, results made with other numbers are not
            taken over, not even where these differ by rounding.
        progbar: show the progress.
        preset: as in `Explainer.explain`.
        **settings: as in `Explainer.explain`.

    Returns:
        The run, whose summary has been written.

    Raises:
        NotEstimatedError: the distribution of the features has not been estimated.
        InputError: an argument is wrong, `out` cannot be written, nothing could be explained because the
            inputs or targets do not fit the model, or no cluster answers.
        MissingDependencyError: with `ray`, Ray is not installed.
        IBAError: with `strict`, the error of the first input that fails.

    Example:
        >>> run = explain_dataset(explainer, {"a": x[0], "b": x[1]}, "maps", [0, 1], progbar=False)
        >>> [(record.name, record.target) for record in run]
        [('a', '0'), ('a', '1'), ('b', '0'), ('b', '1')]
    """
    require_type("explainer", explainer, Explains, "an Explainer")
    require_type("preprocessing", preprocessing, Preprocessing, "a Preprocessing", optional=True)
    require_seed("seed", seed, optional=False)
    workers = require_workers(jobs, ray, gpus)
    for name, value in (("strict", strict), ("pictures", pictures), ("progbar", progbar)):
        require_bool(name, value)
    vmax = None if vmax is None else require_number("vmax", vmax, above=0)
    for name, text in (("model", model), ("statistics", statistics)):
        require_type(name, text, str, "a text", optional=True)
    if class_names is not None:
        require_sequence("class_names", class_names, "names")
        for each in class_names:
            require_text("class_names", each, "a list of names")
    names = explainer.class_names if class_names is None else class_names
    wanted = labelled(targets, names)
    chosen = explainer.settings.chosen(preset, settings)
    folder = as_path(out, "out")
    items = items_of(inputs, preprocessing, explainer.adapter.data_format, besides=folder)
    run = Run(folder)
    if pictures:
        require_matplotlib()
    setup = new_setup(explainer, chosen, seed, preprocessing, model, statistics)
    run.begin(setup)
    options = Options(
        run.folder,
        setup["id"],
        setup["layer"],
        seed,
        chosen,
        None if names is None else tuple(names),
        pictures,
        vmax,
    )
    tracked = get_tqdm()(items, desc="Explaining", unit="input", disable=not progbar)
    try:
        _explain_all(explainer, _tasks(tracked, wanted, run, options, strict), run, options, workers, strict)
    finally:
        run.write_summary()
    return run


def _tasks(
    items: Iterable[Item], targets: Sequence[LabelledTarget], run: Run, options: Options, strict: bool
) -> Iterator[Task]:
    """What is to be done for each item; what needs no explaining is noted on the way."""
    item: Item | None = None
    for item in items:
        try:
            content = item.content()
        except FAILED as error:
            if strict:
                raise
            for target in targets:
                _note_failure(run, failed(blank_record(item, target, "", options), error))
            continue
        missing, redrawn = [], {}
        for target in targets:
            wanted = blank_record(item, target, content, options)
            known = run.find(wanted)
            if known is None:
                missing.append(target)
                continue
            renamed = with_names(known, options.class_names)
            if options.pictures and _is_outdated(known, renamed, options):
                missing.append(target)
                redrawn[target.label] = renamed
            elif renamed not in run:
                run.add(renamed)  # or the same content has been explained under another name
        if missing:
            yield Task(item, content, tuple(missing), redrawn)
    if item is None:
        raise InputError("inputs is empty; give at least one")


def _is_outdated(known: Record, renamed: Record, options: Options) -> bool:
    """Whether the picture of a result was not asked for, is lost, or has another scale or name."""
    path = known.picture_path
    if path is None:
        return not known.drawn
    return known.vmax != options.vmax or known.class_name != renamed.class_name or not path.is_file()


def _explain_all(
    explainer: Explains, tasks: Iterable[Task], run: Run, options: Options, workers: Workers, strict: bool
) -> None:
    """Explain, and note each result once its files are there."""
    work = Work(explain_item, explainer, options, explain_lost)
    with closing(spread(work, tasks, workers)) as outcomes:
        _note(outcomes, run, options, strict)


def _note(outcomes: Iterable[Outcome], run: Run, options: Options, strict: bool) -> None:
    heard: set[str] = set()
    something_fits = any(record.setup == options.setup and record.error is None for record in run)
    for outcome in outcomes:
        for text in outcome.warnings:
            if text not in heard:
                heard.add(text)
                warnings.warn(f"{outcome.records[0].name}: {text}", stacklevel=4)
        something_fits |= any(record.error is None for record in outcome.records)
        for error in outcome.errors:
            # If not even the first fits, it is not the input's fault, and no other will.
            if strict or (isinstance(error, InputError) and not something_fits):
                raise error
        for record in outcome.records:
            if record.error is None:
                run.add(record)
            elif strict:
                raise InputError(record.error)
            else:
                _note_failure(run, record)


def _note_failure(run: Run, record: Record) -> None:
    run.add(record)
    error = record.error or ""
    is_named = record.path is not None and shown(basename(record.path)) in error
    warnings.warn(error if is_named else f"{record.name}: {error}", stacklevel=5)
