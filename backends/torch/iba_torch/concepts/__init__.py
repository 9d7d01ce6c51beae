"""Concepts in PyTorch models."""

from iba_torch.concepts.losses import (
    BalancedBCELoss,
    BalancedPenaltyReducedFocalLoss,
    BatchReduction,
    IoU,
    Net2VecLoss,
    SetIoU,
    TverskyLoss,
    WeightedLossSum,
)
from iba_torch.concepts.selector import SelectorZU

__all__ = [
    "BalancedBCELoss",
    "BalancedPenaltyReducedFocalLoss",
    "BatchReduction",
    "IoU",
    "Net2VecLoss",
    "SelectorZU",
    "SetIoU",
    "TverskyLoss",
    "WeightedLossSum",
]
