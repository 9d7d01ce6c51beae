"""The names of torch_concepts, against what the package has answered (tests/data/record_selector.py)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from iba_torch import concepts
from iba_torch.compat.torch_concepts.nn import SelectorZU
from iba_torch.compat.torch_concepts.nn.modules.low.encoders import selector as module


@pytest.fixture(scope="module")
def record():
    return dict(np.load(Path(__file__).parents[1] / "data" / "torch_concepts_1_0_0a1.npz"))


def test_one_seed_gives_weights_and_choices_of_the_package(record):
    torch.manual_seed(7)
    selector = SelectorZU(in_features=6, memory_size=4, exogenous_size=3, out_features=5, temperature=0.5)
    for name, value in selector.state_dict().items():
        np.testing.assert_array_equal(value, record[name], err_msg=name)
    x = torch.from_numpy(record["input"])
    torch.testing.assert_close(selector(input=x, sampling=False), torch.from_numpy(record["soft"]))
    torch.manual_seed(11)
    chosen = selector(input=x, sampling=True)
    torch.testing.assert_close(chosen, torch.from_numpy(record["hard"]))
    (chosen**2).sum().backward()
    torch.testing.assert_close(selector.memory.weight.grad, torch.from_numpy(record["hard.gradient"]))


def test_the_own_class_draws_the_same_weights_and_attends_over_slots(record):
    torch.manual_seed(7)
    own = concepts.SelectorZU(in_features=6, memory_size=4, exogenous_size=3, out_features=5, temperature=0.5)
    for name, value in own.state_dict().items():
        np.testing.assert_array_equal(value, record[name], err_msg=name)
    x = torch.from_numpy(record["input"])
    assert not torch.allclose(own(x), torch.from_numpy(record["soft"]))
    assert module.SelectorZU is SelectorZU
    assert issubclass(SelectorZU, concepts.SelectorZU)
