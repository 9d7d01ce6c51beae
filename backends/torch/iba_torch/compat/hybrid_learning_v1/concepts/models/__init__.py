"""Models of concepts."""

from iba_torch.compat.hybrid_learning.concepts.models.concept_detection import ConceptDetectionModel2D
from iba_torch.compat.hybrid_learning.concepts.models.concept_segmentation import ConceptSegmentationModel2D

__all__ = ["ConceptDetectionModel2D", "ConceptSegmentationModel2D"]
