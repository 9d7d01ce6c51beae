"""The guard catches wrong readings of models: each test takes out what makes a reading right.

Without the change, the model is explained. With it, a map would be wrong without a word.
"""

import warnings
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from iba_core import Explainer, LayerError
from iba_core.framework.normalization import scale_and_shift
from iba_core.framework.shared import SharedInputs
from iba_torch import IBA, TorchAdapter, TorchSplit
from iba_torch.tail import rewrites
from iba_torch.tail.places import Knowledge
from iba_torch.tail.recording import Value
from iba_torch.tail.rewrites import normalization

REFUSED = "does not repeat the model"


class Captions(nn.Module):
    """Scores of images and captions."""

    def __init__(self):
        super().__init__()
        self.image = nn.Linear(6, 4)
        self.text = nn.Linear(5, 4)

    def forward(self, images, texts):
        return self.image(images) @ self.text(texts).T


class Sequences(nn.Module):
    """Steps first: (T, B, C)."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Linear(3, 6)
        self.lstm = nn.LSTM(6, 5)
        self.out = nn.Linear(5, 4)

    def forward(self, x):
        return self.out(self.lstm(self.embed(x.transpose(0, 1)))[0][-1])


class Convolutions(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.conv = nn.Conv2d(4, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.out = nn.Linear(4, 4)

    def forward(self, x):
        return self.out(self.norm(self.conv(self.stem(x).relu())).relu().mean((2, 3)))


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Linear(3, 6)
        self.layer = nn.Linear(6, 6)
        self.out = nn.Linear(6, 4)

    def forward(self, x):
        skip = self.stem(x)
        return self.out(self.layer(skip.relu()) + skip)


def explained(model, layer, inputs):
    """Whether the model is explained; statistics are loaded, so that nothing else looks at it before."""
    torch.manual_seed(0)
    fitted = Explainer(model, layer, steps=1, samples=2)
    estimator = fitted.fit(
        [inputs if isinstance(inputs, torch.Tensor) else (inputs,)], progbar=False
    ).estimator
    first = inputs if isinstance(inputs, torch.Tensor) else inputs[0]
    Explainer(model, layer, steps=1, samples=2, estimator=estimator).explain(inputs, target=1, seed=0)
    return len(first)


def test_captions_are_no_images(monkeypatch):
    model, inputs = Captions().eval(), (torch.randn(5, 6), torch.randn(5, 5))
    assert explained(model, "image", inputs)
    monkeypatch.setattr(SharedInputs, "mark", lambda self, inputs, predict: inputs)
    with pytest.raises(LayerError, match=REFUSED):
        explained(Captions().eval(), "image", inputs)


def test_steps_are_no_images(monkeypatch):
    x = torch.randn(4, 4, 3)
    assert explained(Sequences().eval(), "embed", x)
    monkeypatch.setattr(Knowledge, "axis", lambda *args, **options: (0,))
    with pytest.raises(LayerError):
        explained(Sequences().eval(), "embed", x)


def test_a_wrong_rewrite_is_found(monkeypatch):
    x = torch.randn(2, 3, 8, 8)
    assert explained(Convolutions().eval(), "stem", x)

    def wrong(mean, variance, epsilon, *others):
        return scale_and_shift(mean, 1.1 * variance, epsilon, *others)

    monkeypatch.setattr(normalization, "scale_and_shift", wrong)
    with pytest.raises(LayerError, match=REFUSED):
        explained(Convolutions().eval(), "stem", x)
    with rewrites.disabled():
        assert explained(Convolutions().eval(), "stem", x)


def test_a_lost_skip_connection_is_found(monkeypatch):
    x = torch.randn(3, 3)
    assert explained(Residual().eval(), "layer", x)
    monkeypatch.setattr(Value, "fill", lambda value, using: zeros_of(value.tensor, using.copies))
    with pytest.raises(LayerError, match=REFUSED):
        explained(Residual().eval(), "layer", x)


def test_other_features_than_the_models_are_found(monkeypatch):
    x = torch.randn(3, 3)
    right = TorchSplit.open_head

    @contextmanager
    def wrong(split, inputs):
        with right(split, inputs) as tail:
            yield replace(tail, features=2 * tail.features)

    monkeypatch.setattr(TorchSplit, "open_head", wrong)
    with pytest.raises(LayerError, match=REFUSED):
        explained(Residual().eval(), "layer", x)


class Mixing(nn.Module):
    """Normalises the images of a batch by the statistics of the batch, unlike any of PyTorch's layers."""

    def __init__(self, before):
        super().__init__()
        self.before, self.conv, self.layer = before, nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 1)
        self.out = nn.Linear(4, 4)

    def forward(self, x):
        x = self.conv(x)
        if self.before:
            x = (x - x.mean((0, 2, 3), keepdim=True)) / x.std((0, 2, 3), correction=0, keepdim=True)
        x = self.layer(x)
        if not self.before:
            x = (x - x.mean((0, 2, 3), keepdim=True)) / x.std((0, 2, 3), correction=0, keepdim=True)
        return self.out(x.relu().mean((2, 3)))


@pytest.mark.parametrize("before", [False, True])
def test_images_are_not_mixed(before):
    torch.manual_seed(0)
    images = torch.randn(4, 3, 8, 8)
    explainer = Explainer(Mixing(before).eval(), "layer", steps=2, samples=2)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = explainer.fit([images], progbar=False).explain(images[:3], 1, seed=0)
    assert any("depends on the other images" in str(warning.message) for warning in caught)
    for index in range(3):
        alone = explainer.explain(images[index : index + 1], 1, seed=0)
        np.testing.assert_allclose(found.capacity[index], alone.capacity[0], rtol=1e-4, atol=1e-6)


def zeros_of(tensor, copies):
    return torch.zeros(copies * len(tensor), *tensor.shape[1:])


def test_features_estimated_along_another_axis_than_the_images_are_refused():
    torch.manual_seed(0)
    model, x = Sequences().eval(), torch.randn(4, 4, 3)
    iba = IBA(model.embed, batch_size=2, optimization_steps=1, progbar=False)
    with iba.enable_estimation(), torch.no_grad():
        model(x)

    def loss(images):
        return -model(images)[:, 1]

    with pytest.raises(LayerError, match=r"took axis 0 of the features .* is axis 1; estimate them with"):
        iba.analyze(x, loss)
    iba.estimate(model, [x])
    iba.analyze(x, loss)
    iba.detach()


class Counting(nn.Module):
    runs: list[int] = []  # noqa: RUF012  # copies of the module share it

    def forward(self, x):
        self.runs.append(len(x))
        return 1.0 * x


def test_the_guard_costs_one_pass_of_the_model_for_each_shape():
    split = TorchAdapter(nn.Sequential(Counting(), nn.Linear(3, 6), nn.Linear(6, 4))).split("1")
    x, counts = torch.randn(4, 3), []
    for images in (x, x, x[:2], x[:2], x):
        Counting.runs.clear()
        with split.head(images):
            pass
        counts.append(list(Counting.runs))
    # The model itself runs on one image; the head on all of them.
    assert counts == [[1, 4], [4], [2, 1], [2], [4]]
