"""What a pass of a model asks of its tensors: their numbers, their order in memory, their memory itself."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from iba_torch.tail.rewrites.unread import OUTWARD
from iba_torch.tail.trees import tensors

_Tensor: Any = torch.Tensor

_DEPENDS = frozenset({torch.as_strided, _Tensor.as_strided, _Tensor.as_strided_, _Tensor.storage_offset})
"""What gives other numbers where the order in memory is another."""

_REACHES = frozenset(
    {
        *(_Tensor.data_ptr, _Tensor.numpy, _Tensor.untyped_storage, _Tensor.storage, _Tensor.set_),
        *(_Tensor.__array__, _Tensor.__dlpack__, _Tensor.data.__get__, _Tensor.data.__set__),
    }
)
"""What gives a tensor's memory to code that may write into it without PyTorch's knowledge."""


class Observer(TorchFunctionMode):
    """Context that notes what a pass does with its tensors.

    Attributes:
        depends_on_order: whether a result may be another in another order.
        reaches_memory: whether something may write into a tensor unseen.
    """

    def __init__(self) -> None:
        super().__init__()
        self.depends_on_order = self.reaches_memory = False
        self._lent: dict[int, tuple[torch.Tensor, Hashable]] = {}
        self._read: set[Hashable] = set()

    def lend(self, tensor: torch.Tensor, owner: Hashable) -> None:
        """Track whether a tensor is read that the pass gets in place of what `owner` remembers."""
        self._lent[id(tensor)] = tensor, owner

    def read(self, tree: Any) -> None:
        """Note that all lent tensors in `tree` are read."""
        for tensor in tensors(tree):
            if id(tensor) in self._lent:
                self._read.add(self._lent[id(tensor)][1])

    def unread(self, owners: Sequence[Hashable]) -> list[int]:
        """Indices of the owners whose tensors nothing has read in the pass, now ended, and nobody holds."""
        lent = [(weakref.ref(tensor), owner) for tensor, owner in self._lent.values()]
        self._lent.clear()
        self._read.update(owner for tensor, owner in lent if tensor() is not None)
        unread = {owner for _, owner in lent} - self._read
        return [index for index, owner in enumerate(owners) if owner in unread]

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func not in OUTWARD:
            self.read((args, kwargs))
            self.depends_on_order |= func in _DEPENDS or func in _REACHES
            self.reaches_memory |= func in _REACHES
        return func(*args, **(kwargs or {}))
