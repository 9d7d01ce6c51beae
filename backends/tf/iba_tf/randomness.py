"""Random numbers that nobody has seeded, without anything left behind."""

from __future__ import annotations

import secrets

import tensorflow as tf


def fresh_key() -> tuple[int, int]:
    """Two numbers below 2**31, others with every call, to seed stateless random operations.

    `tf.random.set_seed` governs them as it does TensorFlow's own. They are made without an operation:
    TensorFlow keeps the kernels of eager ones, and after `set_seed` makes a new one for every call.
    """
    seed, of_operation = tf.compat.v1.get_seed(None)
    if seed is None:
        return secrets.randbits(31), secrets.randbits(31)
    return seed % 2**31, of_operation % 2**31
