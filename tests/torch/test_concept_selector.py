"""What the memory selector must be as a PyTorch module."""

import pytest
import torch
from torch import nn

from iba_core.errors import InputError
from iba_torch.concepts import SelectorZU


def test_attributes_and_state_are_those_of_the_published_class():
    selector = SelectorZU(in_features=64, memory_size=10, exogenous_size=32, out_features=5, temperature=0.5)
    assert isinstance(selector.memory, nn.Embedding)
    assert isinstance(selector.selector, nn.Sequential)
    shapes = {name: tuple(value.shape) for name, value in selector.state_dict().items()}
    assert shapes == {
        "memory.weight": (5, 320),
        "selector.0.weight": (32, 64),
        "selector.0.bias": (32,),
        "selector.2.weight": (50, 32),
        "selector.2.bias": (50,),
    }
    latent = torch.randn(4, 64)
    assert selector.selector(latent).shape == (4, 5, 10)
    for sampling in (False, True):
        assert selector(latent, sampling=sampling).shape == (4, 5, 32)
    assert selector(input=latent).shape == (4, 5, 32)
    with pytest.raises(InputError, match="input is missing"):
        selector()


def test_arguments_of_the_linear_layer_reach_it():
    by_place = SelectorZU(6, 3, 4, 5, 1.0, False, dtype=torch.float64)
    assert by_place.selector[2].bias is None
    assert by_place.selector[0].bias is not None
    assert {parameter.dtype for parameter in by_place.parameters()} == {torch.float64}
    assert by_place(torch.randn(2, 6, dtype=torch.float64), sampling=True).dtype == torch.float64


def test_sampling_follows_the_seed_and_reaches_every_parameter():
    selector = SelectorZU(6, 3, 4, 5, temperature=0.5)
    x = torch.randn(8, 6)
    torch.manual_seed(3)
    first = selector(x, sampling=True)
    torch.manual_seed(3)
    torch.testing.assert_close(selector(x, sampling=True), first, rtol=0, atol=0)
    (first**2).sum().backward()
    for name, parameter in selector.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_samples_finite_numbers(dtype):
    selector = SelectorZU(6, 3, 4, 5).to(dtype)
    selected = selector(torch.randn(2000, 6).to(dtype), sampling=True)
    assert selected.isfinite().all()
    assert selector.to_arrays()["memory.weight"].dtype.kind == "f"
