"""Letting only that pass which a bottleneck has kept, wherever the model runs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import numpy.typing as npt
import tensorflow as tf

from iba_core.bottleneck.formulas import Mask, restrict
from iba_core.bottleneck.optimization import BottleneckResult
from iba_tf.eager import eagerly


class Flow(tf.Module):
    """A place that features pass as they are, or restricted to what the last analysis kept.

    Its state is in variables, so that it also governs functions that were compiled before. Where an old
    graph is the default, they belong to it.

    Args:
        dtype: precision of the bottleneck, float32 or float64.
    """

    def __init__(self, dtype: tf.DType = tf.float32) -> None:
        super().__init__()
        self.restricting = tf.Variable(False, trainable=False)
        # Of open shape, since images of another size may be analysed next.
        self.passed, self.blocked, self.mean, self.std = (
            tf.Variable(tf.zeros((), dtype), trainable=False, shape=tf.TensorShape(None)) for _ in range(4)
        )
        self.is_empty = True

    def __call__(self, features: tf.Tensor) -> tf.Tensor:
        """`features`, restricted or not."""
        return tf.cond(self.restricting, lambda: self._restrict(features), lambda: tf.identity(features))

    def _restrict(self, inputs: tf.Tensor) -> tf.Tensor:
        features = tf.cast(inputs, self.passed.dtype)
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
        """All variables: whether features are restricted, mask, its complement, mean and std of the noise."""
        return self.restricting, self.passed, self.blocked, self.mean, self.std

    def keep(self, results: Sequence[BottleneckResult], pass_mask: npt.ArrayLike | None) -> None:
        """Let pass what an analysis has kept.

        Args:
            results: of the images, in the parts in which they were analysed.
            pass_mask: as it was given to the analysis, for all of them.
        """
        problem = results[0].problem
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
        self.passed.assign(tf.where(restricted, passed, passing))
        self.blocked.assign(tf.where(restricted, blocked, zeros))
        self.mean.assign(problem.mean)
        self.std.assign(problem.std)
        self.is_empty = False

    @contextmanager
    def restricted(self) -> Iterator[None]:
        """Context in which features are restricted; it may be nested."""
        with eagerly():
            before = bool(self.restricting)
            self.restricting.assign(True)
        try:
            yield
        finally:
            with eagerly():
                self.restricting.assign(before)
