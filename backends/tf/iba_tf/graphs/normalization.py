"""A rewrite: batch normalisation merged into the convolution before it.

In inference mode, batch normalisation is a scale and a shift of each channel. The weights and the bias of the
convolution can do the same. That saves two operations on the feature maps forward, and one backward.
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
from iba_tf.graphs.calls import Call
from iba_tf.graphs.dataflow import Node, TensorName

_DENSE = (keras.layers.Conv1D, keras.layers.Conv2D, keras.layers.Conv3D)
_DEPTHWISE = (keras.layers.DepthwiseConv1D, keras.layers.DepthwiseConv2D)

_LEAST_GAIN = 16
"""Numbers in the feature maps for each weight, above which the cost of scaling the weights is negligible."""


@dataclass(frozen=True, eq=False)
class MergedCall(Node):
    """The call of a convolution, and that of the only layer that takes its result, a batch normalisation.

    Attributes:
        convolution: the first call.
        normalization: the second call.
    """

    convolution: Call
    normalization: Call

    @property
    def name(self) -> str:  # type: ignore[override]
        """See `Node.name`: that of the normalisation."""
        return self.normalization.name

    @property
    def kind(self) -> str:  # type: ignore[override]
        """See `Node.kind`."""
        return f"{self.convolution.kind} + {self.normalization.kind}"

    @property
    def inputs(self) -> tuple[TensorName, ...]:  # type: ignore[override]
        """See `Node.inputs`: those of the convolution."""
        return self.convolution.inputs

    @property
    def outputs(self) -> tuple[TensorName, ...]:
        """See `Node.outputs`: those of the normalisation."""
        return self.normalization.outputs

    def run(self, values: dict[TensorName, Any]) -> None:
        """As `Call.run`, without the tensor between the two calls."""
        x = values[self.inputs[0]]
        # A mask, which Keras passes on with a tensor, is left to the layers.
        is_masked = getattr(x, "_keras_mask", None) is not None
        operations = self.convolution.operation, self.normalization.operation
        y = None if is_masked else _convolved(*operations, x)
        if y is not None:
            values[self.outputs[0]] = y
            return
        self.convolution.run(values)
        self.normalization.run(values)


def merged(nodes: Iterable[Node], kept: Iterable[TensorName]) -> list[Node]:
    """Merge every pair of convolution and batch normalisation that can be merged.

    Args:
        nodes: in the order in which they run.
        kept: names of tensors that are wanted, besides those that the nodes take.

    Returns:
        The nodes, with a `MergedCall` in place of each pair.
    """
    nodes = list(nodes)
    taken = Counter([*(name for node in nodes for name in node.inputs), *kept])
    calls = [node for node in nodes if isinstance(node, Call)]
    makers = {call.outputs[0]: call for call in calls if _is_plain_convolution(call)}
    pairs: dict[Node, Call] = {
        makers[call.inputs[0]]: call
        for call in calls
        if len(call.inputs) == 1
        and taken[call.inputs[0]] == 1
        and call.inputs[0] in makers
        and _normalizes(call.operation, makers[call.inputs[0]].operation)
    }
    later = set(pairs.values())
    return [
        MergedCall(node, pairs[node]) if isinstance(node, Call) and node in pairs else node
        for node in nodes
        if node not in later
    ]


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
    """Whether a layer computes in the precision of its weights, without casts or quantisation."""
    return layer.compute_dtype == layer.variable_dtype == "float32" and layer.quantization_mode is None


def _convolved(convolution: Any, normalization: Any, x: tf.Tensor) -> tf.Tensor | None:
    """Convolution and batch normalisation of `x` in one operation.

    Returns:
        The result; None if scaling the weights, which happens in each pass, would cost as much as it saves,
        or if the size of the feature maps is unknown.
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

    @tf.custom_gradient  # type: ignore[untyped-decorator]
    def convolved(x: tf.Tensor) -> tuple[tf.Tensor, Callable[[tf.Tensor], tf.Tensor]]:
        def gradient(towards: tf.Tensor) -> tf.Tensor:
            # Scaled again here: otherwise the scaled weights would be kept between the two passes.
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
    return float(shape[0] * places * channels / prod(kernel))


def _is_channels_first(convolution: Any) -> bool:
    return bool(convolution.data_format == "channels_first")


def _convolution(layer: Any, x: tf.Tensor, kernel: tf.Tensor) -> tf.Tensor:
    """Convolve `x` as a layer does, with another kernel and without a bias."""
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
