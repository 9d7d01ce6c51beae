"""Concepts in Keras models."""

from iba_tf.concepts.cam import (
    AblationCAM,
    EigenCAM,
    EigenGradCAM,
    GradCAM,
    GradCAMElementWise,
    GradCAMPlusPlus,
    HiResCAM,
    LayerCAM,
    ScoreCAM,
    XGradCAM,
)
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
    "AblationCAM",
    "BalancedBCELoss",
    "BalancedPenaltyReducedFocalLoss",
    "BatchReduction",
    "ConceptDetectionModel2D",
    "EigenCAM",
    "EigenGradCAM",
    "GradCAM",
    "GradCAMElementWise",
    "GradCAMPlusPlus",
    "HiResCAM",
    "IoU",
    "LayerCAM",
    "ModelStump",
    "Net2VecLoss",
    "ScoreCAM",
    "SelectorZU",
    "SetIoU",
    "TverskyLoss",
    "WeightedLossSum",
    "XGradCAM",
]
