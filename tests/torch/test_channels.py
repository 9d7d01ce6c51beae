"""Where the channels are: learnt from what a model's operations do, also where all axes are of one size."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from iba_core import Explainer, LayerError
from iba_torch import IBA
from iba_torch.adapter import TorchAdapter

N = 8
"""Size of every axis, so that no size says what an axis means."""


class Manual2d(nn.Module):
    """A normalisation over the channels by hand, as in ConvNeXt."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.rand(N))

    def forward(self, x):
        x = x - x.mean(1, keepdim=True)
        return self.weight[:, None, None] * x / (x.pow(2).mean(1, keepdim=True) + 1e-6).sqrt()


class ConvNeXtBlock(nn.Module):
    """Channels first outside, last inside."""

    def __init__(self):
        super().__init__()
        self.depthwise, self.norm = nn.Conv2d(N, N, 3, padding=1, groups=N), nn.LayerNorm(N)
        self.wide, self.narrow, self.scale = (
            nn.Linear(N, 2 * N),
            nn.Linear(2 * N, N),
            nn.Parameter(torch.rand(N)),
        )

    def forward(self, x):
        y = self.norm(self.depthwise(x).permute(0, 2, 3, 1))
        return x + (self.scale * self.narrow(functional.gelu(self.wide(y)))).permute(0, 3, 1, 2)


class Excited(nn.Module):
    """A residual block whose channels are weighted by linear layers."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(N, N, 3, padding=1), nn.BatchNorm2d(N)
        self.down, self.up = nn.Linear(N, 2), nn.Sequential(nn.Linear(2, N), nn.BatchNorm1d(N))

    def forward(self, x):
        y = self.norm(self.conv(x))
        weights = self.up(functional.relu(self.down(y.mean((2, 3))))).sigmoid()
        return functional.relu(x + y * weights[..., None, None])


class Neighbours(nn.Module):
    """Channels weighted by a convolution over them, as in ECA."""

    def __init__(self):
        super().__init__()
        self.conv, self.weigh = nn.Conv2d(N, N, 3, padding=1), nn.Conv1d(1, 1, 3, padding=1)

    def forward(self, x):
        y = self.conv(x)
        return y * self.weigh(y.mean((2, 3))[:, None]).sigmoid()[:, 0, :, None, None]


class Windows(nn.Module):
    """Attention within windows of maps with the channels last, as in Swin."""

    def __init__(self):
        super().__init__()
        self.norm, self.qkv, self.out = nn.LayerNorm(N), nn.Linear(N, 3 * N), nn.Linear(N, N)

    def forward(self, x):
        n, h, w, c = x.shape
        y = self.norm(x).roll((-2, -2), (1, 2)).view(n, h // 4, 4, w // 4, 4, c)
        y = y.permute(0, 1, 3, 2, 4, 5).reshape(-1, 16, c)
        q, k, v = self.qkv(y).reshape(-1, 16, 3, 2, c // 2).permute(2, 0, 3, 1, 4)
        y = self.out(((q @ k.mT).softmax(-1) @ v).transpose(1, 2).reshape(-1, 16, c))
        y = y.view(n, h // 4, w // 4, 4, 4, c).permute(0, 1, 3, 2, 4, 5).reshape(x.shape)
        return x + y.roll((2, 2), (1, 2))


class Permute(nn.Module):
    def __init__(self, *axes):
        super().__init__()
        self.axes = axes

    def forward(self, x):
        return x.permute(self.axes)


class Mean(nn.Module):
    """The mean over one axis."""

    def __init__(self, axis):
        super().__init__()
        self.axis = axis

    def forward(self, x):
        return x.mean(self.axis)


class Mixer(nn.Module):
    """Linear layers over the tokens, then over the channels of a token."""

    def __init__(self, norm):
        super().__init__()
        self.norm = nn.LayerNorm(N) if norm else nn.Identity()
        self.tokens, self.channels = nn.Linear(N, N), nn.Linear(N, N)

    def forward(self, x):
        x = x + self.tokens(self.norm(x).mT).mT
        return x + self.channels(self.norm(x))


class Decoder(nn.Module):
    """A linear layer whose numbers become a map."""

    def __init__(self):
        super().__init__()
        self.grow, self.up, self.out = nn.Linear(5, 64), nn.ConvTranspose2d(4, 4, 3), nn.Linear(4, 3)

    def forward(self, x):
        return self.out(self.up(self.grow(x).view(-1, 4, 4, 4)).mean((2, 3)))


class Frequencies(nn.Module):
    """A linear layer over the frequencies of sound, between convolutions."""

    def __init__(self):
        super().__init__()
        self.stem, self.mix, self.conv = nn.Conv2d(3, N, 1), nn.Linear(N, N), nn.Conv2d(N, N, 1)
        self.out = nn.Linear(N, 3)

    def forward(self, x):
        return self.out(self.conv(functional.relu(self.mix(self.stem(x)))).mean((2, 3)))


class Products(nn.Module):
    """Sums of products of parameters, without a layer that has a type to ask."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Parameter(torch.randn(N, N)), nn.Parameter(torch.randn(N, 3))
        self.here = nn.Identity()

    def forward(self, x):
        x = self.here(torch.einsum("btc,cd->btd", x, self.first).tanh())
        return torch.einsum("btd,dk->btk", x, self.second).mean(1)


class Attention(nn.Module):
    """As many heads as tokens."""

    def __init__(self):
        super().__init__()
        self.qkv, self.weights, self.out = nn.Linear(N, 3 * 4 * N), nn.Softmax(-1), nn.Linear(4 * N, 3)

    def forward(self, x):
        q, k, v = self.qkv(x).view(len(x), N, 3, N, 4).permute(2, 0, 3, 1, 4)
        return self.out((self.weights(q @ k.mT) @ v).transpose(1, 2).flatten(2)).mean(1)


def head(axes=(2, 3)):
    return Mean(axes), nn.Linear(N, 3)


def image_model(*blocks):
    return nn.Sequential(nn.Conv2d(3, N, 1), *blocks, *head())


FIRST, LAST = "channels_first", "channels_last"
IMAGES, SEQUENCES = (3, N, N), (N, N)
CASES = {
    "convnext": (
        lambda: image_model(Manual2d(), ConvNeXtBlock(), ConvNeXtBlock()),
        IMAGES,
        FIRST,
        {
            "0": FIRST,
            "1": FIRST,
            "2": FIRST,
            "2.norm": LAST,
            "2.narrow": LAST,
            "2.depthwise": FIRST,
            "3": FIRST,
        },
    ),
    "squeeze and excitation": (
        lambda: image_model(Excited(), Excited()),
        IMAGES,
        FIRST,
        {"1": FIRST, "1.conv": FIRST, "2": FIRST},
    ),
    "efficient channel attention": (
        lambda: image_model(Neighbours(), Neighbours()),
        IMAGES,
        FIRST,
        {"1": FIRST, "1.conv": FIRST, "2": FIRST},
    ),
    "swin": (
        lambda: image_model(Permute(0, 2, 3, 1), Windows(), Windows(), nn.LayerNorm(N), Permute(0, 3, 1, 2)),
        IMAGES,
        FIRST,
        {"0": FIRST, "1": LAST, "2": LAST, "2.norm": LAST, "3": LAST, "4": LAST, "5": FIRST},
    ),
    "images with the channels last": (
        lambda: nn.Sequential(Permute(0, 3, 1, 2), nn.Conv2d(3, N, 1), nn.BatchNorm2d(N), *head()),
        (N, N, 3),
        LAST,
        {"1": FIRST, "2": FIRST},
    ),
    "tokens": (
        lambda: nn.Sequential(nn.Linear(N, N), nn.LayerNorm(N), nn.GELU(), *head(1)),
        SEQUENCES,
        LAST,
        {"0": LAST, "1": LAST, "2": LAST},
    ),
    "sound": (
        lambda: nn.Sequential(
            nn.Conv1d(N, N, 1), nn.GroupNorm(2, N), Permute(0, 2, 1), nn.LayerNorm(N), *head(1)
        ),
        SEQUENCES,
        FIRST,
        {"0": FIRST, "1": FIRST, "2": LAST, "3": LAST},
    ),
    "mixer": (
        lambda: nn.Sequential(Mixer(True), Mixer(True), *head(1)),
        SEQUENCES,
        LAST,
        {"0": LAST, "1": LAST, "1.channels": LAST},
    ),
    "decoder": (Decoder, (5,), FIRST, {"up": FIRST}),
    "frequencies": (Frequencies, IMAGES, FIRST, {"stem": FIRST, "mix": FIRST, "conv": FIRST}),
    "attention": (Attention, SEQUENCES, LAST, {"weights": FIRST, "qkv": LAST}),
    "products": (Products, SEQUENCES, LAST, {"here": LAST}),
}
PAIRS = [(name, layer) for name, case in CASES.items() for layer in case[-1]]


def made(build):
    torch.manual_seed(0)
    return build().double().eval()


def inputs_of(shape, images=4):
    return torch.randn(images, *shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(("name", "layer"), PAIRS)
def test_formats_are_learnt_from_the_operations(name, layer):
    build, shape, input_format, layers = CASES[name]
    split = TorchAdapter(made(build)).split(layer)
    with split.head(inputs_of(shape)) as tail:
        assert tail.features.shape[0] == 4
    assert split.data_format == layers[layer]
    assert split.input_format == input_format


@pytest.mark.parametrize(
    ("name", "layer"), [("convnext", "2"), ("squeeze and excitation", "1"), ("swin", "3"), ("tokens", "1")]
)
def test_the_map_is_that_of_the_right_format(name, layer):
    build, shape, _, layers = CASES[name]
    model, x = made(build), inputs_of(shape)
    right, wrong = layers[layer], LAST if layers[layer] == FIRST else FIRST
    found, given, other = (
        Explainer(model, layer, data_format=data_format, samples=2, steps=3)
        .fit([x], progbar=False)
        .explain(x[:2], 0, seed=0)
        for data_format in (None, right, wrong)
    )
    np.testing.assert_array_equal(found.saliency, given.saliency)
    assert np.corrcoef(found.saliency.ravel(), other.saliency.ravel())[0, 1] < 0.9
    bits = found.capacity.sum(1 if right == FIRST else -1) / np.log(2)
    assert found.saliency.shape == bits.shape
    np.testing.assert_allclose(found.saliency, bits)
    layer = model.get_submodule(layer)
    iba = IBA(layer, batch_size=2, optimization_steps=3)
    iba.estimate(model, [x], progbar=False)
    saliency = iba.analyze(x[:2], lambda z: -model(z).log_softmax(1)[:, 0], seed=0)
    iba.detach()
    np.testing.assert_allclose(saliency, found.saliency)


def test_where_both_readings_remain_the_user_is_asked():
    model, x = (
        made(lambda: nn.Sequential(Mixer(False), Mixer(False), nn.Flatten(), nn.Linear(N * N, 3))),
        None,
    )
    x = inputs_of(SEQUENCES)
    with pytest.raises(LayerError, match=r"'0' have the shape \(8, 8\).*data_format='channels_first' or"):
        Explainer(model, "0").fit([x], progbar=False)
    for data_format in (FIRST, LAST):
        explainer = Explainer(model, "0", data_format=data_format, samples=2, steps=2)
        attribution = explainer.fit([x], progbar=False).explain(x, 0, seed=0)
        assert attribution.data_format == data_format
        iba = IBA(model[0], batch_size=2, optimization_steps=2, data_format=data_format)
        iba.estimate(model, [x], progbar=False)
        capacity = iba.analyze(x, lambda z: -model(z).log_softmax(1)[:, 0], mode="capacity", seed=0)
        iba.detach()
        np.testing.assert_allclose(capacity, attribution.capacity)


def test_sequences_keep_their_map():
    """Of seven steps of five numbers each."""
    model = made(lambda: nn.Sequential(nn.Linear(5, 6), nn.LayerNorm(6), nn.Flatten(), nn.Linear(42, 3)))
    x = torch.randn(4, 7, 5, dtype=torch.float64)
    attribution = Explainer(model, "1", samples=2, steps=2).fit([x], progbar=False).explain(x[:1], 0, seed=0)
    assert attribution.saliency.shape == (1, 7)
    np.testing.assert_allclose(attribution.saliency, attribution.capacity.sum(-1) / np.log(2))


def test_the_format_of_the_input_is_kept_with_the_statistics(tmp_path):
    build, shape, _, _ = CASES["images with the channels last"]
    x, options = inputs_of(shape), {"seed": 0, "steps": 2, "samples": 2}
    fitted = Explainer(made(build), "2").fit([x], progbar=False)
    fitted.save(tmp_path / "statistics.safetensors")
    loaded = Explainer(made(build), "2").load(tmp_path / "statistics.safetensors")
    found, wanted = (explainer.explain(x[:2], 0, **options) for explainer in (loaded, fitted))
    np.testing.assert_array_equal(found.saliency, wanted.saliency)
    assert found.saliency.shape == (2, N, N)
