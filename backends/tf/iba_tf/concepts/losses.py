"""Losses of concept masks as `keras.losses.Loss`, and metrics as `keras.metrics.Metric`.

The formulas, arguments and settings are those of `iba_core.concepts.losses` and `iba_core.concepts.metrics`.
A call follows Keras: ``loss(y_true, y_pred, sample_weight=None)``. The method ``loss.forward(outputs,
targets)`` computes the formula as in the other frameworks.

For masks with four or more axes, the channel axis is that of `keras.config.image_data_format`, unless
`data_format` is given. The further keyword arguments `name` and `dtype` are those of Keras.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

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

_KERAS_NAMES: dict[Any, str] = {BatchReduction.mean: "sum_over_batch_size", BatchReduction.sum: "sum"}
"""Keras's names of the reductions that it has."""


def _expanded(sample_weight: Any, values: tf.Tensor) -> tf.Tensor:
    """Append axes of length 1 to weights (B,) or (B, ...), until they have as many axes as `values`."""
    weight = keras.ops.convert_to_tensor(sample_weight, dtype=values.dtype)
    missing = len(values.shape) - len(weight.shape)
    return keras.ops.reshape(weight, (*keras.ops.shape(weight), *(1,) * missing))


class _Weighted(keras.losses.Loss):
    """Keras's weighting, reduction and scaling over replicas, for given values."""

    def call(self, y_true: tf.Tensor, y_pred: tf.Tensor) -> tf.Tensor:
        return y_pred


class _Configured(MaskFunction):
    """Keras's configuration, made of the `settings`."""

    name: Any
    dtype: Any

    def get_config(self) -> dict[str, Any]:
        """Return settings, name and dtype, in the form that `from_config` takes."""
        config = {"name": self.name, "dtype": self.dtype, **self.settings}
        if "reduction" in config:
            reduction = config["reduction"]
            named = isinstance(reduction, BatchReduction)
            config["reduction"] = reduction.value if named else keras.saving.serialize_keras_object(reduction)
        return config

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> _Configured:
        """Make a loss or metric from the result of `get_config`."""
        reduction = config.get("reduction")
        if isinstance(reduction, dict):
            config = {**config, "reduction": keras.saving.deserialize_keras_object(reduction)}
        return cls(**config)

    @staticmethod
    def default_data_format() -> DataFormat:
        """Return Keras's own data format."""
        return cast(DataFormat, keras.config.image_data_format())


class _CalledAsLoss(_Configured):
    """The call of a Keras loss. This is the first base class."""

    reduction: Callable[[Any], Any]
    values: Callable[[Any, Any], Any]

    def __call__(self, y_true: Any, y_pred: Any, sample_weight: Any = None) -> tf.Tensor:
        """Compute the reduced loss of a batch.

        Args:
            y_true: true masks.
            y_pred: predicted masks of the same shape.
            sample_weight: weights (B,), or with more of the leading axes.
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
        """Compute the losses before the reduction."""
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
    """`iba_core.concepts.losses.TverskyLoss` as a Keras loss.

    Example:
        >>> float(TverskyLoss()([[1, 0]], [[1.0, 0.0]]))
        0.0
    """


@_registered
class BalancedBCELoss(_CalledAsLoss, formulas.BalancedBCELoss, keras.losses.Loss):
    """`iba_core.concepts.losses.BalancedBCELoss` as a Keras loss.

    Example:
        >>> loss = BalancedBCELoss(factor_pos_class=0.5, from_logit=True)
        >>> round(float(loss([[1, 0]], [[0.0, 0.0]])), 4)  # log(2) / 2
        0.3466
    """


@_registered
class BalancedPenaltyReducedFocalLoss(
    _CalledAsLoss, formulas.BalancedPenaltyReducedFocalLoss, keras.losses.Loss
):
    """`iba_core.concepts.losses.BalancedPenaltyReducedFocalLoss` as a Keras loss.

    Example:
        >>> loss = BalancedPenaltyReducedFocalLoss(alpha=0, beta=0)
        >>> round(float(loss([[1, 0]], [[0.5, 0.5]])), 4)  # log(2)
        0.6931
    """


@_registered
class WeightedLossSum(_Configured, formulas.WeightedLossSum, keras.losses.Loss):
    """`iba_core.concepts.losses.WeightedLossSum` as a Keras loss, of losses ``loss(y_true, y_pred)``.

    Example:
        >>> loss = WeightedLossSum([Net2VecLoss(), TverskyLoss()], weights=[0.0, 2.0])
        >>> float(loss([[1, 0], [0, 1]], [[0.0, 0.0], [0.0, 0.0]]))
        2.0
    """

    def __call__(self, y_true: Any, y_pred: Any, sample_weight: Any = None) -> tf.Tensor:
        """Compute the weighted sum of the losses of a batch. Each loss gets all arguments."""
        return super().forward(y_true, y_pred, *(() if sample_weight is None else (sample_weight,)))

    def forward(self, *inp: tf.Tensor) -> tf.Tensor:
        """Compute the weighted sum of the losses of predicted masks and true masks."""
        outputs, targets = inp
        return self(targets, outputs)

    def get_config(self) -> dict[str, Any]:
        """Return settings, name and dtype, with the configurations of the losses."""
        losses = [keras.saving.serialize_keras_object(loss) for loss in self.losses]
        return {**super().get_config(), "losses": losses}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> WeightedLossSum:
        """Make a loss from the result of `get_config`."""
        losses = [keras.saving.deserialize_keras_object(loss) for loss in config["losses"]]
        return cls(**{**config, "losses": losses})


class _Totals(keras.metrics.Metric):
    """Two sums over the masks of a data set."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        # Use float64, since float32 cannot count beyond 2^24 pixels.
        self.part = self.add_variable(shape=(), initializer="zeros", dtype="float64", name="part")
        self.whole = self.add_variable(shape=(), initializer="zeros", dtype="float64", name="whole")

    def add(self, part: tf.Tensor, whole: tf.Tensor, sample_weight: Any) -> None:
        """Add the weighted values of a batch, (B, ...), to the sums."""
        for total, values in ((self.part, part), (self.whole, whole)):
            summands = keras.ops.cast(values, "float64")
            weight = 1.0 if sample_weight is None else _expanded(sample_weight, summands)
            total.assign_add(keras.ops.sum(summands * weight))


class _CalledAsMetric(_Configured):
    """The call of a Keras metric. This is the first base class."""

    __call__: Callable[..., tf.Tensor] = keras.metrics.Metric.__call__

    def tensors(self, y_true: Any, y_pred: Any) -> tuple[tf.Tensor, tf.Tensor]:
        """Convert predicted and true masks to tensors of the metric's dtype."""
        return (
            keras.ops.convert_to_tensor(y_pred, dtype=self.dtype),
            keras.ops.convert_to_tensor(y_true, dtype=self.dtype),
        )


@_registered
class IoU(_CalledAsMetric, metrics.IoU, _Totals):
    """`iba_core.concepts.metrics.IoU` as a Keras metric: the mean (or sum) over all masks of a data set.

    Raises:
        InputError: the reduction is neither the mean nor the sum (raised by `update_state`).

    Example:
        >>> metric = IoU()
        >>> metric.update_state([[1, 0]], [[0.9, 0.8]])
        >>> round(float(metric.result()), 4)
        0.5
    """

    def update_state(self, y_true: Any, y_pred: Any, sample_weight: Any = None) -> None:
        """Add a batch, with weights (B,) of its masks if given."""
        if self.reduction not in _KERAS_NAMES:
            raise InputError(f"reduction={self.reduction!r} cannot run over batches; use 'mean' or 'sum'")
        values = self.values(*self.tensors(y_true, y_pred))
        self.add(values, keras.ops.ones_like(values), sample_weight)

    def result(self) -> tf.Tensor:
        """Compute the reduced IoU of all masks since the last `reset_state`, 0 without masks."""
        part, whole = self.part.value, self.whole.value
        mean = self.reduction is BatchReduction.mean
        return keras.ops.cast(keras.ops.divide_no_nan(part, whole) if mean else part, self.dtype)


@_registered
class SetIoU(_CalledAsMetric, metrics.SetIoU, _Totals):
    """`iba_core.concepts.metrics.SetIoU` as a Keras metric, over all masks since the last `reset_state`.

    Example:
        >>> metric = SetIoU()
        >>> metric.update_state([[1, 0]], [[0.9, 0.8]])
        >>> round(float(metric.result()), 4)
        0.5
    """

    def update_state(self, y_true: Any, y_pred: Any, sample_weight: Any = None) -> None:
        """Add a batch, with weights (B,) of its masks if given."""
        self.add(*self.counts(*self.tensors(y_true, y_pred)), sample_weight)

    def result(self) -> tf.Tensor:
        """Compute the set IoU of all masks since the last `reset_state`, 1 without masks."""
        return keras.ops.cast(self.ratio(self.part.value, self.whole.value), self.dtype)

    def update(self, outputs: Any, targets: Any) -> None:
        """Call ``update_state(targets, outputs)``."""
        self.update_state(targets, outputs)

    def value(self) -> tf.Tensor:
        """Call `result`."""
        return self.result()

    def reset(self) -> None:
        """Call `reset_state`."""
        self.reset_state()
