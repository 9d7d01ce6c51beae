"""What a head hands to the tail without the tail reading it, which need not be kept.

A pass of the tail calls the modules of the head again, whose outputs are put in from memory. Most of them
only go to the next such module: of a transformer cut at a block, the outputs of all blocks before. Which ones
nothing reads is seen in a pass that is watched. From then on a `Missing` takes their place, a tensor without
memory that ends the pass if it is read after all, so that the head can remember everything again.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import Any, TypeVar

import torch
from torch.overrides import TorchFunctionMode

from iba_torch.tail.trees import tensors

T = TypeVar("T")

_OUTWARD = frozenset(
    {
        *(
            getattr(torch.Tensor, name).__get__
            for name in ("shape", "ndim", "dtype", "device", "layout", "_version")
        ),
        torch.Tensor.size,
        torch.Tensor.dim,
        torch.Tensor.ndimension,
        torch.Tensor.numel,
        torch.Tensor.is_floating_point,
        torch.Tensor.__len__,
        torch.is_floating_point,
        torch.numel,
    }
)
"""What can be asked of a tensor without its numbers."""


class Missed(BaseException):
    """Ends a pass that reads what was not kept. No `Exception`, so that no model catches it."""


class Missing(torch.Tensor):
    """Tensor that nothing reads: of the right shape, of one repeated NaN.

    Of NaN, since code that PyTorch does not see, in an extension, may read it all the same.
    """

    @classmethod
    def like(cls, tensor: torch.Tensor, shape: Sequence[int]) -> Missing:
        """One of this shape, of the type and on the device of a tensor."""
        return tensor.new_full((), float("nan")).expand(tuple(shape)).as_subclass(cls)

    @classmethod
    def __torch_function__(
        cls, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func not in _OUTWARD:
            raise Missed(
                f"{getattr(func, '__name__', func)} reads what the tail of a model had not read before"
            )
        return super().__torch_function__(func, types, args, kwargs or {})


class Unread:
    """Which of the tensors that a head remembers no pass of the tail reads, as far as it is known."""

    def __init__(self) -> None:
        self._indices: frozenset[int] | None = None
        self._refused = False
        self._tried = False

    @property
    def is_known(self) -> bool:
        """Whether a pass has been watched, or none is to be."""
        return self._refused or self._indices is not None

    @property
    def is_untried(self) -> bool:
        """Whether no pass has gone without these tensors yet."""
        return bool(self._indices) and not self._refused and not self._tried

    def note(self, indices: Iterable[int]) -> None:
        """Take down which of the tensors, by their index, nothing has read."""
        self._indices = frozenset(indices)

    def settle(self) -> None:
        """Take down that a pass has gone without them."""
        self._tried = True

    def refuse(self) -> None:
        """Keep everything from now on."""
        self._refused = True

    def among(self, tensors: Sequence[T]) -> list[T]:
        """Those of the tensors that nothing reads."""
        indices = frozenset() if self._refused else self._indices or frozenset()
        return [tensor for index, tensor in enumerate(tensors) if index in indices]


class Watch(TorchFunctionMode):
    """Context in which is seen what is read of the tensors that are lent to a pass of the tail."""

    def __init__(self) -> None:
        super().__init__()
        self._lent: dict[int, tuple[torch.Tensor, Hashable]] = {}
        self._read: set[Hashable] = set()

    def lend(self, tensor: torch.Tensor, owner: Hashable) -> None:
        """Watch a tensor that the pass gets in place of what `owner` remembers."""
        self._lent[id(tensor)] = tensor, owner

    def read(self, tree: Any) -> None:
        """Take down that whatever is lent of the tensors in `tree` is read."""
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
        if func not in _OUTWARD:
            self.read((args, kwargs))
        return func(*args, **(kwargs or {}))
