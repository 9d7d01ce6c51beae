"""Moved to `iba_tf.framework`."""

from iba_tf.framework import eagerly, runs_eagerly

__all__ = ["eagerly", "runs_eagerly"]
