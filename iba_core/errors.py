"""The errors that this library raises. Each message is one sentence that says how to correct the error."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


class IBAError(Exception):
    """Base class of the library's errors. The command line prints the message without a traceback.

    Example:
        >>> issubclass(InputError, IBAError) and issubclass(InputError, ValueError)
        True
    """


class InputError(IBAError, ValueError):
    """An argument has the wrong type, shape, range or content.

    Example:
        >>> from iba_core import LogitTarget
        >>> LogitTarget(5).resolve(np.zeros((1, 3)))
        Traceback (most recent call last):
        iba_core.errors.InputError: target=5 is outside the model's 3 classes, 0 to 2
    """


class LayerError(IBAError, ValueError):
    """A layer does not exist, does not run, or the model cannot be split there.

    Example:
        >>> raise LayerError("no layer 'conv9'; the closest name is 'conv1'")
        Traceback (most recent call last):
        iba_core.errors.LayerError: no layer 'conv9'; the closest name is 'conv1'
    """


class UnknownChannelsError(LayerError):
    """A model does not show which axis of a layer's features holds the channels.

    Example:
        >>> issubclass(UnknownChannelsError, LayerError)
        True
    """


class NotEstimatedError(IBAError, RuntimeError):
    """The mean and standard deviation of the features are needed, but not yet estimated.

    Example:
        >>> issubclass(NotEstimatedError, RuntimeError)
        True
    """


class StateError(IBAError, ValueError):
    """A state file is missing, truncated, or of another kind.

    Example:
        >>> from iba_core.state import read_state
        >>> read_state("missing.safetensors", kind="estimator")
        Traceback (most recent call last):
        iba_core.errors.StateError: path='missing.safetensors' is not a file; ...
    """


class OptimizationError(IBAError, ArithmeticError):
    """The objective became non-finite.

    Example:
        >>> issubclass(OptimizationError, ArithmeticError)
        True
    """


class MissingDependencyError(IBAError, ImportError):
    """An optional package is not installed. The message names the extra that installs it.

    Example:
        >>> issubclass(MissingDependencyError, ImportError)
        True
    """


def closest(name: str, known: Iterable[str], n: int = 3) -> str:
    """Describe the known names closest to `name`, for the end of an error message.

    Args:
        name: unknown name that the caller gave.
        known: the names that exist.
        n: maximum number of names to list.

    Returns:
        A phrase with the closest names, or with the first names if none is close.

    Example:
        >>> closest("feature.1", ["features.1", "classifier"])
        "the closest name is 'features.1'"
    """
    names = list(known)
    if not names:
        return "there are none"
    near = get_close_matches(name, names, n=n, cutoff=0.4)
    if near:
        return f"the closest {'name is' if len(near) == 1 else 'names are'} {_quote(near)}"
    more = "" if len(names) <= n else f" and {len(names) - n} more"
    return f"there are {_quote(names[:n])}{more}"


def _quote(names: list[str]) -> str:
    return ", ".join(f"'{name}'" for name in names)
