"""One small network in each framework, with layers that can raise errors, and all that a model can keep."""

from __future__ import annotations

from typing import Any

import numpy as np

from tests.backends import Backend
from tests.robustness.faults import FUSE

LAYER = "conv"
"""The layer that the bottlenecks come after."""
CLASSES = 4


def network(backend: Backend) -> Any:
    """Convolutions with a skip connection, normalisation, dropout, fuses, and, in PyTorch, state of its own.

    It takes images (B, H, W, 3) of any size, in the backend's data format.
    """
    return _torch_network() if backend.name == "torch" else _keras_network()


def images(backend: Backend, count: int, size: int = 8, seed: int = 0) -> np.ndarray:
    """Images in the backend's data format, float32."""
    x = np.random.default_rng(seed).normal(size=(count, size, size, 3))
    return backend.images(x).astype(np.float32)


def masks(count: int, size: int = 8, seed: int = 0) -> np.ndarray:
    """Where the images are bright in their first channel."""
    x = np.random.default_rng(seed).normal(size=(count, size, size, 3))
    return (x[..., 0] > 0).astype(np.float32)


def _torch_network() -> Any:
    import torch
    from torch import nn

    class Burning(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Any) -> Any:
            return x.view_as(x)

        @staticmethod
        def backward(ctx: Any, gradient: Any) -> Any:
            FUSE.burn("backward")
            return gradient

    class Fused(nn.Module):
        def forward(self, x: Any) -> Any:
            FUSE.burn("call")
            return Burning.apply(x)

    class Observer(nn.Module):
        """Writes state in evaluation mode, too: buffers, as an observer of a quantisation, and attributes."""

        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("greatest", torch.zeros(()))
            self.register_buffer("calls", torch.zeros((), dtype=torch.int64))
            self.last: Any = None
            self.history: list[int] = []

        def forward(self, x: Any) -> Any:
            self.greatest = torch.maximum(self.greatest, x.detach().abs().max())
            self.calls += 1
            self.history.append(len(x))
            self.last = x.detach()
            return x

    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(inplace=True))
            self.fuse1 = Fused()
            self.conv = nn.Conv2d(4, 4, 3, padding=1)
            self.norm = nn.BatchNorm2d(4)
            self.fuse2 = Fused()
            self.observer = Observer()
            self.dropout = nn.Dropout(0.5)
            self.last = nn.Sequential(nn.Conv2d(4, 5, 3, stride=2), nn.BatchNorm2d(5), nn.ReLU(inplace=True))
            self.fuse3 = Fused()
            self.logits = nn.Linear(5, CLASSES)

        def forward(self, x: Any) -> Any:
            skip = self.fuse1(self.stem(x))
            x = self.fuse2(torch.relu(self.norm(self.conv(skip)) + skip))
            x = self.last(self.dropout(self.observer(x)))
            return self.logits(self.fuse3(x).mean(dim=(2, 3)))

    torch.manual_seed(0)
    model = Network()
    with torch.no_grad():
        for norm in (module for module in model.modules() if isinstance(module, nn.BatchNorm2d)):
            norm.running_mean.uniform_(-0.3, 0.3)
            norm.running_var.uniform_(0.5, 2)
    # In the midst of its training, with gradients, and with parts that are frozen and in evaluation mode.
    model(torch.randn(2, 3, 8, 8)).square().sum().backward()
    model.stem.eval()
    model.stem[0].weight.requires_grad_(False)
    return model


def _keras_network() -> Any:
    import keras
    import tensorflow as tf
    from keras import layers

    def burn(kind: str, x: Any) -> Any:
        def count(array: Any) -> Any:
            FUSE.burn(kind)
            return array

        counted = tf.numpy_function(count, [x], x.dtype)
        counted.set_shape(x.shape)
        return counted

    @tf.custom_gradient
    def burning(x: Any) -> Any:
        return burn("call", x), lambda gradient: burn("backward", gradient)

    @keras.saving.register_keras_serializable("robustness")
    class Fused(layers.Layer):
        def call(self, x: Any) -> Any:
            return burning(x)

    keras.utils.set_random_seed(0)
    x = inputs = keras.Input((None, None, 3), name="images")
    x = layers.Conv2D(4, 3, padding="same", name="stem")(x)
    x = layers.ReLU(name="relu0")(layers.BatchNormalization(name="norm0")(x))
    x = skip = Fused(name="fuse1")(x)
    x = layers.BatchNormalization(name="norm")(layers.Conv2D(4, 3, padding="same", name=LAYER)(x))
    x = Fused(name="fuse2")(layers.ReLU(name="relu")(layers.Add(name="add")([x, skip])))
    x = layers.Conv2D(5, 3, strides=2, activation="relu", name="last")(layers.Dropout(0.5, name="dropout")(x))
    x = layers.GlobalAveragePooling2D(name="pool")(Fused(name="fuse3")(x))
    model = keras.Model(inputs, layers.Dense(CLASSES, name="logits")(x))
    model.get_layer("stem").trainable = False
    return model
