"""Models of concepts, and their embeddings."""

from iba_torch.compat.hybrid_learning.concepts.models import concept_models, embeddings, model_extension
from iba_torch.compat.hybrid_learning.concepts.models.concept_models import (
    ConceptDetection2DTrainTestHandle,
    ConceptDetectionModel2D,
    ConceptSegmentationModel2D,
)
from iba_torch.compat.hybrid_learning.concepts.models.embeddings import ConceptEmbedding

__all__ = [
    "ConceptDetection2DTrainTestHandle",
    "ConceptDetectionModel2D",
    "ConceptEmbedding",
    "ConceptSegmentationModel2D",
    "concept_models",
    "embeddings",
    "model_extension",
]
