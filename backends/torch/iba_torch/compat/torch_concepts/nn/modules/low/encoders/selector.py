"""A memory of concept embeddings with the published attention."""

from __future__ import annotations

from typing import Any

from iba_torch import concepts

__all__ = ["SelectorZU"]


class SelectorZU(concepts.SelectorZU):
    """`iba_torch.concepts.SelectorZU` with ``attention_over="concepts"``, as published.

    The weights of each memory slot sum to 1 over the concepts. One seed gives the weights and the choices of
    the published class.

    Args:
        in_features: number of entries of an input.
        memory_size: number of memory slots of each concept.
        exogenous_size: number of entries of a slot.
        out_features: number of concepts.
        temperature: positive number.
        args: further arguments of the last `torch.nn.Linear`: bias, device, dtype.
        kwargs: the same arguments by name.

    Raises:
        InputError: a size or the temperature is not positive.

    Example:
        >>> import torch
        >>> selector = SelectorZU(in_features=64, memory_size=10, exogenous_size=32, out_features=5)
        >>> selector(torch.randn(4, 64)).shape, selector.attention_over
        (torch.Size([4, 5, 32]), 'concepts')
    """

    def __init__(
        self,
        in_features: int,
        memory_size: int,
        exogenous_size: int,
        out_features: int,
        temperature: float = 1.0,
        *args: Any,
        **kwargs: Any,
    ) -> None:
        kwargs.setdefault("attention_over", "concepts")
        super().__init__(in_features, memory_size, exogenous_size, out_features, temperature, *args, **kwargs)
