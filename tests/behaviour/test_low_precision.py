"""Outputs of half precision: every loss of the core is computed in float32."""

import numpy as np
import pytest

from iba_core import (
    ClassTarget,
    Explainer,
    LogitTarget,
    RegressionTarget,
    SegmentationTarget,
    SumTarget,
    Target,
)
from iba_core.concepts.targets import SimilarityToConceptTarget
from tests.backends import Activation, Dense

GENERATOR = np.random.default_rng(0)
LOGITS = GENERATOR.normal(size=(3, 1000)) * 3
PICTURE = GENERATOR.normal(size=(2, 4, 4, 5))
REFERENCE = GENERATOR.normal(size=1000)

TARGETS = {
    "class": (ClassTarget([1, 7, 0]), LOGITS),
    "probabilities": (ClassTarget([1, 7, 0]), np.exp(LOGITS) / np.exp(LOGITS).sum(axis=1, keepdims=True)),
    "logit": (LogitTarget(4), LOGITS),
    "regression": (RegressionTarget(REFERENCE), LOGITS),
    "segmentation": (SegmentationTarget(2, np.eye(4), "channels_last"), PICTURE),
    "similarity": (SimilarityToConceptTarget(REFERENCE), LOGITS),
    "sum": (SumTarget((0, SimilarityToConceptTarget(REFERENCE)), (0.3, 2.0)), LOGITS),
}


@pytest.mark.parametrize("name", TARGETS)
def test_losses_are_as_exact_as_of_float32(framework, name):
    target, values = TARGETS[name]
    half = values.astype(np.float16)
    loss, rows = target.resolve(half.astype(np.float64))
    expected = loss(half.astype(np.float64), *rows)
    found = loss(
        framework.asarray(half),
        *(framework.asarray(row, None if row.dtype.kind == "i" else np.float32) for row in rows),
    )
    assert framework.to_numpy(found).dtype == np.float32
    np.testing.assert_allclose(framework.to_numpy(found), expected, rtol=1e-5)


def test_float64_stays(framework):
    for target, values in TARGETS.values():
        loss, rows = target.resolve(values)
        found = loss(framework.asarray(values), *map(framework.asarray, rows))
        assert framework.to_numpy(found).dtype == np.float64


class NotingTarget(Target):
    """A regression that notes what its loss is given."""

    def __init__(self):
        self.dtypes = set()

    def resolve(self, outputs):
        loss, rows = RegressionTarget(np.full(3, 1.0001)).resolve(outputs)
        self.values = rows[0]

        def noting(outputs, values):
            self.dtypes.add(str(values.dtype).rpartition(".")[2].strip("<>' "))
            return loss(outputs, values)

        return noting, rows


def test_targets_are_not_rounded_to_the_precision_of_the_model(backend):
    dtype = {"torch": "bfloat16", "tensorflow": "float16"}[backend.name]
    layers = [Dense("hidden", 6), Activation("relu"), Dense("logits", 3)]
    model = backend.network((4,), layers, dtype=dtype)
    data = np.random.default_rng(0).normal(size=(20, 4)).astype(np.float32)
    target = NotingTarget()
    explainer = Explainer(model, layer="relu", steps=2, samples=2).fit([data], progbar=False)
    attribution = explainer.explain(data[:2], target, seed=0)
    assert attribution.outputs.dtype == np.float32
    assert (target.values == np.float32(1.0001)).all()
    assert len(target.dtypes) == 1
    assert "float32" in target.dtypes.pop()
    assert np.isfinite(attribution.capacity).all()
