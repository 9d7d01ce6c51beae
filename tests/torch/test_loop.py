"""What the optimisation of a PyTorch model holds in memory, and in which order it lies there."""

import gc

import numpy as np
import pytest
import torch
from torch import nn

from iba_core import Explainer
from iba_core.bottleneck.optimization import BottleneckOptimizer
from iba_core.bottleneck.settings import BottleneckSettings
from iba_core.bottleneck.statistics import Statistics
from iba_core.framework.layout import Layout
from iba_torch import TorchAdapter
from iba_torch.tail.split import TorchTail

SAMPLES = 6


class Watch(nn.Module):
    """Notes the storages that Python's tensors have while a map passes any copy of the one made last."""

    def __init__(self):
        super().__init__()
        type(self).before = None
        type(self).seen = []

    @staticmethod
    def tensors():
        return [thing for thing in gc.get_objects() if type(thing) in (torch.Tensor, nn.Parameter)]

    @staticmethod
    def storages(tensors):
        return {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors}

    @classmethod
    def begin(cls):
        """Keeps all there are: were one freed on the way, a new tensor could lie unseen at its address."""
        gc.collect()
        cls.before = cls.tensors()

    def forward(self, x):
        if self.before is not None and x.requires_grad:
            old = self.storages(self.before)
            new = {at: size for at, size in self.storages(self.tensors()).items() if at not in old}
            self.seen.append(sum(new.values()) / x[0].nbytes)
        return x


def network(last=None):
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3),
        nn.ReLU(),
        Watch(),
        nn.Conv2d(8, 4, 3),
        nn.ReLU(),
        last or nn.Flatten(),
        nn.Linear(576, 5),
    ).eval()


def photographs(count):
    return torch.randn(count, 3, 16, 16, generator=torch.Generator().manual_seed(1))


def explainer(model):
    return Explainer(model, "1", samples=SAMPLES).fit([photographs(8)], progbar=False)


@pytest.mark.parametrize("seed", [None, 0])
def test_the_copies_and_four_maps_are_held_while_the_tail_runs(seed):
    model = network()
    one, x = explainer(model), photographs(1)
    one.explain(x, 1, seed=seed)
    watch = type(model[2])
    watch.begin()
    one.explain(x, 1, seed=seed)
    watch.before = None
    assert len(watch.seen) == 10
    # Features, alpha and two moments, which are one at first; numbers of a channel and of an output are left.
    assert SAMPLES + 3 <= watch.seen[0] < SAMPLES + 3.1
    assert all(SAMPLES + 4 <= maps < SAMPLES + 4.1 for maps in watch.seen[1:])


@pytest.mark.parametrize("images", [1, 3])
def test_the_order_in_memory_changes_nothing(images, monkeypatch):
    model, x = network(), photographs(images)
    passing = np.zeros((8, 14, 14), bool)
    passing[:, :3] = True

    def explained():
        options = {"seed": 3, "pass_mask": passing, "max_batch": 2 * images}
        found = explainer(model).explain(x, [1] * images, **options)
        return found.capacity, found.mask, found.model_losses, found.informations

    with TorchAdapter(model).split("1").head(x) as tail:
        assert tail.in_memory_order().axes == (1, 2, 0)
    reordered = explained()
    monkeypatch.setattr(TorchTail, "in_memory_order", lambda self: self)
    for one, other in zip(reordered, explained(), strict=True):
        np.testing.assert_allclose(one, other, rtol=2e-4, atol=1e-6)


def test_what_is_reported_has_the_axes_of_the_features():
    """And lies in their order in memory, as does all that the steps compute with."""
    model = network()
    adapter = TorchAdapter(model)
    statistics = Statistics.of(explainer(model).estimator)
    states = []
    with adapter.split("1").head(photographs(2)) as tail:
        ordered = tail.in_memory_order()
        assert ordered.axes == (1, 2, 0)
        assert ordered.features.is_contiguous()
        torch.testing.assert_close(ordered.features.permute(0, 3, 1, 2), tail.features)
        optimizer = BottleneckOptimizer(
            adapter.framework,
            lambda outputs: outputs.square().sum(dim=1),
            Layout.of((8, 14, 14), "channels_first").permuted(ordered.axes),
        )
        passing = np.zeros((2, 8, 14, 14), bool)
        passing[1, :, :3] = True
        result = optimizer.run(
            ordered,
            statistics,
            settings=BottleneckSettings(samples=2, steps=2),
            pass_mask=passing,
            callback=lambda step, state, report: states.append(state),
        )
        torch.testing.assert_close(result.problem.features, tail.features)
    shape = (2, 8, 14, 14)
    assert result.alpha.shape == result.mask.passed.shape == result.capacity.shape == shape
    assert all(part.shape == shape for state in states for part in state)
    assert torch.equal(states[-1].parameter, result.alpha)
    assert result.problem.mean.shape == (1, *shape[1:])
    tensors = [part for part in result.problem if isinstance(part, torch.Tensor)]
    maps = [part for part in tensors if part.ndim == len(shape) and part.numel() > 1]
    assert len(maps) == 6
    for part in (*maps, result.alpha, *result.mask, result.capacity):
        assert part.is_contiguous(memory_format=torch.channels_last)


def test_a_tail_that_comes_to_write_into_its_maps_is_found_out():
    model = network()
    model[2] = nn.ReLU()
    one, x = explainer(model), photographs(1)
    wanted = one.explain(x, 1, seed=0).capacity
    model[2].inplace = True
    np.testing.assert_allclose(one.explain(x, 1, seed=0).capacity, wanted, rtol=1e-5, atol=1e-7)
