"""Layers and graphs that pass features as they are, or restricted to what a bottleneck has kept."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from threading import RLock
from typing import Any

import numpy as np
import numpy.typing as npt
import tensorflow as tf

from iba_core.bottleneck.formulas import Mask, restrict
from iba_core.bottleneck.optimization import BottleneckResult
from iba_core.errors import NotEstimatedError
from iba_core.undo import undoing
from iba_tf.framework import eagerly, traced

v1 = tf.compat.v1

_ENTERED: ContextVar[frozenset[object]] = ContextVar("restrict_flow", default=frozenset())
"""Marks of the `Flow.restricted` contexts that the running thread or task is in."""


class Flow(tf.Module):
    """A place that features pass as they are, or restricted to what the last analysis kept.

    Contexts of `restricted` may be nested, and may overlap in several threads and asyncio tasks. Code that
    runs eagerly is restricted in the threads and tasks that have entered one. Compiled functions read the
    variable `restricting`, which all threads share: they are restricted as long as any context is open.

    Copies, also by pickle, hold the same mask and noise in variables of their own.

    Args:
        dtype: precision of the bottleneck, float32 or float64. In the graph of a v1 session, the variables
            belong to that graph.

    Attributes:
        restricting: whether compiled functions restrict the features.
        passed: mask lambda, (B, *feature map).
        blocked: its complement, likewise.
        mean: mean of the noise, (1, *feature map).
        std: standard deviation of the noise, likewise.
    """

    def __init__(self, dtype: tf.DType = tf.float32) -> None:
        super().__init__()
        self.restricting = tf.Variable(False, trainable=False)
        # Of open shape, since images of another size may be analysed next.
        self.passed, self.blocked, self.mean, self.std = (
            tf.Variable(tf.zeros((), dtype), trainable=False, shape=tf.TensorShape(None)) for _ in range(4)
        )
        self.is_empty = True
        self._lock = RLock()
        # What each open context restricts, by the context's mark.
        self._open: dict[object, Any] = {}

    def __call__(self, features: tf.Tensor) -> tf.Tensor:
        """`features`, restricted or not."""
        if not tf.executing_eagerly():
            return self.passed_on(features, self.restricting)
        if not any(mark in self._open for mark in _ENTERED.get()):
            return tf.identity(features)
        with self._lock:
            return self._restrict(features)

    def passed_on(self, features: tf.Tensor, restricting: tf.Tensor) -> tf.Tensor:
        """`features` in a function, restricted where `restricting` is true."""
        return tf.cond(restricting, lambda: self._restrict(features), lambda: tf.identity(features))

    def _restrict(self, inputs: tf.Tensor) -> tf.Tensor:
        features = tf.cast(inputs, self.dtype)
        shape = tf.shape(features)
        # Broadcasting to the inputs' shape fails where the images are not those analysed.
        passed, blocked, mean, std = (
            tf.stop_gradient(tf.broadcast_to(variable, shape)) for variable in self.state[1:]
        )
        noise = mean + std * tf.random.normal(shape, dtype=features.dtype)
        restricted = restrict(features, Mask(passed, blocked), noise)
        return tf.ensure_shape(tf.cast(restricted, inputs.dtype), inputs.shape)

    @property
    def dtype(self) -> tf.DType:
        """Precision of the bottleneck."""
        return self.passed.dtype

    @property
    def state(self) -> tuple[tf.Variable, ...]:
        """All variables: `restricting`, `passed`, `blocked`, `mean` and `std`."""
        return self.restricting, self.passed, self.blocked, self.mean, self.std

    @property
    def is_open(self) -> bool:
        """Whether any context of `restricted` is open."""
        return bool(self._open)

    def keep(self, results: Sequence[BottleneckResult], pass_mask: npt.ArrayLike | None) -> None:
        """Pass what an analysis has kept from now on.

        Args:
            results: of the images, in the chunks in which they were analysed.
            pass_mask: as given to the analysis, for all images.
        """
        passed, blocked, restricted = (
            tf.concat([tf.broadcast_to(part, result.alpha.shape) for result, part in parts], axis=0)
            for parts in (
                [(result, result.mask.passed) for result in results],
                [(result, result.mask.blocked) for result in results],
                [(result, result.problem.restricted) for result in results],
            )
        )
        zeros = tf.zeros_like(passed)
        passing = (
            zeros
            if pass_mask is None
            else tf.cast(tf.broadcast_to(np.asarray(pass_mask), zeros.shape), zeros.dtype)
        )
        mask = tf.where(restricted, passed, passing), tf.where(restricted, blocked, zeros)
        self._assign((*mask, results[0].problem.mean, results[0].problem.std))

    def _assign(self, values: Sequence[Any]) -> None:
        with self._lock:
            for variable, value in zip(self.state[1:], values, strict=True):
                variable.assign(value)
            self.is_empty = False

    @contextmanager
    def restricted(self, place: Any = None, load: Callable[[bool], None] | None = None) -> Iterator[None]:
        """Context in which features are restricted.

        Args:
            place: what `load` brings the state into, such as a session.
            load: brings the state there, as often as contexts of that place change. Its argument tells
                whether any is open.

        Raises:
            NotEstimatedError: nothing has been analysed.
        """
        if self.is_empty:
            raise nothing_kept()
        mark = object()

        def close() -> None:
            _ENTERED.set(_ENTERED.get() - {mark})
            with self._changing(place, load):
                self._open.pop(mark, None)

        with undoing(close):
            with self._changing(place, load):
                self._open[mark] = place
            _ENTERED.set(_ENTERED.get() | {mark})
            yield

    @contextmanager
    def _changing(self, place: Any, load: Callable[[bool], None] | None) -> Iterator[None]:
        """Context in which contexts are opened or closed; the variable follows."""
        with self._lock:
            yield
            with eagerly():
                self.restricting.assign(self.is_open)
            if load is not None:
                load(place in self._open.values())

    def __getstate__(self) -> dict[str, Any]:
        with self._lock, eagerly():
            kept = None if self.is_empty else [variable.numpy() for variable in self.state[1:]]
            return {"dtype": self.dtype.name, "kept": kept}

    def __setstate__(self, state: dict[str, Any]) -> None:
        with tf.init_scope(), eagerly():
            Flow.__init__(self, tf.as_dtype(state["dtype"]))
            if state["kept"] is not None:
                self._assign(state["kept"])


def nothing_kept() -> NotEstimatedError:
    """The error of a restriction before any analysis."""
    return NotEstimatedError("restrict_flow passes what the last analysis kept: call analyze before")


class GraphFlow:
    """A `Flow` in the v1 graph that is the default one, with the operations that load another one's state.

    Until its variables have values in a session, it passes features as they are.

    Args:
        features: tensor of the graph.
        dtype: precision of the bottleneck.

    Attributes:
        outputs: `features`, restricted or not.
        restricting: whether they are restricted.
    """

    def __init__(self, features: tf.Tensor, dtype: tf.DType) -> None:
        flow = Flow(dtype)
        self._is_initialized = tf.raw_ops.VarIsInitializedOp(resource=flow.restricting.handle)
        # Functions, whose branches are functions as well, whatever kind of branch the program prefers.
        is_restricting = traced(
            lambda known: tf.cond(known, flow.restricting.read_value, lambda: tf.constant(False))
        )
        self.restricting = tf.identity(is_restricting(self._is_initialized), name="restricting")
        restricted = traced(flow.passed_on)(features, self.restricting)
        # Chosen once more outside of the function, where it can be seen that the axes stay what they are.
        self.outputs = tf.where(self.restricting, restricted, features, name="features")
        self._loads = [Load(variable.handle, variable.dtype) for variable in flow.state]

    def initialize(self, session: tf.compat.v1.Session) -> None:
        """Give the variables values in a session where they have none."""
        if not session.run(self._is_initialized):
            for load in self._loads:
                session.run(load.operation, {load.value: False})

    def load(self, flow: Flow, session: tf.compat.v1.Session, restricting: bool) -> None:
        """Bring the state of an eager flow into a session of the graph, which restricts features or not."""
        restrict_flow, *kept = self._loads
        load_values(dict(zip(kept, flow.state[1:], strict=True)), session)
        session.run(restrict_flow.operation, {restrict_flow.value: restricting})


class Load:
    """Operation of a v1 graph that gives a variable a value.

    Attributes:
        operation: name of the operation. Names, since the graph may be imported into another one.
        value: name of the placeholder of the value.

    Args:
        variable: the variable's handle, or the variable itself where it is one of TensorFlow 1.
        dtype: of the value.
    """

    def __init__(self, variable: tf.Tensor, dtype: tf.DType) -> None:
        value = v1.placeholder(dtype)
        operation = (
            tf.raw_ops.AssignVariableOp(resource=variable, value=value)
            if variable.dtype == tf.resource
            else tf.raw_ops.Assign(ref=variable, value=value, validate_shape=False).op
        )
        self.value, self.operation = value.name, operation.name


def load_values(variables: dict[Load, tf.Variable], session: tf.compat.v1.Session) -> None:
    """Give variables of a session the values of eager ones."""
    with eagerly():
        values = {load: variable.numpy() for load, variable in variables.items()}
    for load, value in values.items():
        session.run(load.operation, {load.value: value})
