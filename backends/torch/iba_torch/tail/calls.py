"""Seeing, and standing in for, the calls of modules while a model runs."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import nn

_ABSENT = object()


class CallHandler(Protocol):
    """What happens when a module is called; `run` carries the call out."""

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Output of the call."""


class _Current(threading.local):
    handler: CallHandler | None = None


class _Detour:
    """Replaces what `nn.Module.__call__` does while it has users.

    Python then forgets what it has looked up in all classes of modules, which takes as long as a layer: who
    intercepts many passes is a user from the first to the last of them.
    """

    def __init__(self) -> None:
        self.call_module = nn.Module._call_impl
        self._replaced: list[tuple[str, Any]] = []
        self._own: list[Any] = []
        self._users = 0
        self._lock = threading.Lock()

    def __enter__(self) -> None:
        with self._lock:
            if not self._users:
                self.call_module = nn.Module._call_impl
            # Modules compiled in place pass `_call_impl` by. But replacing `__call__` takes as long as
            # some of the layers, since Python then looks through all classes of modules.
            name = "__call__" if _compiler_is_loaded() else "_call_impl"
            call = getattr(nn.Module, name)
            # Others replace it, too, as those who record what a pass does.
            if call not in self._own:
                self._replaced.append((name, call))
                self._own.append(_intercepted(call))
                setattr(nn.Module, name, self._own[-1])
            self._users += 1

    def __exit__(self, *error: object) -> None:
        with self._lock:
            self._users -= 1
            if not self._users:
                while self._replaced:
                    setattr(nn.Module, *self._replaced.pop())
                self._own.clear()


_current = _Current()
detour = _Detour()


@contextmanager
def intercept_calls(handler: CallHandler) -> Iterator[None]:
    """Route every call of a module in this thread through `handler`.

    PyTorch's hooks can watch a call but not stand in for it, and a module's `forward` can be replaced
    only for all threads at once. So `nn.Module` itself is changed while at least one thread is
    in here (as `torch.fx` does to trace), and hands the calls of all other threads on untouched.

    Wrappers that run their module elsewhere, compiled or replicated, are looked through: their module is
    called in their place, in this thread and uncompiled. Fused attention, which calls no modules, is off.
    """
    with detour, by_the_book():
        outer, _current.handler = _current.handler, handler
        try:
            yield
        finally:
            _current.handler = outer


def run(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Call `module` past the handler, hooks included; the modules it calls go through the handler."""
    return detour.call_module(module, *args, **kwargs)


def perform(
    module: nn.Module,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    forward: Callable[[Callable[..., Any], tuple[Any, ...], dict[str, Any]], Any],
) -> Any:
    """Call `module` past the handler, with `forward` in place of what it does.

    The hooks on a module stay in effect, since they may carry features past the layers: they get what
    `forward` returns.

    Args:
        module: the module.
        args: positional arguments of the call.
        kwargs: its keyword arguments.
        forward: gets what the module does, to call it or not, and its arguments.
    """
    if not is_watched(module):
        return forward(lambda *args, **kwargs: run(module, args, kwargs), args, kwargs)
    attributes, forward_of_module = vars(module), module.forward
    own, thread = attributes.get("forward", _ABSENT), threading.get_ident()

    def stand_in(*args: Any, **kwargs: Any) -> Any:
        if threading.get_ident() != thread:
            return forward_of_module(*args, **kwargs)
        return forward(forward_of_module, args, kwargs)

    attributes["forward"] = stand_in
    try:
        return run(module, args, kwargs)
    finally:
        if own is _ABSENT:
            del attributes["forward"]
        else:
            attributes["forward"] = own


def is_watched(module: nn.Module) -> bool:
    """Whether hooks see the calls of `module`; those by which PyTorch computes its weights do not count."""
    if not module._forward_pre_hooks and not module._forward_hooks:
        return False
    hooks = (*module._forward_pre_hooks.values(), *module._forward_hooks.values())
    return any(not _source(hook).startswith("torch.") for hook in hooks)


def is_hooked(module: nn.Module) -> bool:
    """Whether there is any hook on `module`, PyTorch's own included, or on all modules."""
    own = module.__dict__
    return bool(
        own["_forward_hooks"]
        or own["_forward_pre_hooks"]
        or own["_backward_hooks"]
        or own["_backward_pre_hooks"]
        or nn.modules.module._has_any_global_hook()
    )


def _source(function: Any) -> str:
    return str(getattr(function, "__module__", None) or type(function).__module__)


def unwrap(module: nn.Module) -> nn.Module:
    """The module inside `torch.compile`, `DataParallel` and `DistributedDataParallel` wrappers."""
    while True:
        if isinstance(module, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
            module = module.module
        elif "_orig_mod" in module._modules:
            module = module._modules["_orig_mod"]  # type: ignore[assignment]  # the key is there
        else:
            return module


def _intercepted(call: Callable[..., Any]) -> Callable[..., Any]:
    """What calls a module by way of the handler; where there is none, `call`."""

    def intercepted(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        handler = _current.handler
        if handler is None:
            return call(module, *args, **kwargs)
        inner = unwrap(module)
        if inner is not module:
            return inner(*args, **kwargs)
        return handler(module, args, kwargs)

    return intercepted


@contextmanager
def by_the_book() -> Iterator[None]:
    """Context in which modules run their Python code, so that hooks and calls in them are seen.

    Compiled models run uncompiled: what was compiled before a hook was added knows nothing of it.
    """
    fused = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        # Not asked for where nothing can have been compiled: the compiler takes seconds to import.
        if _compiler_is_loaded() and hasattr(torch.compiler, "set_stance"):
            with torch.compiler.set_stance("force_eager"):
                yield
        else:
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)


def _compiler_is_loaded() -> bool:
    return "torch._dynamo" in sys.modules
