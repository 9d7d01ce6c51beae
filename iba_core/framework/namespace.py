"""The array namespace that every formula of the core runs on.

A formula asks `array_namespace` for the functions that fit its arguments: NumPy's or PyTorch's (both through
`array-api-compat`), or those that a backend has registered for its framework. A framework is imported only
once one of its tensors has been seen.
"""

from __future__ import annotations

import sys
from functools import cache
from importlib import import_module, metadata
from typing import Any

import numpy as np

Array = Any
"""An array of any framework: `numpy.ndarray`, `torch.Tensor`, `tf.Tensor`, ..."""

Namespace = Any
"""A module, or an object like one, with the functions of the array API standard that the core uses."""

BACKENDS = "iba.backends"
"""Entry-point group of the backends. An entry's name is the top-level module of its framework."""

_TINY = float(np.finfo(np.float32).tiny)

_registered: dict[str, Namespace] = {}


class _Namespaces(dict[type, Namespace]):
    """The namespace of each type of array. Looking up a type that is known runs no Python code."""

    def __missing__(self, kind: type) -> Namespace:
        # A user's subclass of an array is an array of the framework.
        for base in kind.__mro__:
            framework = base.__module__.partition(".")[0]
            if framework in ("numpy", "torch") or framework in _registered:
                break
        else:
            framework = kind.__module__.partition(".")[0]
        if framework in ("numpy", "torch"):
            self[kind] = import_module(f"array_api_compat.{framework}")
            return self[kind]
        if framework not in _registered and framework in sys.modules:
            _load_backend(framework)
        if framework not in _registered:
            raise TypeError(f"{kind.__module__}.{kind.__qualname__} is not a supported array type")
        self[kind] = _registered[framework]
        return self[kind]


NAMESPACES = _Namespaces()
"""``NAMESPACES[type(x)]`` are the functions for an array x. Formulas that run in each step use it, since it
takes less time than `array_namespace`."""


def register_namespace(framework: str, namespace: Namespace) -> None:
    """Let the core's formulas run on another framework's tensors.

    Args:
        framework: top-level module of the framework's tensor types, such as ``"tensorflow"``.
        namespace: module with the array-API functions that the core uses.
    """
    _registered[framework] = namespace


def array_namespace(*arrays: Array) -> Namespace:
    """Find the namespace of array functions for the given arrays.

    Args:
        *arrays: arrays of one framework. Python scalars are allowed too.

    Returns:
        A namespace in the sense of the array API standard; NumPy's if all arguments are scalars.

    Raises:
        TypeError: the arrays come from different frameworks, or from one without a backend.
    """
    kinds = {type(array) for array in arrays if not isinstance(array, (bool, int, float, complex))}
    found = {id(namespace): namespace for namespace in map(NAMESPACES.__getitem__, kinds or {np.ndarray})}
    # A registered framework takes NumPy's arrays as well, and every framework takes NumPy's scalars.
    if len(found) > 1 and (np.ndarray not in kinds or any(id(own) in found for own in _registered.values())):
        found.pop(id(NAMESPACES[np.ndarray]), None)
    if len(found) > 1:
        names = ", ".join(sorted(f"{kind.__module__}.{kind.__qualname__}" for kind in kinds))
        raise TypeError(f"the arrays are of several frameworks: {names}")
    return next(iter(found.values()))


@cache
def _load_backend(framework: str) -> None:
    """Import the backend of `framework`, which then registers its namespace.

    Once only: looking through everything installed takes longer than most formulas.
    """
    for entry in metadata.entry_points(group=BACKENDS, name=framework):
        entry.load()


def host_array(array: Any) -> np.ndarray[Any, np.dtype[Any]]:
    """Bring an array of any framework to NumPy, also from a device or out of a graph.

    bfloat16, which NumPy does not have, becomes float32.
    """
    if hasattr(array, "detach"):  # PyTorch's
        array = array.detach().cpu()
        return np.asarray(array.float() if str(array.dtype) == "torch.bfloat16" else array)
    found = np.asarray(array)
    return found.astype(np.float32) if found.dtype.name == "bfloat16" else found


def full_precision(x: Array) -> Array:
    """Widen half precision (float16 or bfloat16) to float32; return other arrays as they are.

    Losses are differences of logarithms and sums over many outputs. Three digits are too few for them.
    """
    # Not every namespace has a name for every half precision, but all their dtypes are called so.
    return NAMESPACES[type(x)].astype(x, NAMESPACES[type(x)].float32) if "float16" in str(x.dtype) else x


def sigmoid(x: Array) -> Array:
    """Logistic function whose gradient stays relatively exact for large and small `x`.

    The derivative of ``1 / (1 + exp(-x))`` is 0 or NaN once ``exp(-x)`` leaves the range of float32. That of
    the exponential of the log-sigmoid is not.

    Args:
        x: array of any shape, floating point.

    Returns:
        Array of the same shape and dtype, in (0, 1).
    """
    return NAMESPACES[type(x)].exp(log_sigmoid(x))


def log_sigmoid(x: Array) -> Array:
    """Logarithm of the logistic function, ``-log(1 + exp(-x))``, finite for every finite `x`."""
    xp = NAMESPACES[type(x)]
    return -xp.logaddexp(-x, xp.zeros_like(x))


def floored_log(x: Array) -> Array:
    """Logarithm of numbers of at least 0. A 0 counts as the smallest normal number of float32.

    The logarithm of that number is finite in every precision.
    """
    xp = NAMESPACES[type(x)]
    return xp.log(xp.maximum(x, xp.zeros_like(x) + _TINY))


def softmax(logits: Array, axis: int = -1) -> Array:
    """``exp(logits)``, divided by their sum along `axis`."""
    xp = NAMESPACES[type(logits)]
    exponentials = xp.exp(logits - xp.max(logits, axis=axis, keepdims=True))
    return exponentials / xp.sum(exponentials, axis=axis, keepdims=True)


def log_sum_exp(x: Array, axis: int = -1) -> Array:
    """``log(sum(exp(x)))`` along `axis`, without overflow."""
    xp = NAMESPACES[type(x)]
    peak = xp.max(x, axis=axis, keepdims=True)
    total = xp.log(xp.sum(xp.exp(x - peak), axis=axis, keepdims=True)) + peak
    return xp.squeeze(total, axis=axis)
