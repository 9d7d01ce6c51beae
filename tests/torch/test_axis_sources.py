"""Where rows and columns are after operations, compared with what these do to images of coordinates."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812  # as all the world calls it
from torch import nn

from iba_core import Explainer, LayerError
from iba_core.concepts import ConceptAnalysis, SegmentationConcept2D
from iba_core.framework.layout import Layout, MapOrder, Tokens
from iba_torch import TorchAdapter

SHAPE = (12, 8)


def windows(x):
    """Attention windows of 4 x 4 are taken apart, exchanged inside and put together again."""
    b, c, h, w = x.shape
    x = x.view(b, c, h // 4, 4, w // 4, 4).permute(0, 2, 4, 3, 5, 1).reshape(-1, 16, c)
    x = x.view(b, h // 4, w // 4, 4, 4, c).permute(0, 5, 1, 3, 2, 4)
    return x.reshape(b, c, h, w)


def by_hand(x):
    """Pixels move into the channels and back."""
    b, c, h, w = x.shape
    x = x.view(b, c, h // 2, 2, w // 2, 2).permute(0, 1, 3, 5, 2, 4).reshape(b, 4 * c, h // 2, w // 2)
    x = x.view(b, c, 2, 2, h // 2, w // 2).permute(0, 1, 4, 2, 5, 3)
    return x.reshape(b, c, h, w)


OPERATIONS = {
    "nothing": lambda x: x,
    "permuted": lambda x: x.permute(0, 1, 3, 2),
    "matrices": lambda x: x.mT,
    "summed by letters": lambda x: torch.einsum("bchw->bcwh", x),
    "moved": lambda x: x.movedim(3, 2),
    "a quarter": lambda x: torch.rot90(x, 1, (2, 3)),
    "a half": lambda x: torch.rot90(x, 2, (2, 3)),
    "three quarters": lambda x: torch.rot90(x, -1, (2, 3)),
    "other corner": lambda x: torch.rot90(x, 3, (3, 2)),
    "flipped": lambda x: x.flip(2),
    "flipped twice": lambda x: F.avg_pool2d(x.flip(3), 3, 1, 1).flip(3, 2),
    "pooled": lambda x: F.max_pool2d(x.transpose(2, 3), 2),
    "adaptive": lambda x: F.adaptive_avg_pool2d(x.transpose(2, 3), (5, 7)),
    "enlarged": lambda x: F.interpolate(x.transpose(2, 3), (20, 30), mode="bilinear"),
    "padded": lambda x: F.pad(F.pad(x.mT, (-1, 0, 0, 0)), (1, 1, 0, 1), mode="reflect"),
    "sliced": lambda x: x.transpose(2, 3)[:, :, 1:, ::2],
    "indexed": lambda x: x.transpose(2, 3)[:, :, torch.arange(5)],
    "selected": lambda x: x.transpose(2, 3).index_select(3, torch.arange(5)),
    "joined": lambda x: torch.cat([x.mT, x.mT.flip(3)[..., :1]], 3),
    "convolved": lambda x: F.conv2d(x.mT, torch.ones(2, 1, 3, 3) / 9, groups=2),
    "transposed convolution": lambda x: F.conv_transpose2d(x.mT, torch.ones(2, 1, 2, 2), stride=2, groups=2),
    "shuffled": lambda x: F.pixel_shuffle(F.pixel_unshuffle(x.mT, 2), 2),
    "flat and back": lambda x: x.mT.flatten(2).mul(2).unflatten(2, (x.shape[3], x.shape[2])),
    "tokens and back": lambda x: x.mT.flatten(2).mT.reshape(len(x), 8, 12, 2).permute(0, 3, 1, 2),
    "windows": lambda x: windows(x.mT),
    "by hand": lambda x: by_hand(x.mT),
    "a skip around a turned branch": lambda x: x + F.avg_pool2d(x.mT, 3, 1, 1).mT,
}


class Net(nn.Module):
    def __init__(self, operation):
        super().__init__()
        self.operation, self.layer = operation, nn.Identity()

    def forward(self, x):
        return self.layer(self.operation(x)).mean((2, 3))


def measured(images):
    """The order and direction of axes, from images of their numbers, (2, a, b)."""
    slopes = np.array([[np.diff(image, axis=axis).mean() for axis in (0, 1)] for image in images])
    axes = np.abs(slopes).argmax(axis=1)
    return tuple(axes.tolist()), tuple(place for place in (0, 1) if slopes[place, axes[place]] < 0)


@pytest.mark.parametrize("name", OPERATIONS)
def test_operations(name):
    model = Net(OPERATIONS[name])
    split = TorchAdapter(model).split("layer", data_format="channels_first")
    coordinates = np.stack(np.meshgrid(*map(np.arange, SHAPE), indexing="ij")).astype(np.float32)
    for images in (1, 3):
        (features, *_) = split.features(torch.from_numpy(np.stack([coordinates] * images))).numpy()
        found = split.map_order(Layout(3, 0))
        assert (found.axes, found.against) == measured(features)


def test_axes_that_are_mixed_are_left_alone():
    split = TorchAdapter(Net(lambda x: x + x.mT)).split("layer", data_format="channels_first")
    split.features(torch.ones(2, 2, 6, 6))
    assert split.map_order(Layout(3, 0)) == MapOrder((0, 1))


class Volume(nn.Module):
    """Exchanges axes of a volume, and hides where two of them are."""

    def __init__(self):
        super().__init__()
        self.layer, self.out = nn.Conv3d(1, 2, 1), nn.Linear(2, 2)

    def forward(self, x):
        x = x.permute(0, 1, 4, 2, 3)
        hidden = torch.from_numpy(x.detach().numpy()[:, :, 0].copy())[:, :, None] + 0 * x[:, :, :, :1, :1]
        return self.out(self.layer(hidden).mean((2, 3, 4)))


def test_what_shows_only_a_part_of_an_exchange_is_refused():
    model, x = Volume().eval(), torch.randn(5, 1, 3, 4, 5)
    explainer = Explainer(model, "layer", steps=1, samples=1, data_format="channels_first")
    with pytest.raises(LayerError, match="do that in front of the model"):
        explainer.fit([x], progbar=False).explain(x[:1], 1)


class Patches(nn.Module):
    """Tokens of patches, column after column."""

    def __init__(self, turns):
        super().__init__()
        self.turns, self.patches = turns, nn.Conv2d(3, 6, 4, stride=4)
        self.block, self.out = nn.TransformerEncoderLayer(6, 2, 8, batch_first=True), nn.Linear(6, 3)

    def forward(self, x):
        x = self.patches(x.mT if self.turns else x).flatten(2).mT
        return self.out(self.block(x).mean(1))


@pytest.mark.parametrize("sizes", [(8, 12), (12, 12)])
def test_a_grid_of_tokens_is_turned(sizes):
    torch.manual_seed(0)
    turning, plain = Patches(True).double().eval(), Patches(False).double().eval()
    plain.load_state_dict(turning.state_dict())
    x = torch.randn(6, 3, *sizes, dtype=torch.float64)
    grid = (sizes[1] // 4, sizes[0] // 4)

    def explain(model, x):
        explainer = Explainer(model, "block", tokens=Tokens(grid=grid), steps=3, samples=2, smooth_std=0.0)
        return explainer.fit([x], progbar=False).explain(x[:2], 1, seed=0).saliency

    found = explain(turning, x)
    assert found.shape == (2, *sizes)
    np.testing.assert_allclose(found, explain(plain, x.mT).swapaxes(1, 2), rtol=1e-6, atol=1e-9)


class Turning(nn.Module):
    def forward(self, x):
        return x.mT


def test_a_concept_is_not_learnt_where_its_masks_lie_otherwise():
    model = nn.Sequential(Turning(), nn.Conv2d(3, 4, 1))
    images = np.random.default_rng(0).normal(size=(4, 3, 6, 6)).astype(np.float32)
    masks = np.zeros((4, 6, 6), np.float32)
    masks[:, :2] = 1
    concept = SegmentationConcept2D("corner", (images, masks), (images, masks))
    analysis = ConceptAnalysis(concept, model, ["1"], epochs=1, progbar=False)
    with pytest.raises(LayerError, match="masks of a concept do not lie over its feature maps"):
        analysis.run()
