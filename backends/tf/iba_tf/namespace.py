"""The array namespace that the core's formulas run on where the arrays are TensorFlow's.

It holds the functions of the array API standard (https://data-apis.org/array-api/2024.12/) that the core
uses, with the standard's names, arguments and meaning. They are differentiable, and work eagerly as well as
inside a `tf.function`. Python scalars take the dtype of the tensors that they are combined with; tensors of
different dtypes are promoted.
"""

from __future__ import annotations

import builtins
import math
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any, TypeAlias

import numpy as np
import tensorflow as tf

Tensor: TypeAlias = Any
"""A `tf.Tensor`, or a Python scalar where the standard allows one."""

Axis: TypeAlias = int | Sequence[int] | None
"""One axis, several, or None for all."""

__array_api_version__ = "2024.12"

bool = tf.bool
int32 = tf.int32
int64 = tf.int64
float16 = tf.float16
float32 = tf.float32
float64 = tf.float64

e = math.e
inf = math.inf
nan = math.nan
pi = math.pi
newaxis = None


# -- making and converting ------------------------------------------------------------------------


def asarray(obj: Any, *, dtype: tf.DType | None = None, device: str | None = None) -> Tensor:
    """`obj` as a tensor; its own dtype is kept where none is given."""
    with nullcontext() if device is None else tf.device(device):
        if dtype is not None and tf.is_tensor(obj):
            return tf.cast(obj, dtype)
        return tf.convert_to_tensor(np.asarray(obj) if isinstance(obj, np.generic) else obj, dtype=dtype)


def astype(x: Tensor, dtype: tf.DType, *, copy: builtins.bool = True) -> Tensor:
    """`x` in another dtype. Tensors are immutable, so `copy` makes no difference."""
    return tf.cast(x, dtype)


def zeros_like(x: Tensor, *, dtype: tf.DType | None = None) -> Tensor:
    """Zeros of the shape of `x`."""
    return tf.zeros_like(x, dtype)


def ones_like(x: Tensor, *, dtype: tf.DType | None = None) -> Tensor:
    """Ones of the shape of `x`."""
    return tf.ones_like(x, dtype)


# -- element by element -----------------------------------------------------------------------------


def exp(x: Tensor) -> Tensor:
    """Exponential."""
    return tf.exp(x)


def log(x: Tensor) -> Tensor:
    """Natural logarithm."""
    return tf.math.log(x)


def log1p(x: Tensor) -> Tensor:
    """Natural logarithm of 1 + x, exact for a small x."""
    return tf.math.log1p(x)


def sigmoid(x: Tensor) -> Tensor:
    """Logistic function, elementwise. It is not in the standard, but PyTorch has it, too."""
    return tf.sigmoid(x)


def sqrt(x: Tensor) -> Tensor:
    """Square root."""
    return tf.sqrt(x)


def square(x: Tensor) -> Tensor:
    """``x * x``."""
    return tf.square(x)


def tanh(x: Tensor) -> Tensor:
    """Hyperbolic tangent."""
    return tf.tanh(x)


def maximum(x1: Tensor, x2: Tensor) -> Tensor:
    """The greater of each pair; NaN if either is NaN."""
    return tf.maximum(*_promoted(x1, x2))


def logaddexp(x1: Tensor, x2: Tensor) -> Tensor:
    """``log(exp(x1) + exp(x2))``, without overflow, with gradients that are exact far out on both sides."""
    # Made of primitives: TensorFlow never frees a `tf.custom_gradient` in a traced graph, nor the graph.
    x1, x2 = _promoted(x1, x2)
    greater, lesser = tf.where(x1 >= x2, x1, x2), tf.where(x1 >= x2, x2, x1)
    # Equal infinities have no difference; their sum is the same infinity.
    alike = tf.math.is_inf(greater) & (greater == lesser)
    return greater + tf.math.softplus(tf.where(alike, tf.zeros_like(greater), lesser - greater))


def where(condition: Tensor, x1: Tensor, x2: Tensor) -> Tensor:
    """`x1` where the condition holds, else `x2`."""
    return tf.where(condition, *_promoted(x1, x2))


def isfinite(x: Tensor) -> Tensor:
    """Whether neither infinite nor NaN."""
    return tf.math.is_finite(x) if x.dtype.is_floating else tf.ones_like(x, bool)


def logical_and(x1: Tensor, x2: Tensor) -> Tensor:
    """Whether both hold."""
    return tf.logical_and(x1, x2)


def logical_not(x: Tensor) -> Tensor:
    """Whether it does not hold."""
    return tf.logical_not(x)


# -- along axes -----------------------------------------------------------------------------------


def sum(
    x: Tensor, *, axis: Axis = None, dtype: tf.DType | None = None, keepdims: builtins.bool = False
) -> Tensor:
    """Sum; integers and booleans are summed as int64."""
    if dtype is None and (x.dtype.is_bool or x.dtype.is_integer):
        dtype = int64
    return tf.reduce_sum(x if dtype is None else tf.cast(x, dtype), axis, keepdims)


def mean(x: Tensor, *, axis: Axis = None, keepdims: builtins.bool = False) -> Tensor:
    """Arithmetic mean."""
    return tf.reduce_mean(x, axis, keepdims)


def max(x: Tensor, *, axis: Axis = None, keepdims: builtins.bool = False) -> Tensor:
    """Greatest value."""
    return tf.reduce_max(x, axis, keepdims)


def min(x: Tensor, *, axis: Axis = None, keepdims: builtins.bool = False) -> Tensor:
    """Smallest value."""
    return tf.reduce_min(x, axis, keepdims)


def all(x: Tensor, *, axis: Axis = None, keepdims: builtins.bool = False) -> Tensor:
    """Whether none of the values is 0."""
    return tf.reduce_all(tf.cast(x, bool), axis, keepdims)


def argmax(x: Tensor, *, axis: int | None = None) -> Tensor:
    """Index of the greatest value along an axis, the first of several; without one, in the flattened `x`."""
    return tf.argmax(tf.reshape(x, [-1]) if axis is None else x, axis=0 if axis is None else axis)


def take(x: Tensor, indices: Tensor, *, axis: int | None = None) -> Tensor:
    """Entries of `x` at the given indices along an axis."""
    return tf.gather(x, indices, axis=0 if axis is None else axis)


def take_along_axis(x: Tensor, indices: Tensor, *, axis: int = -1) -> Tensor:
    """For each position of `indices`, the entry of `x` there, at the index along `axis`."""
    last = x.ndim - 1
    order = list(range(x.ndim))
    order[axis], order[last] = order[last], order[axis]
    if order != sorted(order):
        x, indices = tf.transpose(x, order), tf.transpose(indices, order)
    leading = tf.broadcast_static_shape(x.shape[:-1], indices.shape[:-1])
    x, indices = (tf.broadcast_to(each, [*leading, each.shape[-1]]) for each in (x, indices))
    taken = tf.gather(x, indices, batch_dims=last, axis=last)
    return taken if order == sorted(order) else tf.transpose(taken, order)


# -- shapes ---------------------------------------------------------------------------------------


def reshape(x: Tensor, shape: int | Sequence[int]) -> Tensor:
    """The values of `x`, in their order, in another shape; one size may be -1."""
    return tf.reshape(x, (shape,) if isinstance(shape, int) else shape)


def permute_dims(x: Tensor, axes: Sequence[int]) -> Tensor:
    """`x` with its axes in another order."""
    return tf.transpose(x, axes)


def matrix_transpose(x: Tensor) -> Tensor:
    """`x` with its last two axes exchanged."""
    return tf.linalg.matrix_transpose(x)


def expand_dims(x: Tensor, *, axis: int = 0) -> Tensor:
    """`x` with an axis of length 1 put in."""
    return tf.expand_dims(x, axis)


def squeeze(x: Tensor, axis: int | Sequence[int]) -> Tensor:
    """`x` without the given axes, which have length 1."""
    return tf.squeeze(x, axis)


def concat(arrays: Sequence[Tensor], *, axis: int | None = 0) -> Tensor:
    """Tensors joined along an axis; None flattens them first."""
    arrays = _promoted(*arrays)
    if axis is None:
        return tf.concat([tf.reshape(array, [-1]) for array in arrays], 0)
    return tf.concat(arrays, axis)


def stack(arrays: Sequence[Tensor], *, axis: int = 0) -> Tensor:
    """Tensors of one shape joined along a new axis."""
    return tf.stack(_promoted(*arrays), axis)


def unstack(x: Tensor, /, *, axis: int = 0) -> tuple[Tensor, ...]:
    """The tensors that lie along an axis of `x`, whose length is known."""
    return tuple(tf.unstack(x, axis=axis))


def repeat(x: Tensor, repeats: int | Tensor, *, axis: int | None = None) -> Tensor:
    """Each entry of `x` several times in a row; None flattens `x` first."""
    return tf.repeat(x, repeats, axis)


# -- products -------------------------------------------------------------------------------------


def matmul(x1: Tensor, x2: Tensor) -> Tensor:
    """Matrix product over the last two axes; a 1-D argument is a row on the left, a column on the right."""
    x1, x2 = _promoted(x1, x2)
    left = tf.expand_dims(x1, 0) if x1.ndim == 1 else x1
    right = tf.expand_dims(x2, 1) if x2.ndim == 1 else x2
    product = tf.matmul(left, right)
    if x2.ndim == 1:
        product = tf.squeeze(product, -1)
    return tf.squeeze(product, -1 if x2.ndim == 1 else -2) if x1.ndim == 1 else product


def _promoted(*values: Tensor) -> list[Tensor]:
    """The arguments as tensors of one dtype. Python scalars do not change that dtype."""
    scalars = (builtins.bool, int, float)
    dtypes = [asarray(value).dtype for value in values if not isinstance(value, scalars)]
    if not dtypes:
        dtypes = [asarray(value).dtype for value in values]
    common = dtypes[0]
    for dtype in dtypes[1:]:
        if dtype != common:
            common = tf.as_dtype(np.result_type(common.as_numpy_dtype, dtype.as_numpy_dtype))
    if not common.is_floating and builtins.any(isinstance(value, float) for value in values):
        common = float32
    return [tf.cast(value, common) for value in values]
