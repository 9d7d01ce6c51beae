"""A bottleneck's layer that was called in a graph of TensorFlow 1."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import tensorflow as tf

from iba_core.errors import InputError, NotEstimatedError
from iba_tf.bottlenecks.copied_graph import Load
from iba_tf.bottlenecks.copy import IBACopy
from iba_tf.bottlenecks.flow import Flow
from iba_tf.eager import eagerly

v1 = tf.compat.v1


class LayerInGraph:
    """What a layer knows about the v1 graph that it was called in.

    There it is a few operations, whose variables are initialised along with the graph's. To explain, what
    leads from the features to the loss is copied from a session, with the values of that moment.

    Args:
        inputs: what the layer was called on.
        dtype: precision of the bottleneck.

    Attributes:
        outputs: what the call gives.
        target: stands for the class in feeds; None without a classification.
    """

    def __init__(self, inputs: tf.Tensor, dtype: tf.DType) -> None:
        flow = Flow(dtype)
        self.outputs = flow(inputs)
        self._loads = [Load(variable.handle, variable.dtype) for variable in flow.state]
        self.target: tf.Tensor | None = None
        self._kept: tf.Tensor | None = None
        self._copy: IBACopy | None = None

    @property
    def is_classification(self) -> bool:
        """Whether the model is asked to keep a class."""
        return self.target is not None

    def keep_class(self, logits: tf.Tensor) -> tf.Tensor:
        """Keep the class of logits; returns the tensor that stands for it in feeds."""
        with self.outputs.graph.as_default():
            self.target = v1.placeholder(tf.int64, (None,), name="iba_target")
        self._kept, self._copy = logits, None
        return self.target

    def keep_low(self, loss: tf.Tensor) -> None:
        """Keep a loss low."""
        self.target, self._kept, self._copy = None, loss, None

    def features(self, session: v1.Session | None, run_kwargs: dict[str, Any] | None) -> Callable[[Any], Any]:
        """What gives the features of a feed, in a session."""
        running = _session(session)
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

    def copy(self, session: v1.Session | None, state: Any) -> IBACopy:
        """A copy that explains by a layer's statistics and settings, with the variables' present values."""
        if self._kept is None:
            raise InputError(
                "there is no model loss yet: call set_classification_loss or set_model_loss before"
            )
        session = _session(session)
        if self._copy is None or self._copy.session is not session:
            self._copy = IBACopy(self.outputs, [self._kept], session=session)
            self._copy.keep_first_output(is_classification=self.is_classification)
        else:
            self._copy.update_variables()
        self._copy.share(state)
        return self._copy

    @contextmanager
    def restricted(self, session: v1.Session | None) -> Iterator[None]:
        """Context in which the layer passes only what the last analysis kept, in a session."""
        if self._copy is None or self._copy.flow.is_empty:
            raise NotEstimatedError("restrict_flow passes what the last analysis kept: call analyze before")
        session, flow = _session(session), self._copy.flow
        try:
            with flow.restricted():
                self._load(flow, session)
                yield
        finally:
            self._load(flow, session)

    def _load(self, flow: Flow, session: v1.Session) -> None:
        with eagerly():
            values = [variable.numpy() for variable in flow.state]
        for load, value in zip(self._loads, values, strict=True):
            session.run(load.operation, {load.value: value})


def is_in_graph(tensor: Any) -> bool:
    """Whether it is a tensor of a v1 graph, and not of a function."""
    return isinstance(tensor, tf.Tensor) and hasattr(tensor, "graph") and not tensor.graph.building_function


def _session(session: v1.Session | None) -> v1.Session:
    found = session or v1.get_default_session()
    if found is None:
        raise InputError("session=None, and there is no default session to compute the features in")
    return found
