"""The frameworks as the tests see them: arrays and gradients of each, and one small network in each.

The fixture `framework` runs a test of a formula on NumPy, PyTorch and TensorFlow. The fixture `backend` runs
a test of a whole model on PyTorch and TensorFlow. `Backend.network` builds the same network, with the same
weights, in either of them.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import numpy as np
import pytest

from iba_core import Explainer

Shape = tuple[int, ...]


# -- layers of a network -----------------------------------------------------------------------------


@dataclass(frozen=True)
class Conv:
    """A convolution of images. Padding "same" is TensorFlow's, in both frameworks."""

    name: str
    filters: int
    size: int = 3
    strides: int = 1
    padding: str = "same"
    bias: bool = True


@dataclass(frozen=True)
class Dense:
    name: str
    units: int


@dataclass(frozen=True)
class Norm:
    """A batch normalisation, with averages of its own."""

    name: str


@dataclass(frozen=True)
class Activation:
    """Works in place where that is asked for and the framework can."""

    name: str
    function: str = "relu"
    inplace: bool = False


@dataclass(frozen=True)
class Dropout:
    name: str
    rate: float = 0.5


@dataclass(frozen=True)
class AveragePool:
    """The mean of windows of this size, or of the whole image where none is given."""

    name: str
    size: int | None = None
    keepdims: bool = False


@dataclass(frozen=True)
class Flatten:
    name: str = "flatten"


@dataclass(frozen=True)
class Counter:
    """Passes its input on, and counts how often it runs: `backend.calls(model, name)`."""

    name: str = "counter"


@dataclass(frozen=True)
class Turn:
    """Exchanges rows and columns of images, and may then run through the columns from the right."""

    exchange: bool = True
    reverse: bool = False
    name: str = "turn"

    def of(self, x: np.ndarray) -> np.ndarray:
        """Images (B, H, W, ...) as they are afterwards."""
        x = x.swapaxes(1, 2) if self.exchange else x
        return x[:, :, ::-1] if self.reverse else x

    def back(self, x: np.ndarray) -> np.ndarray:
        """Images, or maps of them, as they were before."""
        x = x[:, :, ::-1] if self.reverse else x
        return x.swapaxes(1, 2) if self.exchange else x


Layer = Conv | Dense | Norm | Activation | Dropout | AveragePool | Flatten | Counter | Turn


def same_padding(size: int, window: int, strides: int) -> tuple[int, int]:
    """Rows to add before and after an axis, so that `strides` divide it as TensorFlow does."""
    total = max((-(-size // strides) - 1) * strides + window - size, 0)
    return total // 2, total - total // 2


def output_shape(layer: Layer, shape: Shape) -> Shape:
    """Shape of what a layer gives for one image (H, W, C) or for one row (N,)."""
    match layer:
        case Conv(filters=filters, size=window, strides=strides, padding=padding):
            lost = window - 1 if padding == "valid" else 0
            return (*(-(-(size - lost) // strides) for size in shape[:2]), filters)
        case Dense(units=units):
            return (*shape[:-1], units)
        case AveragePool(size=None, keepdims=keepdims):
            return (1, 1, shape[-1]) if keepdims else shape[-1:]
        case AveragePool(size=int(size)):
            return (shape[0] // size, shape[1] // size, shape[2])
        case Flatten():
            return (int(np.prod(shape)),)
        case Turn(exchange=True):
            return (shape[1], shape[0], shape[2])
    return shape


def draw_weights(layers: Sequence[Layer], shape: Shape, seed: int = 0) -> dict[str, list[np.ndarray]]:
    """Weights of the layers that have any, float64, in Keras' order and shapes.

    Kernels keep the scale of what passes. Biases and averages are large enough to matter.
    """
    generator = np.random.default_rng(seed)
    weights: dict[str, list[np.ndarray]] = {}
    for layer in layers:
        match layer:
            case Conv(name, filters, size, bias=bias):
                kernel = (size, size, shape[-1], filters)
                drawn = [generator.normal(size=kernel) / np.sqrt(size * size * shape[-1])]
                weights[name] = [*drawn, generator.normal(size=filters) / 4][: 1 + bias]
            case Dense(name, units):
                kernel = (shape[-1], units)
                drawn = [generator.normal(size=kernel) / np.sqrt(shape[-1])]
                weights[name] = [*drawn, generator.normal(size=units) / 4]
            case Norm(name):
                weights[name] = list(generator.uniform(0.5, 2, size=(4, shape[-1])))
        shape = output_shape(layer, shape)
    return weights


# -- one network that many tests share ---------------------------------------------------------------

SIZE, SIDE, CLASSES = 12, 6, 5
"""Pixels of the images, pixels of the features after `SMALL_LAYER`, and classes."""

SMALL_LAYER = "second"

SMALL = (
    Conv("first", 6),
    Norm("norm"),
    Activation("act"),
    Conv(SMALL_LAYER, 8, strides=2),
    Activation("act2", inplace=True),
    Dropout("drop"),
    Conv("third", 8),
    Activation("act3"),
    Flatten("flat"),
    Dense("logits", CLASSES),
)


def smooth_images(n: int, seed: int = 0) -> np.ndarray:
    """Images (n, SIZE, SIZE, 3), float64: smooth, so that they differ in more than noise."""
    generator = np.random.default_rng(seed)
    coarse = generator.normal(size=(n, 4, 4, 3)).repeat(SIZE // 4, axis=1).repeat(SIZE // 4, axis=2)
    return coarse + 0.3 * generator.normal(size=coarse.shape)


def assert_same_state(state: Mapping[str, Any], other: Mapping[str, Any]) -> None:
    """Compare what `Backend.state` gave at two moments."""
    assert state["flags"] == other["flags"]
    for array, another in zip(state["arrays"], other["arrays"], strict=True):
        np.testing.assert_array_equal(array, another)


# -- frameworks --------------------------------------------------------------------------------------


class Arrays(ABC):
    """What a test needs to run a formula of the core on one framework's tensors."""

    name: str

    @abstractmethod
    def asarray(self, array: Any, dtype: Any = None) -> Any: ...

    @abstractmethod
    def gradient(self, function: Callable[[Any], Any], x: np.ndarray) -> np.ndarray:
        """Gradient of a scalar function of one tensor."""

    def to_numpy(self, array: Any) -> np.ndarray:
        return np.asarray(array)

    def __repr__(self) -> str:
        return self.name


class NumPy(Arrays):
    """The reference. Its gradients are central differences, an independent check of the others."""

    name = "numpy"

    def asarray(self, array, dtype=None):
        return np.asarray(array, dtype)

    def gradient(self, function, x, step=1e-6):
        x = np.asarray(x, np.float64)
        gradient = np.empty_like(x)
        for index in np.ndindex(x.shape):
            shift = np.zeros_like(x)
            shift[index] = step
            gradient[index] = (function(x + shift) - function(x - shift)) / (2 * step)
        return gradient


class Backend(Arrays):
    """A framework that also has models.

    Tests give images as NumPy arrays (B, H, W, C). `images` brings them into the form that the framework's
    networks take, and `channels_last` brings feature maps back.
    """

    data_format: str
    package: str

    def module(self, name: str = "") -> Any:
        """A module of the backend: `backend.module("concepts")` is `iba_torch.concepts`."""
        return import_module(f"{self.package}.{name}".rstrip("."))

    @abstractmethod
    def images(self, x: np.ndarray) -> np.ndarray:
        """Images (B, H, W, C) in the framework's data format, a NumPy array in one piece."""

    @abstractmethod
    def channels_last(self, x: np.ndarray) -> np.ndarray:
        """Images or feature maps, of any number of leading axes, with the channels at the end."""

    @abstractmethod
    def loader(self, *arrays: np.ndarray, batch_size: int) -> Iterable[Any]:
        """The framework's own way to read arrays in batches."""

    def small(self, dtype: str = "float64") -> Any:
        """The network that many tests share: `SMALL`, for images of `SIZE` pixels."""
        generator = np.random.default_rng(4)
        weights = {
            "first": [generator.normal(size=(3, 3, 3, 6)) / 3, generator.normal(size=6)],
            "norm": [generator.uniform(0.5, 2, size=6) for _ in range(4)],
            "second": [generator.normal(size=(3, 3, 6, 8)) / 4, generator.normal(size=8)],
            "third": [generator.normal(size=(3, 3, 8, 8)) / 4, generator.normal(size=8)],
            "logits": [
                generator.normal(size=(SIDE * SIDE * 8, CLASSES)) / 8,
                generator.normal(size=CLASSES) / 4,
            ],
        }
        return self.network((SIZE, SIZE, 3), SMALL, dtype=dtype, weights=weights)

    @abstractmethod
    def state(self, model: Any, x: np.ndarray) -> dict[str, Any]:
        """Everything about a model that explaining must not change, its outputs for images `x` among it.

        `assert_same_state` compares two of them.
        """

    @abstractmethod
    def network(
        self,
        shape: Shape,
        layers: Sequence[Layer],
        *,
        dtype: str = "float32",
        seed: int = 0,
        weights: Mapping[str, Sequence[np.ndarray]] | None = None,
        any_size: bool = False,
    ) -> Any:
        """A chain of layers, in evaluation mode.

        `shape` is that of one image, (H, W, C), or of one row, (N,). `weights` are as `draw_weights`
        gives them; by default they are drawn from the seed. With `any_size`, a Keras model declares no height
        and width of its images.
        """

    @abstractmethod
    def calls(self, model: Any, name: str = "counter") -> int:
        """How often the `Counter` of this name has run, also in a compiled function."""


class Torch(Backend):
    name = "torch"
    data_format = "channels_first"
    package = "iba_torch"

    def __init__(self):
        self.torch = pytest.importorskip("torch")

    def asarray(self, array, dtype=None):
        return self.torch.asarray(np.array(array, dtype))

    def gradient(self, function, x):
        x = self.asarray(x).requires_grad_()
        (gradient,) = self.torch.autograd.grad(function(x), x)
        return gradient.numpy()

    def to_numpy(self, array):
        return array.detach().cpu().numpy()

    def images(self, x):
        return np.ascontiguousarray(np.moveaxis(x, -1, 1))

    def channels_last(self, x):
        return np.moveaxis(x, -3, -1)

    def loader(self, *arrays, batch_size):
        data = self.torch.utils.data
        return data.DataLoader(data.TensorDataset(*map(self.asarray, arrays)), batch_size=batch_size)

    def state(self, model, x):
        hooks = [
            len(value) if hasattr(value, "__len__") else value
            for module in model.modules()
            for name, value in vars(module).items()
            if "hook" in name
        ]
        flags = [(module.training, *vars(module)) for module in model.modules()]
        gradients = [(p.requires_grad, p.grad, p._version) for p in model.parameters()]
        values = [value.clone().numpy() for value in model.state_dict().values()]
        with self.torch.no_grad():
            inputs = self.asarray(self.images(x), next(model.parameters()).numpy().dtype)
            outputs = copy.deepcopy(model).eval()(inputs).numpy()
        return {
            "flags": [hooks, flags, gradients, self.torch.nn.Module.__call__],
            "arrays": [*values, outputs],
        }

    def network(self, shape, layers, *, dtype="float32", seed=0, weights=None, any_size=False):
        nn = self.torch.nn
        weights = draw_weights(layers, shape, seed) if weights is None else weights
        model = nn.Sequential()
        flattened: Shape = ()
        for layer in layers:
            match layer:
                case Conv(name, filters, window, strides, padding, bias):
                    pads = [same_padding(size, window, strides) for size in shape[:2]]
                    if padding == "valid":
                        pads = [(0, 0)] * 2
                    symmetric = all(before == after for before, after in pads)
                    if not symmetric:
                        model.add_module(f"{name}_padding", nn.ZeroPad2d((*pads[1], *pads[0])))
                    padding = tuple(before for before, _ in pads) if symmetric else 0
                    module = nn.Conv2d(shape[-1], filters, window, strides, padding, bias=bias)
                case Dense(name, units):
                    module = nn.Linear(shape[-1], units)
                case Norm(name):
                    module = nn.BatchNorm2d(shape[-1], eps=1e-3)
                case Activation(name, function, inplace):
                    module = nn.ReLU(inplace) if function == "relu" else nn.Tanh()
                case Dropout(name, rate):
                    module = nn.Dropout(rate)
                case AveragePool(name, None, keepdims):
                    module = nn.AdaptiveAvgPool2d(1)
                    module = module if keepdims else nn.Sequential(module, nn.Flatten())
                case AveragePool(name, window):
                    module = nn.AvgPool2d(window)
                case Flatten(name):
                    module = nn.Flatten()
                case Counter(name):
                    module = self.counter()
                case Turn():
                    module = self.turning(layer)
            model.add_module(layer.name, module.to(getattr(self.torch, dtype)))
            if layer.name in weights:
                self.set_weights(module, weights[layer.name], flattened)
                flattened = ()
            if isinstance(layer, Flatten) and len(shape) == 3:
                flattened = shape
            shape = output_shape(layer, shape)
        return model.eval()

    def counter(self) -> Any:
        class CountingModule(self.torch.nn.Module):
            # Kept by the class, so that a copy of the module counts with it.
            calls = 0

            def forward(self, x):
                type(self).calls += 1
                return x

        return CountingModule()

    def turning(self, turn: Turn) -> Any:
        class TurningModule(self.torch.nn.Module):
            def forward(self, x):
                x = x.transpose(2, 3) if turn.exchange else x
                return x.flip(3) if turn.reverse else x

        return TurningModule()

    def calls(self, model, name="counter"):
        return model.get_submodule(name).calls

    def set_weights(self, module, weights: Sequence[np.ndarray], flattened: Shape) -> None:
        """Give a module Keras' arrays.

        `flattened` is the (H, W, C) of the images, where the layer sees their pixels in a row.
        """
        first, *rest = weights
        if flattened:
            first = first.reshape(*flattened, -1).transpose(2, 0, 1, 3).reshape(first.shape)
        if first.ndim == 4:
            first = first.transpose(3, 2, 0, 1)
        names = ["weight", "bias", "running_mean", "running_var"]
        with self.torch.no_grad():
            for name, array in zip(names, [first.T if first.ndim == 2 else first, *rest], strict=False):
                getattr(module, name).copy_(self.torch.from_numpy(np.ascontiguousarray(array)))


class TensorFlow(Backend):
    name = "tensorflow"
    data_format = "channels_last"
    package = "iba_tf"

    def __init__(self):
        self.tf = pytest.importorskip("tensorflow")
        self.keras = pytest.importorskip("keras")

    def asarray(self, array, dtype=None):
        return self.tf.constant(np.asarray(array, dtype))

    def gradient(self, function, x):
        x = self.asarray(x)
        with self.tf.GradientTape() as tape:
            tape.watch(x)
            value = function(x)
        return tape.gradient(value, x).numpy()

    def images(self, x):
        return np.ascontiguousarray(x)

    def channels_last(self, x):
        return x

    def loader(self, *arrays, batch_size):
        arrays = arrays if len(arrays) > 1 else arrays[0]
        return self.tf.data.Dataset.from_tensor_slices(arrays).batch(batch_size)

    def state(self, model, x):
        flags = [
            (layer.name, layer.trainable, len(layer._inbound_nodes), len(layer._outbound_nodes), *vars(layer))
            for layer in model.layers
        ]
        values = [np.array(value) for value in model.get_weights()]
        outputs = model(x, training=False).numpy()
        return {
            "flags": [flags, [variable.trainable for variable in model.variables]],
            "arrays": [*values, outputs],
        }

    def network(self, shape, layers, *, dtype="float32", seed=0, weights=None, any_size=False):
        weights = draw_weights(layers, shape, seed) if weights is None else weights
        keras = self.keras.layers
        x = inputs = self.keras.Input((None, None, *shape[2:]) if any_size else shape, dtype=dtype)
        for layer in layers:
            options = {"name": layer.name, "dtype": dtype}
            match layer:
                case Conv(_, filters, window, strides, padding, bias):
                    make = keras.Conv2D(filters, window, strides, padding, use_bias=bias, **options)
                case Dense(_, units):
                    make = keras.Dense(units, **options)
                case Norm():
                    make = keras.BatchNormalization(**options)
                case Activation(_, function):
                    make = keras.Activation(function, **options)
                case Dropout(_, rate):
                    make = keras.Dropout(rate, **options)
                case AveragePool(_, None, keepdims):
                    make = keras.GlobalAveragePooling2D(keepdims=keepdims, **options)
                case AveragePool(_, window):
                    make = keras.AveragePooling2D(window, **options)
                case Flatten():
                    make = keras.Flatten(**options)
                case Counter():
                    make = self.counter(options)
                case Turn(exchange, reverse):
                    make = keras.Identity(**options)
                    x = keras.Permute((2, 1, 3))(x) if exchange else x
                    x = x[:, :, ::-1] if reverse else x
            x = make(x)
            if layer.name in weights:
                make.set_weights(list(weights[layer.name]))
        return self.keras.Model(inputs, x)

    def counter(self, options: dict[str, Any]) -> Any:
        tf = self.tf

        class CountingLayer(self.keras.layers.Layer):
            calls = 0

            def count(self, x):
                type(self).calls += 1
                return x

            def call(self, x):
                counted = tf.numpy_function(self.count, [x], x.dtype)
                counted.set_shape(x.shape)
                # The count must be a part of the graph, but gradients do not pass it.
                return x + tf.stop_gradient(counted - x)

        return CountingLayer(**options)

    def calls(self, model, name="counter"):
        return model.get_layer(name).calls


def fitted(backend: Backend, dtype: str = "float64", model: Any = None, **settings: Any) -> Explainer:
    """An explainer of the shared network whose statistics are those of 40 images."""
    explainer = Explainer(model or backend.small(dtype), SMALL_LAYER, **{"beta": 1.0, **settings})
    x = backend.images(smooth_images(40, seed=1)).astype(dtype)
    return explainer.fit([x[i : i + 15] for i in range(0, 40, 15)], progbar=False)


BACKENDS = {kind.name: kind for kind in (Torch, TensorFlow)}
"""The frameworks that have models."""


@pytest.fixture(scope="module", params=[NumPy, *BACKENDS.values()], ids=lambda kind: kind.name)
def framework(request) -> Arrays:
    """Runs a test of a formula on every framework."""
    return request.param()


@pytest.fixture(scope="module", params=BACKENDS.values(), ids=lambda kind: kind.name)
def backend(request) -> Backend:
    """Runs a test of a model on every framework that has models."""
    return request.param()


def both_backends() -> tuple[Torch, TensorFlow]:
    """PyTorch and TensorFlow, for tests that compare them."""
    return Torch(), TensorFlow()


@pytest.fixture(scope="module")
def both() -> tuple[Torch, TensorFlow]:
    """PyTorch and TensorFlow, for tests that compare them."""
    return both_backends()
