"""What the head remembers though no tail reads it is not kept, and comes back where one does after all."""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from iba_torch.tail.places import Knowledge, LayerCall
from iba_torch.tail.split import TorchSplit


class Stack(nn.Module):
    """Blocks one after the other, and what a function makes of the first one's output and the last one's."""

    def __init__(self, join: Callable[[Stack, torch.Tensor, torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(nn.Conv2d(3, 3, 3, padding=1) for _ in range(5))
        self.join = join
        self.seen: Any = None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        first = None
        for block in self.blocks:
            x = block(x)
            first = x if first is None else first
        return self.join(self, first, x)


def alone(model: Stack, first: torch.Tensor, last: torch.Tensor) -> torch.Tensor:
    return last


def of_the_same_shape(model: Stack, first: torch.Tensor, last: torch.Tensor) -> torch.Tensor:
    assert first.shape == last.shape
    assert first.dtype == last.dtype
    assert len(first) == last.size(0)
    return last


def skipping(model: Stack, first: torch.Tensor, last: torch.Tensor) -> torch.Tensor:
    return last + first


def listed(model: Stack, first: torch.Tensor, last: torch.Tensor) -> torch.Tensor:
    return torch.cat([last, first], dim=1)


def unseen(model: Stack, first: torch.Tensor, last: torch.Tensor) -> torch.Tensor:
    # As code of an extension, which PyTorch knows nothing of.
    with torch._C.DisableTorchFunction():
        return last + first


def holding(model: Stack, first: torch.Tensor, last: torch.Tensor) -> torch.Tensor:
    model.seen = first
    return last


@pytest.fixture
def x() -> torch.Tensor:
    return torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def split_in_the_middle(model: Stack) -> TorchSplit:
    torch.manual_seed(0)
    return TorchSplit(model, model.blocks[3])


def expected(model: Stack, x: torch.Tensor, z: torch.Tensor, copies: int) -> torch.Tensor:
    """What the model computes where `z` is put in, by a hook."""
    held, hook = model.seen, model.blocks[3].register_forward_hook(lambda *_: z)
    try:
        with torch.no_grad():
            return model(x.repeat_interleave(copies, 0))
    finally:
        hook.remove()
        model.seen = held


def maps_held(shape: torch.Size) -> int:
    """How many tensors of a shape, each with memory of its own, Python holds."""
    gc.collect()
    found = [thing for thing in gc.get_objects() if type(thing) is torch.Tensor and thing.shape == shape]
    return len({tensor.untyped_storage().data_ptr() for tensor in found})


def passes(split: TorchSplit, model: Stack, x: torch.Tensor, copies: int = 3) -> list[int]:
    """How many outputs of the head are kept after each of some passes, whose outputs are right."""
    counts = []
    before = maps_held(x.shape)
    with split.head(x) as tail:
        for scale in (1.0, -0.5, 2.0):
            z = (tail.features * scale).repeat_interleave(copies, 0)
            output = tail(z.clone().requires_grad_())
            # The features are held as well.
            counts.append(maps_held(x.shape) - before - 1)
            torch.testing.assert_close(output.detach(), expected(model, x, z, copies), rtol=1e-4, atol=1e-5)
    return counts


@pytest.mark.parametrize("join", [alone, of_the_same_shape])
def test_what_nothing_reads_is_not_kept(join, x):
    model = Stack(join)
    split = split_in_the_middle(model)
    assert passes(split, model, x) == [0, 0, 0]
    before = maps_held(x.shape)
    with split.head(x):
        assert maps_held(x.shape) - before == 1


@pytest.mark.parametrize("join", [skipping, listed])
def test_what_is_read_is_kept_and_nothing_else(join, x):
    model = Stack(join)
    split = split_in_the_middle(model)
    for _ in range(2):
        assert passes(split, model, x) == [1, 1, 1]


def test_nothing_is_kept_but_what_the_model_itself_holds(x):
    model = Stack(holding)
    split = split_in_the_middle(model)
    for _ in range(2):
        assert max(passes(split, model, x)) <= 1
        assert model.seen is None


@pytest.mark.parametrize("join", [skipping, listed])
def test_a_model_that_comes_to_read_it_gets_it(join, x):
    model = Stack(alone)
    split = split_in_the_middle(model)
    passes(split, model, x)
    model.join = join
    # All three outputs of the head are kept from now on.
    for _ in range(2):
        assert passes(split, model, x) == [3, 3, 3]


def test_code_that_nothing_sees_gets_it(x):
    model = Stack(unseen)
    split = split_in_the_middle(model)
    for _ in range(2):
        assert passes(split, model, x) == [3, 3, 3]


def test_a_tail_that_ends_earlier_says_nothing_of_the_whole(x):
    model, knowledge = Stack(skipping), Knowledge()
    end = LayerCall(model.blocks[4], "blocks.4")
    brief = TorchSplit(model, model.blocks[3], end_layer=end, knowledge=knowledge)
    for _ in range(2):
        with brief.head(x) as tail:
            tail(tail.features)
    split = TorchSplit(model, model.blocks[3], knowledge=knowledge)
    assert passes(split, model, x) == [1, 1, 1]


def test_hooks_see_the_true_outputs(x):
    model = Stack(alone)
    split = split_in_the_middle(model)
    passes(split, model, x)
    seen = []
    model.blocks[1].register_forward_hook(lambda module, args, output: seen.append(output))
    with split.head(x) as tail:
        tail(tail.features)
    # In a whole pass, which the change of the model asks for, in the head and in the tail.
    assert len(seen) == 3
    torch.testing.assert_close(seen[2], seen[1])
