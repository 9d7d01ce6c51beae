"""Settings of PyTorch for one thread: its modes, and autocast, which a bottleneck does not run under."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from functools import wraps
from typing import Any, ParamSpec, TypeVar

import torch
from torch.overrides import TorchFunctionMode
from torch.utils import _python_dispatch
from torch.utils._python_dispatch import TorchDispatchMode

from iba_core.undo import let_go, undoing, undone_if_interrupted

P = ParamSpec("P")
T = TypeVar("T")
M = TypeVar("M", TorchFunctionMode, TorchDispatchMode)

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
        # It may be off because another head is open, around which it is on.
        yield as_outside()
        return
    outside = torch.autocast(kind, dtype=dtype, cache_enabled=torch.is_autocast_cache_enabled())
    outer = _outside.get()
    with undoing(lambda: _outside.set(outer)):
        _outside.set(outside)
        with torch.autocast(kind, enabled=False):
            yield outside


class _Settings:
    """PyTorch's settings for this thread.

    PyTorch's own contexts, such as `torch.no_grad`, are written in Python: an interrupt between two of their
    lines leaves what they have set. In here, only functions in C are called, before which none can come.
    """

    def __init__(self) -> None:
        self._gradients, self._cached = torch.is_grad_enabled(), torch.is_autocast_cache_enabled()
        self._modes = _Modes()
        self._casts = [
            (kind, torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind)) for kind in _DEVICES
        ]
        torch.autocast_increment_nesting()
        self._depth = torch.autocast_decrement_nesting()

    def restore(self) -> None:
        """Set everything as it was; does no harm if it runs twice."""
        torch._C._set_grad_enabled(self._gradients)
        torch.set_autocast_cache_enabled(self._cached)
        for kind, enabled, dtype in self._casts:
            torch.set_autocast_enabled(kind, enabled)
            torch.set_autocast_dtype(kind, dtype)
        for _ in range(torch.autocast_increment_nesting() - self._depth):
            torch.autocast_decrement_nesting()
        self._modes.leave_later()


keeps_settings = undone_if_interrupted(lambda: _Settings().restore)
"""Decorator of functions; PyTorch's settings for this thread are as before when they are interrupted."""


def restores_settings(generator: Callable[P, Iterator[T]]) -> Callable[P, Iterator[T]]:
    """Make a generator that fails leave PyTorch's settings for this thread as they were when it began."""

    @wraps(generator)
    def restoring(*args: P.args, **kwargs: P.kwargs) -> Iterator[T]:
        outside, settings = sys.exception(), _Settings()
        try:
            yield from generator(*args, **kwargs)
        except GeneratorExit:
            # Python closes what has been dropped, perhaps much later, where other settings hold.
            raise
        except BaseException as error:
            let_go(error, outside)
            settings.restore()
            raise

    return restoring


@contextmanager
def without_gradients() -> Iterator[None]:
    """Context without gradients, which an interrupt leaves as well, unlike `torch.no_grad`."""
    before = torch.is_grad_enabled()
    with undoing(lambda: torch._C._set_grad_enabled(before)):
        torch._C._set_grad_enabled(False)
        yield


@contextmanager
def in_mode(mode: M) -> Iterator[M]:
    """Context in which a mode of PyTorch is on.

    The mode's own `with` takes off whatever is on top. After an interrupt while the mode handled a call,
    nothing is there: that `with` would raise another error in place of the interrupt.
    """
    modes, outside = _Modes(), sys.exception()
    with undoing(modes.leave_later):
        mode.__enter__()  # type: ignore[no-untyped-call]  # PyTorch's own
        try:
            yield mode
        except BaseException as error:
            # PyTorch takes a mode off its stack while the mode handles a call, and then puts it back.
            let_go(error, outside)
            raise


class _Modes:
    """The modes that are on."""

    def __init__(self) -> None:
        self._functions = torch._C._len_torch_function_stack()
        self._dispatches = torch._C._len_torch_dispatch_stack()
        # What PyTorch keeps beside its stack. Its versions differ in that.
        self._flags = {
            name: is_on for name, is_on in vars(_python_dispatch).items() if name.startswith("_is_in_")
        }

    def leave_later(self) -> None:
        """Leave those that have been entered since; does no harm if it runs twice."""
        for _ in range(torch._C._len_torch_function_stack() - self._functions):
            torch._C._pop_torch_function_stack()
        for _ in range(torch._C._len_torch_dispatch_stack() - self._dispatches):
            torch._C._pop_torch_dispatch_stack(None)
        for name, is_on in self._flags.items():
            setattr(_python_dispatch, name, is_on)
        # The compiler's own copy of one of them.
        set_own = getattr(_python_dispatch, "set_is_in_mode_without_ignore_compile_internals", None)
        if set_own is not None:
            set_own(self._flags["_is_in_any_mode_without_ignore_compile_internals"])
