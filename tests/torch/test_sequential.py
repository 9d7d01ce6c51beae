"""Inserting layers into sequentials."""

from collections import OrderedDict

import pytest
import torch
from torch import nn

from iba_core import InputError
from iba_torch import insert_into_sequential


def named():
    return nn.Sequential(OrderedDict(conv=nn.Conv2d(3, 3, 1), inner=nn.Sequential(nn.ReLU(), nn.Tanh())))


@pytest.mark.parametrize("idx", [0, 1, 2, 3, -1, -4])
def test_the_layer_stands_at_its_position_and_the_others_are_the_same(idx):
    layers, new = [nn.Linear(2, 2) for _ in range(3)], nn.Identity()
    sequential = nn.Sequential(*layers)
    result = insert_into_sequential(sequential, new, idx)
    assert result[idx] is new
    assert [layer for layer in result if layer is not new] == layers
    assert list(sequential) == layers
    assert list(result._modules) == ["0", "1", "2", "3"]


def test_names_are_kept():
    model = named()
    assert list(insert_into_sequential(model, nn.Identity(), 1)._modules) == ["conv", "identity", "inner"]
    twice = insert_into_sequential(insert_into_sequential(model, nn.Identity(), 0), nn.Identity(), 3)
    assert list(twice._modules) == ["identity", "conv", "inner", "identity2"]
    assert set(model.state_dict()) == set(twice.state_dict())


def test_a_sequential_inside():
    model, new = named(), nn.Identity()
    result = insert_into_sequential(model, new, (1, 1))
    assert result.get_submodule("inner.1") is new
    assert [type(layer).__name__ for layer in result.inner] == ["ReLU", "Identity", "Tanh"]
    assert len(model.inner) == 2
    assert result.conv is model.conv


def test_type_mode_attributes_and_hooks_are_kept_and_not_shared():
    class Residual(nn.Sequential):
        def forward(self, x):
            return x + super().forward(x)

    model = Residual(nn.Linear(3, 3)).eval()
    model.note = "kept"
    model.register_forward_hook(lambda module, args, output: output * 2)
    x = torch.randn(2, 3)
    result = insert_into_sequential(model, nn.Identity(), 1)
    assert isinstance(result, Residual)
    assert result.note == "kept"
    assert not result.training
    assert torch.equal(result(x), model(x))
    result.register_forward_hook(lambda module, args, output: output * 0)
    assert model(x).abs().max() > 0


@pytest.mark.parametrize(
    ("sequential", "idx", "message"),
    [
        (nn.Sequential(nn.ReLU()), 2, "idx=2 is outside of a sequential with 1 layers"),
        (nn.Sequential(nn.ReLU()), -3, "idx=-3 is outside"),
        (nn.Sequential(nn.ReLU()), (0, 0), r"idx=\(0, 0\) leads into ReLU"),
        (nn.Sequential(nn.Sequential()), (1, 0), r"idx=\(1, 0\) is outside"),
        (nn.ReLU(), 0, "must be an nn.Sequential"),
    ],
)
def test_positions_that_are_not_there(sequential, idx, message):
    with pytest.raises(InputError, match=message):
        insert_into_sequential(sequential, nn.Identity(), idx)
