"""The model that locates a concept."""

from iba_torch.compat.hybrid_learning.concepts.models.concept_detection import ConceptDetectionModel2D

__all__ = ["ConceptDetectionModel2D"]
