"""Statistics of a named tensor of a graph."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from os import PathLike
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import tensorflow as tf
from keras import KerasTensor

from iba_core.arguments import require_bool, require_text
from iba_core.bottleneck.estimator import KIND, STATE, WelfordEstimator
from iba_core.errors import InputError
from iba_core.framework.inputs import require_batches
from iba_core.state import read_state
from iba_core.utils import get_tqdm
from iba_tf.adapter import TensorFlowAdapter
from iba_tf.graphs.calls import function_to
from iba_tf.models.v1_graphs import require_session


class TFWelfordEstimator(WelfordEstimator):
    """`WelfordEstimator` that computes the features from the inputs of their graph.

    Args:
        feature_name: name of the feature tensor in a TensorFlow graph, such as ``"conv4/Relu:0"``; or the
            tensor itself, also a symbolic one of a Keras model. None to load a state.
        graph: the TensorFlow graph with the tensor; the default one if None.

    Example:
        >>> graph = tf.Graph()
        >>> with graph.as_default():
        ...     x = tf.compat.v1.placeholder(tf.float32, (None, 4), name="x")
        ...     feature = tf.nn.relu(x, name="feature")
        >>> estimator = TFWelfordEstimator("feature:0", graph)
        >>> with tf.compat.v1.Session(graph=graph) as session:
        ...     _ = estimator.fit({x: np.ones((8, 4))}, session)
        >>> estimator.n_samples()
        8
    """

    def __init__(
        self, feature_name: str | tf.Tensor | KerasTensor | None = None, graph: tf.Graph | None = None
    ) -> None:
        super().__init__()
        if not (feature_name is None or tf.is_tensor(feature_name) or isinstance(feature_name, KerasTensor)):
            require_text("feature_name", feature_name, "the name of a tensor, or the tensor")
        self._adapter: TensorFlowAdapter | None = None
        self._tensor: tf.Tensor | None = None
        self._graph = graph
        if isinstance(feature_name, KerasTensor):
            self._adapter = TensorFlowAdapter(function_to(feature_name))
        elif feature_name is not None and not isinstance(feature_name, str):
            self._tensor = feature_name
        self.feature_name: str | None = getattr(feature_name, "name", feature_name)

    def fit(self, feed_dict: Any, session: Any = None, run_kwargs: dict[str, Any] | None = None) -> Any:
        """Take in a batch of samples.

        Args:
            feed_dict: arrays by placeholders, or by symbolic inputs of the Keras model; or an array of
                features (B, *feature map) in place of inputs.
            session: session that runs the graph; the default one if None. Keras models need none.
            run_kwargs: further arguments of `tf.compat.v1.Session.run`.

        Returns:
            `feed_dict` itself.

        Raises:
            InputError: there is no session, or no such tensor, or the features are not finite.
        """
        features = self._run(feed_dict, session, run_kwargs) if isinstance(feed_dict, Mapping) else feed_dict
        super().fit(features)
        return feed_dict

    def fit_generator(
        self,
        generator: Iterable[Any],
        session: Any = None,
        progbar: bool = True,
        run_kwargs: dict[str, Any] | None = None,
    ) -> None:
        """Take in all batches of a generator.

        Args:
            generator: yields what `fit` takes.
            session: see `fit`.
            progbar: show the progress.
            run_kwargs: see `fit`.

        Raises:
            InputError: see `fit`.
        """
        require_bool("progbar", progbar)
        batches = require_batches("generator", generator)
        for feed_dict in get_tqdm()(batches, desc="Estimating", unit="batch", disable=not progbar):
            self.fit(feed_dict, session, run_kwargs)

    def state_dict(self) -> dict[str, Any]:
        """Return the state, see `WelfordEstimator.state_dict`, and the ``feature_name``."""
        return {**super().state_dict(), "feature_name": self.feature_name}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Replace the state by one that `state_dict` gave, or by that of a `WelfordEstimator`.

        Raises:
            StateError: entries are missing, or their shapes do not fit together.
        """
        super().load_state_dict(state)
        self.feature_name = self.feature_name or state.get("feature_name")

    def save(self, path: str | PathLike[str], metadata: Mapping[str, Any] | None = None) -> None:
        """Write the state to a safetensors file, with the name of the features in its metadata.

        Args:
            path: the file.
            metadata: further entries.
        """
        plain = WelfordEstimator()
        plain.load_state_dict(self.state_dict())
        plain.save(path, {"layer": self.feature_name, **(metadata or {})})

    @classmethod
    def load(cls, path: str | PathLike[str]) -> Self:
        """Read what `save` wrote. The estimator has no graph: it takes features, not inputs.

        Args:
            path: the file.

        Raises:
            StateError: the file is missing, truncated or of another kind.
        """
        state, metadata = read_state(path, KIND, required=STATE)
        estimator = cls()
        estimator.load_state_dict({**state, "feature_name": metadata.get("layer")})
        return estimator

    def _run(self, feed_dict: Any, session: Any, run_kwargs: dict[str, Any] | None) -> npt.NDArray[Any]:
        if self._adapter is not None:
            return self._adapter.framework.to_numpy(self._adapter.predict(feed_dict))
        if self.feature_name is None:
            raise InputError("feature_name=None names no features to compute; give arrays of features to fit")
        session = require_session(session)
        return np.asarray(session.run(self._find_tensor(session), feed_dict, **(run_kwargs or {})))

    def _find_tensor(self, session: Any) -> tf.Tensor:
        if self._tensor is None:
            graph = self._graph or session.graph
            try:
                self._tensor = graph.get_tensor_by_name(self.feature_name)
            except (KeyError, ValueError) as error:
                raise InputError(
                    f"feature_name={self.feature_name!r} is no tensor of the graph: {error}"
                ) from error
        return self._tensor
