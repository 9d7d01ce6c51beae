"""Losses and metrics of one batch, with the published names of their arguments."""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import torch
from torch import Tensor, nn

from iba_core.concepts import masks
from iba_core.concepts.masks import BatchReduction, Reduction
from iba_core.concepts.metrics import smooth_ratio
from iba_torch import concepts
from iba_torch.concepts import Net2VecLoss, TverskyLoss, WeightedLossSum

__all__ = [
    "AbstractIoULike",
    "BalancedBCELoss",
    "BalancedPenaltyReducedFocalLoss",
    "BatchReduction",
    "IoU",
    "Net2VecLoss",
    "TverskyLoss",
    "WeightedLossSum",
]


def broadcast(outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Repeat axes of size 1, so that both have one shape.

    Example:
        >>> [tuple(mask.shape) for mask in broadcast(torch.ones(3, 1), torch.ones(1, 2))]
        [(3, 2), (3, 2)]
    """
    outputs, targets = torch.broadcast_tensors(outputs, targets)  # type: ignore[no-untyped-call]  # of PyTorch
    return outputs, targets


class AbstractIoULike(nn.Module):
    """What the losses and metrics of areas have in common.

    Example:
        >>> AbstractIoULike.get_area_axes(torch.ones(3, 2, 4)), AbstractIoULike.binarize(torch.ones(1), 0.5)
        ((2, 1), tensor([True]))
    """

    @staticmethod
    def get_area_axes(outputs: Tensor) -> tuple[int, ...]:
        """Find the axes of one mask: the last two, or the only one."""
        axes = masks.mask_axes(outputs.ndim, "channels_first")
        return tuple(outputs.ndim + axis for axis in reversed(axes))

    @staticmethod
    def binarize(tensor: Tensor, thresh: float) -> Tensor:
        """Return whether entries are above the threshold."""
        return cast(Tensor, masks.binarize(tensor, thresh).bool())


class BalancedBCELoss(concepts.BalancedBCELoss):
    """`iba_torch.concepts.BalancedBCELoss` with the published weights of soft masks, ``soft_weights=False``.

    Args:
        factor_pos_class: weight b of the foreground; None for the share of the background in the batch.
        reduction: ``"mean"``, ``"sum"`` or ``"none"``.
        from_logit: whether the inputs are logits.

    Raises:
        InputError: an argument is wrong.

    Example:
        >>> loss = BalancedBCELoss(factor_pos_class=0.5)
        >>> loss(inputs=torch.tensor([0.5]), targets=torch.tensor([0.5])).round(decimals=4)  # log(2) / 2
        tensor(0.3466)
    """

    def __init__(
        self,
        factor_pos_class: float | None = None,
        reduction: Reduction | str = "mean",
        from_logit: bool = False,
    ) -> None:
        super().__init__(factor_pos_class, reduction, from_logit, soft_weights=False)

    def forward(self, inputs: Tensor, targets: Tensor) -> Tensor:
        """Compute the loss of a batch, in nats."""
        return cast(Tensor, super().forward(inputs, targets))


class BalancedPenaltyReducedFocalLoss(concepts.BalancedPenaltyReducedFocalLoss):
    """`iba_torch.concepts.BalancedPenaltyReducedFocalLoss` of `inputs` and `targets`, which are broadcast.

    Example:
        >>> loss = BalancedPenaltyReducedFocalLoss(alpha=0, beta=0)
        >>> loss(inputs=torch.tensor(0.5), targets=torch.tensor(1.0)).round(decimals=4)  # log(2) / 2
        tensor(0.3466)
    """

    def forward(self, inputs: Tensor, targets: Tensor) -> Tensor:
        """Compute the loss of a batch."""
        return cast(Tensor, super().forward(*broadcast(inputs, targets)))


class IoU(concepts.IoU, AbstractIoULike):
    """`iba_torch.concepts.IoU` of `outputs` and `labels`, which are broadcast if they have as many axes.

    Example:
        >>> IoU()(outputs=torch.tensor([[0.9, 0.8]]), labels=torch.tensor([[1, 0]])).round(decimals=4)
        tensor(0.5000)
    """

    reduction: Callable[[Tensor], Tensor]

    def forward(self, outputs: Tensor, labels: Tensor) -> Tensor:
        """Compute the reduced IoU of a batch."""
        if outputs.ndim == labels.ndim:
            outputs, labels = broadcast(outputs, labels)
        return cast(Tensor, super().forward(outputs, labels))

    def smooth_division(self, dividend: Tensor, divisor: Tensor) -> Tensor:
        """Divide after `smooth` has been added to both."""
        return cast(Tensor, smooth_ratio(dividend, divisor, self.smooth))
