"""Calls of modules: hooks that see them, wrappers around them, and the module-call patch for closures."""

from __future__ import annotations

import sys
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar, copy_context
from types import FunctionType
from typing import Any, TypeVar
from weakref import ref

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from iba_core.framework.while_used import WhileUsed
from iba_core.undo import undoing

T = TypeVar("T")


def unwrap(module: nn.Module) -> nn.Module:
    """The module inside `torch.compile`, `DataParallel` and `DistributedDataParallel` wrappers."""
    while True:
        if isinstance(module, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
            module = module.module
        elif "_orig_mod" in module._modules:
            module = module._modules["_orig_mod"]  # type: ignore[assignment]  # the key is there
        else:
            return module


def what_runs(model: Any) -> Hashable:
    """Equal for closures that run the same code on the same modules; None for other callables."""
    if isinstance(model, nn.Module):
        return ref(model)
    if not hasattr(model, "__code__"):
        return None
    held = [getattr(model, "__self__", None), *map(model.__globals__.get, model.__code__.co_names)]
    for cell in model.__closure__ or ():
        with suppress(ValueError):  # Not filled yet.
            held.append(cell.cell_contents)
    modules = (ref(item) for item in held if isinstance(item, nn.Module))
    codes = (item.__code__ for item in held if isinstance(item, FunctionType))
    return (model.__code__, *modules, *codes)


def is_watched(module: nn.Module) -> bool:
    """Whether hooks see the calls of `module`; those by which PyTorch computes its weights do not count."""
    if not module._forward_pre_hooks and not module._forward_hooks:
        return False
    hooks = (*module._forward_pre_hooks.values(), *module._forward_hooks.values())
    return any(not _source(hook).startswith("torch.") for hook in hooks)


def is_hooked(module: nn.Module) -> bool:
    """Whether there is any hook on `module`, PyTorch's own included."""
    own = module.__dict__
    return bool(
        own["_forward_hooks"]
        or own["_forward_pre_hooks"]
        or own["_backward_hooks"]
        or own["_backward_pre_hooks"]
    )


def hooks_see_all() -> bool:
    """Whether there are hooks that see the calls of all modules."""
    return bool(nn.modules.module._has_any_global_hook())  # type: ignore[no-untyped-call]  # PyTorch's own


def _source(function: Any) -> str:
    return str(getattr(function, "__module__", None) or type(function).__module__)


Redirect = Callable[[nn.Module], nn.Module]

_redirect: ContextVar[Redirect | None] = ContextVar("redirect", default=None)


class _ModuleCallPatch(WhileUsed):
    """Replaces what `nn.Module.__call__` does while at least one closure runs.

    A closure calls the user's own modules. In its thread the patch calls their shadows instead; it leaves the
    calls of all other threads as they are.
    """

    def __init__(self) -> None:
        super().__init__()
        self._replaced: list[tuple[str, Any]] = []
        self._own: list[Any] = []

    def _begin(self) -> None:
        # Modules compiled in place skip `_call_impl`. But replacing `__call__` takes as long as some layers,
        # since Python then looks through all classes of modules.
        name = "__call__" if compiler_is_loaded() else "_call_impl"
        call = getattr(nn.Module, name)
        # Others replace it, too, such as those who record what a pass does.
        if call not in self._own:
            self._replaced.append((name, call))
            self._own.append(_redirected(call))
            setattr(nn.Module, name, self._own[-1])

    def _end(self) -> None:
        while self._replaced:
            setattr(nn.Module, *self._replaced[-1])
            self._replaced.pop()
        self._own.clear()


module_call_patch = _ModuleCallPatch()


def _redirected(call: Callable[..., Any]) -> Callable[..., Any]:
    def redirected(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        redirect = _redirect.get()
        return call(module if redirect is None else redirect(module), *args, **kwargs)

    return redirected


def run_redirected(redirect: Redirect, function: Callable[[T], Any], argument: T) -> Any:
    """Call a function that calls ``redirect(module)`` in place of each module, in this thread only."""
    # What is set in a copy of the context need not be restored.
    context = copy_context()
    context.run(_redirect.set, redirect)
    with module_call_patch.applied(), uncompiled():
        return context.run(function, argument)


@contextmanager
def not_redirected() -> Iterator[None]:
    """Context in which this thread calls modules as they are, also in a closure."""
    outer = _redirect.get()
    with undoing(lambda: _redirect.set(outer)):
        _redirect.set(None)
        yield


class _Uncompiled(WhileUsed):
    """Keeps compiled code from running: it knows nothing of hooks that came later."""

    def __init__(self) -> None:
        super().__init__()
        self._before: Any = None

    def _begin(self) -> None:
        # Not asked for where nothing can have been compiled: the compiler takes seconds to import.
        if self._before is None and compiler_is_loaded() and hasattr(torch.compiler, "set_stance"):
            self._before = _eval_frame()._stance
            torch.compiler.set_stance("force_eager")

    def _end(self) -> None:
        # Not by the object that `set_stance` gives: an interrupt may have come before it was given.
        if self._before is not None:
            _eval_frame()._set_stance(self._before)
            self._before = None


def _eval_frame() -> Any:
    """The module of PyTorch's compiler that holds the stance."""
    return sys.modules["torch._dynamo.eval_frame"]


uncompiled = _Uncompiled().applied
"""Context, which may overlap with others, in which compiled modules run their Python code."""


class CallsEveryModule(TorchFunctionMode):
    """Context in which a model calls all its modules: PyTorch's fused attention does not run in a mode."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        return func(*args, **(kwargs or {}))


def compiler_is_loaded() -> bool:
    """Whether PyTorch's compiler has been imported, so that there may be compiled modules."""
    return "torch._dynamo" in sys.modules
