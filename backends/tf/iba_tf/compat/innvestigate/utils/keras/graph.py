"""The names of `innvestigate.utils.keras.graph`."""

from iba_tf import model_wo_softmax

__all__ = ["model_wo_softmax"]
