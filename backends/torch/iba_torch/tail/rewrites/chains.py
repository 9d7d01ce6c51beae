"""Modules that run one after the other, some pairs of them as one."""

from __future__ import annotations

from collections.abc import Set as AbstractSet
from typing import Any

from torch import nn

from iba_torch.tail.calls import is_hooked
from iba_torch.tail.rewrites.normalization import ScaleAndShift, can_merge


class Chains:
    """Runs each plain `nn.Sequential`: its modules see nothing but each other's outputs.

    Args:
        merge: runs a convolution and the batch normalisation after it as one.
        counted: modules whose every call must be seen.
    """

    def __init__(self, merge: ScaleAndShift, counted: AbstractSet[nn.Module]) -> None:
        self._merge = merge
        self._counted = counted
        self._stages: dict[nn.Module, list[tuple[nn.Module, nn.Module | None]]] = {}

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Output of a call of a chain; None where it has to run itself."""
        if kwargs or len(args) != 1 or is_hooked(module):
            return None
        if module not in self._stages:
            self._stages[module] = self._plan(module)
        (x,) = args
        for inner, following in self._stages[module]:
            if following is None:
                x = inner(x)
                continue
            merged = self._merge.convolved(inner, following, x)
            x = following(inner(x)) if merged is None else merged
        return x

    def _plan(self, chain: nn.Module) -> list[tuple[nn.Module, nn.Module | None]]:
        """The modules of a chain, each with the one after it if the two can run as one."""
        modules = [module for module in chain._modules.values() if module is not None]
        stages: list[tuple[nn.Module, nn.Module | None]] = []
        while modules:
            module, *modules = modules
            pair = {module, *modules[:1]}
            merges = len(pair) == 2 and can_merge(module, modules[0]) and self._counted.isdisjoint(pair)
            stages.append((module, modules.pop(0) if merges else None))
        return stages
