"""A bottleneck as operations of a TensorFlow 1 graph, for layers that are called in one."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from threading import RLock
from typing import Any

import numpy as np
import numpy.typing as npt
import tensorflow as tf

from iba_core.errors import InputError
from iba_core.framework.layout import DataFormat
from iba_tf.bottlenecks.copy import IBACopy
from iba_tf.bottlenecks.flow import GraphFlow, nothing_kept
from iba_tf.bottlenecks.per_sample import Hyperparameters, State, require_loss
from iba_tf.framework import forgotten_if_interrupted
from iba_tf.models.v1_graphs import require_session

v1 = tf.compat.v1


def is_in_graph(tensor: Any) -> bool:
    """Whether it is a tensor of a v1 graph, and not of a function."""
    return isinstance(tensor, tf.Tensor) and hasattr(tensor, "graph") and not tensor.graph.building_function


class LayerInGraph:
    """What a layer knows about the v1 graph that it was called in.

    There it is a few operations, whose variables are initialised along with the graph's. To explain, the
    part of the graph from the features to the loss is copied from a session, with its present values.

    Args:
        inputs: what the layer was called on.
        dtype: precision of the bottleneck.
        data_format: where the channels are; None to conclude it.

    Attributes:
        outputs: what the call gives.
        target: stands for the class in feeds; None without a classification.
    """

    def __init__(self, inputs: tf.Tensor, dtype: tf.DType, data_format: DataFormat | None) -> None:
        self._flow = GraphFlow(inputs, dtype)
        self._data_format = data_format
        self.outputs = self._flow.outputs
        self.target: tf.Tensor | None = None
        self._kept: tf.Tensor | None = None
        self._copy: IBACopy | None = None
        self._lock = RLock()

    @property
    def restricting(self) -> tf.Tensor:
        """Tensor of the graph: whether the features are restricted."""
        return self._flow.restricting

    @property
    def is_classification(self) -> bool:
        """Whether the model is asked to keep a class."""
        return self.target is not None

    @forgotten_if_interrupted
    def keep_class(self, logits: tf.Tensor) -> tf.Tensor:
        """Keep the class of logits, and return the tensor that stands for it in feeds."""
        with self.outputs.graph.as_default():
            self.target = v1.placeholder(tf.int64, (None,), name="iba_target")
        self._kept, self._copy = logits, None
        return self.target

    def keep_low(self, loss: tf.Tensor) -> None:
        """Keep a loss low."""
        self.target, self._kept, self._copy = None, loss, None

    def features(
        self, session: tf.compat.v1.Session | None, run_kwargs: dict[str, Any] | None
    ) -> Callable[[Any], Any]:
        """A function that gives the features of a feed, in a session."""
        running = require_session(session)
        return lambda feed: running.run(
            self.outputs, {key.deref(): value for key, value in feed.items()}, **(run_kwargs or {})
        )

    def feed(self, feed: Any) -> dict[Any, Any]:
        """A feed with arrays by references to tensors, those with images first and without the class.

        Raises:
            InputError: the feed is no dict of tensors.
        """
        if not isinstance(feed, Mapping) or any(not isinstance(key, tf.Tensor) for key in feed):
            raise InputError("a graph of TensorFlow 1 is fed by a dict whose keys are its placeholders")
        arrays = {key.ref(): np.asarray(value) for key, value in feed.items() if key is not self.target}
        return dict(sorted(arrays.items(), key=lambda item: not item[1].ndim))

    def analyze(
        self,
        feed: Any,
        hyperparameters: Hyperparameters,
        session: tf.compat.v1.Session | None,
        state: State,
        target: Any,
        **options: Any,
    ) -> npt.NDArray[np.floating]:
        """See `IBALayer.analyze`; `state` is that of the layer."""
        arrays = {key.deref(): value for key, value in self.feed(feed).items()}
        target = next((value for key, value in feed.items() if key is self.target), target)
        copy = self._updated_copy(require_session(session), state)
        return copy.analyze(arrays, None, *hyperparameters, target=target, **options)

    def _updated_copy(self, session: tf.compat.v1.Session, state: State) -> IBACopy:
        """A copy that explains by the layer's statistics and settings, with the variables' present values."""
        if self._kept is None:
            require_loss(None)
        with self._lock:
            copy = self._copy
            self._flow.initialize(session)
            if copy is None or copy.session is not session:
                copy = IBACopy(self.outputs, [self._kept], session=session, data_format=self._data_format)
                copy.keep_first_output(is_classification=self.is_classification)
            else:
                copy.update_variables()
            copy.share(state)
            self._copy = copy
            return copy

    @contextmanager
    def restricted(self, session: tf.compat.v1.Session | None) -> Iterator[None]:
        """Context in which the layer passes only what the last analysis kept, in a session."""
        if self._copy is None:
            raise nothing_kept()
        running, flow = require_session(session), self._copy.flow
        with flow.restricted(running, partial(self._flow.load, flow, running)):
            yield
