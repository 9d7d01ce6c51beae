"""The array namespace that every formula of the core runs on.

A formula asks `array_namespace` for the functions that fit its arguments: NumPy's or PyTorch's (both through
`array-api-compat`), or those that a backend has registered for its framework. A framework is imported only
once one of its tensors has been seen.
"""

from __future__ import annotations

import sys
from functools import cache
from importlib import metadata
from typing import Any

import array_api_compat
import numpy as np
import scipy.special

Array = Any
"""An array of any framework: `numpy.ndarray`, `torch.Tensor`, `tf.Tensor`, ..."""

Namespace = Any
"""A module, or an object like one, with the functions of the array API standard that the core uses."""

BACKENDS = "iba.backends"
"""Entry-point group of the backends. An entry's name is the top-level module of its framework."""

_TINY = float(np.finfo(np.float32).tiny)

_registered: dict[str, Namespace] = {}


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
    tensors = [a for a in arrays if not isinstance(a, (bool, int, float, complex, np.generic))]
    for tensor in tensors:
        framework = type(tensor).__module__.partition(".")[0]
        if framework not in _registered and framework not in ("numpy", "torch") and framework in sys.modules:
            _load_backend(framework)
        if framework in _registered:
            return _registered[framework]
    if not tensors:
        return array_api_compat.array_namespace(np.empty(0))
    return array_api_compat.array_namespace(*tensors)


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
    return array_namespace(x).astype(x, array_namespace(x).float32) if "float16" in str(x.dtype) else x


def sigmoid(x: Array) -> Array:
    """Logistic function whose gradient stays relatively exact for large and small `x`.

    The derivative of ``1 / (1 + exp(-x))`` is 0 or NaN once ``exp(-x)`` leaves the range of float32. That of
    the exponential of the log-sigmoid is not.

    Args:
        x: array of any shape, floating point.

    Returns:
        Array of the same shape and dtype, in (0, 1).
    """
    return array_namespace(x).exp(log_sigmoid(x))


def expit(x: Array) -> Array:
    """Logistic function of the framework. It is faster than `sigmoid`, but not meant for gradients."""
    own = getattr(array_namespace(x), "sigmoid", None)
    return scipy.special.expit(x) if own is None else own(x)


def log_sigmoid(x: Array) -> Array:
    """Logarithm of the logistic function, ``-log(1 + exp(-x))``, finite for every finite `x`."""
    xp = array_namespace(x)
    return -xp.logaddexp(-x, xp.zeros_like(x))


def floored_log(x: Array) -> Array:
    """Logarithm of numbers of at least 0. A 0 counts as the smallest normal number of float32.

    The logarithm of that number is finite in every precision.
    """
    xp = array_namespace(x)
    return xp.log(xp.maximum(x, xp.zeros_like(x) + _TINY))


def softmax(logits: Array, axis: int = -1) -> Array:
    """``exp(logits)``, divided by their sum along `axis`."""
    xp = array_namespace(logits)
    exponentials = xp.exp(logits - xp.max(logits, axis=axis, keepdims=True))
    return exponentials / xp.sum(exponentials, axis=axis, keepdims=True)


def log_sum_exp(x: Array, axis: int = -1) -> Array:
    """``log(sum(exp(x)))`` along `axis`, without overflow."""
    xp = array_namespace(x)
    peak = xp.max(x, axis=axis, keepdims=True)
    total = xp.log(xp.sum(xp.exp(x - peak), axis=axis, keepdims=True)) + peak
    return xp.squeeze(total, axis=axis)
