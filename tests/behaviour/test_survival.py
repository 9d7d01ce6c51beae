"""Survival: how much of the target is left when only the bits of the map pass."""

import warnings

import numpy as np
import pytest

from iba_core import Attribution, DistributionTarget, Explainer, LogitTarget
from iba_core.bottleneck.settings import KEEP
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
    explainer, x = fitted(backend, beta=20.0), backend.images(smooth_images(2))
    expected = explainer.explain(x, seed=0, keep=0.95)
    found = explainer.explain(x, seed=0, beta="auto")
    assert found.settings == expected.settings
    np.testing.assert_array_equal(found.capacity, expected.capacity)
    assert fitted(backend, beta="auto").explain(x, seed=0, beta=3.0).settings.keep is None


def test_a_share_that_cannot_be_kept_gives_a_warning(backend):
    explainer, x = fitted(backend), backend.images(smooth_images(2))
    closed = {"initial_alpha": -20.0, "steps": 1, "learning_rate": 0.0}
    with pytest.warns(UserWarning, match=r"do not keep 95 % of their target.*image [01] pass"):
        found = explainer.explain(x, LogitTarget(), seed=0, keep=0.95, **closed)
    assert found.survival.min() < 0.95
    passed = found.mask[found.survival < 0.95]
    offsets = np.log(passed / (1 - passed)) + 20.0
    # Four strides of 1 to 3, the same for all places of an image.
    np.testing.assert_allclose(offsets, np.broadcast_to(offsets[:, :1, :1, :1], offsets.shape), atol=0.01)
    assert (offsets > 3.99).all()
    assert (offsets < 12.01).all()


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


def recordings(count, seed, length=2048):
    """Noise, and in two of three recordings a tone that falls or rises; labels, and where the tones are."""
    generator = np.random.default_rng(seed)
    labels, size = np.arange(count) % 3, length // 4
    starts, time = generator.integers(length - size, size=count), np.arange(size) / size
    waves = generator.standard_normal((count, length))
    for wave, label, start in zip(waves, labels, starts, strict=True):
        pitch = 40 + 60 * (time if label == 2 else 1 - time)
        tone = 3 * np.sin(2 * np.pi * np.cumsum(pitch) / size) * np.hanning(size)
        wave[start : start + size] += tone * (label > 0)
    inside = (np.arange(length) >= starts[:, None]) & (np.arange(length) < starts[:, None] + size)
    return waves.astype(np.float32)[:, None], labels, inside


@pytest.fixture(scope="module")
def hearing():
    """A network that knows the three kinds of recordings, trained in seconds."""
    import torch
    from torch import nn

    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(
            nn.Conv1d(1, 16, 16, stride=4, padding=6), nn.ReLU(),
            nn.Conv1d(16, 16, 8, stride=4, padding=2), nn.ReLU(),
            nn.Conv1d(16, 16, 8, stride=2, padding=3), nn.ReLU(),
            nn.AdaptiveMaxPool1d(1), nn.Flatten(), nn.Linear(16, 3),
        )  # fmt: skip
        optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
        for step in range(80):
            waves, labels, _ = recordings(48, seed=step)
            loss = nn.functional.cross_entropy(model(torch.from_numpy(waves)), torch.from_numpy(labels))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return model.eval()


def in_keras(model):
    """The network of `hearing` in Keras, which has the channels last."""
    import keras

    of, layers = keras.layers, [keras.Input((2048, 1))]
    convolutions, dense = [model[i] for i in (0, 2, 4)], model[-1]
    for each in convolutions:
        layers.append(of.ZeroPadding1D(each.padding[0]))
        layers.append(of.Conv1D(16, each.kernel_size[0], each.stride[0], activation="relu"))
    found = keras.Sequential([*layers, of.GlobalMaxPooling1D(), of.Dense(3)])
    weights = [(each.weight.permute(2, 1, 0), each.bias) for each in convolutions]
    weights.append((dense.weight.T, dense.bias))
    found.set_weights([x.detach().numpy() for pair in weights for x in pair])
    return found


def test_an_automatic_beta_finds_a_tone_in_noise(backend, hearing):
    """Where a network is sure until all is lost, beta has no value that fits each recording."""
    is_torch = backend.name == "torch"
    model = hearing if is_torch else in_keras(hearing)
    others, (x, labels, inside) = recordings(64, seed=100)[0], recordings(18, seed=101)
    if not is_torch:
        others, x = others.swapaxes(1, 2), x.swapaxes(1, 2)
    tones = labels > 0
    explainer = Explainer(model).fit([others], progbar=False)
    assert (explainer.predict(x).argmax(axis=1) == labels).all()
    x, inside = x[tones], inside[tones]
    found = explainer.explain(x, seed=0, beta="auto")
    assert found.survival.min() >= KEEP
    saliency = found.saliency.reshape(inside.shape)
    shares = (saliency * inside).sum(axis=1) / saliency.sum(axis=1)
    assert np.median(shares) > 0.9
    fixed = [explainer.explain(x, seed=0, beta=beta) for beta in (1, 3, 10)]
    kept = np.min([np.where(each.survival >= KEEP, each.total_bits, np.inf) for each in fixed], axis=0)
    assert (found.total_bits < 1.5 * kept).mean() > 0.9


def test_the_last_step_is_taken_back_too(backend):
    explainer, x = fitted(backend, steps=1), backend.images(smooth_images(3))
    free = explainer.explain(x, seed=0, learning_rate=10.0)
    guarded = explainer.explain(x, seed=0, learning_rate=10.0, max_rise=0.1)
    start = explainer.explain(x, seed=0, learning_rate=0.0)
    rose = -np.log(free.survival) > 0.1 - np.log(start.survival) + 0.1  # well above what the noise decides
    assert rose.any()
    np.testing.assert_allclose(guarded.capacity[rose], start.capacity[rose], rtol=1e-6)
    np.testing.assert_allclose(guarded.survival[rose], start.survival[rose], rtol=1e-5)
