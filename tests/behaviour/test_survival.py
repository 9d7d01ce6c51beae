"""Survival: how much of the target is left when only the bits of the map pass."""

import warnings

import numpy as np
import pytest

from iba_core import Attribution, DistributionTarget, LogitTarget
from iba_core.targets import class_probabilities
from tests.backends import fitted, smooth_images


def test_survival_of_a_class_is_the_share_of_its_probability(backend):
    explainer, x = fitted(backend, beta=0.5), backend.images(smooth_images(3))
    found = explainer.explain(x, seed=0, samples=6)
    restricted = explainer.predict_restricted(x, found, samples=6, seed=0)
    for i, index in enumerate(found.classes):
        shares = class_probabilities(restricted[i])[:, index] / found.probabilities[i, index]
        np.testing.assert_allclose(found.survival[i], shares.mean(), rtol=1e-5)
        np.testing.assert_allclose(found.survival_std[i], shares.std(), rtol=1e-4)


@pytest.mark.parametrize("max_batch", [None, 4])
def test_survival_of_a_score_counts_from_the_score_when_nothing_passes(backend, max_batch):
    explainer, x = fitted(backend, beta=0.01), backend.images(smooth_images(2))
    found = explainer.explain(x, LogitTarget(), seed=0, samples=10, max_batch=max_batch)
    whole = found.outputs.max(axis=1)
    index = found.classes
    restricted = explainer.predict_restricted(x, found, samples=5, seed=0)
    closed = Attribution(**{**vars(found), "mask": np.zeros_like(found.mask)})
    nothing = explainer.predict_restricted(x, closed, samples=5, seed=0)
    for i in range(2):
        baseline = nothing[i, :, index[i]].mean()
        shares = (restricted[i, :, index[i]] - baseline) / (whole[i] - baseline)
        np.testing.assert_allclose(found.survival[i], shares.mean(), rtol=1e-3)


def test_everything_survives_where_everything_passes(backend):
    explainer, x = fitted(backend, beta=0.0), backend.images(smooth_images(2))
    for target in (None, LogitTarget(), DistributionTarget()):
        found = explainer.explain(x, target, seed=0, steps=1, learning_rate=0.0, initial_alpha=20.0)
        np.testing.assert_allclose(found.survival, 1.0, atol=1e-3)
        assert "survival 1.00 ± 0.00" in repr(found)


def test_a_lost_target_gives_a_warning(backend):
    explainer, x = fitted(backend), backend.images(smooth_images(2))
    classes = explainer.predict(x).argmin(axis=1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        explainer.explain(x, classes, seed=0, beta=0.0)
    with pytest.warns(UserWarning, match="do not explain their target") as caught:
        found = explainer.explain(x, LogitTarget(), seed=0, beta=1e4)
    assert caught[0].filename == __file__
    assert found.survival.min() < 0.5


def test_survival_does_not_depend_on_the_other_images(backend):
    explainer, images = fitted(backend), smooth_images(3)
    together = explainer.explain(backend.images(images), seed=0)
    alone = explainer.explain(backend.images(images[1:2]), seed=0)
    np.testing.assert_allclose(together.survival[1], alone.survival[0], rtol=1e-5)


def test_files_keep_survival_and_older_ones_have_none(backend, tmp_path):
    found = fitted(backend).explain(backend.images(smooth_images(2)), seed=0)
    found.save(tmp_path / "new.safetensors")
    loaded = Attribution.load(tmp_path / "new.safetensors")
    np.testing.assert_array_equal(loaded.survival, found.survival)
    np.testing.assert_array_equal(loaded.survival_std, found.survival_std)
    older = Attribution(**{**vars(found), "survival": None, "survival_std": None})
    older.save(tmp_path / "old.safetensors")
    loaded = Attribution.load(tmp_path / "old.safetensors")
    assert loaded.survival is None
    assert "survival" not in repr(loaded)


@pytest.mark.parametrize("target", [None, LogitTarget()], ids=["class", "score"])
def test_an_automatic_beta_keeps_each_target(backend, target):
    explainer, x = fitted(backend, steps=20, learning_rate=0.5), backend.images(smooth_images(3))
    fixed = explainer.explain(x, target, seed=0, beta=300.0)
    assert fixed.survival.min() < 0.8
    np.testing.assert_array_equal(fixed.betas, 300.0)
    found = explainer.explain(x, target, seed=0, beta=300.0, keep=0.9)
    assert found.survival.min() > 0.85
    assert len(set(found.betas)) > 1
    alone = explainer.explain(x[1:2], target, seed=0, beta=300.0, keep=0.9)
    np.testing.assert_allclose(alone.betas[0], found.betas[1], rtol=1e-6)


def test_an_automatic_beta_is_a_share_to_keep(backend):
    explainer, x = fitted(backend, beta=10.0), backend.images(smooth_images(2))
    expected = explainer.explain(x, seed=0, keep=0.9)
    found = explainer.explain(x, seed=0, beta="auto")
    assert found.settings == expected.settings
    np.testing.assert_array_equal(found.capacity, expected.capacity)
    assert fitted(backend, beta="auto").explain(x, seed=0, beta=3.0).settings.keep is None


def test_less_to_keep_means_fewer_bits(backend):
    explainer, x = fitted(backend, steps=20, learning_rate=0.5), backend.images(smooth_images(3))
    bits = [explainer.explain(x, seed=0, keep=keep).total_bits.sum() for keep in (0.6, 0.98)]
    assert bits[0] < bits[1]


def test_steps_after_which_the_loss_jumps_are_taken_back(backend):
    explainer, x = fitted(backend, learning_rate=2.0), backend.images(smooth_images(3))
    free = explainer.explain(x, seed=0)
    guarded = explainer.explain(x, seed=0, max_rise=0.2)
    jumps = [np.diff(each.model_losses, axis=0).max() for each in (free, guarded)]
    assert jumps[0] > 0.2
    assert guarded.model_losses[-1].max() < free.model_losses[-1].max()
    unmoved = explainer.explain(x, seed=0, max_rise=1e6)
    np.testing.assert_allclose(unmoved.capacity, free.capacity, rtol=1e-12)


def test_the_last_step_is_taken_back_too(backend):
    explainer, x = fitted(backend, steps=1), backend.images(smooth_images(3))
    free = explainer.explain(x, seed=0, learning_rate=10.0)
    guarded = explainer.explain(x, seed=0, learning_rate=10.0, max_rise=0.1)
    start = explainer.explain(x, seed=0, learning_rate=0.0)
    rose = -np.log(free.survival) > 0.1 - np.log(start.survival) + 0.1  # well above what the noise decides
    assert rose.any()
    np.testing.assert_allclose(guarded.capacity[rose], start.capacity[rose], rtol=1e-6)
    np.testing.assert_allclose(guarded.survival[rose], start.survival[rose], rtol=1e-5)
