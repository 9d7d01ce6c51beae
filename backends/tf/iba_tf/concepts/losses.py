"""Losses of concept masks as `keras.losses.Loss`, metrics as `keras.metrics.Metric`.

The formulas, arguments and settings are those of `iba_core.concepts.losses` and `.metrics`. Calling one
follows Keras: ``loss(y_true, y_pred, sample_weight=None)``; ``loss.forward(outputs, targets)`` is the
formula alone, as in the other frameworks.

Masks with four or more axes have their channel axis where `keras.config.image_data_format` says, unless
`data_format` is given. Keyword arguments that the formula does not know, `name` and `dtype`, are Keras's.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf

from iba_core.concepts import losses as formulas
from iba_core.concepts import metrics
from iba_core.concepts.masks import BatchReduction, MaskFunction
from iba_core.errors import InputError
from iba_core.framework.layout import DataFormat

__all__ = [
    "BalancedBCELoss",
    "BalancedPenaltyReducedFocalLoss",
    "BatchReduction",
    "IoU",
    "Net2VecLoss",
    "SetIoU",
    "TverskyLoss",
    "WeightedLossSum",
]

_registered = keras.saving.register_keras_serializable(package="iba_tf")

# What Keras calls the reductions; it has no other.
_KERAS_NAMES = {BatchReduction.mean: "sum_over_batch_size", BatchReduction.sum: "sum"}


def _expanded(sample_weight: Any, values: tf.Tensor) -> tf.Tensor:
    """Weights (B,) or (B, ...) with axes of length 1 behind, as many as `values` has."""
    weight = keras.ops.convert_to_tensor(sample_weight, dtype=values.dtype)
    missing = len(values.shape) - len(weight.shape)
    return keras.ops.reshape(weight, (*keras.ops.shape(weight), *(1,) * missing))


class _Weighted(keras.losses.Loss):
    """Keras's weighting, reduction and scaling over replicas, of values that are already there."""

    def call(self, y_true: tf.Tensor, y_pred: tf.Tensor) -> tf.Tensor:
        return y_pred


class _Configured(MaskFunction):
    """Keras's way of writing down and making again what `settings` says."""

    def get_config(self) -> dict[str, Any]:
        """Settings, name and dtype, in a form that `from_config` understands."""
        config = {"name": self.name, "dtype": self.dtype, **self.settings}
        if "reduction" in config:
            reduction = config["reduction"]
            named = isinstance(reduction, BatchReduction)
            config["reduction"] = reduction.value if named else keras.saving.serialize_keras_object(reduction)
        return config

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> _Configured:
        """The loss or metric that `get_config` has written down."""
        reduction = config.get("reduction")
        if isinstance(reduction, dict):
            config = {**config, "reduction": keras.saving.deserialize_keras_object(reduction)}
        return cls(**config)

    @staticmethod
    def default_data_format() -> DataFormat:
        """Keras's own data format."""
        return keras.config.image_data_format()


class _CalledAsLoss(_Configured):
    """Keras's way of calling a loss, first among the bases."""

    def __call__(self, y_true: Any, y_pred: Any, sample_weight: Any = None) -> tf.Tensor:
        """Reduced loss of a batch.

        Args:
            y_true: true masks.
            y_pred: predicted masks of the same shape.
            sample_weight: weights (B,), or of more of the leading axes.
        """
        with tf.name_scope(self.name):
            values = self.call(
                keras.ops.convert_to_tensor(y_true, dtype=self.dtype),
                keras.ops.convert_to_tensor(y_pred, dtype=self.dtype),
            )
            weight = None if sample_weight is None else _expanded(sample_weight, values)
            reduce = _Weighted(reduction=_KERAS_NAMES.get(self.reduction), dtype=self.dtype)
            reduced = reduce(values, values, sample_weight=weight)
            return reduced if self.reduction in _KERAS_NAMES else self.reduction(reduced)

    def call(self, y_true: tf.Tensor, y_pred: tf.Tensor) -> tf.Tensor:
        """Losses before the reduction."""
        return self.values(y_pred, y_true)


@_registered
class Net2VecLoss(_CalledAsLoss, formulas.Net2VecLoss, keras.losses.Loss):
    """`iba_core.concepts.losses.Net2VecLoss` as a Keras loss.

    Example:
        >>> loss = Net2VecLoss(factor_pos_class=0.75)
        >>> float(loss([[1, 0]], [[0.75, 0.5]]))
        -0.6875
    """


@_registered
class TverskyLoss(_CalledAsLoss, formulas.TverskyLoss, keras.losses.Loss):
    """`iba_core.concepts.losses.TverskyLoss` as a Keras loss."""


@_registered
class BalancedBCELoss(_CalledAsLoss, formulas.BalancedBCELoss, keras.losses.Loss):
    """`iba_core.concepts.losses.BalancedBCELoss` as a Keras loss."""


@_registered
class BalancedPenaltyReducedFocalLoss(
    _CalledAsLoss, formulas.BalancedPenaltyReducedFocalLoss, keras.losses.Loss
):
    """`iba_core.concepts.losses.BalancedPenaltyReducedFocalLoss` as a Keras loss."""


@_registered
class WeightedLossSum(_Configured, formulas.WeightedLossSum, keras.losses.Loss):
    """`iba_core.concepts.losses.WeightedLossSum` as a Keras loss, of losses ``loss(y_true, y_pred)``."""

    def __call__(self, y_true: Any, y_pred: Any, sample_weight: Any = None) -> tf.Tensor:
        """Weighted sum of the losses of a batch; the arguments are those of each loss."""
        return super().forward(y_true, y_pred, *(() if sample_weight is None else (sample_weight,)))

    def forward(self, outputs: tf.Tensor, targets: tf.Tensor) -> tf.Tensor:
        """Weighted sum of the losses of predicted and true masks."""
        return self(targets, outputs)

    def get_config(self) -> dict[str, Any]:
        """Settings, name and dtype, with the configurations of the losses."""
        losses = [keras.saving.serialize_keras_object(loss) for loss in self.losses]
        return {**super().get_config(), "losses": losses}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> WeightedLossSum:
        """The loss that `get_config` has written down."""
        losses = [keras.saving.deserialize_keras_object(loss) for loss in config["losses"]]
        return cls(**{**config, "losses": losses})


class _Totals(keras.metrics.Metric):
    """Two sums over the masks of a data set."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        # Pixels are counted: float32 stops at 2^24.
        self.part = self.add_variable(shape=(), initializer="zeros", dtype="float64", name="part")
        self.whole = self.add_variable(shape=(), initializer="zeros", dtype="float64", name="whole")

    def add(self, part: tf.Tensor, whole: tf.Tensor, sample_weight: Any) -> None:
        """Add the weighted values of a batch, (B, ...), to the sums."""
        for total, values in ((self.part, part), (self.whole, whole)):
            summands = keras.ops.cast(values, "float64")
            weight = 1.0 if sample_weight is None else _expanded(sample_weight, summands)
            total.assign_add(keras.ops.sum(summands * weight))


class _CalledAsMetric(_Configured):
    """Keras's way of calling a metric, first among the bases."""

    __call__: Callable[..., tf.Tensor] = keras.metrics.Metric.__call__

    def tensors(self, y_true: Any, y_pred: Any) -> tuple[tf.Tensor, tf.Tensor]:
        """Predicted and true masks, in the metric's dtype."""
        return (
            keras.ops.convert_to_tensor(y_pred, dtype=self.dtype),
            keras.ops.convert_to_tensor(y_true, dtype=self.dtype),
        )


@_registered
class IoU(_CalledAsMetric, metrics.IoU, _Totals):
    """`iba_core.concepts.metrics.IoU` as a Keras metric: mean (or sum) over all masks of a data set.

    Raises:
        InputError: the reduction is neither the mean nor the sum, which a running metric needs.
    """

    def update_state(self, y_true: Any, y_pred: Any, sample_weight: Any = None) -> None:
        """Add a batch, with weights (B,) of its masks if given."""
        if self.reduction not in _KERAS_NAMES:
            raise InputError(f"reduction={self.reduction!r} cannot run over batches; take 'mean' or 'sum'")
        values = self.values(*self.tensors(y_true, y_pred))
        self.add(values, keras.ops.ones_like(values), sample_weight)

    def result(self) -> tf.Tensor:
        """Reduced IoU of all masks since the last `reset_state`; 0 if there were none."""
        part, whole = self.part.value, self.whole.value
        mean = self.reduction is BatchReduction.mean
        return keras.ops.cast(keras.ops.divide_no_nan(part, whole) if mean else part, self.dtype)


@_registered
class SetIoU(_CalledAsMetric, metrics.SetIoU, _Totals):
    """`iba_core.concepts.metrics.SetIoU` as a Keras metric: of all masks since the last `reset_state`."""

    def update_state(self, y_true: Any, y_pred: Any, sample_weight: Any = None) -> None:
        """Add a batch, with weights (B,) of its masks if given."""
        self.add(*self.counts(*self.tensors(y_true, y_pred)), sample_weight)

    def result(self) -> tf.Tensor:
        """Set IoU of all masks since the last `reset_state`; 1 if there were none."""
        return keras.ops.cast(self.ratio(self.part.value, self.whole.value), self.dtype)

    def update(self, outputs: Any, targets: Any) -> None:
        """The same as ``update_state(targets, outputs)``."""
        self.update_state(targets, outputs)

    def value(self) -> tf.Tensor:
        """The same as `result`."""
        return self.result()

    def reset(self) -> None:
        """The same as `reset_state`."""
        self.reset_state()
