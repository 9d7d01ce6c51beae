"""The names of `innvestigate.utils`."""

from iba_tf import model_wo_softmax
from iba_tf.compat.innvestigate.utils import keras

__all__ = ["keras", "model_wo_softmax"]
