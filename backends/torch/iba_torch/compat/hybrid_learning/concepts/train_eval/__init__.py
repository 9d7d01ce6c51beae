"""Losses and metrics of concepts."""

from iba_torch.compat.hybrid_learning.concepts.train_eval import kpis

__all__ = ["kpis"]
