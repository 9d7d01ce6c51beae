"""The names of the package innvestigate that lead to this library's analyzer.

``create_analyzer("iba", model)`` makes one, and `analyze` gives arrays of the shape of the samples, as the
other analyzers of that package do.
"""

from iba_tf import model_wo_softmax
from iba_tf.compat.innvestigate.analyzer import create_analyzer
from iba_tf.compat.innvestigate.analyzer.base import NotAnalyzeableModelException

__all__ = ["NotAnalyzeableModelException", "create_analyzer", "model_wo_softmax"]
