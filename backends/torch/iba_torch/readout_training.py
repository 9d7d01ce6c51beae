"""What the training of a readout network goes through: the optimiser's steps, and the best weights so far."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import nn

from iba_core.adam import AdamState, adam_step, bias_corrections


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


class Training:
    """The state of a training: the optimiser's, and what early stopping needs to know.

    Args:
        parameters: what is trained, in place.

    Attributes:
        best: the parameters' values after the best epoch on the validation data; None without such data.
        best_value: the objective there.
        stalled: epochs since.
        steps: steps of the optimiser so far.
        reports: one for each epoch so far.
    """

    def __init__(self, parameters: list[nn.Parameter]) -> None:
        self.parameters = parameters
        self.first = [torch.zeros_like(parameter) for parameter in parameters]
        self.second = [torch.zeros_like(parameter) for parameter in parameters]
        self.best: list[torch.Tensor] | None = None
        self.best_value = float("inf")
        self.stalled = 0
        self.steps = 0
        self.reports: list[EpochReport] = []

    def step(self, objective: torch.Tensor, learning_rate: float) -> None:
        """One step of Adam, without a `.grad` left behind."""
        gradients = torch.autograd.grad(objective, self.parameters)
        self.steps += 1
        correction = bias_corrections(self.steps)[-1].tolist()
        with torch.no_grad():
            for index, gradient in enumerate(gradients):
                before = AdamState(self.parameters[index], self.first[index], self.second[index])
                after = adam_step(before, gradient, correction, learning_rate)
                self.parameters[index].copy_(after.parameter)
                self.first[index], self.second[index] = after.first, after.second

    def compare(self, value: float) -> None:
        """Keep the weights if they are the best so far on the validation data."""
        self.stalled += 1
        if value < self.best_value:
            self.best_value, self.stalled = value, 0
            self.best = [parameter.detach().clone() for parameter in self.parameters]

    def tensors(self) -> dict[str, torch.Tensor]:
        """Everything that is a tensor, by name."""
        groups = {"first": self.first, "second": self.second, "best": self.best or []}
        return {
            f"{group}.{index}": tensor
            for group, items in groups.items()
            for index, tensor in enumerate(items)
        }

    def numbers(self) -> dict[str, Any]:
        """Everything else, as JSON can hold it."""
        return {
            "best_value": None if self.best is None else self.best_value,
            "stalled": self.stalled,
            "steps": self.steps,
            "reports": [asdict(report) for report in self.reports],
        }

    def load(self, tensors: dict[str, torch.Tensor], numbers: dict[str, Any]) -> None:
        """Take over what `tensors` and `numbers` gave."""
        for group in ("first", "second"):
            kept = [tensors[f"{group}.{index}"] for index in range(len(self.parameters))]
            copy_into(getattr(self, group), kept)
        if numbers["best_value"] is not None:
            self.best = [torch.empty_like(parameter) for parameter in self.parameters]
            copy_into(self.best, [tensors[f"best.{index}"] for index in range(len(self.parameters))])
            self.best_value = numbers["best_value"]
        self.stalled, self.steps = numbers["stalled"], numbers["steps"]
        self.reports = [EpochReport(**report) for report in numbers["reports"]]


def copy_into(targets: Sequence[torch.Tensor], sources: Sequence[torch.Tensor]) -> None:
    """Overwrite tensors in place, outside of any graph."""
    with torch.no_grad():
        for target, source in zip(targets, sources, strict=True):
            target.copy_(source)
