"""Python functions as graphs of TensorFlow."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import tensorflow as tf


def traced(function: Callable[..., Any], **options: Any) -> Any:
    """`function` as a `tf.function`, of whose Python code nothing is rewritten.

    Args:
        function: takes and returns nested structures of tensors.
        **options: of `tf.function`.
    """
    # TensorFlow counts traces by code object, and would warn of too many where several objects trace the
    # same method. A partial is counted by itself.
    return tf.function(partial(function), autograph=False, **options)
