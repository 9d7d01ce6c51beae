"""Concepts in Keras models."""

from iba_tf.concepts.losses import (
    BalancedBCELoss,
    BalancedPenaltyReducedFocalLoss,
    BatchReduction,
    IoU,
    Net2VecLoss,
    SetIoU,
    TverskyLoss,
    WeightedLossSum,
)
from iba_tf.concepts.selector import SelectorZU

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
