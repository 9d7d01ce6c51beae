"""Training of a readout network, once for all frameworks: it drives an adapter.

Per batch the model runs twice: a nested pass, without a graph, for the features that the network reads, and
a pass whose flow is restricted by the mask that it gives. The gradient of

    model loss + beta * mean(capacity)                                              (paper, section 3.3)

moves the network's weights by one step of Adam. Nothing is read back from the device before the end of an
epoch.

From a mask that lets almost everything pass, the first gradients of the information are by far the largest
ones. Adam remembers them long enough to carry the weights past the goal, to masks that let nothing pass and
have next to no gradient. Three things keep it from that: beta rises from almost nothing over the first steps,
so that the loss has its say while the mask closes; gradients are clipped by their norm; and the level of the
mask, the last bias, has a higher learning rate, and those first steps for itself at one that is higher still,
so that it need not be moved by all the other weights together. A mask that starts half open needs no steps
for its level, but beta may have to rise for longer: a network that has not learnt yet what matters can lower
the information only everywhere, and at a high beta it would give up the loss before it has.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from functools import partial
from math import prod
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from iba_core.bottleneck.adam import AdamState, adam_step, bias_corrections
from iba_core.bottleneck.noise import seeded_normal
from iba_core.bottleneck.settings import BottleneckSettings
from iba_core.errors import InputError, OptimizationError, StateError, is_whole_number
from iba_core.framework.adapter import Inputs, ModelAdapter
from iba_core.framework.inputs import batch_size
from iba_core.framework.namespace import Array, array_namespace
from iba_core.readout.formulas import Readout, ReadoutConstants
from iba_core.readout.state import ReadoutState
from iba_core.state import read_state, write_state
from iba_core.utils import get_tqdm

KIND = "readout training"
"""Kind of the checkpoints."""

LEARNING_RATE = 3e-4
BETA = 1.0
WARM_UP = 100

_LEVEL_FACTORS = 300.0, 10.0
_LEVEL_RATE = 0.1
_LEAST_BETA = 0.03
_CLIP = 1.0
_VALIDATION_SEED = 2**63
_MOMENTS = ("first", "second")

Loss = Callable[..., Array]
"""``loss(output, *rest)`` of the model's output and what follows the inputs in a batch: losses (B,), or their
mean as a scalar."""


@dataclass(frozen=True)
class EpochReport:
    """What an epoch of training has come to, as means over its images.

    Attributes:
        epoch: its number, from 0.
        objective: loss plus beta times information, on the training data.
        loss: the loss alone.
        information: mean capacity of a feature, in nats.
        validation: the objective on the validation data after the epoch; None without such data.
    """

    epoch: int
    objective: float
    loss: float
    information: float
    validation: float | None = None


class NestedPass(NamedTuple):
    """What an unrestricted pass of the model has shown, as tensors without a graph."""

    features: Array
    """Feature maps (B, *feature map) at the bottleneck."""
    reads: tuple[Array, ...]
    """Those of the layers read, likewise."""
    carry: tuple[Array, ...] = ()
    """What reaches the tail around the bottleneck, see `Head.carry`."""


class ReadoutModel(ABC):
    """A model with a readout bottleneck in it, as the training sees it.

    Attributes:
        adapter: of the model.
        readout: the formulas.
    """

    adapter: ModelAdapter
    readout: Readout

    @abstractmethod
    def to_batch(self, batch: Any) -> tuple[Inputs, tuple[Any, ...]]:
        """The inputs of a batch as data sets yield it, and what follows them, as tensors."""

    @abstractmethod
    def open(self, inputs: Inputs) -> AbstractContextManager[NestedPass]:
        """Run the model on `inputs`, unrestricted, and make `tail` ready for them; see `Split.open`."""

    @abstractmethod
    def tail(self, z: Array, carry: tuple[Array, ...]) -> Any:
        """Output of the model for restricted features `z`, differentiable in `z`; see `Split.tail`."""

    @abstractmethod
    def tensor(self, array: npt.ArrayLike) -> Array:
        """`array` in the precision of the bottleneck, float32 or float64, and on its device."""

    @abstractmethod
    def constants(self) -> ReadoutConstants:
        """What is known before any image, as such tensors."""

    @abstractmethod
    def state(self) -> ReadoutState:
        """Everything that the readout has learnt and estimated."""

    @abstractmethod
    def load(self, state: ReadoutState) -> None:
        """Take over what `state` gave."""

    @abstractmethod
    def set_weights(self, weights: Sequence[npt.NDArray[np.floating]]) -> None:
        """Replace the weights of the network, by arrays on the host."""

    def seeded(self, seed: Sequence[int]) -> AbstractContextManager[None]:
        """Context in which the order of a shuffling loader is a function of the seed, where that can be."""
        return nullcontext()


@dataclass(frozen=True)
class TrainingSettings:
    """How to train.

    Attributes:
        epochs: how often to go through the data, those before an interruption included.
        learning_rate: of Adam.
        beta: weight of the mean information, in nats per feature.
        patience: stop after so many epochs without improvement on the validation data.
        seed: makes the noise a function of it and of the number of the step; None for the framework's own.
        warm_up: number of first steps in which nothing but the level of the mask is trained.
        beta_steps: number of first steps over which beta rises from 3 % of its value; those of the warm-up
            if None.

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

    def __post_init__(self) -> None:
        for name, least in (("epochs", 0), ("patience", 1), ("warm_up", 0), ("beta_steps", 0)):
            value = getattr(self, name)
            if name == "beta_steps" and value is None:
                continue
            if not is_whole_number(value, least):
                raise InputError(f"{name}={value!r} must be a whole number, {least} or more")
        if self.seed is not None and not is_whole_number(self.seed, 0, _VALIDATION_SEED - 1):
            raise InputError(f"seed={self.seed!r} must be a whole number from 0 to 2**63 - 1, or None")
        BottleneckSettings(beta=self.beta, learning_rate=self.learning_rate)

    def beta_at(self, step: int) -> float:
        """Beta of a step: it rises in equal ratios over the first ones."""
        steps = self.warm_up if self.beta_steps is None else self.beta_steps
        return float(self.beta * _LEAST_BETA ** max(0.0, 1.0 - step / steps)) if steps else self.beta


class _Batch(NamedTuple):
    """One batch of the data, as tensors."""

    nested: NestedPass
    noise: Array
    rest: tuple[Any, ...]


class _Terms(NamedTuple):
    """The two terms of the objective, scalars."""

    loss: Array
    information: Array


class ReadoutTrainer:
    """Trains the readout network of one model.

    Args:
        model: the model with its readout.
        loss: of the model's outputs.
        settings: how to train.
        checkpoint: a safetensors file, written after each epoch. If it exists, the training goes on from it.
        progbar: show the progress.

    Attributes:
        reports: one for each epoch so far, those before an interruption included.

    Raises:
        InputError: the checkpoint cannot be written.
        StateError: the checkpoint is truncated, of another kind or of another readout.
    """

    def __init__(
        self,
        model: ReadoutModel,
        loss: Loss,
        settings: TrainingSettings,
        checkpoint: str | PathLike[str] | None = None,
        progbar: bool = False,
    ) -> None:
        if checkpoint is not None and not Path(checkpoint).parent.is_dir():
            raise InputError(f"checkpoint={str(checkpoint)!r} cannot be written: its folder does not exist")
        self.reports: list[EpochReport] = []
        self._model, self._loss, self._settings = model, loss, settings
        self._checkpoint, self._progbar = checkpoint, progbar
        self._best: Array | None = None
        self._best_value = float("inf")
        self._stalled = 0
        self._steps = 0
        if checkpoint is not None and Path(checkpoint).exists():
            self._adam = self._resume(checkpoint)
        else:
            self._adam = self._start()
        rates = zip((0.0, settings.learning_rate), _LEVEL_FACTORS, strict=True)
        self._rates = [model.tensor(self._learning_rates(rate, factor)) for rate, factor in rates]
        self._constants = model.constants()
        self._compiled_step = model.adapter.compile(self._step)
        self._compiled_terms = model.adapter.compile(self._terms)

    def run(self, loader: Iterable[Any], validation: Iterable[Any] | None = None) -> None:
        """Train, and leave the result in the model.

        Args:
            loader: the data, to be gone through once an epoch.
            validation: data like those. The objective on them, always under the same noise, decides which
                epoch's weights are kept at the end, and when to stop.

        Raises:
            InputError: the data are empty or can be gone through only once, or the loss is no scalar.
            OptimizationError: the objective turned NaN or infinite. The network is then as it was after the
                last whole epoch.
        """
        for name, data in (("loader", loader), ("validation", validation)):
            if isinstance(data, Iterator):
                raise InputError(f"{name} can be gone through only once; give a list or a data loader")
        settings = self._settings
        for epoch in range(len(self.reports), settings.epochs):
            if self._stalled >= settings.patience:
                break
            bar = get_tqdm()(loader, desc=f"Epoch {epoch + 1}/{settings.epochs}", disable=not self._progbar)
            with nullcontext() if settings.seed is None else self._model.seeded([settings.seed, epoch]):
                loss, information = self._train(bar)
            self._publish(self._adam.parameter)
            held_out = None
            if validation is not None:
                held_out = self._objective_of(*self._validate(validation))
                self._compare(held_out)
            objective = self._objective_of(loss, information)
            self.reports.append(EpochReport(epoch, objective, loss, information, held_out))
            if self._checkpoint is not None:
                self._save(self._checkpoint)
        if self._best is not None:
            self._publish(self._best)

    # -- epochs ---------------------------------------------------------------------------------------

    def _train(self, data: Iterable[Any]) -> tuple[float, float]:
        """Go through the data once; mean loss and information of its images."""
        terms, sizes, adam, settings = [], [], self._adam, self._settings
        for number, batch in enumerate(data):
            step = self._steps + number
            inputs, rest = self._model.to_batch(batch)
            with self._model.open(inputs) as nested:
                adam, found = self._compiled_step(
                    adam,
                    self._model.tensor(bias_corrections(step + 1)[-1]),
                    self._model.tensor(settings.beta_at(step)),
                    _Batch(nested, self._noise(nested, settings.seed, step), rest),
                    self._rates[step >= settings.warm_up],
                    self._constants,
                )
            terms.append(found)
            sizes.append(batch_size(inputs))
        means = self._means(terms, sizes)
        self._adam, self._steps = adam, self._steps + len(sizes)
        return means

    def _validate(self, data: Iterable[Any]) -> tuple[float, float]:
        """Mean loss and information of the validation data."""
        terms, sizes = [], []
        for number, batch in enumerate(data):
            inputs, rest = self._model.to_batch(batch)
            with self._model.open(inputs) as nested:
                noise = self._noise(nested, _VALIDATION_SEED, number)
                _, found = self._compiled_terms(
                    self._adam.parameter, _Batch(nested, noise, rest), self._constants
                )
            terms.append(found)
            sizes.append(batch_size(inputs))
        return self._means(terms, sizes)

    def _means(self, terms: Sequence[_Terms], sizes: Sequence[int]) -> tuple[float, float]:
        if not terms:
            raise InputError("the data hold no images")
        xp, numpy = array_namespace(terms[0].loss), self._model.adapter.to_numpy
        # One transfer for the whole epoch.
        table = numpy(xp.stack([xp.stack(list(pair)) for pair in terms])).astype(np.float64)
        bad = np.argwhere(~np.isfinite(table))
        if len(bad):
            step, term = bad[0]
            raise OptimizationError(
                f"the {('loss', 'information')[term]} became {table[step, term]} in epoch "
                f"{len(self.reports) + 1} at step {step + 1} of {len(table)}; likely lr is too high or the "
                "loss overflows"
            )
        loss, information = np.average(table, axis=0, weights=sizes)
        return float(loss), float(information)

    def _objective_of(self, loss: float, information: float) -> float:
        return loss + self._settings.beta * information

    def _compare(self, value: float) -> None:
        self._stalled += 1
        if value < self._best_value:
            self._best, self._best_value, self._stalled = self._adam.parameter, value, 0

    def _noise(self, nested: NestedPass, seed: int | None, step: int) -> Array:
        shape = tuple(int(size) for size in nested.features.shape)
        if seed is None:
            return self._model.adapter.standard_normal(shape, like=self._adam.parameter)
        place = self._model.readout.place
        return self._model.tensor(seeded_normal(seed, step, shape[0], place.shape, place.layout))

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
        _, terms, gradient = self._model.adapter.value_and_grad(objective, adam.parameter)
        xp = array_namespace(gradient)
        norm = xp.sqrt(xp.sum(xp.square(gradient)))
        clipped = gradient / xp.maximum(norm / _CLIP, xp.ones_like(norm))
        return adam_step(adam, clipped, correction, rates), terms

    def _terms(
        self, flat: Array, batch: _Batch, constants: ReadoutConstants, beta: Array | float = 0.0
    ) -> tuple[Array, _Terms]:
        """The objective and its terms, from the weights in one row."""
        xp, readout = array_namespace(flat), self._model.readout
        nested = batch.nested
        features, *reads = (xp.astype(each, flat.dtype) for each in (nested.features, *nested.reads))
        alpha = readout.alpha(self._split(flat), reads, constants)
        restricted = readout.restrict(alpha, features, batch.noise, constants)
        loss = self._loss(self._model.tail(restricted.z, nested.carry), *batch.rest)
        images, shape = int(features.shape[0]), getattr(loss, "shape", None)
        if shape is None or (prod(shape) != 1 and tuple(shape) != (images,)):
            found = type(loss).__name__ if shape is None else f"a tensor of shape {tuple(shape)}"
            raise InputError(
                f"loss returned {found} for {images} images; it must be a scalar, the mean over them, "
                "or a loss for each"
            )
        terms = _Terms(xp.mean(xp.astype(loss, flat.dtype)), xp.mean(restricted.capacity))
        return terms.loss + beta * terms.information, terms

    # -- weights --------------------------------------------------------------------------------------

    def _split(self, flat: Array) -> list[Array]:
        ends = np.cumsum([prod(shape) for shape in self._model.readout.weight_shapes])
        xp = array_namespace(flat)
        return [
            xp.reshape(flat[int(end) - prod(shape) : int(end)], shape)
            for end, shape in zip(ends, self._model.readout.weight_shapes, strict=True)
        ]

    def _learning_rates(self, rate: float, factor: float) -> npt.NDArray[np.float64]:
        """The rate of each weight, `rate` for all but the level, which has a multiple of the full one."""
        full = self._settings.learning_rate
        rates = [np.full(prod(shape), rate) for shape in self._model.readout.weight_shapes]
        rates[-1][:] = max(full, min(factor * full, _LEVEL_RATE))
        return np.concatenate(rates)

    def _publish(self, flat: Array) -> None:
        self._model.set_weights(self._split(self._model.adapter.to_numpy(flat)))

    def _start(self) -> AdamState:
        flat = self._model.tensor(np.concatenate([weight.ravel() for weight in self._model.state().weights]))
        zeros = array_namespace(flat).zeros_like(flat)
        return AdamState(flat, zeros, zeros)

    # -- checkpoints ----------------------------------------------------------------------------------

    def _save(self, path: str | PathLike[str]) -> None:
        numpy = self._model.adapter.to_numpy
        state = self._model.state()
        arrays = {f"training.{name}": numpy(getattr(self._adam, name)) for name in _MOMENTS}
        if self._best is not None:
            arrays["training.best"] = numpy(self._best)
        progress = {
            "best_value": None if self._best is None else self._best_value,
            "stalled": self._stalled,
            "steps": self._steps,
            "reports": [asdict(report) for report in self.reports],
        }
        write_state(path, state.arrays() | arrays, KIND, {"readout": state.facts, "training": progress})

    def _resume(self, path: str | PathLike[str]) -> AdamState:
        arrays, metadata = read_state(path, KIND)
        try:
            self._model.load(ReadoutState.of(arrays, metadata["readout"]))
            progress = metadata["training"]
            tensors = {
                name: self._model.tensor(arrays[f"training.{name}"])
                for name in (*_MOMENTS, *(["best"] if progress["best_value"] is not None else []))
            }
            self._best = tensors.pop("best", None)
            self._best_value = float("inf") if self._best is None else progress["best_value"]
            self._stalled, self._steps = progress["stalled"], progress["steps"]
            self.reports = [EpochReport(**report) for report in progress["reports"]]
        except (KeyError, TypeError) as error:
            raise StateError(f"path={str(path)!r} is no checkpoint of a readout network ({error})") from error
        return self._start()._replace(**tensors)
