"""The names of `innvestigate.backend`."""

from iba_tf.compat.innvestigate.backend import graph

__all__ = ["graph"]
