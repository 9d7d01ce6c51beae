"""Losses and metrics."""

from iba_torch.compat.hybrid_learning.concepts.kpis import (
    AbstractIoULike,
    BalancedBCELoss,
    BatchReduction,
    IoU,
    Net2VecLoss,
    SetIoU,
    TverskyLoss,
    WeightedLossSum,
)

__all__ = [
    "AbstractIoULike",
    "BalancedBCELoss",
    "BatchReduction",
    "IoU",
    "Net2VecLoss",
    "SetIoU",
    "TverskyLoss",
    "WeightedLossSum",
]
