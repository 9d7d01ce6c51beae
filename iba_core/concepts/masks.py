"""Functions of predicted and true masks: what every loss and every metric shares."""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable
from enum import Enum
from typing import Any, get_args

from iba_core.errors import InputError
from iba_core.framework.layout import DataFormat
from iba_core.framework.namespace import Array, Namespace, array_namespace


class BatchReduction(Enum):
    """How the values of the masks of a batch become one value. Every member is a function of them.

    Attributes:
        mean: their mean.
        sum: their sum.
        none: the values as they are.

    Example:
        >>> import numpy as np
        >>> float(BatchReduction.mean(np.array([1.0, 2.0, 6.0])))
        3.0
    """

    mean = "mean"
    sum = "sum"
    none = "none"

    def __call__(self, batch_tensor: Array) -> Array:
        """Reduce an array of any shape to a scalar array, or return it as it is (`none`)."""
        if self is BatchReduction.none:
            return batch_tensor
        xp = array_namespace(batch_tensor)
        return xp.mean(batch_tensor) if self is BatchReduction.mean else xp.sum(batch_tensor)

    def __repr__(self) -> str:
        return str(self)


Reduction = BatchReduction | Callable[[Array], Array]
"""A function that reduces the values (B, ...) of a batch."""


def as_reduction(reduction: Reduction | str) -> Reduction:
    """The reduction of that name (``"mean"``, ``"sum"`` or ``"none"``), or the function itself.

    Raises:
        InputError: it is neither the name of a `BatchReduction` nor callable.
    """
    if callable(reduction):
        return reduction
    try:
        return BatchReduction(reduction)
    except ValueError:
        names = ", ".join(repr(member.value) for member in BatchReduction)
        raise InputError(f"reduction={reduction!r} is neither one of {names} nor a function") from None


def require_fraction(value: float, argument: str) -> float:
    """`value` as a float, if it is between 0 and 1.

    Raises:
        InputError: it is not.
    """
    if not 0 <= value <= 1:
        raise InputError(f"{argument}={value!r} must be between 0 and 1")
    return float(value)


def as_masks(outputs: Array, targets: Array) -> tuple[Namespace, Array, Array]:
    """Predicted and true masks in one floating-point dtype, and the namespace to compute with.

    Half precision is widened, since the sum over an image overflows it.

    Args:
        outputs: predicted masks or logits, at least 1-D.
        targets: true masks of the same shape and any dtype.

    Returns:
        The namespace, the outputs in float32 or float64, the targets in the same dtype.

    Raises:
        InputError: the shapes differ, or the arrays have no axis or no entry.
    """
    shape, target_shape = tuple(outputs.shape), tuple(targets.shape)
    # An axis of a traced TensorFlow function may have no size yet: None.
    differs = any(
        None not in sizes and sizes[0] != sizes[1] for sizes in zip(shape, target_shape, strict=False)
    )
    if len(shape) != len(target_shape) or differs:
        raise InputError(f"targets has shape {target_shape}; it must have that of outputs, {shape}")
    if not shape or 0 in shape:
        raise InputError(f"outputs has shape {shape}; a mask needs at least one axis and one entry")
    xp = array_namespace(outputs, targets)
    if outputs.dtype not in (xp.float32, xp.float64):
        outputs = xp.astype(outputs, xp.float32)
    return xp, outputs, xp.astype(targets, outputs.dtype)


def binarize(masks: Array, threshold: float) -> Array:
    """Masks of 0 and 1, of the dtype of `masks`: 1 where an entry is above `threshold`."""
    return array_namespace(masks).astype(masks > threshold, masks.dtype)


def mask_axes(ndim: int, data_format: DataFormat) -> tuple[int, ...]:
    """The axes that make up one mask.

    A 1-D array is one 1-D mask and a 2-D array one 2-D mask, without a batch axis. Arrays with more
    axes hold a 2-D mask for every index of the axes before it and, with four or more axes in
    ``"channels_last"``, of the channel axis behind it.
    """
    if ndim == 1:
        return (-1,)
    return (-3, -2) if data_format == "channels_last" and ndim > 3 else (-2, -1)


class MaskFunction(ABC):
    """A loss or metric of predicted and true masks, with its settings.

    A framework makes it its own by inheriting from the function and from the framework's base class, in
    this order; unknown keyword arguments of the constructor go to the latter.
    """

    def __init__(self, **kwargs: Any) -> None:
        initialize = super().__init__
        if kwargs and getattr(initialize, "__objclass__", None) is object:
            name = type(self).__name__
            raise TypeError(f"{name}() got an unexpected keyword argument {next(iter(kwargs))!r}")
        initialize(**kwargs)

    @abstractmethod
    def forward(self, outputs: Array, targets: Array) -> Array:
        """Value for a batch of predicted masks and true masks of the same shape."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The same as `forward`."""
        return self.forward(*args, **kwargs)

    @property
    def settings(self) -> dict[str, Any]:
        """The constructor's arguments that reproduce this instance."""
        parameters = list(inspect.signature(type(self).__init__).parameters.values())[1:]
        return {p.name: getattr(self, p.name) for p in parameters if p.kind is not p.VAR_KEYWORD}

    def __repr__(self) -> str:
        arguments = ", ".join(f"{name}={value!r}" for name, value in self.settings.items())
        return f"{type(self).__name__}({arguments})"

    def __str__(self) -> str:
        return repr(self)


class BatchFunction(MaskFunction):
    """A function that has a value for each mask (or pixel) of a batch, and reduces them.

    Attributes:
        reduction: reduces the values.
    """

    reduction: Reduction

    @abstractmethod
    def values(self, outputs: Array, targets: Array) -> Array:
        """Values before the reduction."""

    def forward(self, outputs: Array, targets: Array) -> Array:
        """The reduced values.

        Args:
            outputs: predicted masks, shape (W,), (H, W) or (B, ..., H, W).
            targets: true masks of the same shape.

        Returns:
            Scalar array; the values themselves if the reduction is ``"none"``.

        Raises:
            InputError: the shapes differ.
        """
        return self.reduction(self.values(outputs, targets))


class AreaFunction(BatchFunction):
    """A function of the areas of masks: one value for each mask.

    Args:
        reduction: reduces the values of the masks.
        data_format: where the channel axis is in arrays with four or more axes; by default where the
            framework has it.
        kwargs: arguments of the framework's base class.

    Attributes:
        data_format: where the channel axis is.
    """

    data_format: DataFormat

    def __init__(self, reduction: Reduction | str, data_format: DataFormat | None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if data_format is not None and data_format not in get_args(DataFormat):
            raise InputError(f"data_format={data_format!r} is neither 'channels_first' nor 'channels_last'")
        self.reduction = as_reduction(reduction)
        self.data_format = data_format or self.default_data_format()

    @staticmethod
    def default_data_format() -> DataFormat:
        """The framework's own data format."""
        return "channels_first"

    def area(self, masks: Array) -> Array:
        """Sum over the entries of each mask: shape (B, ...), or a scalar array for a single mask."""
        xp = array_namespace(masks)
        return xp.sum(masks, axis=mask_axes(len(masks.shape), self.data_format))
