"""Training of a readout network, once for all frameworks.

For each batch the model runs twice: an unrestricted pass, without a graph, for the features that the network
reads, and a pass with the flow restricted by the mask that the network computes. The gradient of

    model loss + beta * mean(capacity)                                              (paper, section 3.3)

moves the network's weights by one step of Adam. The host waits for no value before the end of an epoch.

A teacher, which explains single images, adds its weight times the distance of the masks from its own. With a
teacher and no loss, the distance is all of the objective, and the tail of the model does not run.

If the mask starts almost open, the first gradients of the information are by far the largest ones. Adam
remembers them long enough to carry the weights past the goal, to masks that let nothing pass and have almost
no gradient. Three measures prevent this. Beta rises from almost nothing over the first steps, so that the
loss counts while the mask closes. Gradients are clipped by their norm. And the level of the mask, the last
bias, has a higher learning rate; in the first steps it is the only weight that is trained, at a rate that is
higher still, so that the other weights need not move it together. A mask that starts half open needs no steps
for its level, but beta may have to rise for longer: a network that does not know yet which features matter
can lower the information only everywhere, and at a high beta it would give up the loss before it has learnt
them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, replace
from functools import partial
from math import prod
from os import PathLike
from typing import Any, NamedTuple, Self

import numpy as np
import numpy.typing as npt

from iba_core.arguments import (
    LARGEST_COUNT,
    LARGEST_NUMBER,
    is_whole_number,
    require_number,
    require_seed,
    require_whole,
)
from iba_core.bottleneck.adam import AdamState, adam_step, bias_corrections
from iba_core.bottleneck.noise import seeded_normal
from iba_core.bottleneck.settings import plain_settings
from iba_core.errors import InputError, OptimizationError, StateError
from iba_core.framework.inputs import batch_size
from iba_core.framework.namespace import Array, array_namespace
from iba_core.readout.evidence import AnswerReader
from iba_core.readout.formulas import Readout, ReadoutConstants
from iba_core.readout.model import NestedPass, ReadoutModel
from iba_core.readout.state import ReadoutState
from iba_core.readout.teacher import TeacherMasks
from iba_core.state import interpreting, read_state, write_state
from iba_core.utils import get_tqdm

KIND = "readout training"
"""Kind of the checkpoints."""

LEARNING_RATE = 3e-4
BETA = 1.0
WARM_UP = 100

_LEVEL_FACTORS = 300.0, 10.0
LEVEL_RATE = 0.1
_LEAST_BETA = 0.03
CLIP = 1.0
_VALIDATION_SEED = 2**63
_MOMENTS = ("first", "second")

Loss = Callable[..., Array]
"""``loss(output, *rest)`` of the model's output and what comes with the inputs in a batch: losses (B,), or
their mean as a scalar."""


@dataclass(frozen=True)
class EpochReport:
    """Results of one epoch of training, as means over its images.

    Attributes:
        epoch: number of the epoch, from 0.
        objective: loss plus beta times information, on the training data.
        loss: the loss alone.
        information: mean capacity of a feature, in nats.
        validation: the objective on the validation data after the epoch; None without such data.
        distance: mean distance of the masks from the teacher's, in nats per feature; None without a teacher.

    Example:
        >>> EpochReport(epoch=0, objective=1.5, loss=1.0, information=0.5).validation is None
        True
    """

    epoch: int
    objective: float
    loss: float
    information: float
    validation: float | None = None
    distance: float | None = None


@dataclass(frozen=True)
class TrainingSettings:
    """Hyperparameters of a training.

    Attributes:
        epochs: how often to go through the data, epochs before an interruption included.
        learning_rate: of Adam.
        beta: weight of the mean information, in nats per feature.
        patience: stop after so many epochs without improvement on the validation data.
        seed: makes the noise depend on the seed and the number of the step alone; None for the framework's
            own random numbers.
        warm_up: number of first steps in which only the level of the mask is trained.
        beta_steps: number of first steps over which beta rises from 3 % of its value; those of the warm-up
            if None.
        teacher_weight: weight of the distance from the teacher's masks.

    Raises:
        InputError: a value is out of its range.
    """

    epochs: int = 10
    learning_rate: float = LEARNING_RATE
    beta: float = BETA
    patience: int = 3
    seed: int | None = None
    warm_up: int = WARM_UP
    beta_steps: int | None = None
    teacher_weight: float = 1.0

    def __post_init__(self) -> None:
        require_whole("epochs", self.epochs, 0, LARGEST_COUNT)
        require_whole("patience", self.patience, 1)
        require_whole("warm_up", self.warm_up)
        if self.beta_steps is not None:
            require_whole("beta_steps", self.beta_steps)
        require_number("teacher_weight", self.teacher_weight, 0, LARGEST_NUMBER)
        require_seed("seed", self.seed, _VALIDATION_SEED - 1)
        # Under the names of `ReadoutBottleneck.fit`, the only caller.
        plain_settings({"beta": self.beta, "learning_rate": self.learning_rate}, {"learning_rate": "lr"})

    def beta_at(self, step: int) -> float:
        """Beta at a step: it rises in equal ratios over the first ones."""
        steps = self.warm_up if self.beta_steps is None else self.beta_steps
        return float(self.beta * _LEAST_BETA ** max(0.0, 1.0 - step / steps)) if steps else self.beta


@dataclass(frozen=True)
class Progress:
    """A training after a whole number of epochs.

    Attributes:
        adam: the network's weights in one row, and the optimiser's moments.
        best: the weights with the lowest objective on the validation data; None without such data.
        best_value: that objective.
        stalled: epochs since then.
        steps: optimiser steps so far.
        reports: one for each epoch.
    """

    adam: AdamState
    best: Array | None = None
    best_value: float = float("inf")
    stalled: int = 0
    steps: int = 0
    reports: tuple[EpochReport, ...] = ()

    @classmethod
    def of(cls, weights: Sequence[npt.NDArray[np.floating]]) -> Self:
        """A training of these weights that has not begun; arrays on the host."""
        flat = np.concatenate([weight.ravel() for weight in weights])
        return cls(AdamState(flat, np.zeros_like(flat), np.zeros_like(flat)))

    def validated(self, value: float) -> Self:
        """The same with the objective on the validation data taken into account."""
        if value < self.best_value:
            return replace(self, best=self.adam.parameter, best_value=value, stalled=0)
        return replace(self, stalled=self.stalled + 1)


class _Batch(NamedTuple):
    """One batch of the data, as tensors."""

    nested: NestedPass
    noise: Array
    rest: tuple[Any, ...]
    wanted: tuple[Array, ...]
    """The teacher's masks, if there is one."""
    evidence: Array | None
    """See `Readout.evidence`."""


class _Means(NamedTuple):
    """Means of the terms over the images of some data."""

    loss: float
    information: float
    distance: float


class _Terms(NamedTuple):
    """The terms of the objective, scalars."""

    loss: Array
    information: Array
    distance: Array


class ReadoutTrainer:
    """Trains the network of a readout. It changes nothing: progress is given back epoch by epoch.

    Args:
        model: the model.
        readout: the formulas.
        constants: what they need to know before any image is seen.
        loss: of the model's outputs; None to learn from a teacher alone.
        settings: hyperparameters.
        progbar: show the progress.
        teacher: masks to learn from; None for none.
    """

    def __init__(
        self,
        model: ReadoutModel,
        readout: Readout,
        constants: ReadoutConstants,
        loss: Loss | None,
        settings: TrainingSettings,
        progbar: bool = False,
        teacher: TeacherMasks | None = None,
    ) -> None:
        self._model, self._framework, self._readout = model, model.framework, readout
        self._constants, self._loss, self._settings = constants, loss, settings
        self._progbar, self._teacher = progbar, teacher
        self._answers = AnswerReader(model.framework, readout.relu)
        rates = zip((0.0, settings.learning_rate), _LEVEL_FACTORS, strict=True)
        self._rates = [self._tensor(self._learning_rates(rate, factor)) for rate, factor in rates]
        self._compiled_step = self._framework.compile(self._step, jit_compile=model.jit_compile)
        self._compiled_terms = self._framework.compile(self._terms, jit_compile=model.jit_compile)

    def start(self, progress: Progress) -> Progress:
        """The same progress as tensors."""
        best = None if progress.best is None else self._tensor(progress.best)
        return replace(progress, adam=AdamState(*map(self._tensor, progress.adam)), best=best)

    def weights(self, flat: Array) -> list[npt.NDArray[np.floating]]:
        """Weights of the network, on the host, from the row in which they are trained."""
        return self._split(self._framework.to_numpy(flat))

    def epochs(
        self, progress: Progress, loader: Iterable[Any], validation: Iterable[Any] | None = None
    ) -> Iterator[Progress]:
        """Train, and give the progress after each epoch.

        Args:
            progress: what has been done so far.
            loader: the data; each epoch goes through them once.
            validation: further data. The objective on them, always under the same noise, decides when to stop
                and which weights are the best.

        Raises:
            InputError: the data are empty, or the loss is no scalar.
            OptimizationError: the objective became NaN or infinite.
        """
        settings = self._settings
        for epoch in range(len(progress.reports), settings.epochs):
            if progress.stalled >= settings.patience:
                return
            bar = get_tqdm()(loader, desc=f"Epoch {epoch + 1}/{settings.epochs}", disable=not self._progbar)
            seed = settings.seed
            order = (
                nullcontext() if seed is None else self._model.seeded([seed, epoch], progress.adam.parameter)
            )
            with order:
                progress, means = self._train(progress, bar)
            held_out = None
            if validation is not None:
                held_out = self._objective_of(self._validate(progress, validation))
                progress = progress.validated(held_out)
            report = EpochReport(
                epoch,
                self._objective_of(means),
                means.loss,
                means.information,
                held_out,
                None if self._teacher is None else means.distance,
            )
            progress = replace(progress, reports=(*progress.reports, report))
            yield progress

    # -- epochs ---------------------------------------------------------------------------------------

    def _train(self, progress: Progress, data: Iterable[Any]) -> tuple[Progress, _Means]:
        """Go through the data once."""
        terms, sizes, adam, settings = [], [], progress.adam, self._settings
        for step, batch in enumerate(data, progress.steps):
            with self._batch(batch, settings.seed, step) as tensors:
                adam, found = self._compiled_step(
                    adam,
                    self._tensor(bias_corrections(step + 1)[-1]),
                    self._tensor(settings.beta_at(step)),
                    tensors,
                    self._rates[step >= settings.warm_up],
                    self._constants,
                )
                sizes.append(int(tensors.nested.features.shape[0]))
            terms.append(found)
        means = self._means(terms, sizes, len(progress.reports) + 1)
        return replace(progress, adam=adam, steps=progress.steps + len(sizes)), means

    def _validate(self, progress: Progress, data: Iterable[Any]) -> _Means:
        terms, sizes = [], []
        for number, batch in enumerate(data):
            with self._batch(batch, _VALIDATION_SEED, number) as tensors:
                _, found = self._compiled_terms(progress.adam.parameter, tensors, self._constants)
                sizes.append(int(tensors.nested.features.shape[0]))
            terms.append(found)
        return self._means(terms, sizes, len(progress.reports) + 1)

    @contextmanager
    def _batch(self, batch: Any, seed: int | None, step: int) -> Iterator[_Batch]:
        inputs, rest = self._model.to_batch(batch)
        if not batch_size(inputs):
            raise InputError("a batch of the data is empty")
        with self._model.nested_pass(inputs) as nested:
            self._readout.check(nested.features, nested.readout_features, self._model.names)
            wanted = () if self._teacher is None else (self._tensor(self._teacher.of(inputs)),)
            evidence = self._readout.read_answer(self._answers, nested, self._constants)
            yield _Batch(nested, self._noise(nested, seed, step), rest, wanted, evidence)

    def _means(self, terms: Sequence[_Terms], sizes: Sequence[int], epoch: int) -> _Means:
        if not terms:
            raise InputError("the data hold no images")
        xp = array_namespace(terms[0].loss)
        # One transfer for the whole epoch.
        table = self._framework.to_numpy(xp.stack([xp.stack(list(each)) for each in terms])).astype(
            np.float64
        )
        bad = np.argwhere(~np.isfinite(table))
        if len(bad):
            step, term = bad[0]
            raise OptimizationError(
                f"the {_Terms._fields[term]} became {table[step, term]} in epoch {epoch} at step "
                f"{step + 1} of {len(table)}; likely lr is too high or the loss overflows"
            )
        return _Means(*map(float, np.average(table, axis=0, weights=sizes)))

    def _objective_of(self, terms: Any, beta: Any = None) -> Any:
        """The objective, of `_Terms` or of `_Means`; at the final beta if None."""
        distance = self._settings.teacher_weight * terms.distance
        if self._loss is None:
            return distance
        return terms.loss + (self._settings.beta if beta is None else beta) * terms.information + distance

    def _noise(self, nested: NestedPass, seed: int | None, step: int) -> Array:
        shape = tuple(int(size) for size in nested.features.shape)
        if seed is None:
            return self._framework.standard_normal(shape, like=self._constants.mean)
        bottleneck = self._readout.bottleneck
        return self._tensor(seeded_normal(seed, step, shape[0], bottleneck.shape, bottleneck.layout))

    # -- one step -------------------------------------------------------------------------------------

    def _step(
        self,
        adam: AdamState,
        correction: Array,
        beta: Array,
        batch: _Batch,
        rates: Array,
        constants: ReadoutConstants,
    ) -> tuple[AdamState, _Terms]:
        """One optimiser step. Pure: everything that changes comes in as an argument."""
        objective = partial(self._terms, batch=batch, constants=constants, beta=beta)
        _, terms, gradient = self._framework.value_and_grad(objective, adam.parameter)
        xp = array_namespace(gradient)
        norm = xp.sqrt(xp.sum(xp.square(gradient)))
        clipped = gradient / xp.maximum(norm / CLIP, xp.ones_like(norm))
        return adam_step(adam, clipped, correction, rates), terms

    def _terms(
        self, flat: Array, batch: _Batch, constants: ReadoutConstants, beta: Array | float = 0.0
    ) -> tuple[Array, _Terms]:
        """The objective and its terms, from the weights in one row."""
        xp, (nested, noise, rest, wanted, evidence) = array_namespace(flat), batch
        restricted = self._readout.restricted(
            self._split(flat),
            nested.features,
            nested.readout_features,
            noise,
            constants,
            evidence=evidence,
        )
        information = xp.mean(restricted.capacity)
        none = xp.zeros_like(information)
        distances = [self._readout.distance(restricted.alpha, masks, constants) for masks in wanted]
        loss = none if self._loss is None else self._mean_loss(nested, restricted.z, rest, flat)
        terms = _Terms(loss, information, distances[0] if distances else none)
        return self._objective_of(terms, beta), terms

    def _mean_loss(self, nested: NestedPass, z: Array, rest: tuple[Any, ...], like: Array) -> Array:
        assert self._loss is not None, "there is a loss"
        xp = array_namespace(like)
        loss = self._loss(nested.outputs(z), *rest)
        images, shape = int(nested.features.shape[0]), getattr(loss, "shape", None)
        if shape is None or (prod(shape) != 1 and tuple(shape) != (images,)):
            found = type(loss).__name__ if shape is None else f"a tensor of shape {tuple(shape)}"
            raise InputError(
                f"loss returned {found} for {images} images; it must be a scalar, the mean over them, "
                "or a loss for each"
            )
        return xp.mean(xp.astype(loss, like.dtype))

    # -- weights --------------------------------------------------------------------------------------

    def _tensor(self, array: npt.ArrayLike) -> Array:
        return self._framework.asarray(array, like=self._constants.mean)

    def _split(self, flat: Array) -> list[Array]:
        shapes = self._readout.weight_shapes
        ends = np.cumsum([prod(shape) for shape in shapes])
        xp = array_namespace(flat)
        return [
            xp.reshape(flat[int(end) - prod(shape) : int(end)], shape)
            for end, shape in zip(ends, shapes, strict=True)
        ]

    def _learning_rates(self, rate: float, factor: float) -> npt.NDArray[np.float64]:
        """The rate of each weight: `rate`, and for the level a multiple of the full one."""
        full = self._settings.learning_rate
        rates = [np.full(prod(shape), rate) for shape in self._readout.weight_shapes]
        rates[-1][:] = max(full, min(factor * full, LEVEL_RATE))
        return np.concatenate(rates)

    # -- checkpoints ----------------------------------------------------------------------------------

    def save(self, path: str | PathLike[str], progress: Progress, state: ReadoutState) -> None:
        """Write a checkpoint to a safetensors file, whole or not at all.

        Args:
            path: the file.
            progress: of the training.
            state: of the readout, with the weights of `progress`.
        """
        numpy = self._framework.to_numpy
        arrays = {f"training.{name}": numpy(getattr(progress.adam, name)) for name in _MOMENTS}
        if progress.best is not None:
            arrays["training.best"] = numpy(progress.best)
        facts = {
            "best_value": None if progress.best is None else progress.best_value,
            "stalled": progress.stalled,
            "steps": progress.steps,
            "reports": [asdict(report) for report in progress.reports],
        }
        write_state(path, state.arrays() | arrays, KIND, {"readout": state.facts, "training": facts})


def read_checkpoint(path: str | PathLike[str]) -> tuple[ReadoutState, Progress]:
    """Read what `ReadoutTrainer.save` wrote.

    Returns:
        The state of the readout, and the progress as arrays on the host.

    Raises:
        StateError: the file is missing, truncated, of another kind or incomplete.
    """
    arrays, metadata = read_state(path, KIND, required=[f"training.{name}" for name in _MOMENTS])
    with interpreting(path, "checkpoint of a readout network"):
        state, facts = ReadoutState.of(arrays, metadata["readout"]), metadata["training"]
        has_best = facts["best_value"] is not None
        start = Progress.of(state.weights)
        moments = {name: arrays[f"training.{name}"] for name in _MOMENTS}
        best = arrays["training.best"] if has_best else None
        for array in (*moments.values(), *([] if best is None else [best])):
            if array.shape != start.adam.parameter.shape or not np.isfinite(array).all():
                raise StateError(f"an array of shape {array.shape} is no state of the optimiser")
        if not all(is_whole_number(facts[name]) for name in ("stalled", "steps")):
            raise StateError("the numbers of steps and of epochs are no whole numbers")
        return state, Progress(
            adam=start.adam._replace(**moments),
            best=best,
            best_value=facts["best_value"] if has_best else float("inf"),
            stalled=facts["stalled"],
            steps=facts["steps"],
            reports=tuple(EpochReport(**report) for report in facts["reports"]),
        )
