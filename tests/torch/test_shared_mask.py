"""One mask for several layers, against the whole loop in plain PyTorch, and beside autocast."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from iba_core import Explainer, InputError, Tokens
from iba_core.bottleneck.noise import seeded_normal
from iba_core.framework.layout import Layout

STEPS, SAMPLES, BETA, RATE, SEED = 6, 4, 0.5, 0.3, 3


def network():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 5, 3, padding=1),
        nn.Tanh(),
        nn.AvgPool2d(2),
        nn.Conv2d(5, 6, 3, padding=1),
        nn.Tanh(),
        nn.Flatten(),
        nn.Linear(6 * 16, 4),
    ).eval()


def smoothed(mask):
    """By a Gaussian of standard deviation 1 that ends at 2, mirrored at the borders; (B, 1, H, W)."""
    kernel = torch.exp(-(torch.arange(-2, 3, dtype=mask.dtype) ** 2) / 2)
    kernel = torch.outer(kernel, kernel)
    padded = functional.pad(mask, (2, 2, 2, 2), mode="reflect")
    return functional.conv2d(padded, (kernel / kernel.sum())[None, None])


def plain(model, data, x, classes):
    """Nats at the layers "1" and "4": the objective written out, with PyTorch's own gradients and Adam."""
    layers = []
    for end, pooling in ((2, 1), (5, 2)):
        of_data, features = model[:end](data), model[:end](x)
        mean, std = of_data.mean(0), of_data.std(0).clamp(min=0.01)
        layers.append((model[end:], features, mean, std, pooling))
    alpha = torch.full((len(x), 1, 8, 8), 5.0, dtype=x.dtype, requires_grad=True)
    optimizer = torch.optim.Adam([alpha], lr=RATE)

    def nats_and_mask(layer):
        _, features, mean, std, pooling = layer
        passed = smoothed(functional.avg_pool2d(torch.sigmoid(alpha), pooling))
        variance = (1 - passed) ** 2
        nats = -(1 + variance.log() - ((features - mean) / std * passed) ** 2 - variance) / 2
        return nats, passed

    for step in range(STEPS):
        total = 0
        for layer in layers:
            tail, features, mean, std, _ = layer
            nats, passed = nats_and_mask(layer)
            shape = tuple(mean.shape)
            noise = seeded_normal(SEED, step, SAMPLES, shape, Layout.of(shape, "channels_first"))
            for n in torch.as_tensor(noise):
                z = passed * features + (1 - passed) * (mean + std * n)
                total += functional.cross_entropy(tail(z), classes, reduction="sum") / SAMPLES / 2
            total += BETA * nats.mean(dim=(1, 2, 3)).sum() / 2
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
    with torch.no_grad():
        return [nats_and_mask(layer)[0].numpy() for layer in layers]


def test_it_is_the_objective_of_both_layers_minimised_by_adam():
    torch.manual_seed(1)
    model = network().double().requires_grad_(False)
    data, x = torch.randn(20, 3, 8, 8).double(), torch.randn(2, 3, 8, 8).double()
    options = {"steps": STEPS, "samples": SAMPLES, "beta": BETA, "learning_rate": RATE}
    explainer = Explainer(model, ["1", "4"], combine="shared", active_neurons_threshold=0.0, **options)
    found = explainer.fit([data], progbar=False).explain(x, [1, 3], seed=SEED)
    expected = plain(model, data, x, torch.tensor([1, 3]))
    for part, nats in zip(found.parts, expected, strict=True):
        np.testing.assert_allclose(part.capacity, nats, rtol=1e-6, atol=1e-9)
        assert nats.std() > 0.01


@pytest.mark.parametrize("is_on", [False, True])
def test_under_autocast_each_layer_has_the_features_that_it_has_alone(is_on):
    torch.manual_seed(1)
    data, x = torch.randn(8, 3, 8, 8), torch.randn(2, 3, 8, 8)
    model, found = network(), {}
    for combine in ("mean", "shared"):
        explainer = Explainer(model, ["1", "4"], combine=combine, steps=1, samples=2, learning_rate=0.0)
        explainer.fit([data], progbar=False)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=is_on):
            found[combine] = explainer.explain(x, seed=0)
            assert torch.is_autocast_enabled("cpu") == is_on
    for part, own in zip(found["shared"].parts, found["mean"].parts, strict=True):
        np.testing.assert_allclose(part.capacity, own.capacity, rtol=1e-6)
        np.testing.assert_allclose(part.model_losses, own.model_losses, rtol=1e-6)
        np.testing.assert_allclose(part.survival, own.survival, rtol=1e-6)


class Patches(nn.Module):
    """A class token and 4 x 4 tokens; two layers of different width."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.patch = nn.Conv2d(3, 6, 2, stride=2)
        self.one, self.two = nn.Linear(6, 7), nn.Linear(7, 5)
        self.head = nn.Linear(5, 4)

    def forward(self, x):
        tokens = self.patch(x).flatten(2).transpose(1, 2)
        tokens = torch.cat([tokens.mean(1, keepdim=True), tokens], dim=1)
        tokens = torch.tanh(self.one(tokens))
        tokens = torch.tanh(self.two(tokens + tokens.mean(1, keepdim=True)))
        return self.head(tokens.mean(1))


def test_layers_share_a_mask_of_tokens():
    torch.manual_seed(1)
    model, data, x = (
        Patches().double().eval(),
        torch.randn(12, 3, 8, 8).double(),
        torch.randn(2, 3, 8, 8).double(),
    )
    options = {"steps": 8, "samples": 2, "beta": 0.01, "combine": "shared"}
    explainer = Explainer(model, ["one", "two"], tokens=Tokens(prefix=1, grid=(4, 4)), **options)
    found = explainer.fit([data], progbar=False).explain(x, seed=0)
    one, two = (part.mask for part in found.parts)
    assert one.shape == (2, 17, 7)
    assert two.shape == (2, 17, 5)
    assert found.saliency.shape == (2, 8, 8)
    np.testing.assert_array_equal(one[..., 0], two[..., 0])
    assert one.std() > 0.001
    beside = Explainer(model, ["patch", "one"], **options).fit([data], progbar=False)
    with pytest.raises(InputError, match="along the same axes"):
        beside.explain(x)
