"""TensorFlow backend: information-bottleneck attribution for Keras 3 models."""

from importlib.util import find_spec

from iba_core.errors import MissingDependencyError
from iba_core.namespace import register_namespace

for _name in ("tensorflow", "keras"):
    if find_spec(_name) is None:
        raise MissingDependencyError(
            f"iba_tf needs {_name}, which is not installed: pip install 'iba-core[tf]'"
        )

from iba_tf import namespace  # noqa: E402 (they need what has just been looked for)
from iba_tf.adapter import KerasAdapter  # noqa: E402
from iba_tf.cut import KerasCut  # noqa: E402
from iba_tf.estimator import TFWelfordEstimator  # noqa: E402
from iba_tf.images import get_imagenet_generator  # noqa: E402
from iba_tf.layer import IBALayer  # noqa: E402
from iba_tf.saliency import to_saliency_map  # noqa: E402
from iba_tf.sequential import Sequential  # noqa: E402
from iba_tf.softmax import model_wo_softmax  # noqa: E402

register_namespace("tensorflow", namespace)

__all__ = [
    "IBALayer",
    "KerasAdapter",
    "KerasCut",
    "Sequential",
    "TFWelfordEstimator",
    "get_imagenet_generator",
    "model_wo_softmax",
    "to_saliency_map",
]
