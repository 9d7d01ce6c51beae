"""Concepts: hyperplanes in the space of a layer, how they are learnt, and where they are found."""

from iba_core.concepts.analysis import ConceptAnalysis, ConceptAnalysisResult, LayerResult
from iba_core.concepts.annotations import AnnotatedMask, AnnotatedPicture, annotated_pictures
from iba_core.concepts.cam import (
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
from iba_core.concepts.data import SegmentationConcept2D, SegmentationData
from iba_core.concepts.detection import ModelStump
from iba_core.concepts.embedding import ConceptEmbedding
from iba_core.concepts.locating import locate, plot_heatmap, save_heatmap
from iba_core.concepts.losses import (
    BalancedBCELoss,
    BalancedPenaltyReducedFocalLoss,
    Net2VecLoss,
    TverskyLoss,
    WeightedLossSum,
)
from iba_core.concepts.masks import BatchReduction
from iba_core.concepts.metrics import IoU, SetIoU
from iba_core.concepts.samples import face_concept
from iba_core.concepts.targets import (
    ClassifierOutputTarget,
    ConceptEmbeddingTarget,
    DifferenceFromConceptTarget,
    SimilarityToConceptTarget,
)
from iba_core.concepts.training import (
    Hyperplane,
    TrainingSettings,
    approximate_posterior,
    train_detection_model,
)

__all__ = [
    "AblationCAM",
    "AnnotatedMask",
    "AnnotatedPicture",
    "BalancedBCELoss",
    "BalancedPenaltyReducedFocalLoss",
    "BatchReduction",
    "ClassifierOutputTarget",
    "ConceptAnalysis",
    "ConceptAnalysisResult",
    "ConceptEmbedding",
    "ConceptEmbeddingTarget",
    "DifferenceFromConceptTarget",
    "EigenCAM",
    "EigenGradCAM",
    "GradCAM",
    "GradCAMElementWise",
    "GradCAMPlusPlus",
    "HiResCAM",
    "Hyperplane",
    "IoU",
    "LayerCAM",
    "LayerResult",
    "ModelStump",
    "Net2VecLoss",
    "ScoreCAM",
    "SegmentationConcept2D",
    "SegmentationData",
    "SetIoU",
    "SimilarityToConceptTarget",
    "TrainingSettings",
    "TverskyLoss",
    "WeightedLossSum",
    "XGradCAM",
    "annotated_pictures",
    "approximate_posterior",
    "face_concept",
    "locate",
    "plot_heatmap",
    "save_heatmap",
    "train_detection_model",
]
