"""Concepts, their models and embeddings, and how they are judged."""

from iba_torch.compat.hybrid_learning.concepts import analysis, models, train_eval
from iba_torch.compat.hybrid_learning.concepts.concepts import Concept, SegmentationConcept2D
from iba_torch.compat.hybrid_learning.concepts.models import (
    ConceptDetection2DTrainTestHandle,
    ConceptDetectionModel2D,
    ConceptEmbedding,
    ConceptSegmentationModel2D,
    model_extension,
)
from iba_torch.compat.hybrid_learning.concepts.train_eval import kpis

__all__ = [
    "Concept",
    "ConceptDetection2DTrainTestHandle",
    "ConceptDetectionModel2D",
    "ConceptEmbedding",
    "ConceptSegmentationModel2D",
    "SegmentationConcept2D",
    "analysis",
    "kpis",
    "model_extension",
    "models",
    "train_eval",
]
