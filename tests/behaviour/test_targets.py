"""Targets that do not fit the model are refused in one sentence, before the first step."""

import numpy as np
import pytest

from iba_core import InputError, LogitTarget, RegressionTarget, SegmentationTarget, SumTarget
from iba_core.concepts import SimilarityToConceptTarget
from tests.backends import CLASSES, SIZE, fitted, smooth_images

REGION = np.arange(SIZE * SIZE).reshape(SIZE, SIZE) % 3 == 0


@pytest.mark.parametrize(
    ("target", "message"),
    [
        (LogitTarget(CLASSES), f"target={CLASSES} is outside the model's {CLASSES} classes"),
        (RegressionTarget(np.zeros(3)), r"values have shape \(3,\)"),
        (SimilarityToConceptTarget(np.ones(3)), r"features have shape \(3,\)"),
        (SegmentationTarget(0, REGION), "a segmentation was expected"),
        (SumTarget((0, LogitTarget([0, 1, 2]))), r"shape \(3,\) for 2 images"),
    ],
    ids=["logit", "values", "similarity", "segmentation", "sum"],
)
def test_targets_that_do_not_fit_are_told_before_the_first_step(backend, target, message):
    explainer = fitted(backend)
    with pytest.raises(InputError, match=message):
        explainer.explain(backend.images(smooth_images(2)), target)
