"""Which rewrites do the calls of which modules."""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Set as AbstractSet
from typing import Any

from torch import nn

from iba_torch.tail.rewrites.chains import Chains
from iba_torch.tail.rewrites.conditions import is_sequential
from iba_torch.tail.rewrites.normalization import ScaleAndShift, is_normalization
from iba_torch.tail.rewrites.pooling import averaged, is_average

Rewrite = Callable[[Any, tuple[Any, ...], dict[str, Any]], Any]
"""Does what the call of a module does; gives None where it cannot."""


class Plan(dict[nn.Module, Rewrite | None]):
    """``Plan()[module]`` is the rewrite for the calls of a module, chosen once; None if there is none.

    Args:
        counted: modules whose every call must be seen.

    Attributes:
        merge: does the batch normalisations, and keeps what it has computed for them.
    """

    def __init__(self, counted: AbstractSet[nn.Module] = frozenset()) -> None:
        super().__init__()
        self.merge = ScaleAndShift()
        self._chains = Chains(self.merge, counted)

    def __missing__(self, module: nn.Module) -> Rewrite | None:
        chosen: Rewrite | None = self._chains if is_sequential(module) else None
        if is_normalization(module):
            chosen = self.merge
        elif is_average(module):
            chosen = averaged
        self[module] = chosen
        return chosen
