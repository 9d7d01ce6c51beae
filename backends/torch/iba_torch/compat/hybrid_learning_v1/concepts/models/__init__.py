"""Models of concepts."""

from iba_torch.compat.hybrid_learning.concepts.models.concept_detection import (
    ConceptDetection2DTrainTestHandle,
    ConceptDetectionModel2D,
)
from iba_torch.compat.hybrid_learning.concepts.models.concept_segmentation import ConceptSegmentationModel2D

__all__ = ["ConceptDetection2DTrainTestHandle", "ConceptDetectionModel2D", "ConceptSegmentationModel2D"]
