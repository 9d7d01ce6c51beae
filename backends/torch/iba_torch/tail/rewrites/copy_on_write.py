"""Tensors that are lent to passes of a model until one writes into them."""

from __future__ import annotations

from collections.abc import Iterable

import torch

from iba_torch.tail.rewrites.assumptions import Assumption, State


class Loan:
    """Lends one tensor to pass after pass.

    While it is not known whether passes write into it, a pass gets a copy, which shows whether it does. Later
    passes share the memory, or go on to get copies.

    Args:
        unwritten: that no pass writes into the tensor.
    """

    def __init__(self, unwritten: Assumption | None = None) -> None:
        self.unwritten = unwritten or Assumption("the tail does not write into what it is given")
        self._lent: tuple[torch.Tensor, int, torch.Tensor] | None = None

    def lend(self, tensor: torch.Tensor, always_copy: bool = False) -> torch.Tensor:
        """A tensor like `tensor` for one pass.

        Args:
            tensor: the tensor.
            always_copy: trust nothing.
        """
        if always_copy or self.unwritten.is_broken:
            return tensor.clone()
        lent = tensor.clone() if self.unwritten.is_unknown else tensor
        self._lent = lent, lent._version, tensor
        return lent

    def is_written_unseen(self) -> bool:
        """Whether a pass that has ended has written into its copy without PyTorch's knowledge."""
        if self._lent is None:
            return False
        lent, version, tensor = self._lent
        return lent is not tensor and lent._version == version and not torch.equal(lent, tensor)

    def take_back(self) -> bool:
        """Take back the tensor from a pass that has ended; whether the pass has spoilt it."""
        if self._lent is None:
            return False
        (lent, version, tensor), self._lent = self._lent, None
        was_copy, written = lent is not tensor, lent._version != version
        if written:
            self.unwritten.set(State.BROKEN)
        elif was_copy and self.unwritten.is_unknown:
            self.unwritten.set(State.HOLDS)
        return written and not was_copy

    def forget(self) -> None:
        """Take back what a pass got that broke off, which shows nothing."""
        self._lent = None


def take_back(loans: Iterable[Loan]) -> bool:
    """Take back all tensors from a pass that has ended; whether it has spoilt any."""
    spoilt = [loan.take_back() for loan in loans]
    return any(spoilt)


def forget(loans: Iterable[Loan]) -> None:
    """Take back what a pass got that broke off."""
    for loan in loans:
        loan.forget()
