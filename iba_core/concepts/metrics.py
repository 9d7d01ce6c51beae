"""Metrics of how well predicted masks cover true masks.

Both masks are binarised, so metrics have no gradient. The classes of the same names in `iba_torch.concepts`
are `torch.nn.Module`, those in `iba_tf.concepts` are `keras.metrics.Metric`.
"""

from __future__ import annotations

from typing import Any

from iba_core.arguments import require_number
from iba_core.concepts.masks import (
    AreaFunction,
    BatchReduction,
    MaskFunction,
    Reduction,
    as_masks,
    binarize,
    mask_axes,
)
from iba_core.errors import InputError
from iba_core.framework.layout import DataFormat
from iba_core.framework.namespace import Array, array_namespace


def _overlap(outputs: Array, labels: Array, output_thresh: float, label_thresh: float) -> tuple[Array, Array]:
    """Compute the intersection and the union of prediction and truth, as masks of 0 and 1."""
    _, p, t = as_masks(outputs, labels)
    p, t = binarize(p, output_thresh), binarize(t, label_thresh)
    return p * t, p + t - p * t


def smooth_ratio(intersection: Array, union: Array, smooth: float) -> Array:
    """Compute ``(intersection + smooth) / (union + smooth)``, and 1 instead of 0 / 0.

    Args:
        intersection: array of any framework, or number.
        union: array of the same shape, or number, at least the intersection.
        smooth: summand, at least 0.

    Returns:
        Array of the same shape, or number.

    Example:
        >>> smooth_ratio(np.array([1.0, 0.0]), np.array([2.0, 0.0]), smooth=0.0)
        array([0.5, 1. ])
    """
    if smooth > 0:
        return (intersection + smooth) / (union + smooth)
    if isinstance(union, (int, float)):
        return intersection / union if union else 1.0
    xp = array_namespace(union)
    one = xp.zeros_like(union) + 1
    return xp.where(union == 0, one, intersection) / xp.where(union == 0, one, union)


class IoU(AreaFunction):
    r"""Intersection over union of each mask, reduced over the batch.

    It is :math:`(TP + s) / (TP + FP + FN + s)` with :math:`s` = `smooth`. Two empty masks have the value 1.

    Args:
        reduction: function, or its name, that reduces the values of the masks of a batch.
        output_thresh: entries of the predicted masks above it are foreground.
        label_thresh: entries of the true masks above it are foreground.
        smooth: summand s, at least 0. With 0, the value of two empty masks is 1, too.
        data_format: position of the channel axis in arrays with four or more axes.
        kwargs: arguments of the framework's base class.

    Raises:
        InputError: an argument is wrong.

    Example:
        >>> import numpy as np
        >>> metric = IoU()
        >>> round(float(metric(np.array([[0.9, 0.8, 0.1]]), np.array([[1, 0, 0]]))), 3)
        0.5
    """

    def __init__(
        self,
        reduction: Reduction | str = BatchReduction.mean,
        output_thresh: float = 0.5,
        label_thresh: float = 0.0,
        smooth: float = 1e-6,
        data_format: DataFormat | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(reduction, data_format, **kwargs)
        self.output_thresh: float = require_number("output_thresh", output_thresh)
        self.label_thresh: float = require_number("label_thresh", label_thresh)
        self.smooth: float = require_number("smooth", smooth, 0)

    def values(self, outputs: Array, targets: Array) -> Array:
        """Compute the IoU of each mask, between 0 and 1.

        Args:
            outputs: predicted masks, shape (W,), (H, W) or (B, ..., H, W).
            targets: true masks of the same shape.

        Returns:
            Array (B, ...), or a scalar array for a single mask.
        """
        intersection, union = _overlap(outputs, targets, self.output_thresh, self.label_thresh)
        return smooth_ratio(self.area(intersection), self.area(union), self.smooth)


class SetIoU(MaskFunction):
    r"""Intersection over union of a set of masks: the sum of all intersections over the sum of all unions.

    It is :math:`(\sum TP + s) / (\sum (TP + FP + FN) + s)` over the pixels of all masks. A call gives the
    value of one batch. `update`, `value` and `reset` give the value of a data set, batch by batch.

    Args:
        output_thresh: entries of the predicted masks above it are foreground.
        label_thresh: entries of the true masks above it are foreground.
        smooth: summand s, at least 0. With 0, the value of empty masks is 1, too.
        kwargs: arguments of the framework's base class.

    Raises:
        InputError: `smooth` is negative.

    Example:
        >>> import numpy as np
        >>> metric = SetIoU()
        >>> metric.update(np.array([[0.9, 0.8, 0.1]]), np.array([[1, 0, 0]]))
        >>> metric.update(np.array([[0.9, 0.8, 0.6]]), np.array([[1, 1, 1]]))
        >>> round(float(metric.value()), 3)
        0.8
    """

    _totals: tuple[Array, Array] | None

    def __init__(
        self, output_thresh: float = 0.5, label_thresh: float = 0.0, smooth: float = 1e-6, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self.output_thresh: float = require_number("output_thresh", output_thresh)
        self.label_thresh: float = require_number("label_thresh", label_thresh)
        self.smooth: float = require_number("smooth", smooth, 0)
        self.reset()

    def counts(self, outputs: Array, targets: Array) -> tuple[Array, Array]:
        """Count the pixels in the intersection and in the union of each mask.

        Args:
            outputs: predicted masks, shape (W,), (H, W) or (B, ..., H, W).
            targets: true masks of the same shape.

        Returns:
            Two integer arrays (B, ...), or scalar arrays for a single mask.
        """
        intersection, union = _overlap(outputs, targets, self.output_thresh, self.label_thresh)
        xp = array_namespace(intersection)
        axes = mask_axes(len(intersection.shape), "channels_first")
        # Use integers, since float32 cannot count beyond 2^24 pixels.
        return (
            xp.sum(xp.astype(intersection, xp.int64), axis=axes),
            xp.sum(xp.astype(union, xp.int64), axis=axes),
        )

    def ratio(self, intersection: Array, union: Array) -> Array:
        """Compute the smoothed ratio of two numbers of pixels, scalar arrays, in float32."""
        xp = array_namespace(intersection)
        return smooth_ratio(xp.astype(intersection, xp.float32), xp.astype(union, xp.float32), self.smooth)

    def forward(self, outputs: Array, targets: Array) -> Array:
        """Compute the set IoU of one batch.

        Args:
            outputs: predicted masks, shape (W,), (H, W) or (B, ..., H, W).
            targets: true masks of the same shape.

        Returns:
            Scalar array, float32.
        """
        intersection, union = self.counts(outputs, targets)
        xp = array_namespace(intersection)
        return self.ratio(xp.sum(intersection), xp.sum(union))

    def update(self, outputs: Array, targets: Array) -> None:
        """Add a batch to the set."""
        intersection, union = self.counts(outputs, targets)
        xp = array_namespace(intersection)
        before = self._totals or (0, 0)
        self._totals = (before[0] + xp.sum(intersection), before[1] + xp.sum(union))

    def value(self) -> Array:
        """Compute the set IoU of all batches since the last `reset`, a scalar array in float32.

        Raises:
            InputError: there were no batches.
        """
        if self._totals is None:
            raise InputError("there are no masks yet; call update(outputs, targets) before value()")
        return self.ratio(*self._totals)

    def reset(self) -> None:
        """Forget all batches."""
        self._totals = None
