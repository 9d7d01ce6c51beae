"""What passes of a model do besides computing: they draw random numbers, and write into weights.

Both reach beyond the pass. PyTorch has one generator for each device and all threads, and a shadow shares the
memory of the model's weights. So the first pass at a place is watched, and ended before it does either.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Collection, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from iba_core.framework.locks import fork_safe_lock
from iba_core.undo import undoing
from iba_torch.tail.trees import tensors


class Effect(BaseException):
    """Ends a pass before it does something. No `Exception`, so that no model catches it."""


class Draw(Effect):
    """The pass is about to draw random numbers."""


class WeightWrite(Effect):
    """The pass is about to write into a weight.

    Args:
        address: where the weight's memory begins.
    """

    def __init__(self, address: int) -> None:
        super().__init__("a weight is written into")
        self.address = address


class Effects(TorchDispatchMode):  # type: ignore[no-untyped-call]  # PyTorch's own
    """Context that ends a pass at its first effect.

    Args:
        may_draw: whether it may draw random numbers.
        weights: gives where the memory begins of the weights that it may not write into.
    """

    supports_higher_order_operators = True

    def __init__(self, may_draw: bool, weights: Callable[[], Collection[int]]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # PyTorch's own
        self._may_draw, self._weights = may_draw, weights

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        given = kwargs or {}
        is_random = not self._may_draw and torch.Tag.nondeterministic_seeded in func.tags
        if is_random and _draws(_named(func, args, given)):
            raise Draw("random numbers are drawn")
        if func._schema.is_mutable:
            for argument in func._schema.arguments:
                if argument.alias_info is not None and argument.alias_info.is_write:
                    self._check(_named(func, args, given).get(argument.name))
        return func(*args, **given)

    def _check(self, written: Any) -> None:
        for tensor in tensors(written):
            if (address := address_of(tensor)) in self._weights():
                raise WeightWrite(address)


def _named(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """Arguments of an operation by their names, those left out with their defaults."""
    arguments = func._schema.arguments
    defaults = {each.name: each.default_value for each in arguments if each.has_default_value()}
    return {**defaults, **{each.name: value for each, value in zip(arguments, args, strict=False)}, **kwargs}


def _draws(given: dict[str, Any]) -> bool:
    """Whether an operation that can draw random numbers of the process does so with these arguments."""
    is_off = given.get("train") is False or given.get("training") is False or given.get("dropout_p") == 0
    return not is_off and given.get("generator") is None


def address_of(tensor: torch.Tensor) -> int:
    """Where the memory that a tensor is part of begins; 0 for one without memory."""
    try:
        # Nobody who looks at what a model does is to see this.
        with torch._C.DisableTorchFunction():
            return tensor.untyped_storage().data_ptr()
    except (RuntimeError, NotImplementedError):  # Fake tensors, and some subclasses.
        return 0


class Stream:
    """Random numbers apart from those of the process.

    Args:
        seed: where they begin; None to begin where those of the process are.
    """

    def __init__(self, seed: int | None) -> None:
        self._seed = seed
        self._states: list[torch.Tensor] | None = None

    @contextmanager
    def drawn_from(self) -> Iterator[None]:
        """Context in which PyTorch's own generators give these numbers.

        Threads take turns. Another that draws meanwhile without this context gets numbers of this stream.
        """
        generators = _generators()
        with _turns:
            outside = _states(generators)
            with undoing(lambda: _set_states(generators, outside)):
                if self._states is not None:
                    _set_states(generators, self._states)
                elif self._seed is not None:
                    for generator in generators:
                        generator.manual_seed(self._seed)
                try:
                    yield
                finally:
                    self._states = _states(generators)


_turns = fork_safe_lock()
_OWN = Stream(None)
"""Stands for a new stream for each pass."""
_stream: ContextVar[Stream | None] = ContextVar("stream", default=_OWN)


def _generators() -> list[torch.Generator]:
    """PyTorch's own, of the processor and of the devices in use."""
    on_devices = torch.cuda.default_generators if torch.cuda.is_initialized() else ()  # type: ignore[no-untyped-call]  # PyTorch's own
    return [torch.default_generator, *on_devices]


def _states(generators: list[torch.Generator]) -> list[torch.Tensor]:
    return [generator.get_state() for generator in generators]


def _set_states(generators: list[torch.Generator], states: list[torch.Tensor]) -> None:
    for generator, state in zip(generators, states, strict=False):
        generator.set_state(state)


@contextmanager
def randomness(seed: int | None) -> Iterator[None]:
    """Context in which all passes of models that draw random numbers go on in one stream of them.

    Args:
        seed: where the stream begins; None for the numbers of the process.
    """
    outer = _stream.get()
    with undoing(lambda: _stream.set(outer)):
        _stream.set(None if seed is None else Stream(seed))
        yield


def apart() -> AbstractContextManager[None]:
    """Context for passes after which the random numbers of `randomness` go on as if there had been none."""
    return randomness(secrets.randbits(63))


def random_numbers() -> AbstractContextManager[None]:
    """Context for a pass that draws random numbers.

    Outside of `randomness`, those of the process are as before after it.
    """
    stream = _stream.get()
    if stream is None:
        return nullcontext()
    return (Stream(None) if stream is _OWN else stream).drawn_from()
