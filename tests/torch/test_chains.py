"""Chains of modules, which the tail runs with less around each: what is seen and what comes out stays."""

import numpy as np
import pytest
import torch
from torch import nn

from iba_core import Explainer
from iba_torch.adapter import TorchAdapter
from iba_torch.tail.rewrites.normalization import ScaleAndShift
from iba_torch.tail.shadow import site_of


def block(channels_in, channels_out, **options):
    return nn.Sequential(
        nn.Conv2d(channels_in, channels_out, 3, **options), nn.BatchNorm2d(channels_out), nn.ReLU()
    )


class Residual(nn.Sequential):
    def forward(self, x):
        return x + super().forward(x)


def network():
    torch.manual_seed(0)
    model = nn.Sequential(
        block(3, 4),
        Residual(block(4, 4, padding=1), nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4))),
        nn.Conv2d(4, 5, 3),
        nn.BatchNorm2d(5),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(5, 3),
    ).double()
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.normal_()
                module.running_var.uniform_(0.5, 2)
                module.weight.normal_()
    return model.eval().requires_grad_(False)


@pytest.fixture
def merged(monkeypatch):
    """The pairs that run as one."""
    seen, original = [], ScaleAndShift.convolved

    def convolved(self, first, second, x):
        output = original(self, first, second, x)
        if output is not None:
            # What runs are copies of the model's modules.
            seen.append((site_of(first).original(), site_of(second).original()))
        return output

    monkeypatch.setattr(ScaleAndShift, "convolved", convolved)
    return seen


def tail_and_gradient(model, layer, x, end_layer=None):
    split = TorchAdapter(model).split(layer, end_layer)
    with split.head(x) as tail:
        z = tail.features.repeat_interleave(6, 0)
        z = (z + torch.linspace(0, 1, len(z))[:, None, None, None]).requires_grad_()
        output = tail(z)
        return z, output, torch.autograd.grad(output.square().sum(), z)[0]


X = torch.linspace(-1, 1, 3 * 12 * 12, dtype=torch.float64).reshape(1, 3, 12, 12)


def test_output_and_gradient_are_those_of_the_modules_after_it(merged):
    model = network()
    z, output, gradient = tail_and_gradient(model, "0", X)
    pairs = [(model[1][0][0], model[1][0][1]), (model[1][1][0], model[1][1][1]), (model[2], model[3])]
    # In the passes that check the tail, too.
    assert len(merged) >= 3
    assert merged == pairs * (len(merged) // 3)
    expected = model[1:](z)
    torch.testing.assert_close(output, expected, rtol=1e-10, atol=1e-10)
    (wanted,) = torch.autograd.grad(expected.square().sum(), z)
    torch.testing.assert_close(gradient, wanted, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", ["1.0.0", "1.0.1", "1.0.2", "2", "1.1"])
def test_a_tail_may_start_within_a_chain(merged, name):
    model = network()
    z, output, _ = tail_and_gradient(model, name, X)
    assert not any(name == found for pair in merged for found in map(model_names(model).get, pair))
    reference = TorchAdapter(model)
    handles = [module.register_forward_hook(lambda *_: None) for module in model.modules()]
    merged.clear()
    with reference.split(name).head(X) as tail:
        expected = tail(z)
    assert not merged
    for handle in handles:
        handle.remove()
    torch.testing.assert_close(output, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("end_layer", ["1.0.0", "1.0.1", "1.1.0", "2", "3"])
def test_a_tail_may_end_within_a_chain(end_layer):
    model = network()
    _, output, _ = tail_and_gradient(model, "0", X, end_layer)
    seen = []
    handle = model.get_submodule(end_layer).register_forward_hook(lambda *given: seen.append(given[-1]))
    tail_and_gradient(model, "0", X)
    handle.remove()
    torch.testing.assert_close(output, seen[-1], rtol=1e-10, atol=1e-10)


def test_hooks_in_a_chain_see_what_they_would_see():
    model, seen = network(), []
    modules = [model[1][0][0], model[1][0][2], model[2], model[4]]
    z, expected, _ = tail_and_gradient(model, "0", X)
    handles = [module.register_forward_hook(lambda *given: seen.append(given[-1])) for module in modules]
    _, output, _ = tail_and_gradient(model, "0", X)
    # Once in the head, which hooks keep from being left out, or only in the tail.
    found = seen[-len(modules) :]
    seen.clear()
    model[1:](z)
    for handle in handles:
        handle.remove()
    torch.testing.assert_close(output, expected, rtol=1e-10, atol=1e-10)
    assert len(seen) == len(modules)
    for one, other in zip(found, seen, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)


def test_a_module_that_both_parts_use_is_not_merged(merged):
    torch.manual_seed(0)
    shared, norm = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)
    model = nn.Sequential(shared, nn.ReLU(), shared, norm, nn.Flatten(), nn.Linear(3 * 16, 2)).eval().double()
    explainer = Explainer(model, "1", samples=3).fit([torch.randn(8, 3, 4, 4).double()], progbar=False)
    explainer.explain(torch.randn(1, 3, 4, 4).double(), 1, seed=0)
    assert not merged


def test_a_chain_that_is_changed_runs_as_it_then_is(merged):
    model = network()
    split = TorchAdapter(model).split("0")
    with split.head(X) as tail:
        z = tail.features.repeat_interleave(6, 0).requires_grad_()
        tail(z)
    assert (model[2], model[3]) in merged
    model[3] = nn.Identity()
    merged.clear()
    with split.head(X) as tail:
        output = tail(z)
    assert (model[2], model[3]) not in merged
    torch.testing.assert_close(output, model[1:](z), rtol=1e-10, atol=1e-10)


def test_an_explanation_is_that_of_the_same_network_without_chains(merged):
    class Listed(nn.Module):
        """The same modules, called by code of its own."""

        def __init__(self, parts):
            super().__init__()
            self.parts = nn.ModuleList(parts)

        def forward(self, x):
            for part in self.parts:
                x = part(x)
            return x

    def listed(module):
        if isinstance(module, Residual):
            return Residual(*map(listed, module))
        return Listed(map(listed, module)) if isinstance(module, nn.Sequential) else module

    model = network()
    crops = [torch.randn(16, 3, 12, 12, dtype=torch.float64)]
    chained, plain = (
        Explainer(network, layer, samples=4).fit(crops, progbar=False).explain(X, 1, seed=0)
        for network, layer in ((model, "0"), (listed(model), "parts.0"))
    )
    assert merged
    np.testing.assert_allclose(chained.capacity, plain.capacity, rtol=1e-6, atol=1e-9)


def model_names(model):
    return {module: name for name, module in model.named_modules()}
