"""The names of `IBA.tensorflow_v1`.

Programs of Keras 3, and of Keras 2 in a TensorFlow 1 graph, run as they are. Where nothing differs, the
classes are those of `iba_tf`.
"""

from __future__ import annotations

import sys
from os import PathLike
from typing import Any

import keras
import numpy as np
import numpy.typing as npt
import tensorflow as tf

import iba_tf
from iba_core import plot_saliency_map
from iba_tf import TFWelfordEstimator, model_wo_softmax, to_saliency_map
from iba_tf.bottlenecks.innvestigate import analyzer_of_file
from iba_tf.compat.iba.images import get_imagenet_generator
from iba_tf.compat.iba.published import Published
from iba_tf.framework import is_eager_program

__all__ = [
    "IBACopy",
    "IBACopyInnvestigate",
    "IBALayer",
    "TFWelfordEstimator",
    "get_imagenet_generator",
    "model_wo_softmax",
    "plot_saliency_map",
    "to_saliency_map",
]


@keras.saving.register_keras_serializable("iba_tf.compat")
class IBALayer(Published, iba_tf.IBALayer):
    """`iba_tf.IBALayer`, or in a program whose Keras 2 builds TensorFlow 1 graphs, a layer of Keras 2.

    Example:
        >>> inputs = keras.Input((8, 8, 3))
        >>> IBALayer(beta=20)(inputs).shape
        (None, 8, 8, 3)
    """

    def __new__(cls, *args: Any, **kwargs: Any) -> Any:
        """Make a layer of the program's Keras."""
        if "tf_keras" in sys.modules and not is_eager_program():
            from iba_tf.compat.iba.keras2_layer import Keras2IBALayer

            return Keras2IBALayer(*args, **kwargs)
        return super().__new__(cls, *args, **kwargs)

    @property
    def _restrict_flow(self) -> Any:
        in_graph = self._bound.in_graph
        return self._flow.restricting if in_graph is None else in_graph.restricting

    @property
    def _use_layer_input(self) -> tf.Tensor:
        return tf.constant(True)


class IBACopy(Published, iba_tf.IBACopy):
    """`iba_tf.IBACopy`, with the copied graph and session also by their published names.

    Example:
        >>> graph = tf.Graph()
        >>> with graph.as_default(), tf.compat.v1.Session() as session:
        ...     x = tf.compat.v1.placeholder(tf.float32, (None, 4), name="x")
        ...     feature = tf.nn.relu(x @ tf.ones((4, 6)), name="feature")
        ...     iba = IBACopy("feature:0", [feature @ tf.ones((6, 3))], graph=graph, session=session)
        >>> iba.get_copied_outputs()[0].shape.as_list()
        [None, 3]
    """

    @property
    def _outputs(self) -> Any:
        return self.get_copied_outputs()

    @property
    def _session(self) -> tf.compat.v1.Session:
        with self.copied_session_and_graph_as_default():
            return tf.compat.v1.get_default_session()

    @property
    def _graph(self) -> tf.Graph:
        return self._session.graph

    @property
    def _active_neurons(self) -> tf.Tensor:
        with self.copied_session_and_graph_as_default():
            return tf.constant(self._state.statistics.active[None], tf.float32)


class IBACopyInnvestigate(IBACopy, iba_tf.IBACopyInnvestigate):
    """`iba_tf.IBACopyInnvestigate`, whose map of one sample has no batch axis.

    Example:
        >>> model = keras.Sequential([keras.Input((32, 32, 3)), keras.layers.Conv2D(8, 3, name="conv")])
        >>> model.add(keras.layers.GlobalAveragePooling2D())
        >>> analyzer = IBACopyInnvestigate(model, feature_name="conv")
        >>> images = np.random.default_rng(0).normal(size=(20, 32, 32, 3))
        >>> analyzer.fit(images)
        >>> analyzer.analyze(images[:1]).shape, analyzer.analyze(images[:4]).shape
        ((32, 32), (4, 32, 32))
    """

    def analyze(  # type: ignore[override]  # innvestigate's arguments
        self,
        X: Any,  # noqa: N803 (the published name)
        neuron_selection: npt.ArrayLike | None = None,
        *,
        seed: int | None = None,
    ) -> npt.NDArray[np.floating]:
        """See `iba_tf.IBACopyInnvestigate.analyze`.

        Returns:
            Array (B, H, W), in bits per pixel; (H, W) for one sample.
        """
        maps = super().analyze(X, neuron_selection, seed=seed)
        return maps[0] if len(maps) == 1 else maps

    @staticmethod
    def load(
        class_name: str | type[iba_tf.IBACopyInnvestigate], state: dict[str, Any]
    ) -> iba_tf.IBACopyInnvestigate:
        """See `iba_tf.IBACopyInnvestigate.load`."""
        is_own = class_name == IBACopyInnvestigate.__name__
        return iba_tf.IBACopyInnvestigate.load(IBACopyInnvestigate if is_own else class_name, state)

    @staticmethod
    def load_npz(fname: str | PathLike[str]) -> iba_tf.IBACopyInnvestigate:
        """See `iba_tf.IBACopyInnvestigate.load_npz`."""
        return analyzer_of_file(fname, IBACopyInnvestigate.load)
