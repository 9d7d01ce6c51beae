"""The parts that all losses and metrics of predicted and true masks share."""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable
from enum import StrEnum
from typing import Any

import numpy as np

from iba_core.arguments import given, require_data_format
from iba_core.errors import InputError
from iba_core.framework.arrays import as_array
from iba_core.framework.layout import DataFormat
from iba_core.framework.namespace import Array, Namespace, array_namespace


class BatchReduction(StrEnum):
    """Functions that reduce the values of the masks of a batch.

    Attributes:
        mean: the mean of the values.
        sum: the sum of the values.
        none: the values themselves.

    A member equals its name, ``BatchReduction.mean == "mean"``.

    Example:
        >>> import numpy as np
        >>> float(BatchReduction.mean(np.array([1.0, 2.0, 6.0])))
        3.0
    """

    mean = "mean"
    sum = "sum"
    none = "none"

    def __call__(self, batch_tensor: Array) -> Array:
        """Reduce an array of any shape to a scalar array; `none` returns it unchanged."""
        if self is BatchReduction.none:
            return batch_tensor
        xp = array_namespace(batch_tensor)
        return xp.mean(batch_tensor) if self is BatchReduction.mean else xp.sum(batch_tensor)

    def __repr__(self) -> str:
        return f"BatchReduction.{self.name}"


Reduction = BatchReduction | Callable[[Array], Array]
"""A function that reduces the values (B, ...) of a batch."""


def as_reduction(reduction: Reduction | str) -> Reduction:
    """Return the reduction with this name (``"mean"``, ``"sum"`` or ``"none"``), or the function itself.

    Raises:
        InputError: it is neither the name of a `BatchReduction` nor callable.

    Example:
        >>> as_reduction("sum")
        BatchReduction.sum
    """
    if callable(reduction) and not isinstance(reduction, type):
        return reduction
    names = [member.value for member in BatchReduction]
    if isinstance(reduction, str) and reduction in names:
        return BatchReduction(reduction)
    shown = ", ".join(map(repr, names))
    raise InputError(f"{given('reduction', reduction)} is neither one of {shown} nor a function")


def as_masks(outputs: Array, targets: Array, *, pixels: bool = False) -> tuple[Namespace, Array, Array]:
    """Convert predicted and true masks to one floating-point dtype, and find the namespace to compute with.

    Half precision becomes float32, since the sum over an image overflows it.

    Args:
        outputs: predicted masks or logits, at least 1-D.
        targets: true masks of the same shape and any dtype.
        pixels: whether each pixel counts for itself, so that a single one without any axis is allowed.

    Returns:
        The namespace, the outputs in float32 or float64, and the targets in the same dtype.

    Raises:
        InputError: the shapes differ, or the arrays have no axis or no entry.
    """
    outputs, targets = _as_mask_array("outputs", outputs), _as_mask_array("targets", targets)
    shape, target_shape = tuple(outputs.shape), tuple(targets.shape)
    # In a traced TensorFlow function, the size of an axis may be None.
    differs = any(
        None not in sizes and sizes[0] != sizes[1] for sizes in zip(shape, target_shape, strict=False)
    )
    if len(shape) != len(target_shape) or differs:
        raise InputError(f"targets has shape {target_shape}; it must have the shape of outputs, {shape}")
    if (not shape and not pixels) or 0 in shape:
        raise InputError(f"outputs has shape {shape}; a mask needs at least one axis and one entry")
    xp = array_namespace(outputs, targets)
    if outputs.dtype not in (xp.float32, xp.float64):
        outputs = xp.astype(outputs, xp.float32)
    return xp, outputs, xp.astype(targets, outputs.dtype)


def _as_mask_array(name: str, masks: Any) -> Array:
    """An array of any framework as it is; lists as an array of NumPy.

    Raises:
        InputError: it is no array of real numbers, or holds NaN.
    """
    if isinstance(masks, (np.ndarray, np.generic)) or not hasattr(masks, "shape"):
        masks = as_array(name, masks)
    if "complex" in str(masks.dtype) or "string" in str(masks.dtype):
        raise InputError(f"{given(name, masks)} must hold real numbers")
    if _holds_nan(masks):
        raise InputError(f"{name} holds NaN; every value must be a number")
    return masks


def _holds_nan(masks: Array) -> bool:
    """Whether a value is NaN; False while a framework traces a function, whose tensors have no values yet."""
    if not hasattr(masks, "numpy") and not isinstance(masks, np.ndarray):
        return False
    xp = array_namespace(masks)
    try:
        return not bool(xp.all(masks == masks))  # only NaN differs from itself
    except RuntimeError:  # PyTorch traces, too, such as in `torch.func.vmap`
        return False


def binarize(masks: Array, threshold: float) -> Array:
    """Convert masks to 0 and 1 in the same dtype: 1 where an entry is above `threshold`."""
    return array_namespace(masks).astype(masks > threshold, masks.dtype)


def mask_axes(ndim: int, data_format: DataFormat) -> tuple[int, ...]:
    """Find the axes of one mask.

    A 1-D array is one 1-D mask, and a 2-D array is one 2-D mask, both without a batch axis. In an array with
    more axes, the last two axes are those of a 2-D mask, or the two before the channel axis if there are four
    or more axes in ``"channels_last"``.

    Args:
        ndim: number of axes of the array.
        data_format: position of the channel axis.

    Example:
        >>> mask_axes(4, "channels_last"), mask_axes(3, "channels_last")
        ((-3, -2), (-2, -1))
    """
    if ndim == 1:
        return (-1,)
    return (-3, -2) if data_format == "channels_last" and ndim > 3 else (-2, -1)


class MaskFunction(ABC):
    """A loss or metric of predicted and true masks, with its settings.

    A framework's class inherits from this class and from the framework's base class, in this order. Unknown
    keyword arguments of the constructor go to the framework's base class.
    """

    def __init__(self, **kwargs: Any) -> None:
        initialize = super().__init__
        if kwargs and getattr(initialize, "__objclass__", None) is object:
            name = type(self).__name__
            raise TypeError(f"{name}() got an unexpected keyword argument {next(iter(kwargs))!r}")
        initialize(**kwargs)

    @abstractmethod
    def forward(self, outputs: Array, targets: Array) -> Array:
        """Compute the value for a batch of predicted masks and true masks of the same shape."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call `forward`."""
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
    """A function that computes a value for each mask (or pixel) of a batch and reduces the values.

    Attributes:
        reduction: function that reduces the values.
    """

    reduction: Reduction

    @abstractmethod
    def values(self, outputs: Array, targets: Array) -> Array:
        """Compute the values before the reduction."""

    def forward(self, outputs: Array, targets: Array) -> Array:
        """Compute the values and reduce them.

        Args:
            outputs: predicted masks, shape (W,), (H, W) or (B, ..., H, W).
            targets: true masks of the same shape.

        Returns:
            Scalar array; or the values themselves if the reduction is ``"none"``.

        Raises:
            InputError: the shapes differ.
        """
        return self.reduction(self.values(outputs, targets))


class AreaFunction(BatchFunction):
    """A function of the areas of masks, with one value for each mask.

    Args:
        reduction: function, or its name, that reduces the values of the masks.
        data_format: position of the channel axis in arrays with four or more axes; by default that of the
            framework.
        kwargs: arguments of the framework's base class.

    Attributes:
        data_format: position of the channel axis.

    Raises:
        InputError: the reduction or the data format is unknown.
    """

    data_format: DataFormat

    def __init__(self, reduction: Reduction | str, data_format: DataFormat | None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        require_data_format("data_format", data_format, optional=True)
        self.reduction: Reduction = as_reduction(reduction)
        self.data_format = data_format or self.default_data_format()

    @staticmethod
    def default_data_format() -> DataFormat:
        """Return the framework's own data format."""
        return "channels_first"

    def area(self, masks: Array) -> Array:
        """Sum the entries of each mask: shape (B, ...), or a scalar array for a single mask."""
        xp = array_namespace(masks)
        return xp.sum(masks, axis=mask_axes(len(masks.shape), self.data_format))
