"""The names of `innvestigate.analyzer.base`."""

from iba_core.errors import InputError as NotAnalyzeableModelException
from iba_tf.compat.innvestigate.analyzer.bottleneck import InformationBottleneck as AnalyzerBase

__all__ = ["AnalyzerBase", "NotAnalyzeableModelException"]
