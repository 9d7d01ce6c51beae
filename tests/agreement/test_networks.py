"""The tests' own networks are the same in both frameworks; other tests rely on it."""

import numpy as np
import pytest

from iba_core import Explainer
from tests.backends import Activation, AveragePool, Conv, Dense, Dropout, Flatten, Norm

LAYERS = [
    Conv("first", 6),
    Norm("norm"),
    Activation("relu"),
    Conv("second", 8, strides=2),
    Conv("third", 7, 3, 2, "valid", bias=False),
    Activation("tanh", "tanh"),
    Dropout("dropout"),
]
ENDS = {
    "flatten": [Flatten(), Dense("hidden", 4), Dense("logits", 5)],
    "global pool": [AveragePool("pool"), Dense("logits", 5)],
    "kept pool": [AveragePool("pool", keepdims=True)],
    "windows": [AveragePool("pool", 2), Conv("pixels", 3, 1)],
}


@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("shape", [(11, 12, 3), (14, 9, 2)])
def test_both_frameworks_build_one_network(both, shape, end):
    x = np.random.default_rng(0).normal(size=(3, *shape))
    layers = [*LAYERS, *ENDS[end]]
    outputs = [
        Explainer(backend.network(shape, layers, dtype="float64"), layer="second").predict(backend.images(x))
        for backend in both
    ]
    if outputs[0].ndim == 4:
        outputs = [backend.channels_last(y) for backend, y in zip(both, outputs, strict=True)]
    np.testing.assert_allclose(*outputs, rtol=1e-10, atol=1e-12)
    assert outputs[0].std() > 0.01


def test_a_network_of_rows(both):
    x = np.random.default_rng(0).normal(size=(3, 4))
    layers = [Dense("hidden", 6), Activation("relu"), Dense("logits", 3)]
    outputs = [
        Explainer(backend.network((4,), layers, dtype="float64"), layer="relu").predict(x) for backend in both
    ]
    np.testing.assert_allclose(*outputs, rtol=1e-10)
