"""The part of a model up to a layer."""

from iba_torch.compat.hybrid_learning.concepts.models.model_extension import ModelStump

__all__ = ["ModelStump"]
