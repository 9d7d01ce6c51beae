"""Code written for the published IBA gives the same here in TensorFlow, with another import line."""

from __future__ import annotations

from pathlib import Path

import keras
import numpy as np
import pytest

import iba_tf
from iba_core import Explainer
from tests.compat import iba_tf_scenes
from tests.compat.iba_tf_scenes import COPIES, images, network

# Made by iba_tf_scenes.py, which tells how.
RECORD = Path(__file__).parents[1] / "data" / "iba_tf_scenes.npz"
MAPS = ("map", "analyzer.index", "analyzer.max_activation")


def recorded() -> dict[str, np.ndarray]:
    with np.load(RECORD, allow_pickle=False) as file:
        return dict(file)


EXPECTED = recorded()
DIFFERENT = (*MAPS, "report.init.feature_std", "report.final.capacity")


@pytest.fixture(scope="module")
def found():
    return iba_tf_scenes.scenes("iba_tf.compat.iba", keras)


def test_as_published(found):
    for name, expected in EXPECTED.items():
        if name in DIFFERENT:
            continue
        assert found[name].shape == expected.shape, name
        if expected.dtype.kind == "U":
            np.testing.assert_array_equal(found[name], expected, err_msg=name)
        else:
            largest = np.abs(expected.astype(float)).max()
            np.testing.assert_allclose(found[name], expected, rtol=3e-4, atol=1e-4 * largest, err_msg=name)


def test_what_a_report_says_of_the_distribution(found):
    # What is used: the published report has the estimate.
    floored = np.maximum(EXPECTED["report.init.feature_std"], 0.01)
    np.testing.assert_allclose(found["report.init.feature_std"], floored, rtol=1e-5)


@pytest.mark.parametrize("name", MAPS)
def test_maps_differ_in_their_sum_and_at_the_edge(found, name):
    inside = np.s_[2:-2, 2:-2]
    ratio = found[name][inside] / EXPECTED[name][inside]
    np.testing.assert_allclose(ratio, ratio.mean(), rtol=1e-3)
    assert ratio.mean() == pytest.approx(1, abs=0.05)


def test_the_library_s_own_classes_give_the_same():
    model, options = network(keras), {"smooth_std": 0, "seed": 0, "beta": 10 / COPIES}
    batches = np.split(images(24, seed=2), 3)
    explainer = Explainer(model, layer="relu").fit(batches, progbar=False)
    attribution = explainer.explain(images(1), target=4, steps=4, **options)
    copy = iba_tf.IBACopy(model.get_layer("relu").output, [model.output])
    copy.fit({model.input: np.concatenate(batches)})
    target = copy.set_classification_loss()
    nats = copy.analyze({model.input: images(1)}, {target: np.array([4])}, steps=4, **options)
    for each in (attribution.capacity[0], nats):
        np.testing.assert_allclose(each, EXPECTED["copy.default"], rtol=3e-4, atol=1e-3)
