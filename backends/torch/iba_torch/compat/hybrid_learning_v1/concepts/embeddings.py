"""Embeddings of concepts."""

from iba_torch.compat.hybrid_learning.concepts.embeddings import ConceptEmbedding

__all__ = ["ConceptEmbedding"]
