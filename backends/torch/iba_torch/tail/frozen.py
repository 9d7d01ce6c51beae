"""Modules held in evaluation mode, without gradients for their parameters."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from types import TracebackType
from typing import Any

import torch
from torch import nn

_one_at_a_time = threading.RLock()


class Frozen:
    """Context that freezes the modules added to it and on leaving puts back what it changed.

    Flags are set module by module, not by `nn.Module.eval`, which a model may have overridden with
    something that cannot be undone.
    """

    def __init__(self) -> None:
        self._seen: dict[int, nn.Module] = {}
        self._undo: list[tuple[object, str, Any]] = []

    def __enter__(self) -> Frozen:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        while self._undo:
            owner, name, value = self._undo.pop()
            setattr(owner, name, value)
        self._seen.clear()

    def add(self, module: nn.Module) -> None:
        """Freeze `module` and all modules in it, if that has not been done."""
        # Each call of a module asks this, and `Module.modules` would take longer than some of the layers.
        if id(module) in self._seen:
            return
        self._seen[id(module)] = module
        self._freeze(module)
        for inner in module._modules.values():
            if inner is not None:
                self.add(inner)

    def _freeze(self, module: nn.Module) -> None:
        # `Module.parameters` would, too.
        parameters = [parameter for parameter in module._parameters.values() if parameter is not None]
        for parameter in parameters:
            self._set(parameter, "requires_grad", False)
        if isinstance(module, nn.RNNBase) and any(parameter.is_cuda for parameter in parameters):
            # cuDNN keeps what its backward pass needs only in training mode, of which nothing but the
            # dropout shows.
            self._set(module, "training", True)
            self._set(module, "dropout", 0.0)
        else:
            self._set(module, "training", False)

    def _set(self, owner: nn.Module | torch.Tensor, name: str, value: Any) -> None:
        old = getattr(owner, name, value)
        if old != value:
            self._undo.append((owner, name, old))
            setattr(owner, name, value)


@contextmanager
def frozen() -> Iterator[Frozen]:
    """A `Frozen` to run models in: out of inference mode, and in one thread at a time.

    Two threads that set the flags of one model and put them back in turn would leave it frozen.
    """
    leave = torch.inference_mode(False) if torch.is_inference_mode_enabled() else nullcontext()
    with _one_at_a_time, leave, Frozen() as still:
        yield still
