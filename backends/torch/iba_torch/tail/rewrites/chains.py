"""Modules that run one after the other, with less around each than a call of a module has."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import nn

from iba_torch.tail.calls import is_hooked
from iba_torch.tail.recording import is_sequential
from iba_torch.tail.rewrites.normalization import ScaleAndShift, can_merge, is_normalization
from iba_torch.tail.rewrites.pooling import is_average


class _Stage(NamedTuple):
    """Part of a chain: a module, or two that can run as one."""

    module: nn.Module
    following: nn.Module | None
    direct: Callable[[nn.Module, Any], Any] | None
    """Does for an input what a call of the module does that no hooks see; None if that is not known."""


class _Plan(NamedTuple):
    modules: tuple[nn.Module, ...]
    stages: list[_Stage]


class Chains:
    """Runs each plain `nn.Sequential`: its modules see nothing but each other's outputs.

    Args:
        merge: runs batch normalisation, and it together with a convolution before it.
        counted: modules whose every call must be seen.
    """

    def __init__(self, merge: ScaleAndShift, counted: frozenset[nn.Module]) -> None:
        self._merge = merge
        self._counted = counted
        self._plans: dict[nn.Module, _Plan] = {}

    def takes(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
        """Whether a call is one of a chain."""
        return is_sequential(module) and len(args) == 1 and not kwargs and not is_hooked(module)

    def __call__(self, module: nn.Module, x: Any) -> Any:
        """Output of a chain for its input."""
        modules = tuple(module._modules.values())
        plan = self._plans.get(module)
        if plan is None or plan.modules != modules:
            self._plans[module] = plan = _Plan(modules, self._stages(list(modules)))
        for inner, following, direct in plan.stages:
            if following is not None:
                merged = self._merge.convolved(inner, following, x)
                x = following(inner(x)) if merged is None else merged
            elif direct is not None and not is_hooked(inner):
                x = direct(inner, x)
            else:
                x = inner(x)
        return x

    def _stages(self, modules: list[nn.Module]) -> list[_Stage]:
        stages = []
        while modules:
            module, *modules = modules
            if modules and can_merge(module, modules[0]) and self._counted.isdisjoint((module, modules[0])):
                stages.append(_Stage(module, modules.pop(0), None))
            else:
                stages.append(_Stage(module, None, self._direct(module)))
        return stages

    def _direct(self, module: nn.Module) -> Callable[[nn.Module, Any], Any] | None:
        kind = type(module)
        is_usual = kind.__call__ is nn.Module.__call__ and kind._call_impl is nn.Module._call_impl
        if not is_usual or module in self._counted or isinstance(module, torch.jit.ScriptModule):
            return None
        if is_sequential(module):
            return self
        # Of modules inside, and of those that something may stand in for, the calls are to be seen.
        is_seen = module._modules or is_normalization(module) or is_average(module)
        return None if is_seen else _forward


def _forward(module: nn.Module, x: Any) -> Any:
    return module.forward(x)
