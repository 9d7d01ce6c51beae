"""The model that locates a concept."""

from iba_torch.compat.hybrid_learning.concepts.models.concept_detection import (
    ConceptDetection2DTrainTestHandle,
    ConceptDetectionModel2D,
)

__all__ = ["ConceptDetection2DTrainTestHandle", "ConceptDetectionModel2D"]
