"""Faults at a chosen moment: at a line of the library, at a call of the user's code, or by a signal."""

from __future__ import annotations

import dis
import signal
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from types import CodeType, FrameType
from typing import Any, NamedTuple

from iba_core.errors import IBAError

LIBRARY = tuple(
    str(Path(spec.origin).parent)
    for name in ("iba_core", "iba_torch", "iba_tf")
    if (spec := find_spec(name)) is not None and spec.origin is not None
)
"""Folders of the library's own code."""


class Fault(Exception):  # noqa: N818  # it stands for any error
    """What is raised in the place of an ordinary error."""


class Line(NamedTuple):
    """A line of code."""

    file: str
    number: int

    def __str__(self) -> str:
        return f"{Path(self.file).parent.name}/{Path(self.file).name}:{self.number}"


# -- at a line ---------------------------------------------------------------------------------------


def is_of_library(code: CodeType) -> bool:
    """Whether it is a function of the library."""
    return code.co_filename.startswith(LIBRARY)


def handles_calls(code: CodeType) -> bool:
    """Whether it is a function of a framework that notes what is called, and takes the note back."""
    return any(
        code.co_filename.endswith(file) and (not names or code.co_name in names)
        for file, names in _HANDLING.items()
    )


_HANDLING: dict[str, tuple[str, ...]] = {
    "keras/src/layers/layer.py": (),
    "keras/src/utils/traceback_utils.py": (),
    "keras/src/backend/common/name_scope.py": (),
    "keras/src/backend/common/symbolic_scope.py": (),
    "keras/src/backend/common/stateless_scope.py": (),
    "keras/src/backend/common/variables.py": ("__enter__", "__exit__"),
    # C calls the others, and the process ends where they raise.
    "tensorflow/python/eager/context.py": ("_mode", "graph_mode", "eager_mode", "push", "pop"),
    "tensorflow/python/framework/func_graph.py": (),
    "tensorflow/python/framework/stack.py": (),
    "tensorflow/python/framework/ops.py": ("get_controller", "as_default", "init_scope", "name_scope"),
    "tensorflow/python/eager/polymorphic_function/polymorphic_function.py": (),
    "tensorflow/python/eager/polymorphic_function/tracing_compilation.py": (),
    "torch/nn/modules/module.py": ("_call_impl", "_wrapped_call_impl"),
    "torch/overrides.py": ("__enter__", "__exit__"),
    "torch/utils/_python_dispatch.py": ("__enter__", "__exit__"),
    "torch/utils/_contextlib.py": (),
    "torch/autograd/grad_mode.py": (),
}
"""Files of the frameworks, each with names of functions in it; all of them where none is named."""


def lines_of(function: Callable[[], Any], holds: Callable[[CodeType], bool] = is_of_library) -> Counter[Line]:
    """The lines that a function runs, each with the number of times, in the first order.

    Args:
        function: it is called.
        holds: whether lines of some code count; by default, those of the library.
    """
    found: Counter[Line] = Counter()

    def enter(frame: FrameType, event: str, argument: Any) -> Any:
        file = frame.f_code.co_filename
        if not holds(frame.f_code):
            return None

        def note(frame: FrameType, event: str, argument: Any) -> Any:
            if event == "line" and not _is_passed(frame):
                found[Line(file, frame.f_lineno)] += 1
            return note

        return note

    outer = sys.gettrace()
    sys.settrace(enter)
    try:
        function()
    finally:
        sys.settrace(outer)
    return found


def _is_passed(frame: FrameType) -> bool:
    """Whether nothing can happen at this line: a ``try:``, or a ``with`` that is about to call ``__exit__``.

    Python reports these lines, too. But it raises nothing by itself here, and looks for no signals: otherwise
    no lock would be safe.
    """
    names = _operations(frame.f_code)
    here = names.get(frame.f_lasti, ())
    handles = bool(here) and here[0] in ("NOP", "PUSH_EXC_INFO", "WITH_EXCEPT_START")
    return handles or here[:3] == ("LOAD_CONST None",) * 3


@cache
def _operations(code: CodeType) -> dict[int, tuple[str, ...]]:
    """The next three operations from each offset on."""
    found = [
        (each.offset, f"LOAD_CONST {each.argval}" if each.opname == "LOAD_CONST" else each.opname)
        for each in dis.get_instructions(code)
    ]
    return {offset: tuple(name for _, name in found[i : i + 3]) for i, (offset, _) in enumerate(found)}


@contextmanager
def raised_at_line(line: Line, occurrence: int, error: BaseException) -> Iterator[list[Line]]:
    """Context in which the line raises an error when it runs for this time, counted from 0.

    Yields:
        A list, empty until it has been raised.
    """
    raised: list[Line] = []
    left = occurrence
    known: dict[CodeType, bool] = {}

    def enter(frame: FrameType, event: str, argument: Any) -> Any:
        code = frame.f_code
        holds = known.get(code)
        if holds is None:
            holds = code.co_filename == line.file and any(n == line.number for *_, n in code.co_lines())
            known[code] = holds
        return watch if holds else None

    def watch(frame: FrameType, event: str, argument: Any) -> Any:
        nonlocal left
        if event == "line" and frame.f_lineno == line.number and not raised and not _is_passed(frame):
            if not left:
                raised.append(line)
                raise error
            left -= 1
        return watch

    outer = sys.gettrace()
    sys.settrace(enter)
    try:
        yield raised
    finally:
        sys.settrace(outer)


# -- in the user's code ------------------------------------------------------------------------------


class Fuse:
    """Counts what the layers of a model do, and raises an error at one of these moments.

    Attributes:
        counts: how often each kind of moment has come, ``"call"`` and ``"backward"``.
    """

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self._armed: tuple[str, int, BaseException] | None = None
        self._raised: list[str] = []

    def burn(self, kind: str) -> None:
        """A moment has come."""
        self.counts[kind] += 1
        if self._armed is not None and self._armed[:2] == (kind, self.counts[kind] - 1):
            error = self._armed[2]
            self._armed = None
            self._raised.append(kind)
            raise error

    @contextmanager
    def armed(self, kind: str, occurrence: int, error: BaseException) -> Iterator[list[str]]:
        """Context in which a moment raises an error when it comes for this time, counted from 0.

        Yields:
            A list, empty until it has been raised.
        """
        self.counts.clear()
        self._raised = []
        self._armed = (kind, occurrence, error)
        try:
            yield self._raised
        finally:
            self._armed = None


FUSE = Fuse()
"""That of all models here: a copy of a layer shares it."""


# -- by a signal -------------------------------------------------------------------------------------


def call_interrupted(function: Callable[[], Any], seconds: float) -> bool:
    """Call a function, which a signal interrupts after some time as Ctrl-C does; in the main thread only.

    Returns:
        Whether the signal came before the function had ended.
    """
    assert threading.current_thread() is threading.main_thread()
    armed = came = False

    def interrupt(number: int, frame: FrameType | None) -> None:
        nonlocal armed, came
        if armed:
            armed, came = False, True
            raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        try:
            armed = True
            signal.setitimer(signal.ITIMER_REAL, max(seconds, 1e-6))
            function()
        finally:
            armed = False
            signal.setitimer(signal.ITIMER_REAL, 0)
    except BaseException as error:
        # NumPy makes a `SystemError` of an interrupt in the midst of C. TensorFlow drops it where functions
        # in C call Python, and raises errors of many kinds about what these then lack.
        if not came or isinstance(error, IBAError):
            raise
    finally:
        signal.signal(signal.SIGALRM, before)
    return came


class Hang(BaseException):
    """Raised where a call does not end, such as where a lock has been left locked."""


@contextmanager
def no_hang(seconds: float = 60) -> Iterator[None]:
    """Context that raises `Hang` if it takes too long; it does nothing outside of the main thread."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def end(number: int, frame: FrameType | None) -> None:
        raise Hang(f"no end after {seconds} seconds")

    before = signal.signal(signal.SIGALRM, end)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
