"""EfficientNet-Lite0 as plain Keras layers."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import numpy.typing as npt
from keras import KerasTensor, layers

from iba_core.zoo import efficientnet_lite as spec

_LAST = "channels_last"


def efficientnet_lite0(pretrained: bool = True) -> keras.Model:
    """Make EfficientNet-Lite0 for ImageNet, a functional model.

    The layer names are those of the PyTorch version: ``blocks.i`` gives the output of the i-th block,
    ``stem`` and ``head`` those of the layers before and after the blocks, and ``classifier`` the logits.
    It maps float32 images (B, 224, 224, 3) to logits (B, 1000). Its attribute ``preprocessing`` prepares the
    images, and its attribute ``class_names`` names the logits.

    Args:
        pretrained: load the ImageNet weights. Otherwise the weights are random and there are no
            ``class_names``.

    Raises:
        MissingDependencyError: `pretrained` is set, but the weights or the class names are not installed.

    Example:
        >>> efficientnet_lite0(pretrained=False).output_shape
        (None, 1000)
    """
    inputs = keras.Input((*spec.PREPROCESSING.size, spec.PREPROCESSING.channels), name="image")
    x = _convolution(inputs, "stem", spec.STEM_CHANNELS, kernel=3, stride=2)
    for index, block in enumerate(spec.BLOCKS):
        x = _block(x, f"blocks.{index}", block)
    x = _convolution(x, "head", spec.HEAD_CHANNELS)
    x = layers.GlobalAveragePooling2D(data_format=_LAST, name="pool")(x)
    model = keras.Model(inputs, layers.Dense(spec.CLASSES, name="classifier")(x), name="efficientnet_lite0")
    model.preprocessing = spec.PREPROCESSING
    if pretrained:
        _load_pretrained(model)
        model.class_names = spec.class_names()
    return model


def _block(x: KerasTensor, name: str, block: spec.Block) -> KerasTensor:
    y = x
    if block.expansion > 1:
        y = _convolution(y, f"{name}.expand", block.channels_inside)
    y = _convolution(y, f"{name}.depthwise", None, block.kernel, block.stride)
    y = _convolution(y, f"{name}.project", block.channels_out, activation=False)
    return layers.Add(name=name)([x, y]) if block.skips else layers.Identity(name=name)(y)


def _convolution(
    x: KerasTensor,
    name: str,
    channels: int | None,
    kernel: int = 1,
    stride: int = 1,
    activation: bool = True,
) -> KerasTensor:
    """Apply a convolution (depthwise if `channels` is None), normalisation and, with `activation`, ReLU6."""
    options: dict[str, Any] = {
        "padding": "same",
        "use_bias": False,
        "data_format": _LAST,
        "name": f"{name}.conv",
    }
    if channels is None:
        x = layers.DepthwiseConv2D(kernel, stride, **options)(x)
    else:
        x = layers.Conv2D(channels, kernel, stride, **options)(x)
    x = layers.BatchNormalization(epsilon=spec.NORM_EPSILON, name=f"{name}.norm")(x)
    return layers.ReLU(max_value=6, name=name)(x) if activation else x


def _load_pretrained(model: keras.Model) -> None:
    arrays = spec.pretrained_weights()
    for name in spec.CHECKPOINT_LAYERS:
        layer = model.get_layer(name)
        layer.set_weights(_keras_weights(layer, {k: arrays.get(f"{name}.{k}") for k in _ARRAYS}))


_ARRAYS = ("weight", "bias", "running_mean", "running_var")


def _keras_weights(layer: layers.Layer, arrays: dict[str, Any]) -> list[npt.NDArray[np.float32]]:
    """Arrange PyTorch's arrays of one layer in the order and shapes of Keras."""
    weight = arrays["weight"]
    if isinstance(layer, layers.BatchNormalization):
        return [arrays[name] for name in _ARRAYS]
    if isinstance(layer, layers.DepthwiseConv2D):
        return [weight.transpose(2, 3, 0, 1)]
    if isinstance(layer, layers.Conv2D):
        return [weight.transpose(2, 3, 1, 0)]
    return [weight.T, arrays["bias"]]
