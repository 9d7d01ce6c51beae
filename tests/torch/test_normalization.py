"""Batch normalisation as scale and shift: the same numbers, and no more is kept than is needed."""

import numpy as np
import pytest
import torch
from torch import nn

from iba_core import Explainer
from iba_torch import TorchAdapter
from iba_torch.tail.rewrites.normalization import ScaleAndShift, can_merge
from iba_torch.tail.rewrites.plan import Plan

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


def test_changes_while_a_head_is_open_are_seen():
    module, x, rewrite = normalization(), features(), ScaleAndShift()
    changes = (
        lambda: module.weight.mul_(2),
        lambda: module.running_mean.add_(1),
        lambda: setattr(module, "running_var", module.running_var + 1),
        lambda: setattr(module, "bias", nn.Parameter(module.bias + 1, requires_grad=False)),
    )
    last = rewrite(module, (x,), {})
    for change in changes:
        with torch.no_grad():
            change()
        found = rewrite(module, (x,), {})
        assert not torch.equal(found, last)
        torch.testing.assert_close(found, module(x), rtol=1e-12, atol=1e-12)
        last = found
    module.train()
    assert rewrite(module, (x,), {}) is None


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
        normalization(dtype=torch.float32),
        hooked("register_forward_hook"),
        hooked("register_forward_pre_hook"),
        hooked("register_full_backward_hook"),
    ],
    ids=[
        "training",
        "own statistics",
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


def test_modules_that_do_something_else_have_no_rewrite():
    module = normalization()
    assert Plan()[module] is not None
    module.forward = lambda x: x
    for other in (Doubled(5).eval(), nn.Identity(), module):
        assert Plan()[other] is None


def test_hooks_on_all_modules_see_the_calls():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 5, 3), nn.BatchNorm2d(5), nn.AdaptiveAvgPool2d(1))
    split, x, seen = TorchAdapter(model.eval()).split("0"), torch.randn(1, 3, 8, 8), []
    with split.head(x) as tail:
        tail(tail.features)
    hook = nn.modules.module.register_module_forward_hook(lambda module, *_: seen.append(type(module)))
    try:
        with split.head(x) as tail:
            seen.clear()
            tail(tail.features.requires_grad_())
    finally:
        hook.remove()
    assert [kind for kind in seen if kind is not nn.Sequential] == [*map(type, model)]


def convolution(axes=2, dtype=torch.float64, **options):
    generator = torch.Generator().manual_seed(2)
    kind = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}[axes]
    module = kind(5, 5, 3, dtype=dtype, **options).eval().requires_grad_(False)
    for tensor in module.state_dict().values():
        tensor.copy_(torch.randn(tensor.shape, generator=generator, dtype=dtype))
    return module


def images(axes=2, dtype=torch.float64):
    shape = (40, 5, 7, 6, 5)[: 2 + axes]
    return torch.randn(shape, generator=torch.Generator().manual_seed(3), dtype=dtype).requires_grad_()


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"bias": False},
        {"groups": 5},
        {"stride": 2, "padding": 1},
        {"padding": "same", "dilation": 2},
        {"padding": 2, "padding_mode": "circular"},
    ],
    ids=str,
)
@pytest.mark.parametrize("axes", [1, 2, 3])
def test_merged_with_a_convolution_output_and_gradient_are_those_of_the_modules(axes, options):
    first, second, x = convolution(axes, **options), normalization(axes), images(axes)
    expected, found = second(first(x)), ScaleAndShift().convolved(first, second, x)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)
    towards = torch.randn_like(expected)
    wanted, got = (torch.autograd.grad(output, x, towards)[0] for output in (expected, found))
    torch.testing.assert_close(got, wanted, rtol=1e-10, atol=1e-10)


def test_merged_weights_follow_the_modules_and_the_order_in_memory():
    first, second, x, rewrite = convolution(), normalization(), images(), ScaleAndShift()
    last = rewrite.convolved(first, second, x)
    for tensor in (first.weight, first.bias, second.weight, second.running_var):
        with torch.no_grad():
            tensor.mul_(2)
        found = rewrite.convolved(first, second, x)
        assert not torch.equal(found, last)
        torch.testing.assert_close(found, second(first(x)), rtol=1e-10, atol=1e-10)
        last = found
    reordered = x.detach().contiguous(memory_format=torch.channels_last).requires_grad_()
    found = rewrite.convolved(first, second, reordered)
    assert found.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(found, last, rtol=1e-10, atol=1e-10)


def test_weights_that_take_more_memory_than_the_maps_are_not_copied():
    # 5 * 3 * 3 weights of each channel, against some 7 * 6 places of each image.
    first, second = convolution(), normalization()
    x = images().detach()
    assert ScaleAndShift().convolved(first, second, x[:3].clone().requires_grad_()) is not None
    assert ScaleAndShift().convolved(first, second, x[:1].clone().requires_grad_()) is None


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (convolution(), normalization().train()),
        (convolution(), normalization(track_running_stats=False)),
        (convolution(dtype=torch.float32), normalization()),
        (convolution(), hooked("register_forward_hook")),
    ],
    ids=["training", "own statistics", "other precision", "hook"],
)
def test_other_pairs_are_not_merged(first, second):
    assert ScaleAndShift().convolved(first, second, images()) is None


def test_convolutions_that_are_watched_or_changed_are_not_merged():
    first, second = convolution(), normalization()
    handle = first.register_forward_hook(lambda *_: None)
    assert ScaleAndShift().convolved(first, second, images()) is None
    handle.remove()
    assert ScaleAndShift().convolved(first, second, images()) is not None
    assert can_merge(first, second)
    first.forward = lambda x: x
    assert not can_merge(first, second)


def test_nothing_is_merged_under_autocast():
    first, second, x = convolution(dtype=torch.float32), normalization(dtype=torch.float32), images()
    x = x.detach().float().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        assert ScaleAndShift().convolved(first, second, x) is None
    assert ScaleAndShift().convolved(first, second, x) is not None


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
