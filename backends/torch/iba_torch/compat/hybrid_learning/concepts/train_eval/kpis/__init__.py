"""Losses and metrics, of one batch and of many."""

from iba_torch.compat.hybrid_learning.concepts.train_eval.kpis import aggregating_kpis, batch_kpis
from iba_torch.compat.hybrid_learning.concepts.train_eval.kpis.aggregating_kpis import SetIoU
from iba_torch.compat.hybrid_learning.concepts.train_eval.kpis.batch_kpis import (
    AbstractIoULike,
    BalancedBCELoss,
    BalancedPenaltyReducedFocalLoss,
    BatchReduction,
    IoU,
    Net2VecLoss,
    TverskyLoss,
    WeightedLossSum,
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
