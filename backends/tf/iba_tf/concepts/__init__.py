"""Concepts in Keras models."""

from iba_tf.concepts.cam import EigenCAM, GradCAM, GradCAMPlusPlus, HiResCAM, LayerCAM, XGradCAM
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
    "EigenCAM",
    "GradCAM",
    "GradCAMPlusPlus",
    "HiResCAM",
    "IoU",
    "LayerCAM",
    "ModelStump",
    "Net2VecLoss",
    "SelectorZU",
    "SetIoU",
    "TverskyLoss",
    "WeightedLossSum",
    "XGradCAM",
]
