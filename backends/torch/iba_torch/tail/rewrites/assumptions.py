"""What rewrites rely on, and the one loop that runs a pass again where it does not hold."""

from __future__ import annotations

import opcode
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from enum import Enum
from typing import Generic, TypeVar

import torch

from iba_core.undo import undoing

T = TypeVar("T")

_RAISES = {opcode.opmap[name] for name in ("RAISE_VARARGS", "RERAISE") if name in opcode.opmap}

_ASKS = frozenset({"data_ptr", "is_contiguous", "stride"})
"""Methods that answer differently in some orders in memory."""

_enabled: ContextVar[bool] = ContextVar("rewrites", default=True)


def enabled() -> bool:
    """Whether rewrites may be used; False inside of `disabled`."""
    return _enabled.get()


@contextmanager
def disabled() -> Iterator[None]:
    """Context in which heads and tails run the modules of the model one by one, as they are.

    Results are the same up to rounding; only time and memory differ.

    Example:
        >>> from iba_torch.tail import rewrites
        >>> with rewrites.disabled():
        ...     rewrites.enabled()
        False
    """
    outer = _enabled.get()
    with undoing(lambda: _enabled.set(outer)):
        _enabled.set(False)
        yield


class State(Enum):
    """What is known of an assumption."""

    UNKNOWN = "unknown"
    HOLDS = "holds"
    BROKEN = "broken"


class Assumption:
    """Something that a rewrite relies on, which passes of the model show to hold or not.

    Args:
        name: for `repr`.

    Attributes:
        state: what is known of it.
        is_unknown: whether no pass has shown anything yet.
        is_broken: whether a pass has shown that it does not hold.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.set(State.UNKNOWN)

    def __repr__(self) -> str:
        return f"<assumption {self.name!r} {self.state.value}>"

    def set(self, state: State) -> None:
        """Record what a pass has shown."""
        # Attributes, which passes read many times, take less time than properties.
        self.state = state
        self.is_unknown, self.is_broken = state is State.UNKNOWN, state is State.BROKEN


@dataclass(frozen=True)
class Outcome(Generic[T]):
    """What a pass gave, and what it has shown.

    Attributes:
        result: the result of the pass; not used where an assumption is broken.
        broken: the assumptions that have turned out not to hold.
        confirmed: those that have turned out to hold.
    """

    result: T
    broken: Collection[Assumption] = ()
    confirmed: Collection[Assumption] = ()


def run_assuming(
    assumptions: Sequence[Assumption],
    run: Callable[[frozenset[Assumption]], Outcome[T]],
    suspects: Callable[[BaseException, frozenset[Assumption]], Collection[Assumption]],
) -> T:
    """Result of a pass that relies on assumptions, without those that do not hold.

    Args:
        assumptions: what the pass may rely on.
        run: runs the pass, given the assumptions that it relies on. It is called again if one breaks.
        suspects: gives the assumptions that may be the reason of an error. Without them the pass is tried
            again; where it fails as well, the error is the model's own and they are innocent.

    Raises:
        BaseException: what `run` raises where no assumption is to blame.
    """
    first: BaseException | None = None
    # Kept here until the pass succeeds without them: other threads rely on the same assumptions.
    accused: set[Assumption] = set()
    while True:
        relied = frozenset(each for each in assumptions if not each.is_broken) - accused
        try:
            outcome = run(relied)
        except BaseException as error:
            blamed = suspects(error, relied)
            if blamed:
                first = first or (error if isinstance(error, Exception) else None)
                accused.update(blamed)
                continue
            if first is None or not isinstance(error, Exception):
                raise
            raise first from None
        for each in outcome.confirmed:
            if each.is_unknown:
                each.set(State.HOLDS)
        for each in accused.union(outcome.broken):
            each.set(State.BROKEN)
        if not outcome.broken:
            return outcome.result


def is_of_torch(error: BaseException) -> bool:
    """Whether PyTorch's compiled code refuses something, and no `raise` in Python."""
    traceback = error.__traceback__
    is_refusal = isinstance(error, RuntimeError) and not isinstance(error, torch.OutOfMemoryError)
    if not is_refusal or traceback is None:
        return False
    while traceback.tb_next is not None:
        traceback = traceback.tb_next
    return traceback.tb_frame.f_code.co_code[traceback.tb_lasti] not in _RAISES


def is_about_order(error: BaseException) -> bool:
    """Whether an error comes from code that asks for the order of a tensor in memory."""
    traceback = error.__traceback__
    while traceback is not None and traceback.tb_next is not None:
        traceback = traceback.tb_next
    return traceback is not None and not _ASKS.isdisjoint(traceback.tb_frame.f_code.co_names)
