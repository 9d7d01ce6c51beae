"""Losses and metrics, where version 1.0 had them; masks are binarised to integers there."""

from __future__ import annotations

from torch import Tensor

from iba_torch.compat.hybrid_learning.concepts.train_eval.kpis import (
    BalancedBCELoss,
    BalancedPenaltyReducedFocalLoss,
    BatchReduction,
    IoU,
    Net2VecLoss,
    SetIoU,
    TverskyLoss,
    WeightedLossSum,
    aggregating_kpis,
    batch_kpis,
)

__all__ = [
    "AbstractIoULike",
    "BalancedBCELoss",
    "BalancedPenaltyReducedFocalLoss",
    "BatchReduction",
    "IoU",
    "Net2VecLoss",
    "SetIoU",
    "TverskyLoss",
    "WeightedLossSum",
    "aggregating_kpis",
    "batch_kpis",
]


class AbstractIoULike(batch_kpis.AbstractIoULike):
    """What the losses and metrics of areas have in common.

    Example:
        >>> import torch
        >>> AbstractIoULike.binarize(torch.ones(1), 0.5)
        tensor([1], dtype=torch.int32)
    """

    @staticmethod
    def binarize(tensor: Tensor, thresh: float) -> Tensor:
        """Return 1 where entries are above the threshold, else 0."""
        return batch_kpis.AbstractIoULike.binarize(tensor, thresh).int()
