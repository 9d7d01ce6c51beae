"""TensorFlow backend: information-bottleneck attribution for models of any age."""

from importlib.util import find_spec

from iba_core.errors import MissingDependencyError
from iba_core.namespace import register_namespace
from iba_core.readout_training import EpochReport

for _name in ("tensorflow", "keras"):
    if find_spec(_name) is None:
        raise MissingDependencyError(
            f"iba_tf needs {_name}, which is not installed: pip install 'iba-core[tf]'"
        )

from iba_tf import namespace  # noqa: E402 (they need what has just been looked for)
from iba_tf.adapter import KerasAdapter  # noqa: E402
from iba_tf.copy import IBACopy  # noqa: E402
from iba_tf.cut import KerasCut  # noqa: E402
from iba_tf.estimator import TFWelfordEstimator  # noqa: E402
from iba_tf.graph_cut import GraphCut  # noqa: E402
from iba_tf.graph_model import GraphModel  # noqa: E402
from iba_tf.images import get_imagenet_generator  # noqa: E402
from iba_tf.innvestigate import IBACopyInnvestigate  # noqa: E402
from iba_tf.layer import IBALayer  # noqa: E402
from iba_tf.readout import IBAReadout  # noqa: E402
from iba_tf.saliency import to_saliency_map  # noqa: E402
from iba_tf.sequential import Sequential  # noqa: E402
from iba_tf.softmax import model_wo_softmax  # noqa: E402

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
