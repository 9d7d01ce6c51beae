"""No mode of PyTorch stays on after an interrupt inside PyTorch's own handling of modes."""

import gc

import pytest
import torch
from torch import nn, overrides
from torch.utils import _python_dispatch

from iba_core import Explainer
from iba_torch import IBA


def network():
    # The functions that these call are written in Python, and call modes there.
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3)
    ).eval()


def fit(model):
    Explainer(model, "2", steps=1, samples=2).fit([torch.ones(2, 3, 8, 8)], progbar=False)


def restrict(model):
    iba = IBA(model[1], feature_mean=torch.zeros(4, 6, 6), feature_std=torch.ones(4, 6, 6))
    with iba.restrict_flow():
        model(torch.ones(2, 3, 8, 8))
    iba.detach()


def modes():
    flags = {name: on for name, on in vars(_python_dispatch).items() if name.startswith("_is_in_")}
    return torch._C._len_torch_function_stack(), torch._C._len_torch_dispatch_stack(), flags


class Interrupt:
    """Comes at the n-th call of what it is asked for."""

    def __init__(self, number):
        self.left = number

    def __call__(self):
        self.left -= 1
        if self.left == -1:
            raise KeyboardInterrupt


def check(act, model, interrupt):
    before = modes()
    with pytest.raises(KeyboardInterrupt):
        act(model)
    assert interrupt.left < 0
    gc.collect()
    assert modes() == before
    act(model)
    assert modes() == before


@pytest.mark.parametrize("number", [0, 1, 2])
@pytest.mark.parametrize("act", [fit, restrict])
def test_an_interrupt_before_a_mode_is_put_back(act, number, monkeypatch):
    interrupt, own = Interrupt(number), overrides._pop_mode_temporarily

    class Interrupted:
        def __init__(self):
            self.inner = own()

        def __enter__(self):
            return self.inner.__enter__()

        def __exit__(self, *error):
            interrupt()
            return self.inner.__exit__(*error)

    monkeypatch.setattr(overrides, "_pop_mode_temporarily", Interrupted)
    check(act, network(), interrupt)


@pytest.mark.parametrize("act", [fit, restrict])
def test_an_interrupt_after_a_mode_is_taken_off(act, monkeypatch):
    interrupt, pop = Interrupt(0), overrides._pop_mode

    def popped():
        mode = pop()
        interrupt()
        return mode

    monkeypatch.setattr(overrides, "_pop_mode", popped)
    check(act, network(), interrupt)


@pytest.mark.parametrize("number", [0, 1])
def test_an_interrupt_after_a_mode_is_entered(number, monkeypatch):
    interrupt, push = Interrupt(number), _python_dispatch._push_mode

    def pushed(mode):
        push(mode)
        interrupt()

    monkeypatch.setattr(_python_dispatch, "_push_mode", pushed)
    check(fit, network(), interrupt)
