"""The bare tail of the networks in plain Keras and TensorFlow, without this library.

The library's own tail is no independent reference, since it merges batch normalisation into convolutions.
"""

from __future__ import annotations

from time import perf_counter
from typing import Any

import keras
import tensorflow as tf


class PlainKerasTail:
    """Forward and backward passes of a tail over copies of a feature map, with gradients for the copies only.

    Args:
        model: a functional model.
        layer: name of the layer after which the tail begins.
        features: the feature map, (1, *feature map).
    """

    def __init__(self, model: keras.Model, layer: str, features: tf.Tensor) -> None:
        self.tail = keras.Model(model.get_layer(layer).output, model.outputs)
        self._features = features
        self.value_and_grad = tf.function(self._value_and_grad)

    def seconds(self, steps: int, samples: int) -> float:
        """Time `steps` passes of `samples` copies, in seconds."""
        # Copy the features, since an explanation also holds them. An identity would share the memory.
        features = self._features + 0.0
        z = tf.repeat(features, samples, axis=0)
        start = perf_counter()
        last: Any = ()
        for _ in range(steps):
            last = ()  # Free the results of a pass before the next one runs.
            last = self.value_and_grad(z)
        for tensor in last:
            tensor.numpy()
        return perf_counter() - start

    def _value_and_grad(self, z: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(z)
            value = tf.reduce_sum(self.tail(z, training=False))
        return value, tape.gradient(value, z)
