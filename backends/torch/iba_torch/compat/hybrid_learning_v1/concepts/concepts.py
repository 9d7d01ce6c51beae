"""Concepts, given by data sets of PyTorch."""

from iba_torch.compat.hybrid_learning.concepts.concepts import Concept, ConceptTypes, SegmentationConcept2D

__all__ = ["Concept", "ConceptTypes", "SegmentationConcept2D"]
