"""The model that locates a concept pixel by pixel."""

from iba_torch.compat.hybrid_learning.concepts.models.concept_segmentation import ConceptSegmentationModel2D

__all__ = ["ConceptSegmentationModel2D"]
