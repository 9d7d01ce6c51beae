"""The metrics by name, in the form in which `evaluate` runs them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from iba_core.arguments import require_choice
from iba_core.errors import InputError
from iba_core.evaluation import faithfulness, localisation, robustness, similarity
from iba_core.evaluation.formulas import infidelity_of
from iba_core.evaluation.intervals import Reduce, mean_of
from iba_core.evaluation.methods import Found, Method, explained
from iba_core.evaluation.scoring import ScoredModel

Numbers = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Case:
    """A batch that a method has explained: what a metric is computed from.

    Attributes:
        model: the model and its score.
        method: what has given the maps.
        x: the inputs (B, ...), NumPy.
        classes: (B,), the explained classes.
        found: the maps, and bits where there are some.
        masks: (B, *places), where the objects are; None if that is not known.
        seed: seed of the metrics' random numbers.

    Example:
        >>> case = Case(ScoredModel(model), None, x, np.array([0, 1]), Found(np.ones((2, 8, 8))))
        >>> Metric.of("sparseness").compute(case)
        array([0., 0.])
    """

    model: ScoredModel
    method: Method
    x: npt.NDArray[Any]
    classes: npt.NDArray[np.int64]
    found: Found
    masks: npt.NDArray[np.bool_] | None = None
    seed: int = 0
    _pairs: dict[Any, Numbers] = field(default_factory=dict)

    @property
    def arguments(self) -> tuple[ScoredModel, Any, Numbers, Any]:
        """Model, inputs, maps and classes, as most metrics take them."""
        return self.model, self.x, self.found.maps, self.classes

    def pairs(self, **options: Any) -> Numbers:
        """What `perturbation_pairs` gives, once for all metrics with the same options."""
        key = repr(sorted(options.items()))
        if key not in self._pairs:
            self._pairs[key] = faithfulness.perturbation_pairs(*self.arguments, seed=self.seed, **options)
        return self._pairs[key]

    def of_maps(self, x: Any, classes: Any) -> Numbers:
        """Maps of the method for other inputs."""
        return explained(self.method, x, classes, self.seed).maps


@dataclass(frozen=True)
class Metric:
    """One column of the table that `evaluate` gives.

    Attributes:
        name: heading of the column.
        compute: gives a number for each picture of a `Case`, (B,), or several, (B, ...); NaN where there is
            none.
        higher_is_better: the direction; None if there is none.
        reduce: makes one number of those of all pictures; their mean unless it says otherwise.
        needs_masks: whether the pictures' masks must be known.

    Example:
        >>> brightness = Metric("brightness", lambda case: case.found.maps.mean(axis=(1, 2)), None)
        >>> brightness.name
        'brightness'
    """

    name: str
    compute: Callable[..., npt.ArrayLike]
    higher_is_better: bool | None = True
    reduce: Reduce = mean_of
    needs_masks: bool = False

    @classmethod
    def of(cls, name: str, label: str | None = None, **options: Any) -> Metric:
        """A metric of this package by its name, with options of its own.

        Args:
            name: one of `METRICS`.
            label: heading of the column; the name if None.
            **options: of the function of that name, such as ``tile=14`` of `degradation`.

        Raises:
            InputError: there is no such metric.

        Example:
            >>> Metric.of("degradation", label="14 x 14", tile=14).higher_is_better
            True
        """
        require_choice("metrics", name, METRICS, "metric")
        known = METRICS[name]
        compute = partial(known.compute, **options) if options else known.compute
        return replace(known, name=label or name, compute=compute)


def _infidelity(case: Case, normalize: bool = True, **options: Any) -> Numbers:
    pairs = case.pairs(**options)
    flat = pairs.reshape(len(pairs), -1, 2)
    return np.asarray(infidelity_of(flat[..., 0], flat[..., 1], normalize))


def _optional(values: Numbers | None, case: Case) -> Numbers:
    return np.full(len(case.classes), np.nan) if values is None else values


def _masked(case: Case) -> npt.NDArray[np.bool_]:
    if case.masks is None:
        raise InputError("a metric needs masks; give batches (inputs, targets, masks)")
    return case.masks


_ALL = (
    Metric("insertion", lambda case, **o: faithfulness.insertion(*case.arguments, seed=case.seed, **o)),
    Metric("deletion", lambda case, **o: faithfulness.deletion(*case.arguments, seed=case.seed, **o), False),
    Metric("degradation", lambda case, **o: faithfulness.degradation(*case.arguments, seed=case.seed, **o)),
    Metric("sensitivity_n", lambda case, **o: faithfulness.correlation_within(case.pairs(**o))),
    Metric("sensitivity_n_pooled", lambda case, **o: case.pairs(**o), reduce=faithfulness.pooled_correlation),
    Metric("road", lambda case, **o: faithfulness.road(*case.arguments, seed=case.seed, **o), False),
    Metric("infidelity", _infidelity, False),
    Metric(
        "max_sensitivity",
        lambda case, **o: robustness.max_sensitivity(
            case.model, case.method, case.x, case.classes, seed=case.seed, **o
        ),
        False,
    ),
    Metric(
        "pointing_game",
        lambda case, **o: localisation.pointing_game(case.found.maps, _masked(case), **o),
        needs_masks=True,
    ),
    Metric(
        "mass_in_box",
        lambda case, **o: localisation.mass_in_box(case.found.maps, _masked(case), **o),
        needs_masks=True,
    ),
    Metric(
        "grid_pointing_game",
        lambda case, **o: localisation.grid_pointing_game(
            case.model, case.of_maps, case.x, case.classes, seed=case.seed, **o
        ),
    ),
    Metric("sparseness", lambda case: similarity.sparseness(case.found.maps)),
    Metric(
        "seed_stability",
        lambda case, **o: robustness.seed_stability(case.model, case.method, case.x, case.classes, **o),
    ),
    Metric("survival", lambda case: _optional(case.found.survival, case)),
    Metric("bits", lambda case: _optional(case.found.bits, case), None),
)

METRICS: dict[str, Metric] = {metric.name: metric for metric in _ALL}
"""The metrics of this package by name. `evaluate` takes the names, and `Metric.of` gives them options."""

DEFAULT_METRICS = (
    "insertion",
    "deletion",
    "degradation",
    "sensitivity_n",
    "sensitivity_n_pooled",
    "infidelity",
    "sparseness",
    "survival",
)
"""What `evaluate` computes if it is not told."""
