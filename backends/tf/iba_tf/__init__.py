"""TensorFlow backend: information-bottleneck attribution for models of any age."""

from importlib.util import find_spec

from iba_core.errors import MissingDependencyError
from iba_core.namespace import register_namespace
from iba_core.readout_training import EpochReport

if _missing := [name for name in ("tensorflow", "keras") if find_spec(name) is None]:
    raise MissingDependencyError(
        f"iba_tf needs {_missing[0]}, which is not installed: pip install 'iba-core[tf]'"
    )

from iba_tf import namespace
from iba_tf.adapter import KerasAdapter
from iba_tf.copy import IBACopy
from iba_tf.cut import KerasCut
from iba_tf.estimator import TFWelfordEstimator
from iba_tf.graph_cut import GraphCut
from iba_tf.graph_model import GraphModel
from iba_tf.images import get_imagenet_generator
from iba_tf.innvestigate import IBACopyInnvestigate
from iba_tf.layer import IBALayer
from iba_tf.readout import IBAReadout
from iba_tf.saliency import to_saliency_map
from iba_tf.sequential import Sequential
from iba_tf.softmax import model_wo_softmax

register_namespace("tensorflow", namespace)

__all__ = [
    "EpochReport",
    "GraphCut",
    "GraphModel",
    "IBACopy",
    "IBACopyInnvestigate",
    "IBALayer",
    "IBAReadout",
    "KerasAdapter",
    "KerasCut",
    "Sequential",
    "TFWelfordEstimator",
    "get_imagenet_generator",
    "model_wo_softmax",
    "to_saliency_map",
]
