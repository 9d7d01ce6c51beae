"""Several explanations of the same inputs: seeds, betas, layers."""

import numpy as np
import pytest

from iba_core import Explainer, InputError, combine_maps
from tests.backends import SMALL_LAYER, fitted, smooth_images


def test_seeds_give_mean_and_spread(backend):
    explainer, x = fitted(backend, steps=3, samples=2), backend.images(smooth_images(2))
    found = explainer.explain_seeds(x, 1, seeds=3, seed=5)
    single = [explainer.explain(x, 1, seed=seed) for seed in (5, 6, 7)]
    np.testing.assert_allclose(found.saliency, np.mean([each.saliency for each in single], axis=0))
    bits = np.array([each.total_bits for each in single])
    np.testing.assert_allclose(found.total_bits_std, bits.std(axis=0, ddof=1))
    assert f"{bits[:, 0].mean():,.0f} +- {bits[:, 0].std(ddof=1):,.0f} bits" in repr(found)
    assert (found.sure(0.0) == found.saliency).all()
    assert not found.sure(1e9).any()
    some = found.sure(2.0) > 0
    assert (found.saliency[some] > 2 * found.saliency_std[some] / np.sqrt(3)).all()
    found.plot(index=1)


def test_more_beta_leaves_fewer_bits_and_less_of_the_target(backend):
    explainer, x = fitted(backend, steps=20, samples=4), backend.images(smooth_images(2))
    curve = explainer.survival_curve(x, betas=(300.0, 0.1, 10.0), seed=0)
    np.testing.assert_array_equal(curve.betas, [0.1, 10.0, 300.0])
    assert (np.diff(curve.bits, axis=0) < 0).all()
    assert (curve.survival[0] > curve.survival[-1]).all()
    alone = explainer.explain(x, beta=10.0, seed=0)
    np.testing.assert_allclose(curve.survival[1], alone.survival)
    with pytest.raises(InputError, match="keep= is no argument of survival_curve"):
        explainer.survival_curve(x, keep=0.9)


def test_maps_of_layers_are_combined_as_shares(backend):
    model, x = backend.small(), backend.images(smooth_images(2))
    first = Explainer(model, SMALL_LAYER, steps=3, samples=2)
    first.fit([backend.images(smooth_images(12))], progbar=False)
    a, b = (first.explain(x, 1, seed=seed) for seed in (0, 1))
    shares = [each.saliency / each.saliency.sum(axis=(1, 2), keepdims=True) for each in (a, b)]
    np.testing.assert_allclose(combine_maps([a, b]), np.mean(shares, axis=0), rtol=1e-6)
    expected = np.sqrt(shares[0] * shares[1])
    expected /= expected.sum(axis=(1, 2), keepdims=True)
    np.testing.assert_allclose(combine_maps([a, b], "geometric"), expected, rtol=1e-5)
    with pytest.raises(InputError, match="the same images"):
        combine_maps([a, first.explain(x[:1], 1)])
