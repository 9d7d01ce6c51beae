"""Concepts: hyperplanes in the space of a layer, and the losses that teach them."""

from iba_core.concepts.embedding import ConceptEmbedding
from iba_core.concepts.losses import (
    BalancedBCELoss,
    BalancedPenaltyReducedFocalLoss,
    Net2VecLoss,
    TverskyLoss,
    WeightedLossSum,
)
from iba_core.concepts.masks import BatchReduction
from iba_core.concepts.metrics import IoU, SetIoU

__all__ = [
    "BalancedBCELoss",
    "BalancedPenaltyReducedFocalLoss",
    "BatchReduction",
    "ConceptEmbedding",
    "IoU",
    "Net2VecLoss",
    "SetIoU",
    "TverskyLoss",
    "WeightedLossSum",
]
