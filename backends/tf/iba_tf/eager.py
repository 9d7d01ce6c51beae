"""Work that runs eagerly wherever the caller stands: within a v1 graph, or with eager execution disabled."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any, TypeVar

import tensorflow as tf
from tensorflow.python.eager import context  # nothing public turns eager execution on for a while

F = TypeVar("F", bound=Callable[..., Any])


@contextmanager
def eagerly() -> Iterator[None]:
    """Context in which operations run at once, and shapes hold plain integers.

    Within a `tf.function` that is being traced it does nothing: that is a graph of ours.
    """
    if tf.executing_eagerly() or tf.inside_function():
        yield
        return
    v1_shapes = type(tf.TensorShape([1])[0]) is not int
    if v1_shapes:
        tf.compat.v1.enable_v2_tensorshape()
    try:
        with context.eager_mode():
            yield
    finally:
        if v1_shapes:
            tf.compat.v1.disable_v2_tensorshape()


def runs_eagerly(function: F) -> F:
    """`function`, run within `eagerly`."""

    @wraps(function)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        with eagerly():
            return function(*args, **kwargs)

    return wrapped  # type: ignore[return-value]  # `wraps` keeps the signature, which the checker cannot see
