"""Moved to `iba_tf.framework`."""

from iba_tf.framework import traced

__all__ = ["traced"]
