"""Batch normalisation merged into the convolution before it, as a model in inference mode allows.

There it is a scale and a shift of each channel, which the weights and the bias of the convolution can do as
well. That spares two operations on the maps forward, and one backward.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from math import prod
from typing import Any

import keras
import tensorflow as tf

from iba_core.framework.normalization import scale_and_shift
from iba_tf.graphs.calls import Call, Slot, Values

_DENSE = (keras.layers.Conv1D, keras.layers.Conv2D, keras.layers.Conv3D)
_DEPTHWISE = (keras.layers.DepthwiseConv1D, keras.layers.DepthwiseConv2D)

_LEAST_GAIN = 16
"""Numbers in the maps for each weight, from which on the weights cost next to nothing beside them."""


@dataclass(frozen=True, eq=False)
class MergedCall:
    """The call of a convolution, and that of the batch normalisation which alone takes its result.

    Attributes:
        convolution: the first.
        normalization: the second.
    """

    convolution: Call
    normalization: Call

    @property
    def inputs(self) -> tuple[Slot, ...]:
        """Slots of the symbolic tensors that the convolution takes."""
        return self.convolution.inputs

    @property
    def outputs(self) -> tuple[Slot, ...]:
        """Slots of the results of the normalisation."""
        return self.normalization.outputs

    def run(self, values: Values) -> None:
        """As `Call.run`, but for what is between the two."""
        x = values[self.inputs[0]]
        # A mask, which Keras hands on with a tensor, is left to the layers.
        is_masked = getattr(x, "_keras_mask", None) is not None
        operations = self.convolution.operation, self.normalization.operation
        y = None if is_masked else _convolved(*operations, x)
        if y is not None:
            values[self.outputs[0]] = y
            return
        self.convolution.run(values)
        self.normalization.run(values)


def merged(calls: Iterable[Call], kept: Iterable[Slot]) -> list[Call | MergedCall]:
    """The calls with every convolution and batch normalisation in one that can be.

    Args:
        calls: in the order in which they run.
        kept: slots whose values are wanted, besides those that the calls take.
    """
    calls = list(calls)
    taken = Counter([*(slot for call in calls for slot in call.inputs), *kept])
    makers = {call.outputs[0]: call for call in calls if _is_plain_convolution(call)}
    pairs = {
        makers[call.inputs[0]]: call
        for call in calls
        if len(call.inputs) == 1
        and taken[call.inputs[0]] == 1
        and call.inputs[0] in makers
        and _normalizes(call.operation, makers[call.inputs[0]].operation)
    }
    later = set(pairs.values())
    return [MergedCall(call, pairs[call]) if call in pairs else call for call in calls if call not in later]


def _is_plain_convolution(call: Call) -> bool:
    layer = call.operation
    return (
        type(layer) in _DENSE + _DEPTHWISE
        and vars(layer).keys().isdisjoint(("call", "convolution_op"))
        and layer.activation is keras.activations.linear
        and len(call.inputs) == 1
        and _is_of_one_precision(layer)
    )


def _normalizes(layer: Any, convolution: Any) -> bool:
    """Whether `layer` is a batch normalisation of the channels of a convolution."""
    if type(layer) is not keras.layers.BatchNormalization or "call" in vars(layer):
        return False
    rank = len(convolution.kernel_size) + 2
    channels = 1 if _is_channels_first(convolution) else rank - 1
    return layer.axis % rank == channels and _is_of_one_precision(layer)


def _is_of_one_precision(layer: Any) -> bool:
    """Whether a layer computes in the precision of its weights, with nothing cast or quantised."""
    return layer.compute_dtype == layer.variable_dtype == "float32" and layer.quantization_mode is None


def _convolved(convolution: Any, normalization: Any, x: tf.Tensor) -> tf.Tensor | None:
    """Batch normalisation of what a convolution makes of `x`, by a convolution that does both.

    Returns:
        None where the weights, which are scaled anew in each pass, would take up what is spared, or the maps
        are of unknown size.
    """
    if not x.shape.is_fully_defined() or _gain(convolution, x.shape.as_list()) < _LEAST_GAIN:
        return None
    kernel = tf.convert_to_tensor(convolution.kernel)
    scale, shift = scale_and_shift(
        tf.convert_to_tensor(normalization.moving_mean),
        tf.convert_to_tensor(normalization.moving_variance),
        normalization.epsilon,
        tf.convert_to_tensor(normalization.gamma) if normalization.scale else None,
        tf.convert_to_tensor(normalization.beta) if normalization.center else None,
        tf.convert_to_tensor(convolution.bias) if convolution.use_bias else None,
    )
    # A depthwise kernel has its output channels along two axes.
    of_kernel = tf.reshape(scale, kernel.shape[-2:]) if type(convolution) in _DEPTHWISE else scale
    layout = "NCHW" if _is_channels_first(convolution) else "NHWC"

    @tf.custom_gradient
    def convolved(x: tf.Tensor) -> tuple[tf.Tensor, Callable[[tf.Tensor], tf.Tensor]]:
        def gradient(towards: tf.Tensor) -> tf.Tensor:
            # Scaled again, and not before: otherwise the weights would be held from one pass to the other.
            with tf.control_dependencies([towards]):
                weights = kernel * of_kernel
            with tf.GradientTape(watch_accessed_variables=False) as tape:
                tape.watch(x)
                y = _convolution(convolution, x, weights)
            return tape.gradient(y, x, towards)

        y = _convolution(convolution, x, kernel * of_kernel)
        return tf.nn.bias_add(y, shift, data_format=layout), gradient

    return convolved(x)


def _gain(convolution: Any, shape: list[int]) -> float:
    """Numbers that the convolution makes of maps of a shape, for each of its weights."""
    kernel = convolution.kernel.shape
    channels = prod(kernel[-2:]) if type(convolution) in _DEPTHWISE else kernel[-1]
    spatial = shape[2:] if _is_channels_first(convolution) else shape[1:-1]
    places = prod(size // stride for size, stride in zip(spatial, convolution.strides, strict=True))
    return shape[0] * places * channels / prod(kernel)


def _is_channels_first(convolution: Any) -> bool:
    return bool(convolution.data_format == "channels_first")


def _convolution(layer: Any, x: tf.Tensor, kernel: tf.Tensor) -> tf.Tensor:
    """What a layer makes of `x` with another kernel, and no bias."""
    if type(layer) in _DENSE:
        return layer.convolution_op(x, kernel)
    return keras.ops.depthwise_conv(
        x,
        kernel,
        strides=layer.strides,
        padding=layer.padding,
        dilation_rate=layer.dilation_rate,
        data_format=layer.data_format,
    )
