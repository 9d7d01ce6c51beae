"""Modules that run one after the other, with less around each than a call of a module has."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any, NamedTuple

import torch
from torch import nn

from iba_torch.tail.calls import is_hooked
from iba_torch.tail.rewrites.conditions import is_sequential
from iba_torch.tail.rewrites.normalization import ScaleAndShift, can_merge, is_normalization
from iba_torch.tail.rewrites.pooling import is_average
from iba_torch.tail.shadow import Site, site_of


class _Stage(NamedTuple):
    """Part of a chain: a module, or two that can run as one."""

    module: nn.Module
    following: nn.Module | None
    direct: Callable[[Any], Any] | None
    """Does for an input what a call of the module does that no hooks see; None if that is not known."""


class Chains:
    """Runs each plain `nn.Sequential`: its modules see nothing but each other's outputs.

    Args:
        merge: runs batch normalisation, and it together with a convolution before it.
        counted: modules whose every call must be seen.
    """

    def __init__(self, merge: ScaleAndShift, counted: Collection[nn.Module]) -> None:
        self._merge = merge
        self._counted = counted
        self._stages: dict[nn.Module, list[_Stage]] = {}

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Output of a call of a chain; None where it has to run itself."""
        return None if kwargs or len(args) != 1 or is_hooked(module) else self._run(module, args[0])

    def _run(self, module: nn.Module, x: Any) -> Any:
        stages = self._stages.get(module)
        if stages is None:
            self._stages[module] = stages = self._plan(module)
        for inner, following, direct in stages:
            if direct is not None:
                x = direct(x)
            elif following is None:
                x = inner(x)
            else:
                merged = self._merge.convolved(inner, following, x)
                x = following(inner(x)) if merged is None else merged
        return x

    def _plan(self, chain: nn.Module) -> list[_Stage]:
        modules = [module for module in chain._modules.values() if module is not None]
        stages = []
        while modules:
            module, *modules = modules
            if modules and can_merge(module, modules[0]) and not self._is_counted(module, modules[0]):
                stages.append(_Stage(module, modules.pop(0), None))
            else:
                stages.append(_Stage(module, None, self._direct(module)))
        return stages

    def _is_counted(self, *modules: nn.Module) -> bool:
        return any(module in self._counted for module in modules)

    def _direct(self, module: nn.Module) -> Callable[[Any], Any] | None:
        kind, site = type(module), site_of(module)
        is_usual = kind.__call__ is nn.Module.__call__ and kind._call_impl is nn.Module._call_impl
        if not is_usual or site is None or self._is_counted(module) or is_hooked(module):
            return None
        if is_sequential(module):
            return lambda x: self._run(module, x)
        # The calls of modules inside, and of those that have rewrites, are to be seen.
        is_seen = module._modules or is_normalization(module) or is_average(module)
        return None if is_seen or isinstance(module, torch.jit.ScriptModule) else _forward_of(site)


def _forward_of(site: Site) -> Callable[[Any], Any]:
    forward: Callable[[Any], Any] = site.own_forward or site.kind.forward.__get__(site.module)
    return forward
