"""Batch normalisation as scale and shift: the same numbers, and no more is kept than is needed."""

import numpy as np
import pytest
import torch
from torch import nn

from iba_core import Explainer
from iba_torch.normalization import ScaleAndShift

KINDS = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}


def normalization(axes=2, dtype=torch.float64, **options):
    generator = torch.Generator().manual_seed(0)
    module = KINDS[axes](5, dtype=dtype, **options).eval().requires_grad_(False)
    for name, tensor in module.state_dict().items():
        if tensor.is_floating_point():
            drawn = torch.randn(tensor.shape, generator=generator, dtype=dtype)
            tensor.copy_(drawn.abs() + 0.1 if name == "running_var" else drawn)
    return module


def features(axes=2, dtype=torch.float64):
    shape = (3, 5, 4, 6, 2)[: 2 + axes]
    return torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=dtype).requires_grad_()


@pytest.mark.parametrize("options", [{}, {"affine": False}, {"bias": False}], ids=str)
@pytest.mark.parametrize(("kind", "axes"), [(1, 0), (1, 1), (2, 2), (3, 3)])
def test_output_and_gradient_are_those_of_the_module(kind, axes, options):
    module, x = normalization(kind, affine=options != {"affine": False}), features(axes)
    if options == {"bias": False}:
        module.bias = None
    expected, found = module(x), ScaleAndShift()(module, (x,), {})
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    towards = torch.randn_like(expected)
    wanted, got = (torch.autograd.grad(output, x, towards)[0] for output in (expected, found))
    torch.testing.assert_close(got, wanted, rtol=1e-12, atol=1e-12)


def test_changes_while_a_cut_is_open_are_seen():
    module, x, stand_in = normalization(), features(), ScaleAndShift()
    changes = (
        lambda: module.weight.mul_(2),
        lambda: module.running_mean.add_(1),
        lambda: setattr(module, "running_var", module.running_var + 1),
        lambda: setattr(module, "bias", nn.Parameter(module.bias + 1, requires_grad=False)),
    )
    last = stand_in(module, (x,), {})
    for change in changes:
        with torch.no_grad():
            change()
        found = stand_in(module, (x,), {})
        assert not torch.equal(found, last)
        torch.testing.assert_close(found, module(x), rtol=1e-12, atol=1e-12)
        last = found
    module.train()
    assert stand_in(module, (x,), {}) is None


def test_weights_of_inference_mode_are_left_to_the_module():
    with torch.inference_mode():
        module = normalization()
    assert ScaleAndShift()(module, (features(),), {}) is None


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_left_to_the_module(dtype):
    assert ScaleAndShift()(normalization(dtype=dtype), (features(dtype=dtype),), {}) is None


def test_the_order_in_memory_stays():
    x = features().detach().contiguous(memory_format=torch.channels_last).requires_grad_()
    found = ScaleAndShift()(normalization(), (x,), {})
    assert found.is_contiguous(memory_format=torch.channels_last)


def test_its_input_is_not_kept():
    module, x, kept = normalization(), features(), []

    def pack(tensor):
        kept.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        module(x)
        assert x.numel() in kept
        kept.clear()
        ScaleAndShift()(module, (x,), {})
    assert sum(kept) <= 5


class Doubled(nn.BatchNorm2d):
    def forward(self, x):
        return 2 * super().forward(x)


def hooked(register):
    module = normalization()
    getattr(module, register)(lambda *_: None)
    return module


@pytest.mark.parametrize(
    "module",
    [
        normalization().train(),
        normalization(track_running_stats=False),
        Doubled(5, dtype=torch.float64).eval(),
        nn.Identity(),
        normalization(dtype=torch.float32),
        hooked("register_forward_hook"),
        hooked("register_forward_pre_hook"),
        hooked("register_full_backward_hook"),
    ],
    ids=[
        "training",
        "own statistics",
        "subclass",
        "other module",
        "other precision",
        "forward hook",
        "pre-hook",
        "backward hook",
    ],
)
def test_everything_else_is_left_to_the_module(module):
    assert ScaleAndShift()(module, (features(),), {}) is None


def test_passes_without_gradients_and_other_channels_are_left_to_the_module():
    module, x = normalization(), features()
    assert ScaleAndShift()(module, (x.detach(),), {}) is None
    with torch.no_grad():
        assert ScaleAndShift()(module, (x,), {}) is None
    assert ScaleAndShift()(module, (x[:, :3],), {}) is None
    assert ScaleAndShift()(module, (), {"input": x}) is None


def test_hooks_on_all_modules_see_the_calls():
    handle = nn.modules.module.register_module_forward_hook(lambda *_: None)
    try:
        assert ScaleAndShift()(normalization(), (features(),), {}) is None
    finally:
        handle.remove()


def test_weights_changed_between_explanations_are_seen():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.Conv2d(4, 5, 3), nn.BatchNorm2d(5), nn.Flatten(), nn.Linear(80, 3)
    )
    explainer = Explainer(model.eval(), "0", samples=2).fit([torch.randn(8, 3, 8, 8)], progbar=False)
    x = torch.randn(1, 3, 8, 8)
    before = explainer.explain(x, 1, seed=0)
    model[2].running_var.fill_(0.01)
    after = explainer.explain(x, 1, seed=0)
    assert not np.allclose(before.capacity, after.capacity)
