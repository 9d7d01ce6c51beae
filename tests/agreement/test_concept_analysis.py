"""Both frameworks learn the same concept."""

import numpy as np
import pytest

from iba_core.concepts import ConceptAnalysis
from tests.squares import QUICK, make_concept, make_model


def test_the_frameworks_learn_the_same_concept(both):
    results = [
        ConceptAnalysis(
            make_concept(backend),
            make_model(backend),
            ["2", "3"],
            kernel_size=(2, 2),
            ensemble_count=2,
            use_laplace=True,
            **QUICK,
        ).run()
        for backend in both
    ]
    for ours, theirs in zip(results[0].layers, results[1].layers, strict=True):
        assert ours.iou == pytest.approx(theirs.iou, abs=1e-3)
        assert ours.validation_iou == pytest.approx(theirs.validation_iou, abs=1e-3)
        assert ours.random_iou == pytest.approx(theirs.random_iou, abs=1e-3)
        for a, b in zip(ours.embeddings, theirs.embeddings, strict=True):
            assert a.cosine(b) > 0.9999
            assert a.unique().bias == pytest.approx(b.unique().bias, rel=1e-3)
        covariances = [np.einsum("eki,ekj->eij", r.factors, r.factors) for r in (ours, theirs)]
        np.testing.assert_allclose(*covariances, rtol=0.02, atol=1e-3 * np.abs(covariances[0]).max())
    assert results[0].constant_iou == results[1].constant_iou
