"""The names of `innvestigate.backend.graph`."""

from iba_tf import model_wo_softmax

__all__ = ["model_wo_softmax"]
