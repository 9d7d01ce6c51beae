"""Concepts in PyTorch models."""

from iba_torch.concepts.detection import ConceptDetectionModel2D, ModelStump
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
    "ConceptDetectionModel2D",
    "IoU",
    "ModelStump",
    "Net2VecLoss",
    "SelectorZU",
    "SetIoU",
    "TverskyLoss",
    "WeightedLossSum",
]
