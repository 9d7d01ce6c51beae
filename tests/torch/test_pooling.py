"""The average over all places: the same numbers, and a gradient in the order in memory of the maps."""

import copy

import pytest
import torch
from torch import nn

from iba_torch import TorchAdapter
from iba_torch.tail.rewrites.plan import Plan
from iba_torch.tail.rewrites.pooling import averaged


def maps(dtype=torch.float64, order=torch.channels_last, channels=6):
    x = torch.randn((3, channels, 4, 5), generator=torch.Generator().manual_seed(0), dtype=dtype)
    return x.contiguous(memory_format=order).requires_grad_()


@pytest.mark.parametrize("size", [1, (1, 1)])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_output_and_gradient_are_those_of_the_module_in_the_order_of_the_maps(dtype, size):
    module, x = nn.AdaptiveAvgPool2d(size).eval(), maps(dtype)
    expected, found = module(x), averaged(module, (x,), {})
    torch.testing.assert_close(found, expected)
    towards = torch.randn_like(found)
    wanted, got = (torch.autograd.grad(output, x, towards)[0] for output in (expected, found))
    torch.testing.assert_close(got, wanted)
    assert got.stride() == x.stride()
    # The rewrite is for this: it can go once PyTorch does so itself.
    assert wanted.stride() != x.stride()


def test_what_is_not_the_average_of_such_maps_is_left_to_the_module():
    class Own(nn.AdaptiveAvgPool2d):
        pass

    average = nn.AdaptiveAvgPool2d(1).eval()
    assert averaged(average, (maps(),), {}) is not None
    assert Plan()[average] is averaged
    for module in (Own(1), nn.AdaptiveAvgPool2d(2), nn.AdaptiveAvgPool2d((1, None)), nn.AvgPool2d(4)):
        assert Plan()[module.eval()] is None
    assert averaged(average, (maps(order=torch.contiguous_format),), {}) is None
    assert averaged(average, (maps()[0],), {}) is None
    assert averaged(average, (maps().detach(),), {}) is None
    assert averaged(average, (), {"input": maps()}) is None
    with torch.no_grad():
        assert averaged(average, (maps(),), {}) is None
    patched = copy.deepcopy(average)
    patched.forward = lambda x: x
    assert Plan()[patched] is None
    average.register_forward_hook(lambda *_: None)
    assert averaged(average, (maps(),), {}) is None


class Called(nn.Module):
    """Calls its average itself, as residual networks do."""

    def __init__(self):
        super().__init__()
        self.conv, self.act, self.average = nn.Conv2d(3, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1)
        self.head = nn.Linear(8, 4)

    def forward(self, x):
        return self.head(self.average(self.act(self.conv(x))).flatten(1))


@pytest.mark.parametrize("in_a_chain", [False, True])
def test_the_tail_has_the_gradient_in_the_order_of_the_maps(in_a_chain):
    torch.manual_seed(0)
    model = Called().eval()
    if in_a_chain:
        model = nn.Sequential(model.conv, model.act, model.average, nn.Flatten(), model.head).eval()
    activation = model[1] if in_a_chain else model.act
    orders = []

    def see(module, args, output):
        if output.requires_grad:
            output.register_hook(lambda slope: orders.append(slope.is_contiguous()))

    activation.register_forward_hook(see)
    x = torch.randn(2, 3, 12, 12)
    split = TorchAdapter(model).split("0" if in_a_chain else "conv")
    with split.head(x) as tail:
        z = tail.features.clone().requires_grad_()
        (slope,) = torch.autograd.grad(tail(z).square().sum(), z)
    assert orders == [False]
    y = model[0](x) if in_a_chain else model.conv(x)
    y = y.detach().requires_grad_()
    whole = model[1:](y) if in_a_chain else model.head(model.average(model.act(y)).flatten(1))
    torch.testing.assert_close(slope, torch.autograd.grad(whole.square().sum(), y)[0])
