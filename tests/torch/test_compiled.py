"""Steps recorded as one graph, as `torch.compile` gets them."""

import warnings

import numpy as np
import pytest
import torch
from torch import nn

from iba_core import Explainer
from iba_torch import TorchAdapter
from iba_torch.framework import TorchFramework


class Network(nn.Module):
    def __init__(self, skips=False, decides=False):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second, self.third = (nn.Conv2d(n, 4, 3, padding=1) for n in (3, 4, 4))
        self.norm = nn.BatchNorm2d(4)
        self.out = nn.Linear(4, 5)
        self.skips, self.decides = skips, decides

    def forward(self, x):
        x = self.first(x).relu()
        y = self.norm(self.third(self.second(x).relu())) + (x if self.skips else 0)
        if self.decides and y.sum() > 1e9:
            y = -y
        return self.out(y.mean((2, 3)))


def images(n, seed=0):
    return torch.randn(n, 3, 8, 8, generator=torch.Generator().manual_seed(seed))


def explainers(network):
    plain = Explainer(network.eval(), "second", samples=3).fit([images(8)], progbar=False)
    compiled = Explainer(network, "second", compile=True, estimator=plain.estimator, samples=3)
    return plain, compiled


@pytest.fixture
def machine_code(monkeypatch):
    """The graphs that are given to the compiler, which makes nothing of them: it would take minutes."""
    graphs = []

    def compile(module, **options):
        graphs.append(module.graph)
        return module

    monkeypatch.setattr(torch, "compile", compile)
    return graphs


def test_compiled_steps_are_the_steps(machine_code):
    network = Network()
    plain, compiled = explainers(network)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for x in (images(2, 1), images(2, 2)):
            expected, found = (one.explain(x, 1, seed=0) for one in (plain, compiled))
            np.testing.assert_allclose(found.capacity, expected.capacity, rtol=1e-6)
            np.testing.assert_allclose(found.model_losses, expected.model_losses, rtol=1e-6)
    made = len(machine_code)
    compiled.explain(images(2, 3), 1, seed=0)
    assert len(machine_code) == made, "a shape is compiled once"
    operations = {str(node.target) for graph in machine_code for node in graph.nodes}
    assert "aten.convolution_backward.default" in operations
    compiled.explain(images(1), 1, seed=0)
    assert len(machine_code) > made


def test_two_ends_are_recorded_apart(machine_code):
    framework, adapter, x = TorchFramework(), TorchAdapter(Network().eval()), images(2)
    run = framework.compile(lambda tail, z: tail(z), jit_compile=True)
    for end in ("third", "norm", None):
        with adapter.split("second", end).head(x) as tail, torch.no_grad():
            torch.testing.assert_close(run(tail.run, tail.features), tail(tail.features))
    assert len(machine_code) == 3


def test_new_weights_are_seen(machine_code):
    network = Network()
    plain, compiled = explainers(network)
    before = compiled.explain(images(1), 1, seed=0)
    with torch.no_grad():
        network.third.weight.mul_(3)
    in_place = compiled.explain(images(1), 1, seed=0)
    np.testing.assert_allclose(in_place.capacity, plain.explain(images(1), 1, seed=0).capacity, rtol=1e-6)
    assert not np.allclose(in_place.capacity, before.capacity)
    network.third.weight = nn.Parameter(-network.third.weight.detach())
    replaced = compiled.explain(images(1), 1, seed=0)
    np.testing.assert_allclose(replaced.capacity, plain.explain(images(1), 1, seed=0).capacity, rtol=1e-6)
    assert not np.allclose(replaced.capacity, in_place.capacity)


def test_autocast_and_inputs_that_are_no_arrays_are_recorded_for_each_value(machine_code):
    plain, compiled = explainers(Network())

    def losses(explainer):
        return explainer.explain(images(1), 1, seed=0).model_losses

    with torch.autocast("cpu", dtype=torch.bfloat16):
        low = losses(compiled)
    np.testing.assert_allclose(losses(compiled), losses(plain), rtol=1e-6)
    assert not np.allclose(low, losses(plain), rtol=1e-6)

    class Scaled(Network):
        def forward(self, x, scale):
            return super().forward(x) * scale

    for scales in ((1.0, 2.0), (torch.tensor(1.0), torch.tensor(2.0))):
        plain = Explainer(Scaled().eval(), "second", samples=3)
        plain.fit([((images(8), scales[0]),)], progbar=False)
        compiled = Explainer(plain.adapter.model, "second", compile=True, samples=3)
        compiled.estimator = plain.estimator
        for scale in scales:
            found, expected = (e.explain((images(1), scale), 1, seed=0) for e in (compiled, plain))
            np.testing.assert_allclose(found.model_losses, expected.model_losses, rtol=1e-6)


@pytest.mark.parametrize(
    ("network", "reason"),
    [
        (Network(skips=True), "features of the image reach the tail around the bottleneck"),
        (Network(decides=True), "its operations cannot be recorded"),
    ],
    ids=["skip connection", "control flow"],
)
def test_what_cannot_be_recorded_runs_uncompiled(machine_code, network, reason):
    plain, compiled = explainers(network)
    with pytest.warns(UserWarning, match=reason):
        found = compiled.explain(images(2), 1, seed=0)
    np.testing.assert_array_equal(found.capacity, plain.explain(images(2), 1, seed=0).capacity)
    other = compiled.explain(images(2, 5), 1, seed=0)
    np.testing.assert_array_equal(other.capacity, plain.explain(images(2, 5), 1, seed=0).capacity)


def test_a_compiler_that_fails_is_told(monkeypatch):
    def fails(*leaves):
        raise RuntimeError("no C++ compiler")

    monkeypatch.setattr(torch, "compile", lambda module, **options: fails)
    plain, compiled = explainers(Network())
    with pytest.warns(UserWarning, match="no machine code could be made of it: RuntimeError: no C"):
        found = compiled.explain(images(1), 1, seed=0)
    np.testing.assert_array_equal(found.capacity, plain.explain(images(1), 1, seed=0).capacity)
