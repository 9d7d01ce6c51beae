"""What a head gives to the tail without the tail reading it, which need not be kept.

A pass of the tail calls the modules of the head again, whose outputs are put in from memory. Most of them
only go to the next such module: of a transformer split at a block, the outputs of all blocks before. An
observed pass shows which ones nothing reads. From then on a `Placeholder` takes their place, a tensor without
memory that ends the pass if it is read after all. Then the head runs again and remembers everything.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

import torch

from iba_torch.tail.rewrites.assumptions import Assumption

T = TypeVar("T")

OUTWARD = frozenset(
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


class PlaceholderRead(BaseException):
    """Ends a pass that reads what was not kept. No `Exception`, so that no model catches it."""


class Placeholder(torch.Tensor):
    """Tensor that nothing reads: of the right shape, of one repeated NaN.

    Of NaN, since code that PyTorch does not see, in an extension, may read it all the same.
    """

    @classmethod
    def like(cls, tensor: torch.Tensor, shape: Sequence[int]) -> Placeholder:
        """One of this shape, of the type and on the device of a tensor."""
        return tensor.new_full((), float("nan")).expand(tuple(shape)).as_subclass(cls)

    @classmethod
    def __torch_function__(
        cls, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func not in OUTWARD:
            raise PlaceholderRead(
                f"{getattr(func, '__name__', func)} reads what the tail of a model had not read before"
            )
        return super().__torch_function__(func, types, args, kwargs or {})  # type: ignore[no-untyped-call]


class Unread(Assumption):
    """That no pass of the tail reads some of the tensors that a head remembers, once those are known."""

    def __init__(self) -> None:
        super().__init__("what was not read is not read")
        self._indices: frozenset[int] | None = None

    @property
    def is_to_be_found(self) -> bool:
        """Whether a pass has yet to show which tensors they are."""
        return self._indices is None and not self.is_broken

    def note(self, indices: Iterable[int]) -> None:
        """Record the indices of the tensors that nothing has read."""
        self._indices = frozenset(indices)

    def among(self, remembered: Sequence[T]) -> list[T]:
        """Those of the tensors that nothing reads."""
        indices = frozenset() if self.is_broken else self._indices or frozenset()
        return [tensor for index, tensor in enumerate(remembered) if index in indices]
