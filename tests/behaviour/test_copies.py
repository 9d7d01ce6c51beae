"""Copies and pickles of an explainer are independent of it."""

import copy
import pickle

import numpy as np
import pytest

from iba_core import Explainer
from tests.backends import SMALL_LAYER, smooth_images


@pytest.fixture
def explainer(backend):
    explainer = Explainer(backend.small(), SMALL_LAYER, samples=3, steps=3, beta=1.0)
    return explainer.fit([backend.images(smooth_images(12))], progbar=False)


@pytest.fixture
def x(backend):
    return backend.images(smooth_images(2))


def randomize(backend, model):
    generator = np.random.default_rng(7)
    if backend.name == "torch":
        for parameter in model.parameters():
            noise = generator.normal(0, 0.3, tuple(parameter.shape))
            parameter.data.add_(backend.asarray(noise, str(parameter.dtype).removeprefix("torch.")))
    else:
        for weight in model.trainable_weights:
            weight.assign_add(generator.normal(0, 0.3, weight.shape))


def copied(explainer):
    return copy.deepcopy(explainer)


def pickled(explainer):
    return pickle.loads(pickle.dumps(explainer))  # the test's own object


@pytest.mark.parametrize("make", [copied, pickled])
@pytest.mark.parametrize("used", [False, True], ids=["before use", "after use"])
def test_a_copy_explains_its_own_model(backend, explainer, x, make, used):
    expected = explainer.explain(x, 1, seed=0).capacity if used else None
    other = make(explainer)
    assert other.adapter.model is not explainer.adapter.model
    assert other.layer == explainer.layer
    same = other.explain(x, 1, seed=0).capacity
    if used:
        np.testing.assert_allclose(same, expected, rtol=1e-6)
    randomize(backend, other.adapter.model)
    changed = other.explain(x, 1, seed=0).capacity
    assert np.abs(changed - same).max() > 1e-3 * np.abs(same).max()
    np.testing.assert_allclose(explainer.explain(x, 1, seed=0).capacity, same, rtol=1e-6)
