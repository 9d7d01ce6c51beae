"""The names of `innvestigate.analyzer`: the analyzers by name."""

from __future__ import annotations

from typing import Any

from iba_tf.compat.innvestigate.analyzer.base import AnalyzerBase
from iba_tf.compat.innvestigate.analyzer.bottleneck import InformationBottleneck

__all__ = ["AnalyzerBase", "InformationBottleneck", "analyzers", "create_analyzer"]

analyzers: dict[str, type[InformationBottleneck]] = {"iba": InformationBottleneck}
"""Classes of analyzers by the names that `create_analyzer` takes."""


def create_analyzer(name: str, model: Any, **kwargs: Any) -> InformationBottleneck:
    """Make an analyzer by its name.

    Args:
        name: ``"iba"``.
        model: a Keras model with one output, the logits.
        **kwargs: further arguments of `iba_tf.IBACopyInnvestigate`.

    Raises:
        KeyError: there is no analyzer of the name.
    """
    if name not in analyzers:
        raise KeyError(f"there is no analyzer {name!r} here; there is {', '.join(map(repr, analyzers))}")
    return analyzers[name](model, **kwargs)
