"""Contexts that undo what has been done, also where an interrupt comes while it is undone."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from traceback import clear_frames
from typing import Any, TypeVar

C = TypeVar("C", bound=Callable[..., Any])


@contextmanager
def undoing(undo: Callable[[], object]) -> Iterator[None]:
    """Context that calls a function at its end, however it ends.

    An interrupt may come while the function runs. Then it runs again.

    Args:
        undo: does no harm if it runs twice, or if nothing has been done yet.

    Example:
        >>> with undoing(lambda: print("as before")):
        ...     print("changed")
        changed
        as before
    """
    is_undone = False
    try:
        yield
    finally:
        try:
            undo()
            is_undone = True
        finally:
            if not is_undone:
                undo()


@contextmanager
def undone_on_failure(undo: Callable[[], object]) -> Iterator[None]:
    """Context that calls a function where it fails or is interrupted: all is done, or nothing.

    What the frames of an interrupt still hold ends before, see `let_go`.

    Args:
        undo: does no harm if it runs twice, or if nothing has been done yet.

    Example:
        >>> with undone_on_failure(lambda: print("as before")):
        ...     print("changed")
        changed
    """
    outside = sys.exception()
    try:
        yield
    except GeneratorExit:
        # Python closes what has been dropped, perhaps much later, in the midst of something else.
        raise
    except BaseException as error:
        with undoing(undo):
            let_go(error, outside)
            raise


def undone_if_interrupted(noted: Callable[[], Callable[[], object]]) -> Callable[[C], C]:
    """Make a decorator of functions that leave everything as it was when they are interrupted.

    A framework sets what holds for a thread some lines before the `try` that takes it back, and an interrupt
    may come between them. A generator must not be decorated: between its parts, others make settings as well.

    Args:
        noted: looks at the thread's settings, and returns a function that brings them back.

    Example:
        >>> settings = {"precise": True}
        >>> def noted():
        ...     before = dict(settings)
        ...     return lambda: settings.update(before)
        >>> @undone_if_interrupted(noted)
        ... def act():
        ...     settings["precise"] = False
        ...     raise KeyboardInterrupt
        >>> try:
        ...     act()
        ... except KeyboardInterrupt:
        ...     print(settings)
        {'precise': True}
    """

    def decorate(function: C) -> C:
        @wraps(function)
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            outside, restore = sys.exception(), noted()
            try:
                return function(*args, **kwargs)
            except BaseException as error:
                if let_go(error, outside):
                    with undoing(restore):
                        raise
                raise

        return wrapped  # type: ignore[return-value]  # `wraps` keeps the signature, which mypy cannot see

    return decorate


def let_go(error: BaseException, outside: BaseException | None = None) -> bool:
    """End what the frames of an interrupt still hold; those of other errors are kept, for debuggers.

    An interrupt just before a context manager's generator goes on leaves the generator to the frames. It
    would undo its part when they are gone, in the midst of something else.

    Args:
        error: what came.
        outside: the error that was handled before anything was done. Its frames are not touched.

    Returns:
        Whether it is an interrupt, or an error that was raised while one was handled.

    Example:
        >>> let_go(KeyboardInterrupt()), let_go(ValueError())
        (True, False)
    """
    chain: list[BaseException] = []
    found: BaseException | None = error
    while found is not None and found is not outside and found not in chain:
        chain.append(found)
        found = found.__cause__ or found.__context__
    if all(isinstance(each, (Exception, GeneratorExit)) for each in chain):
        return False
    for each in chain:
        clear_frames(each.__traceback__)
    return True
