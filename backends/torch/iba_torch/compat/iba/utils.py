"""The names of `IBA.utils`."""

from iba_core import (
    WelfordEstimator,
    get_tqdm,
    ifnone,
    load_monkeys,
    plot_saliency_map,
    to_saliency_map,
    to_unit_interval,
)

__all__ = [
    "WelfordEstimator",
    "get_tqdm",
    "ifnone",
    "load_monkeys",
    "plot_saliency_map",
    "to_saliency_map",
    "to_unit_interval",
]
