"""Explaining on an accelerator, simulated by a tensor that only claims to be on one.

Its numbers are the CPU's. It checks for the mistakes that show on a real device: an operation on tensors of
two devices, NumPy's reach for memory that it cannot see, a dtype that the device does not have.
"""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

from iba_core import Explainer, Tokens
from iba_torch import IBA, TorchAdapter, TorchWelfordEstimator

pytestmark = pytest.mark.filterwarnings("ignore:PyTorch was compiled without cuDNN:UserWarning")

aten = torch.ops.aten

TO_ANY_DEVICE = {aten._to_copy.default, aten.copy_.default}


class OnDevice(torch.Tensor):
    """A tensor that says that it is on a device and keeps its numbers in a tensor of the CPU."""

    @staticmethod
    def __new__(cls, held, device):
        return torch.Tensor._make_wrapper_subclass(
            cls, held.shape, strides=held.stride(), dtype=held.dtype, device="meta"
        )

    def __init__(self, held, device):
        self.held = held
        self.claimed = torch.device(device)

    @property
    def device(self):
        return self.claimed

    @property
    def is_cuda(self):
        return self.claimed.type == "cuda"

    @property
    def is_meta(self):
        return False

    def __repr__(self):
        return f"OnDevice({self.held}, {self.claimed})"

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        if func is torch.Tensor.to and isinstance(args[-1], OnDevice) and len(args) == 2:
            # PyTorch would ask the tensor itself, not this class.
            args = (args[0], args[1].device, args[1].dtype)
        with torch._C.DisableTorchFunctionSubclass():
            return func(*args, **(kwargs or {}))

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        raise AssertionError(f"{func} ran on the device outside of the test's mode")


class Device(TorchDispatchMode):
    """Mode in which there is a device of the given name.

    Args:
        name: of the device.
        has_float64: whether the device has numbers of that precision; Apple's has not.
    """

    # As a mode of this kind, it keeps PyTorch from looking for the device.
    _mode_key = torch._C._TorchDispatchModeKey.FAKE

    def __init__(self, name="cuda:0", has_float64=True):
        super().__init__()
        self.name = torch.device(name)
        self.has_float64 = has_float64
        self.values_asked = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        flat = tree_leaves((args, kwargs))
        there = any(isinstance(item, OnDevice) for item in flat)
        # PyTorch takes numbers, tensors without axes, from anywhere.
        here = [
            item
            for item in flat
            if isinstance(item, torch.Tensor) and not isinstance(item, OnDevice) and item.ndim
        ]
        if there and here and func not in TO_ANY_DEVICE:
            raise RuntimeError(f"{func}: tensors of {[tuple(t.shape) for t in here]} are not on {self.name}")
        self.values_asked += there and func is aten._local_scalar_dense.default
        device = kwargs.get("device", self.name if there else torch.device("cpu"))
        if "device" in kwargs:
            kwargs["device"] = torch.device("cpu")
        bare_args, bare_kwargs = tree_map_only(OnDevice, lambda tensor: tensor.held, (args, kwargs))
        result = func(*bare_args, **bare_kwargs)
        if func is aten.copy_.default or (there and func._schema.name.endswith("_")):
            return args[0]
        if torch.device(device).type != self.name.type:
            return result
        return tree_map_only(torch.Tensor, self.put, result)

    def put(self, tensor):
        if tensor.dtype == torch.float64 and not self.has_float64:
            raise TypeError(f"{self.name} has no float64")
        return OnDevice(tensor, self.name)


@pytest.fixture(params=[True, False], ids=["float64", "no float64"])
def device(request, monkeypatch):
    """The device, switched on."""
    if not request.param:
        monkeypatch.setattr("iba_torch.bottlenecks.estimator.precision_on", lambda device: torch.float32)
    with Device(has_float64=request.param) as mode:
        yield mode


def data(images, n, seed=0):
    return images(n, torch.float32, seed)


def cross_entropy_of(model):
    def loss(x):
        return functional.cross_entropy(model(x), torch.ones(len(x), dtype=torch.long, device=x.device))

    return loss


LAYERS = [
    ("residual", "conv1", None),
    ("recurrent", "lstm", None),
    ("transformer", "blocks.0", Tokens(prefix=1, grid=(3, 3))),
]


def test_the_simulated_device_finds_mistakes(device):
    layer = nn.Linear(3, 2).to(device.name)
    there, here = torch.randn(4, 3).to(device.name), torch.randn(4, 3)
    assert layer(there).device == device.name
    for mistake in (lambda: layer(here), lambda: there + here, there.numpy):
        with pytest.raises(RuntimeError, match=r"not on cuda|numpy"):
            mistake()
    if not device.has_float64:
        with pytest.raises(TypeError, match="no float64"):
            there.double()
    expected = functional.linear(there.cpu(), layer.weight.cpu(), layer.bias.cpu())
    torch.testing.assert_close(layer(there).cpu(), expected)
    before = device.values_asked
    assert bool(there.isfinite().all())
    assert device.values_asked == before + 1


@pytest.mark.parametrize(("name", "layer", "tokens"), LAYERS, ids=lambda value: str(value).split("(")[0])
class TestOnTheDevice:
    def test_the_explainer(self, cases, images, device, name, layer, tokens):
        options = {"steps": 2, "samples": 2, "tokens": tokens}
        model = cases[name].make(torch.float32)
        batches, x = [data(images, 8), data(images, 8, 1)], data(images, 2, 2)
        here = Explainer(model, layer, **options).fit(batches, progbar=False)
        expected = here.explain(x, [1, 2], seed=0)
        model.to(device.name)
        there = Explainer(model, layer, **options).fit(iter(batches), progbar=False)
        np.testing.assert_allclose(there.estimator.std(), here.estimator.std(), rtol=1e-4)
        for inputs in (x.numpy(), x.to(device.name)):
            found = there.explain(inputs, [1, 2], seed=0, max_batch=3)
            np.testing.assert_allclose(found.capacity, expected.capacity, rtol=1e-3, atol=1e-5)
        assert there.explain(x).capacity.shape == expected.capacity.shape
        assert there.predict_restricted(x, expected, seed=0).shape == (2, 10, 5)
        for target in (None, lambda outputs: outputs[:, 0]):
            there.explain(x, target)

    def test_the_bottleneck(self, cases, images, device, name, layer, tokens):
        model = cases[name].make(torch.float32)
        batches, x = [data(images, 8), data(images, 8, 1)], data(images, 1, 2)
        iba = IBA(model.get_submodule(layer), optimization_steps=2, batch_size=2, tokens=tokens)
        iba.estimate(model, batches)
        expected = iba.analyze(x, cross_entropy_of(model), "capacity", seed=0)
        model.to(device.name)
        x = x.to(device.name)
        # What was estimated on the host serves on the device, and goes on there.
        np.testing.assert_allclose(
            iba.analyze(x, cross_entropy_of(model), "capacity", seed=0), expected, rtol=1e-3, atol=1e-5
        )
        iba.estimate(model, batches)
        assert all(buffer.device == device.name for buffer in iba.estimator.buffers())
        iba.to(device.name)
        found = iba.analyze(x, cross_entropy_of(model), "capacity", seed=0)
        np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-5)
        assert iba.capacity().device == iba.alpha.device == device.name
        np.testing.assert_allclose(iba.capacity().cpu(), found)
        assert isinstance(iba.analyze(x, cross_entropy_of(model)), np.ndarray)
        with iba.restrict_flow():
            restricted = model(x)
        assert restricted.device == device.name
        assert not torch.equal(restricted.cpu(), model(x).cpu())
        with iba.enable_estimation():
            model(x)
        assert iba.estimator.n_samples() == 17


def test_given_statistics_and_passed_features(cases, images, device):
    model = cases["residual"].make(torch.float32).to(device.name)
    x = data(images, 2).to(device.name)
    mean, passing = np.zeros((4, 6, 6), np.float32), np.zeros((4, 6, 6), bool)
    passing[0] = True
    for feature_mean in (mean, torch.from_numpy(mean), torch.from_numpy(mean).to(device.name)):
        iba = IBA(model.conv1, feature_mean=feature_mean, feature_std=mean + 1, optimization_steps=2)
        for mask in (passing, torch.from_numpy(passing).to(device.name)):
            found = iba.analyze(x, cross_entropy_of(model), "capacity", seed=0, pass_mask=mask)
            assert not found[:, 0].any()
            assert found[:, 1:].any()
        iba.to(device.name)
        with iba.restrict_flow():
            assert model(x).device == device.name
        iba.detach()


def test_the_device_is_read_no_more_often_for_more_steps_or_batches(cases, images, device):
    model = cases["residual"].make(torch.float32).to(device.name)
    x, loss = data(images, 1).to(device.name), cross_entropy_of(model)
    iba = IBA(model.conv1, batch_size=2)

    def reads(function):
        before = device.values_asked
        function()
        return device.values_asked - before

    few, many = (reads(lambda n=n: iba.estimate(model, [data(images, 4)] * n)) for n in (2, 7))
    assert few == many
    few, many = (reads(lambda n=n: iba.analyze(x, loss, optimization_steps=n, seed=0)) for n in (2, 7))
    assert few == many < 8


def test_an_accelerator_takes_a_whole_batch_at_once(cases, images, device):
    model = cases["residual"].make(torch.float32).to(device.name)
    explainer = Explainer(model, "conv1", steps=1, samples=4).fit([data(images, 6)], progbar=False)
    sizes = []
    model.conv2.register_forward_hook(lambda module, args, output: sizes.append(len(output)))
    explainer.explain(data(images, 40))
    assert max(sizes) == 160
    framework = TorchAdapter.framework
    assert framework.preferred_batch((80, 28, 28), next(model.parameters())) is None


def test_estimators_meet(device):
    x = torch.randn(9, 3)
    here, there, both = (TorchWelfordEstimator() for _ in range(3))
    here(x[:4])
    there(x[4:].to(device.name))
    both(x)
    for one, other in ((copy.deepcopy(here), there), (there, here)):
        one.merge(other)
        assert one.n_samples() == 9
        np.testing.assert_allclose(one.std().cpu(), both.std(), rtol=1e-5)
    there.load_state_dict(here.state_dict())
    assert there.mean().device == device.name
    np.testing.assert_allclose(there.mean().cpu(), here.mean(), rtol=1e-6)
