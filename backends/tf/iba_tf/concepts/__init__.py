"""Concepts in Keras models."""

from iba_tf.concepts.detection import ConceptDetectionModel2D, ModelStump
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
    "ConceptDetectionModel2D",
    "IoU",
    "ModelStump",
    "Net2VecLoss",
    "SelectorZU",
    "SetIoU",
    "TverskyLoss",
    "WeightedLossSum",
]
