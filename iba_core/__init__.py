"""Information-bottleneck attribution and concept analysis, independent of any framework.

Which parts of an input does a trained network need for an output, and how many bits do they carry?
`Explainer` answers this question for a model of any framework with an installed backend. Importing this
package imports neither torch nor tensorflow.
"""

from iba_core.attribution import Attribution, CombinedAttribution
from iba_core.bottleneck.estimator import WelfordEstimator
from iba_core.bottleneck.saliency import to_saliency_map
from iba_core.bottleneck.settings import BottleneckSettings
from iba_core.bottleneck.statistics import Statistics
from iba_core.errors import (
    IBAError,
    InputError,
    LayerError,
    MissingDependencyError,
    NotEstimatedError,
    OptimizationError,
    StateError,
)
from iba_core.explainer import Explainer
from iba_core.framework.inputs import Shared
from iba_core.framework.layout import Tokens
from iba_core.pictures.images import load_image, load_monkeys, sample_crops, sample_image, to_unit_interval
from iba_core.pictures.plotting import plot_saliency_map, plot_signal_map, plot_volume_map, plot_words
from iba_core.repeats import Repeats, SurvivalCurve, combine_maps, compare
from iba_core.targets import (
    ClassTarget,
    DistributionTarget,
    LogitTarget,
    RegressionTarget,
    ScoreTarget,
    SegmentationTarget,
    SumTarget,
    Target,
)
from iba_core.utils import get_tqdm, ifnone
from iba_core.version import VERSION

__version__ = VERSION

__all__ = [
    "Attribution",
    "BottleneckSettings",
    "ClassTarget",
    "CombinedAttribution",
    "DistributionTarget",
    "Explainer",
    "IBAError",
    "InputError",
    "LayerError",
    "LogitTarget",
    "MissingDependencyError",
    "NotEstimatedError",
    "OptimizationError",
    "RegressionTarget",
    "Repeats",
    "ScoreTarget",
    "SegmentationTarget",
    "Shared",
    "StateError",
    "Statistics",
    "SumTarget",
    "SurvivalCurve",
    "Target",
    "Tokens",
    "WelfordEstimator",
    "combine_maps",
    "compare",
    "get_tqdm",
    "ifnone",
    "load_image",
    "load_monkeys",
    "plot_saliency_map",
    "plot_signal_map",
    "plot_volume_map",
    "plot_words",
    "sample_crops",
    "sample_image",
    "to_saliency_map",
    "to_unit_interval",
]
