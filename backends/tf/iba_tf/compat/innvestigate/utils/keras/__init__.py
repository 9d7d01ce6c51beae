"""The names of `innvestigate.utils.keras`."""

from iba_tf.compat.innvestigate.utils.keras import graph

__all__ = ["graph"]
