"""The data that a concept is learnt from."""

from iba_torch.compat.hybrid_learning.concepts.analysis import analysis_handle
from iba_torch.compat.hybrid_learning.concepts.analysis.analysis_handle import data_for_concept_model

__all__ = ["analysis_handle", "data_for_concept_model"]
