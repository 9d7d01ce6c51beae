"""The metric that runs over many batches, with the published names of its arguments."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor

from iba_core.concepts.metrics import smooth_ratio
from iba_torch import concepts
from iba_torch.compat.hybrid_learning.concepts.train_eval.kpis.batch_kpis import broadcast

__all__ = ["SetIoU"]


class SetIoU(concepts.SetIoU):
    """`iba_torch.concepts.SetIoU` that adds every batch that it is called with to the set.

    `outputs` and `labels` may have any number of axes. Axes of size 1 are broadcast. Outputs (B, 1, H, W) go
    with labels (B, H, W), image by image.

    Example:
        >>> metric = SetIoU()
        >>> for mask in ([1, 0], [1, 1]):
        ...     _ = metric(outputs=torch.tensor([0.9, 0.8]), labels=torch.tensor(mask))
        >>> metric.value_and_reset().round(decimals=4), metric.value()
        (tensor(0.7500), tensor(1.))
    """

    def forward(self, outputs: Tensor, labels: Tensor) -> Tensor:
        """Add a batch to the set, and return the set IoU of this batch alone."""
        self.update(outputs, labels)
        return cast(Tensor, super().forward(*_paired(outputs, labels)))

    def update(self, outputs: Tensor, labels: Tensor) -> None:
        """Add a batch to the set."""
        super().update(*_paired(outputs, labels))

    def value(self) -> Tensor:
        """Compute the set IoU of all batches since the last `reset`; 1 without any."""
        return torch.tensor(1.0) if self._totals is None else super().value()

    def value_and_reset(self) -> Tensor:
        """Compute the set IoU of all batches, and forget them."""
        value = self.value()
        self.reset()
        return value

    def smooth_division(self, dividend: Tensor, divisor: Tensor) -> Tensor:
        """Divide after `smooth` has been added to both."""
        return cast(Tensor, smooth_ratio(dividend, divisor, self.smooth))


def _paired(outputs: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    if outputs.ndim == labels.ndim + 1 and outputs.shape[1:2] == (1,):
        labels = labels.unsqueeze(1)
    outputs, labels = broadcast(outputs.detach(), labels.detach())
    return (outputs, labels) if outputs.ndim else (outputs[None], labels[None])
