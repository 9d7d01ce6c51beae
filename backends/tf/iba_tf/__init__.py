"""TensorFlow backend: information-bottleneck attribution for models of any age."""

from importlib.util import find_spec

from iba_core.errors import MissingDependencyError
from iba_core.framework.namespace import register_namespace
from iba_core.readout.training import EpochReport

if _missing := [name for name in ("tensorflow", "keras") if find_spec(name) is None]:
    raise MissingDependencyError(
        f"iba_tf needs {_missing[0]}, which is not installed: pip install 'iba-core[tf-cpu]', "
        "or 'iba-core[tf]' beside the TensorFlow for your machine"
    )

from iba_tf import namespace
from iba_tf.adapter import TensorFlowAdapter
from iba_tf.bottlenecks.copy import IBACopy
from iba_tf.bottlenecks.estimator import TFWelfordEstimator
from iba_tf.bottlenecks.innvestigate import IBACopyInnvestigate
from iba_tf.bottlenecks.layer import IBALayer, Sequential
from iba_tf.bottlenecks.per_sample import Hyperparameters, to_saliency_map
from iba_tf.bottlenecks.readout import IBAReadout
from iba_tf.bottlenecks.softmax import model_wo_softmax
from iba_tf.graphs.split import GraphSplit
from iba_tf.images import get_imagenet_generator
from iba_tf.models.graph_model import GraphModel

register_namespace("tensorflow", namespace)

__all__ = [
    "EpochReport",
    "GraphModel",
    "GraphSplit",
    "Hyperparameters",
    "IBACopy",
    "IBACopyInnvestigate",
    "IBALayer",
    "IBAReadout",
    "Sequential",
    "TFWelfordEstimator",
    "TensorFlowAdapter",
    "get_imagenet_generator",
    "model_wo_softmax",
    "to_saliency_map",
]
