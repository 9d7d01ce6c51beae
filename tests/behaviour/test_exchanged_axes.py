"""Models that exchange or reverse rows and columns: maps lie over the input as it was given."""

from __future__ import annotations

import numpy as np
import pytest

from iba_core import Explainer
from iba_core.concepts import ConceptEmbedding, GradCAM, HiResCAM, ScoreCAM, locate
from tests.backends import Activation, AveragePool, Conv, Counter, Dense, Norm, Turn

SETTINGS = {"beta": 1.0, "steps": 3, "samples": 2, "smooth_std": 0.7}

TURNS = [Turn(), Turn(exchange=False, reverse=True), Turn(reverse=True)]

LAYERS = (
    Conv("first", 6),
    Norm("norm"),
    Activation("act"),
    Conv("second", 5, strides=2, padding="valid"),
    Activation("act2"),
    AveragePool("pooled"),
    Dense("logits", 4),
)


def drawn(shape, images=4, seed=0):
    return np.random.default_rng(seed).normal(size=(images, *shape, 3))


def explained(backend, model, x, layer="second"):
    explainer = Explainer(model, layer, **SETTINGS)
    explainer.fit([backend.images(x)], progbar=False)
    return explainer.explain(backend.images(x[:2]), [0, 3], seed=0)


class Pair:
    """A model that turns images first, and the same one for images that are turned already."""

    def __init__(self, backend, turn, shape, counting=()):
        self.turn, self.x = turn, drawn(shape)
        straight = turn.of(self.x).shape[1:]
        self.turning = backend.network((*shape, 3), (*counting, turn, *LAYERS), dtype="float64")
        self.plain = backend.network(straight, (*counting, *LAYERS), dtype="float64")
        self.args = backend.images(self.x), backend.images(np.ascontiguousarray(turn.of(self.x)))

    def both(self, use):
        """What a use gives of the model that turns, and of the other one, turned back."""
        found, other = (use(m, x) for m, x in zip((self.turning, self.plain), self.args, strict=True))
        return found, self.turn.back(other)


@pytest.fixture(params=[(11, 16), (12, 12)], ids=["oblong", "square"])
def shape(request):
    return request.param


@pytest.mark.parametrize("turn", TURNS, ids=["exchanged", "reversed", "both"])
def test_saliency_lies_over_the_input(backend, turn, shape):
    pair = Pair(backend, turn, shape)

    def use(model, x):
        explainer = Explainer(model, "second", **SETTINGS).fit([x], progbar=False)
        return explainer.explain(x[:2], [0, 3], seed=0).saliency

    found, right = pair.both(use)
    assert found.shape == (2, *shape)
    np.testing.assert_allclose(found, right, rtol=1e-6, atol=1e-9)
    assert not np.allclose(found, turn.of(right)[:, : shape[0], : shape[1]] if shape[0] == shape[1] else 0)


def test_capacity_keeps_the_axes_of_the_layer(backend):
    pair = Pair(backend, Turn(), (11, 16))
    found, right = (
        explained(backend, m, x) for m, x in ((pair.turning, pair.x), (pair.plain, pair.turn.of(pair.x)))
    )
    np.testing.assert_allclose(found.capacity, right.capacity, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("turn", TURNS[:2], ids=["exchanged", "reversed"])
def test_activation_maps_and_concepts_lie_over_the_input(backend, turn, shape):
    pair = Pair(backend, turn, shape)
    for kind in (GradCAM, HiResCAM, ScoreCAM):
        found, right = pair.both(lambda model, x, kind=kind: kind(model, ["second"])(x[:2], targets=[0, 3]))
        assert found.shape == (2, *shape)
        np.testing.assert_allclose(found, right, atol=1e-5)
    concept = ConceptEmbedding(np.random.default_rng(1).normal(size=5), bias=0.2)
    found, right = pair.both(lambda model, x: locate(model, concept, x, "second"))
    np.testing.assert_allclose(found, right, atol=1e-5)


def test_the_map_of_a_readout_lies_over_the_input(backend, shape):
    pair = Pair(backend, Turn(), shape)

    def use(model, x):
        readout = backend.module().IBAReadout("second", ["second", "logits"], model)
        readout.estimate(model, [(x,)], progbar=False)
        generator = np.random.default_rng(3)
        if backend.name == "torch":
            with backend.torch.no_grad():
                for weight in readout.network.parameters():
                    weight.copy_(backend.asarray(generator.normal(size=tuple(weight.shape)) / 4))
        else:
            weights = readout.network.get_weights()
            readout.network.set_weights([generator.normal(size=weight.shape) / 4 for weight in weights])
        return readout.analyze(backend.asarray(x[:2]))

    found, right = pair.both(use)
    assert found.shape == (2, *shape)
    np.testing.assert_allclose(found, right, rtol=1e-5, atol=1e-8)


def test_evidence_in_a_corner_is_found_there(backend, shape):
    """The class is how bright the image is, and nothing but its upper right corner is bright."""
    mean = {
        "conv": [np.ones((3, 3, 3, 1)) / 27, np.zeros(1)],
        "logits": [np.array([[-50.0, 50.0]]), np.array([7.0, -7.0])],
    }
    layers = (Turn(), Conv("conv", 1), Activation("act"), AveragePool("pooled"), Dense("logits", 2))
    model = backend.network((*shape, 3), layers, dtype="float64", weights=mean)
    x = 0.01 * drawn(shape, images=8)
    x[:, :3, -4:] += 3.0
    explainer = Explainer(model, "conv", beta=0.1, steps=10, samples=4, smooth_std=0.0)
    explainer.fit([backend.images(x * np.linspace(0, 1, 8)[:, None, None, None])], progbar=False)
    (bits,) = explainer.explain(backend.images(x[:1]), 1, seed=0).saliency
    assert bits[:4, -5:].sum() > 0.9 * bits.sum()


def test_no_further_pass_of_the_model(backend):
    pair = Pair(backend, Turn(), (11, 16), counting=(Counter(),))

    def passes(model, x):
        before = backend.calls(model)
        explained(backend, model, x)
        return backend.calls(model) - before

    assert passes(pair.turning, pair.x) == passes(pair.plain, pair.turn.of(pair.x))


# -- spectrograms ------------------------------------------------------------------------------------


def torch_spectrogram(turns):
    import torch
    from torch import nn

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.norm = nn.Conv2d(1, 4, 3, stride=2), nn.GroupNorm(2, 4)
            self.features, self.out = nn.Conv2d(4, 5, 3, padding=1), nn.Linear(5, 3)

        def forward(self, x):
            x = x.transpose(1, 2) if turns else x
            return self.out(self.features(self.norm(self.conv(x.unsqueeze(1))).relu()).amax((2, 3)))

    torch.manual_seed(0)
    return Net().double().eval()


def keras_spectrogram(turns, shape):
    import keras
    from keras import layers, ops

    keras.utils.set_random_seed(0)
    x = inputs = keras.Input(shape, dtype="float64")
    x = ops.expand_dims(ops.transpose(x, (0, 2, 1)) if turns else x, -1)
    x = layers.Conv2D(4, 3, strides=2, dtype="float64")(x)
    x = layers.ReLU(dtype="float64")(layers.GroupNormalization(2, dtype="float64")(x))
    x = layers.Conv2D(5, 3, padding="same", name="features", dtype="float64")(x)
    x = layers.GlobalMaxPooling2D(dtype="float64")(x)
    return keras.Model(inputs, layers.Dense(3, dtype="float64")(x))


@pytest.mark.parametrize("sizes", [(15, 21), (17, 17)], ids=["oblong", "square"])
def test_time_and_frequency_of_a_spectrogram(backend, sizes):
    """It has no channels, so the map has the layer's resolution; its axes are those of the input."""
    x = np.random.default_rng(0).normal(size=(4, *sizes))

    def explain(turns, x):
        torch = backend.name == "torch"
        model = torch_spectrogram(turns) if torch else keras_spectrogram(turns, x.shape[1:])
        explainer = Explainer(model, "features", **SETTINGS).fit([x], progbar=False)
        return explainer.explain(x[:2], 1, seed=0).saliency

    found, right = explain(True, x), explain(False, np.ascontiguousarray(x.swapaxes(1, 2)))
    assert found.shape == (2, (sizes[0] - 1) // 2, (sizes[1] - 1) // 2)
    np.testing.assert_allclose(found, right.swapaxes(1, 2), rtol=1e-6, atol=1e-9)
