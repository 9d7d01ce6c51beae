"""Inputs of the wrong shape are refused in one sentence, before the model has done any work."""

import numpy as np
import pytest
import torch
from torch import nn

from iba_core import Explainer, InputError, WelfordEstimator
from iba_torch import IBA
from tests.backends import Activation, AveragePool, Conv, Counter, Dense, Flatten, Torch

SIZE = 8
LAYERS = [Counter(), Conv("conv", 4), Activation("relu"), AveragePool("pool", keepdims=True)]


@pytest.fixture
def model(backend):
    return make_model(backend)


def make_model(backend):
    """A network for images of any size, with a layer whose features have one size."""
    return backend.network((SIZE, SIZE, 3), [*LAYERS, Flatten(), Dense("logits", 5)], any_size=True)


def images(n, height=SIZE, width=SIZE):
    return np.random.default_rng(0).normal(size=(n, height, width, 3)).astype(np.float32)


def shape_of(backend, *sizes):
    return backend.images(np.empty((1, *sizes, 3))).shape[1:]


def test_another_height_or_width(backend, model):
    explainer = Explainer(model, "conv").fit([backend.images(images(4))], progbar=False)
    calls = backend.calls(model)
    assert calls > 0
    for height, width in ((9, 8), (8, 7), (16, 16)):
        given, known = (", ".join(map(str, shape_of(backend, *sizes))) for sizes in ((height, width), (8, 8)))
        with pytest.raises(InputError, match=rf"\(batch, {given}\).* inputs of shape \(batch, {known}\)"):
            explainer.explain(backend.images(images(1, height, width)))
    assert backend.calls(model) == calls


def test_a_layer_that_takes_several_sizes_is_fitted_and_explained_on_them(backend, model, tmp_path):
    """What varied between the batches of `fit` may vary later, also after a file."""
    explainer = Explainer(model, "pool", steps=1, samples=1)
    explainer.fit([backend.images(images(3)), backend.images(images(3, 8, 12))], progbar=False)
    explainer.save(tmp_path / "stats.safetensors")
    loaded = Explainer(model, "pool", steps=1, samples=1).load(tmp_path / "stats.safetensors")
    for either in (explainer, loaded):
        assert either.explain(backend.images(images(1, 8, 10)), seed=0).saliency.shape == (1, 8, 10)
        with pytest.raises(InputError, match="any"):
            either.explain(backend.images(images(1, 9, 10)))


def test_the_bottleneck_of_torch_too():
    backend = Torch()
    model = make_model(backend)
    x = torch.from_numpy(backend.images(images(4)))
    iba = IBA(model.pool, optimization_steps=1, batch_size=1)
    iba.estimate(model, [x])

    def loss(inputs):
        return model(inputs).mean()

    with pytest.raises(InputError, match=r"\(batch, 3, 8, 9\).* inputs of shape \(batch, 3, 8, 8\)"):
        iba.analyze(torch.zeros(1, 3, 8, 9), loss)
    iba.estimate(model, [x[..., :6]], reset=False)
    assert iba.analyze(torch.zeros(1, 3, 8, 9), loss).shape == (8, 9)
    iba.estimate(model, [x])
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
