"""Settings of PyTorch for one thread: autocast, which the model may run under and the bottleneck may not."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from functools import wraps
from typing import Any, ParamSpec, TypeVar

import torch

from iba_core.undo import undoing

P = ParamSpec("P")
T = TypeVar("T")

_DEVICES = ("cpu", "cuda")
"""Kinds of devices whose autocast the library changes."""


_outside: ContextVar[AbstractContextManager[Any] | None] = ContextVar("outside", default=None)


def as_outside() -> AbstractContextManager[Any]:
    """Context in which autocast is as it was outside of `without_autocast`."""
    return _outside.get() or nullcontext()


def autocast_dtype(device: torch.device) -> torch.dtype | None:
    """What autocast casts to on a device; None where it is off."""
    kind = device.type
    if not torch.amp.is_autocast_available(kind) or not torch.is_autocast_enabled(kind):
        return None
    return torch.get_autocast_dtype(kind)


@contextmanager
def without_autocast(device: torch.device) -> Iterator[AbstractContextManager[Any]]:
    """Context in which nothing is cast to a lower precision.

    Args:
        device: device of the tensors.

    Yields:
        A context, to be entered as often as needed, in which it is as it was outside.
    """
    kind, dtype = device.type, autocast_dtype(device)
    if dtype is None:
        yield nullcontext()
        return
    outside = torch.autocast(kind, dtype=dtype, cache_enabled=torch.is_autocast_cache_enabled())
    outer = _outside.get()
    with undoing(lambda: _outside.set(outer)):
        _outside.set(outside)
        with torch.autocast(kind, enabled=False):
            yield outside


def restores_settings(generator: Callable[P, Iterator[T]]) -> Callable[P, Iterator[T]]:
    """Make a generator that fails leave PyTorch's settings for this thread as they were when it began.

    PyTorch's own contexts, such as `torch.no_grad`, are written in Python: an interrupt between two of their
    lines leaves what they have set. In here, only functions in C are called, before which none can come.
    """

    @wraps(generator)
    def restoring(*args: P.args, **kwargs: P.kwargs) -> Iterator[T]:
        gradients, cached = torch.is_grad_enabled(), torch.is_autocast_cache_enabled()
        functions, dispatches = torch._C._len_torch_function_stack(), torch._C._len_torch_dispatch_stack()
        casts = [(kind, torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind)) for kind in _DEVICES]
        torch.autocast_increment_nesting()
        depth = torch.autocast_decrement_nesting()
        try:
            yield from generator(*args, **kwargs)
        except GeneratorExit:
            # Python closes what has been dropped, perhaps much later, where other settings hold.
            raise
        except BaseException:
            torch._C._set_grad_enabled(gradients)
            torch.set_autocast_cache_enabled(cached)
            for kind, enabled, dtype in casts:
                torch.set_autocast_enabled(kind, enabled)
                torch.set_autocast_dtype(kind, dtype)
            for _ in range(torch.autocast_increment_nesting() - depth):
                torch.autocast_decrement_nesting()
            for _ in range(torch._C._len_torch_function_stack() - functions):
                torch._C._pop_torch_function_stack()
            for _ in range(torch._C._len_torch_dispatch_stack() - dispatches):
                torch._C._pop_torch_dispatch_stack()
            raise

    return restoring
