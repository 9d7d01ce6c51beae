"""Data sets of a concept."""

from iba_torch.compat.hybrid_learning.datasets import DataTriple

__all__ = ["DataTriple"]
