"""Readouts of one small network in each framework, with the same weights."""

from __future__ import annotations

import numpy as np

from tests.backends import Activation, AveragePool, Backend, Conv, Counter, Dense

READOUT_LAYERS = ("first", "second", "last", "hidden", "out")
SIZE, CLASSES = 9, 3

# Three resolutions, activations in place, and two dense layers.
LAYERS = (
    Conv("first", 4),
    Activation("act1", inplace=True),
    Counter("before"),
    Conv("second", 6, strides=2, padding="valid"),
    Counter("after"),
    Activation("act2", inplace=True),
    Conv("last", 5, padding="valid"),
    Activation("act3"),
    AveragePool("pool"),
    Dense("hidden", 7),
    Activation("act4"),
    Dense("out", CLASSES),
)


class Readouts:
    """The network in one framework. Images and feature maps come and go as NumPy arrays, channels last."""

    def __init__(self, backend: Backend, dtype: str = "float32", counted: bool = True):
        self.backend, self.dtype = backend, dtype
        layers = [layer for layer in LAYERS if counted or not isinstance(layer, Counter)]
        self.model = backend.network((SIZE, SIZE, 3), layers, dtype=dtype, seed=1)
        self.is_torch = backend.name == "torch"

    @property
    def loss(self):
        """Cross-entropy, as users of the framework write it."""
        if self.is_torch:
            return self.backend.torch.nn.functional.cross_entropy
        return self.backend.keras.losses.SparseCategoricalCrossentropy(from_logits=True)

    def images(self, x):
        return self.backend.asarray(self.backend.images(x), self.dtype)

    def batches(self, x, *others, size=8):
        """Batches that can be gone through more than once."""
        arrays = [self.backend.images(x).astype(self.dtype), *others]
        return self.backend.loader(*arrays, batch_size=size)

    def make(self, layer="second", readout_layers=READOUT_LAYERS, **kwargs):
        """A readout that knows nothing yet."""
        return self.backend.module().IBAReadout(layer, list(readout_layers), self.model, **kwargs)

    def trained(self, **kwargs):
        """A readout whose network is more than a constant."""
        readout = self.make(**kwargs)
        readout.estimate(self.model, self.batches(*make_data()))
        self.set_weights(readout, shaken(self.weights(readout)))
        return readout

    def capacity(self, readout, x):
        return self.backend.channels_last(readout.analyze(self.images(x), mode="capacity"))

    def outputs(self, model, x):
        found = model(self.images(x))
        return found.detach().numpy() if self.is_torch else found.numpy()

    def weights(self, readout):
        """Weights (outputs, inputs) and biases of the readout network, in turn."""
        if self.is_torch:
            arrays = [parameter.detach().numpy().copy() for parameter in readout.parameters()]
            return [array[..., 0] if array.ndim == 3 else array for array in arrays]
        return [array[0].T if array.ndim == 3 else array for array in readout.network.get_weights()]

    def set_weights(self, readout, weights):
        if not self.is_torch:
            readout.network.set_weights([w.T[None] if w.ndim == 2 else w for w in weights])
            return
        with self.backend.torch.no_grad():
            for parameter, weight in zip(readout.parameters(), weights, strict=True):
                parameter.copy_(self.backend.asarray(weight).reshape(parameter.shape))

    def model_weights(self, model):
        if self.is_torch:
            return [value.numpy().copy() for value in model.state_dict().values()]
        return model.get_weights()

    def randomize(self, model):
        """Give a model other weights, in place."""
        generator = np.random.default_rng(7)
        if not self.is_torch:
            model.set_weights([generator.normal(size=w.shape) * 0.2 for w in model.get_weights()])
            return
        with self.backend.torch.no_grad():
            for parameter in model.parameters():
                parameter.copy_(self.backend.asarray(generator.normal(size=parameter.shape) * 0.2))


def make_data(n=24, seed=1):
    generator = np.random.default_rng(seed)
    x = generator.normal(size=(n, SIZE, SIZE, 3))
    x[:, : SIZE // 2] *= 3
    return x, generator.integers(CLASSES, size=n)


def shaken(weights, seed=3):
    """Weights under which every part of the network shows."""
    generator = np.random.default_rng(seed)
    return [generator.normal(size=weight.shape).astype(weight.dtype) * 0.3 for weight in weights]
