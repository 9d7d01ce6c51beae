"""Inputs of the wrong shape are refused in one sentence, before the model has done any work."""

import keras
import numpy as np
import pytest
import torch
from torch import nn

from iba_core import Explainer, InputError, WelfordEstimator
from iba_torch import IBA

SIZE = 8


class Torch:
    def __init__(self):
        torch.manual_seed(0)
        self.model = nn.Sequential(
            nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(64, 5)
        )
        self.conv, self.pool = "0", "2"

    def of(self, images):
        return np.ascontiguousarray(np.moveaxis(images, -1, 1))


class Keras:
    def __init__(self):
        keras.utils.set_random_seed(0)
        inputs = keras.Input((None, None, 3))
        x = keras.layers.Conv2D(4, 3, padding="same", activation="relu", name="conv")(inputs)
        pooled = keras.layers.GlobalAveragePooling2D(name="pool", keepdims=True)(x)
        x = keras.layers.Dense(5)(keras.layers.Flatten()(pooled))
        self.model = keras.Model(inputs, x)
        self.conv, self.pool = "conv", "pool"

    def of(self, images):
        return images


@pytest.fixture(params=[Torch, Keras], ids=["torch", "keras"])
def side(request):
    return request.param()


def images(n, height=SIZE, width=SIZE):
    return np.random.default_rng(0).normal(size=(n, height, width, 3)).astype(np.float32)


def shape_of(side, *sizes):
    return side.of(np.empty((1, *sizes, 3))).shape[1:]


def test_another_height_or_width(side, monkeypatch):
    explainer = Explainer(side.model, side.conv).fit([side.of(images(4))], progbar=False)
    monkeypatch.setattr(explainer._cut, "open", None)
    for height, width in ((9, 8), (8, 7), (16, 16)):
        given, known = (", ".join(map(str, shape_of(side, *sizes))) for sizes in ((height, width), (8, 8)))
        with pytest.raises(InputError, match=rf"\(batch, {given}\).* inputs of shape \(batch, {known}\)"):
            explainer.explain(side.of(images(1, height, width)))


def test_a_layer_that_takes_several_sizes_is_fitted_and_explained_on_them(side, tmp_path):
    """What varied between the batches of `fit` may vary later, also after a file."""
    explainer = Explainer(side.model, side.pool, steps=1, samples=1)
    explainer.fit([side.of(images(3)), side.of(images(3, 8, 12))], progbar=False)
    explainer.save(tmp_path / "stats.safetensors")
    loaded = Explainer(side.model, side.pool, steps=1, samples=1).load(tmp_path / "stats.safetensors")
    for either in (explainer, loaded):
        assert either.explain(side.of(images(1, 8, 10)), seed=0).saliency.shape == (1, 8, 10)
        with pytest.raises(InputError, match="any"):
            either.explain(side.of(images(1, 9, 10)))


def test_the_bottleneck_of_torch_too():
    side = Torch()
    x = torch.from_numpy(side.of(images(4)))
    iba = IBA(side.model[2], optimization_steps=1, batch_size=1)
    iba.estimate(side.model, [x])

    def loss(inputs):
        return side.model(inputs).mean()

    with pytest.raises(InputError, match=r"\(batch, 3, 8, 9\).* inputs of shape \(batch, 3, 8, 8\)"):
        iba.analyze(torch.zeros(1, 3, 8, 9), loss)
    iba.estimate(side.model, [x[..., :6]], reset=False)
    assert iba.analyze(torch.zeros(1, 3, 8, 9), loss).shape == (8, 9)
    iba.estimate(side.model, [x])
    with pytest.raises(InputError, match=r"\(batch, 3, 8, 8\)"):
        iba.analyze(torch.zeros(1, 3, 8, 9), loss)


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        (nn.Conv2d(3, 4, 3), r"\(batch, 8, 8, 3\).* first layer, Conv2d, takes 3 .* must come first"),
        (nn.Conv2d(5, 4, 3), r"\(batch, 8, 8, 3\).* first layer, Conv2d, takes 5 channels$"),
        (nn.Linear(8, 4), r"\(batch, 8, 8, 3\).* first layer, Linear, takes 8 channels; .* must come last"),
    ],
    ids=["conv", "other", "linear"],
)
def test_given_statistics_do_not_know_the_input_but_the_first_layer_does(layer, message):
    estimator = WelfordEstimator()
    estimator.fit(images(4))
    model = nn.Sequential(nn.Identity(), layer, nn.Flatten())
    with pytest.raises(InputError, match=message):
        Explainer(model, "1", estimator=estimator).explain(images(2))
    with pytest.raises(InputError, match=message):
        Explainer(model, "1").fit([images(2)], progbar=False)
