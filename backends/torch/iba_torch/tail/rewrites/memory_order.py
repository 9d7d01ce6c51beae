"""The order of maps in memory: the convolutions of a processor like the channels last."""

from __future__ import annotations

import re
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any, TypeVar

import torch
from torch.overrides import TorchFunctionMode

T = TypeVar("T")

_MEMORY = (torch.as_strided, torch.Tensor.as_strided, torch.Tensor.as_strided_, torch.Tensor.data_ptr)
"""What shows the order of a tensor in memory."""

_ORDER = re.compile("view|contiguous|stride")
"""Words of the errors of those that want another order."""


class MemoryOrder:
    """Whether a part of a model takes maps whatever their order in memory: tried once, and remembered."""

    def __init__(self) -> None:
        self._any: bool | None = None

    @property
    def refused(self) -> bool:
        """Whether it has turned out to ask for the order that it knows."""
        return self._any is False

    def run(self, run: Callable[[bool], T], wanted: bool) -> T:
        """What `run` gives, told whether the maps are to lie with their channels last.

        Args:
            run: runs the part of the model; twice where it turns out to ask for the order that it knows.
            wanted: whether the maps are such that it would help.
        """
        if not wanted or self._any is False:
            return run(False)
        try:
            with _Strides() if self._any is None else nullcontext():
                result = run(True)
        except (RuntimeError, _Strided) as error:
            if isinstance(error, RuntimeError) and not _ORDER.search(str(error)):
                raise
            self._any = False
            return run(False)
        self._any = True
        return result


def gains_by_order(tensor: torch.Tensor) -> bool:
    """Whether convolutions are faster on maps like `tensor`, (B, C, H, W), with their channels last.

    Those of a processor are, by a fifth, and do without copies of the maps.
    """
    return tensor.ndim == 4 and tensor.device.type == "cpu" and tensor.dtype == torch.float32


def is_channels_last(tensor: torch.Tensor) -> bool:
    """Whether maps (B, C, H, W) lie in memory with their channels last, and in no other order as well."""
    return (
        tensor.ndim == 4
        and tensor.is_contiguous(memory_format=torch.channels_last)
        and not tensor.is_contiguous()
    )


class _Strided(BaseException):
    """Ends a pass that reads a tensor's memory. No `Exception`, so that no model catches it."""


class _Strides(TorchFunctionMode):
    """Context that ends a pass of a model whose results depend on the order of its tensors in memory."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func in _MEMORY:
            raise _Strided
        return func(*args, **(kwargs or {}))
