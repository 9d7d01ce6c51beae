"""One seed, one map: the same network, explained in both frameworks."""

import numpy as np
import pytest

from iba_core import Explainer, InputError
from tests.backends import SIDE, SMALL_LAYER, both_backends, fitted, smooth_images


def explain_in_both(dtype, x, target, **options):
    """Attributions of the same images by both frameworks."""
    return [
        fitted(backend, dtype).explain(backend.images(x).astype(dtype), target, **options)
        for backend in both_backends()
    ]


def test_the_two_networks_are_one(both):
    outputs = [fitted(backend).predict(backend.images(smooth_images(3))) for backend in both]
    np.testing.assert_allclose(outputs[0], outputs[1], rtol=1e-12)
    assert len(set(outputs[0].argmax(axis=1))) > 1


@pytest.mark.parametrize("target", [None, 2, [0, 1, 4]], ids=["predicted", "one", "each"])
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"beta": 0.1, "steps": 25, "smooth_std": 0},
        {"preset": "fast"},
        {"steps": 60, "tolerance": 0.03, "samples": 3, "antithetic": True},
    ],
    ids=["default", "own", "fast", "until converged"],
)
def test_one_seed_one_capacity_in_double_precision(target, settings):
    ours, theirs = explain_in_both("float64", smooth_images(3), target, seed=5, **settings)
    a, b = ours.capacity_channels_first(), theirs.capacity_channels_first()
    assert a.dtype == b.dtype == np.float64
    assert a.shape == (3, 8, SIDE, SIDE)
    np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6 * a.max())
    np.testing.assert_allclose(ours.saliency, theirs.saliency, rtol=1e-6)
    np.testing.assert_allclose(ours.model_losses, theirs.model_losses, rtol=1e-6)
    np.testing.assert_array_equal(ours.classes, theirs.classes)
    np.testing.assert_array_equal(ours.steps_taken, theirs.steps_taken)
    if "tolerance" in settings:
        assert (ours.steps_taken < 60).all()


def test_one_seed_one_map_in_single_precision():
    ours, theirs = explain_in_both("float32", smooth_images(3), None, seed=5)
    assert ours.capacity.dtype == theirs.capacity.dtype == np.float32
    for a, b in zip(ours.capacity_channels_first(), theirs.capacity_channels_first(), strict=True):
        assert np.corrcoef(a.ravel(), b.ravel())[0, 1] >= 0.9999
    np.testing.assert_allclose(ours.total_bits, theirs.total_bits, rtol=1e-3)


def test_a_callable_target_means_the_same_in_both():
    def score(outputs):
        return outputs[:, 1] - outputs[:, 3]

    ours, theirs = explain_in_both("float64", smooth_images(2), score, seed=1)
    assert ours.classes is None
    assert theirs.classes is None
    a, b = ours.capacity_channels_first(), theirs.capacity_channels_first()
    np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6 * a.max())
    # With the bottleneck wide open, the loss is minus the score of the image itself.
    for wide_open in explain_in_both("float64", smooth_images(2), score, seed=1, initial_alpha=40.0, steps=1):
        np.testing.assert_allclose(wide_open.model_losses[0], -score(wide_open.outputs), rtol=1e-9)


def test_statistics_move_between_the_frameworks(both, tmp_path):
    x = smooth_images(1)
    for here, backend in (both, both[::-1]):
        path = tmp_path / f"{here}.safetensors"
        fitted(here).save(path)
        loaded = Explainer(backend.small(), beta=1.0).load(path)
        assert loaded.layer == SMALL_LAYER
        assert loaded.estimator.n_samples() == 40
        expected = fitted(backend).explain(backend.images(x), seed=0).capacity
        np.testing.assert_allclose(loaded.explain(backend.images(x), seed=0).capacity, expected, rtol=1e-9)
        with pytest.raises(InputError, match="channels must come"):
            loaded.explain(here.images(x))
