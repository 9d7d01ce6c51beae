"""The loop that evaluates methods on a data set."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from time import perf_counter
from typing import Any

import numpy as np
import numpy.typing as npt

from iba_core.arguments import given, require_bool, require_seed, require_sequence
from iba_core.errors import InputError
from iba_core.evaluation.methods import Explains, Method, explained
from iba_core.evaluation.metrics import DEFAULT_METRICS, Case, Metric
from iba_core.evaluation.scoring import Classes, ScoredModel
from iba_core.evaluation.table import Evaluation
from iba_core.framework.adapter import Model
from iba_core.framework.arrays import require_mask
from iba_core.framework.inputs import inputs_of_batch, require_batches, targets_of_batch
from iba_core.utils import get_tqdm

Numbers = npt.NDArray[np.float64]


def evaluate(
    methods: Mapping[str, Method],
    batches: Iterable[Any],
    metrics: Sequence[str | Metric] = DEFAULT_METRICS,
    *,
    model: Model | None = None,
    target: Classes = None,
    seed: int = 0,
    progbar: bool = True,
) -> Evaluation:
    """Explain a data set by several methods, and measure their maps.

    One batch is in memory at a time. Each method explains it once; the metrics share the maps. All methods
    are measured on the same pictures, with the same random sets of tiles.

    Args:
        methods: what to compare, by names: an `Explainer`, a class activation map, a method of
            `iba_core.evaluation`, or a function ``maps = f(x, target)`` of NumPy inputs (B, ...) and classes
            (B,).
        batches: an iterable of batches, each the inputs or a tuple (inputs, targets) or (inputs, targets,
            masks): a data loader, a generator, a list. Masks are (B, *places), True where the object is.
        metrics: names from `iba_core.evaluation.metrics.METRICS`, or `Metric` objects.
        model: a model of any framework, an adapter, or a `ScoredModel`, which also says what the score is.
            If None, that of the first method that has one.
        target: what to explain and to follow, for all batches: the index of a class. If None, each batch
            brings its own; without any, it is the class predicted.
        seed: seed of methods and metrics. A picture gets the same numbers in any batch.
        progbar: show how many batches are done.

    Returns:
        The table.

    Raises:
        InputError: there are no batches, no model, an unknown metric, or maps that do not fit the inputs.

    Example:
        >>> methods = {"bits": explainer, "gradients": Gradients(model), "random": RandomMaps(model)}
        >>> table = evaluate(methods, [x], ["insertion", "sparseness"], progbar=False)
        >>> print(table)
                   insertion ↑            sparseness ↑
        bits ...
        gradients ...
        random ...
        2 pictures; 95 % bootstrap intervals
    """
    _require_methods(methods)
    require_sequence("metrics", metrics, "metrics")
    columns = [metric if isinstance(metric, Metric) else Metric.of(metric) for metric in metrics]
    if len({metric.name for metric in columns}) < len(columns):
        raise InputError("metrics holds two of the same name; give one of them a label")
    require_seed("seed", seed, optional=False)
    require_bool("progbar", progbar)
    scored = ScoredModel.of(_model_of(methods) if model is None else model)
    values: dict[str, dict[str, list[Numbers]]] = {
        name: {metric.name: [] for metric in columns} for name in methods
    }
    seconds: dict[str, list[float]] = {name: [] for name in methods}
    batches = require_batches("batches", batches)
    for batch in get_tqdm()(batches, desc="Evaluating", unit="batch", disable=not progbar):
        for name, case, took in _cases(scored, methods, batch, target, seed, columns):
            seconds[name] += [took / len(case.classes)] * len(case.classes)
            for metric in columns:
                values[name][metric.name].append(_checked(metric, case))
    if not next(iter(seconds.values())):
        raise InputError("batches is empty; give at least one batch of inputs")
    return Evaluation(
        columns,
        {
            name: {metric: np.concatenate(parts) for metric, parts in found.items()}
            for name, found in values.items()
        },
        {name: np.array(each) for name, each in seconds.items()},
    )


def _cases(
    model: ScoredModel,
    methods: Mapping[str, Method],
    batch: Any,
    target: Classes,
    seed: int,
    metrics: Sequence[Metric],
) -> Iterator[tuple[str, Case, float]]:
    """What each method gives for a batch, with the seconds that it took."""
    inputs = model.tensor(inputs_of_batch(batch), "batches")
    wanted = targets_of_batch(batch) if target is None else target
    masks = batch[2] if isinstance(batch, (tuple, list)) and len(batch) > 2 else None
    if masks is None and (needing := [metric.name for metric in metrics if metric.needs_masks]):
        raise InputError(f"the metric {needing[0]!r} needs masks; give batches (inputs, targets, masks)")
    inside = None if masks is None else require_mask("masks", masks)
    classes, x = model.classes(inputs, wanted), model.host(inputs)
    for name, method in methods.items():
        start = perf_counter()
        found = explained(method, x, classes, seed)
        yield name, Case(model, method, x, classes, found, inside, seed), perf_counter() - start


def _checked(metric: Metric, case: Case) -> Numbers:
    found = np.asarray(metric.compute(case), np.float64)
    if not found.ndim or len(found) != len(case.classes):
        raise InputError(
            f"the metric {metric.name!r} gives shape {found.shape} for {len(case.classes)} pictures; one row "
            "for each was expected"
        )
    return found


def _require_methods(methods: Any) -> None:
    if not isinstance(methods, Mapping) or not methods:
        raise InputError(f"{given('methods', methods)} must be a dict of methods by their names")
    for name, method in methods.items():
        if not (isinstance(method, Explains) or callable(method)) or isinstance(method, type):
            raise InputError(
                f"methods[{name!r}] is of type {type(method).__name__}; it must be an Explainer, a class "
                "activation map or a function f(x, target)"
            )


def _model_of(methods: Mapping[str, Method]) -> Model:
    """The model that the first method with one is about."""
    for method in methods.values():
        own = getattr(method, "model", None)
        if isinstance(own, ScoredModel):
            return own
        if getattr(method, "adapter", None) is not None:
            return method
    raise InputError("model is not given, and no method has one; give model=")
