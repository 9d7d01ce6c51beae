"""Is the map right? Metrics of attribution maps of any origin, for models of any framework."""

from iba_core.evaluation.comparison import compare_models
from iba_core.evaluation.faithfulness import (
    degradation,
    deletion,
    infidelity,
    insertion,
    perturbation_curve,
    perturbation_pairs,
    road,
    road_hits,
    sensitivity_n,
)
from iba_core.evaluation.intervals import Estimate, bootstrap, paired
from iba_core.evaluation.localisation import (
    boxes_to_masks,
    grid_pointing_game,
    mass_in_box,
    pointing_game,
)
from iba_core.evaluation.loop import evaluate
from iba_core.evaluation.methods import (
    ConstantMask,
    Gradients,
    IntegratedGradients,
    Occlusion,
    RandomMaps,
    SmoothGrad,
)
from iba_core.evaluation.metrics import Case, Metric
from iba_core.evaluation.model_comparison import (
    LayerDifference,
    MapDifference,
    ModelComparison,
    OutputDifference,
)
from iba_core.evaluation.randomization import RandomizationResult, randomization_check
from iba_core.evaluation.robustness import max_sensitivity, seed_stability, survival
from iba_core.evaluation.scoring import ScoredModel
from iba_core.evaluation.similarity import agreement, sparseness
from iba_core.evaluation.table import Evaluation

__all__ = [
    "Case",
    "ConstantMask",
    "Estimate",
    "Evaluation",
    "Gradients",
    "IntegratedGradients",
    "LayerDifference",
    "MapDifference",
    "Metric",
    "ModelComparison",
    "Occlusion",
    "OutputDifference",
    "RandomMaps",
    "RandomizationResult",
    "ScoredModel",
    "SmoothGrad",
    "agreement",
    "bootstrap",
    "boxes_to_masks",
    "compare_models",
    "degradation",
    "deletion",
    "evaluate",
    "grid_pointing_game",
    "infidelity",
    "insertion",
    "mass_in_box",
    "max_sensitivity",
    "paired",
    "perturbation_curve",
    "perturbation_pairs",
    "pointing_game",
    "randomization_check",
    "road",
    "road_hits",
    "seed_stability",
    "sensitivity_n",
    "sparseness",
    "survival",
]
