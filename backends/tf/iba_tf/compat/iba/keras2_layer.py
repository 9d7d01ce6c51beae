"""The bottleneck as a layer of Keras 2, for models that it builds in a TensorFlow 1 graph."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import keras
import numpy as np
import numpy.typing as npt
import tensorflow as tf
import tf_keras

from iba_core.bottleneck.estimator import WelfordEstimator
from iba_core.errors import LayerError
from iba_core.framework.inputs import inputs_of_batch, require_batches
from iba_core.framework.layout import DataFormat
from iba_tf.bottlenecks.graph_layer import LayerInGraph, is_in_graph
from iba_tf.bottlenecks.per_sample import Hyperparameters, require_adam
from iba_tf.compat.iba.published import Published
from iba_tf.framework import runs_eagerly
from iba_tf.models.v1_graphs import require_session


@tf_keras.saving.register_keras_serializable("iba_tf")
class Keras2IBALayer(Published, tf_keras.layers.Layer):
    """`iba_tf.IBALayer` for models that Keras 2 builds in a TensorFlow 1 graph.

    `iba_tf.compat.iba.tensorflow_v1.IBALayer` makes one in a program that does so. Arguments and methods are
    those of `iba_tf.IBALayer` in a graph. The session is the default one, or else that of Keras' backend.
    """

    def __init__(
        self,
        estimator: WelfordEstimator | None = None,
        feature_mean: npt.ArrayLike | None = None,
        feature_std: npt.ArrayLike | None = None,
        feature_active: npt.ArrayLike | None = None,
        batch_size: int = 10,
        steps: int = 10,
        beta: float = 10,
        learning_rate: float = 1,
        min_std: float = 0.01,
        smooth_std: float = 1.0,
        normalize_beta: bool = True,
        *,
        data_format: DataFormat | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        hyperparameters = Hyperparameters(
            batch_size, steps, beta, learning_rate, min_std, smooth_std, normalize_beta
        )
        self._set_up(estimator, feature_mean, feature_std, feature_active, hyperparameters)
        self._data_format = data_format
        self._in_graph: LayerInGraph | None = None

    def call(self, inputs: tf.Tensor) -> tf.Tensor:
        """Return `inputs` as they are; within `restrict_flow`, only what the last analysis kept."""
        if not is_in_graph(inputs):
            raise LayerError(
                f"layer {self.name!r} is for models that Keras 2 builds in a TensorFlow 1 graph, after "
                "tf.compat.v1.disable_eager_execution(); IBACopy explains its other models"
            )
        self._in_graph = LayerInGraph(inputs, self.dtype or tf.float32, self._data_format)
        return self._in_graph.outputs

    def compute_output_shape(self, input_shape: Any) -> Any:
        """Return the `input_shape`."""
        return input_shape

    def get_config(self) -> dict[str, Any]:
        """Return the hyperparameters, and Keras' own."""
        given = {} if self._data_format is None else {"data_format": self._data_format}
        return {**super().get_config(), **self.get_default(), **given}

    @property
    def target(self) -> tf.Tensor | None:
        """What `set_classification_loss` has returned; None without a classification."""
        return None if self._in_graph is None else self._in_graph.target

    def set_classification_loss(
        self, logits: tf.Tensor, optimizer_cls: type = keras.optimizers.Adam
    ) -> tf.Tensor:
        """See `iba_tf.IBALayer.set_classification_loss`."""
        require_adam(optimizer_cls)
        return self._graph().keep_class(logits)

    def set_model_loss(self, model_loss: tf.Tensor, optimizer_cls: type = keras.optimizers.Adam) -> None:
        """See `iba_tf.IBALayer.set_model_loss`."""
        require_adam(optimizer_cls)
        self._graph().keep_low(model_loss)

    def fit(self, feed_dict: Any, session: Any = None, run_kwargs: dict[str, Any] | None = None) -> None:
        """See `iba_tf.IBALayer.fit`."""
        self._fit([feed_dict], None, False, session, run_kwargs)

    def fit_generator(
        self,
        generator: Iterable[Any],
        n_samples: int = 5000,
        progbar: bool = True,
        session: Any = None,
        run_kwargs: dict[str, Any] | None = None,
    ) -> None:
        """See `iba_tf.IBALayer.fit_generator`."""
        batches = map(inputs_of_batch, require_batches("generator", generator))
        self._fit(batches, n_samples, progbar, session, run_kwargs)

    def analyze(
        self,
        feed_dict: Any,
        batch_size: int | None = None,
        steps: int | None = None,
        beta: float | None = None,
        learning_rate: float | None = None,
        min_std: float | None = None,
        smooth_std: float | None = None,
        normalize_beta: bool | None = None,
        session: Any = None,
        pass_mask: npt.ArrayLike | None = None,
        progbar: bool = False,
        *,
        target: Any = None,
        **options: Any,
    ) -> npt.NDArray[np.floating]:
        """See `iba_tf.IBALayer.analyze`, which names the further options, `seed` and `max_batch`."""
        hyperparameters = Hyperparameters(
            batch_size, steps, beta, learning_rate, min_std, smooth_std, normalize_beta
        )
        running, analyze = require_session(session), runs_eagerly(self._graph().analyze)
        options = {"pass_mask": pass_mask, "progbar": progbar, **options}
        return analyze(feed_dict, hyperparameters, running, self._state, target, **options)

    @contextmanager
    def restrict_flow(self, session: Any = None) -> Iterator[None]:
        """See `iba_tf.IBALayer.restrict_flow`."""
        with self._graph().restricted(require_session(session)):
            yield

    def _fit(
        self,
        batches: Iterable[Any],
        n_samples: int | None,
        progbar: bool,
        session: Any,
        run_kwargs: dict[str, Any] | None,
    ) -> None:
        in_graph = self._graph()
        features = in_graph.features(require_session(session), run_kwargs)
        fit: Callable[..., None] = runs_eagerly(self._fit_batches)
        fit(features, map(in_graph.feed, batches), n_samples, progbar)

    def _graph(self) -> LayerInGraph:
        if self._in_graph is None:
            raise LayerError(f"layer {self.name!r} is in no model yet: add it to one")
        return self._in_graph

    def _feature_name(self) -> str:
        return str(self.name)

    def _is_classification(self) -> bool:
        return self._in_graph is not None and self._in_graph.is_classification

    @property
    def _restrict_flow(self) -> tf.Tensor:
        return self._graph().restricting

    @property
    def _use_layer_input(self) -> tf.Tensor:
        # The layer of a graph reads its own input at all times.
        with self._graph().outputs.graph.as_default():
            return tf.constant(True)
