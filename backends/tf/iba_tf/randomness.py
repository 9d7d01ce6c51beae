"""Moved to `iba_tf.framework`."""

from iba_tf.framework import fresh_key

__all__ = ["fresh_key"]
