"""The walk: each argument of each public door gets one wrong value at a time."""

from __future__ import annotations

import inspect
import os
import random
import re
import shutil
import signal
import tempfile
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pkgutil import resolve_name
from types import FrameType
from typing import Any

from iba_core import IBAError
from tests.robustness.wrong_values import Argument

SECONDS = 30
"""Longest time of one call. A wrong value must not keep the library busy."""


@dataclass(frozen=True)
class Door:
    """One public callable, with arguments that are right.

    Attributes:
        name: dotted name of a function, of a class for its constructor, or of a method.
        call: gives the callable itself, anew for each call.
        arguments: its arguments by name.
    """

    name: str
    call: Callable[[], Callable[..., Any]]
    arguments: Mapping[str, Argument] = field(default_factory=dict)

    def cases(self) -> Iterator[tuple[str, str, Callable[[], Any]]]:
        """Argument, name of the wrong value, and what makes it."""
        for argument, rule in self.arguments.items():
            for label, make in rule.values():
                yield argument, label, make


def door(name: str, on: Callable[[], Any] | None = None, /, **arguments: Argument) -> Door:
    """The door that a dotted name says, with its arguments.

    Args:
        name: of a function or class, or of a method; a remark in brackets may follow.
        on: makes what the method is called on; none for a class method.
    """
    path = name.partition("[")[0]
    method = path.rpartition(".")[2]
    call = (lambda: resolve_name(path)) if on is None else (lambda: getattr(on(), method))
    return Door(name, call, arguments)


class TooLongError(Exception):
    """A call takes longer than `SECONDS`."""


def _stop(number: int, frame: FrameType | None) -> None:
    raise TooLongError


def run(door: Door, changed: Mapping[str, Any] | None = None) -> Any:
    """Call a door with arguments that are right, except for the changed ones; the first of what it yields."""
    arguments = {name: rule.valid() for name, rule in door.arguments.items()} | dict(changed or {})
    # What a call writes goes into a folder of its own.
    home = os.getcwd()
    place = tempfile.mkdtemp()
    os.chdir(place)
    before = signal.signal(signal.SIGALRM, _stop)
    signal.alarm(SECONDS)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            given = {name: value for name, value in arguments.items() if not name.startswith("*")}
            result = door.call()(*arguments.get("*", ()), **given)
            if hasattr(result, "__enter__") and inspect.isgeneratorfunction(getattr(result, "func", None)):
                with result:
                    return None
            return next(result, None) if isinstance(result, Iterator) else result
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
        os.chdir(home)
        shutil.rmtree(place)


def fault_of(door: Door, argument: str, make: Callable[[], Any], totals: Counter[str]) -> str | None:
    """What is wrong with the answer to one wrong value; None if it is clear, or the value has a meaning."""
    value, rule = make(), door.arguments[argument]
    totals["tried"] += 1
    try:
        run(door, {argument: (value,) if argument == "*" else value})
    except IBAError as error:
        message = str(error)
        names = (argument, *rule.called)
        if "\n" not in message and any(
            re.search(rf"(?<!\w){re.escape(each)}(?!\w)", message) for each in names
        ):
            totals["clear sentences"] += 1
            return None
        totals["without the name"] += 1
        return f"the message does not name it: {message!r}"
    except TooLongError:
        totals["endless"] += 1
        return f"no answer within {SECONDS} seconds"
    except Exception as error:
        totals["raw errors"] += 1
        return f"raw {type(error).__name__}: {str(error)[:200]!r}"
    if rule.accepts(make()):
        totals["with a meaning"] += 1
        return None
    totals["wrongly accepted"] += 1
    return "accepted"


def walk(door: Door, share: float, totals: Counter[str], seed: int = 0) -> list[str]:
    """Walk through a share of the cases of a door, chosen by a seed, and list the faults."""
    generator = random.Random(f"{seed} {door.name}")
    faults = []
    for argument, label, make in list(door.cases()):
        if generator.random() < share:
            fault = fault_of(door, argument, make, totals)
            if fault is not None:
                faults.append(f"{door.name}({argument}={label}): {fault}")
    return faults
