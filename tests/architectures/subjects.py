"""A model before the test: features and slopes of its losses, from passes of the whole model."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
import tensorflow as tf
import torch
from torch import nn

Draw = Callable[[np.random.Generator, int], np.ndarray]
Inputs = dict[str, np.ndarray]


@dataclass
class Subject(ABC):
    """A model and what its inputs are drawn from.

    Attributes:
        model: in evaluation mode, with random weights.
        draws: by name of the input: a function that draws it for so many images, or the array that all
            images share.
    """

    model: Any
    draws: Mapping[str, Draw | np.ndarray]

    @property
    def shared(self) -> list[str]:
        return [name for name, draw in self.draws.items() if isinstance(draw, np.ndarray)]

    def draw(self, images: int, seed: int) -> Inputs:
        generator = np.random.default_rng(seed)
        return {
            name: draw if isinstance(draw, np.ndarray) else draw(generator, images)
            for name, draw in self.draws.items()
        }

    def of_images(self, inputs: Inputs, change: Callable[[np.ndarray], np.ndarray]) -> Inputs:
        """Change what the images do not share."""
        return {name: x if name in self.shared else change(x) for name, x in inputs.items()}

    def slopes(self, inputs: Inputs, layer: str, image: int, z: np.ndarray, target: int) -> np.ndarray:
        """Slopes of the losses of copies z of an image, (S, *feature map)."""
        copies = self.of_images(inputs, lambda x: np.repeat(x[image : image + 1], len(z), axis=0))
        return self._slopes(copies, layer, z, target)

    @abstractmethod
    def given(self, inputs: Inputs) -> Any:
        """The inputs as a user gives them to the library."""

    @abstractmethod
    def features(self, inputs: Inputs, layer: str) -> np.ndarray:
        """What the layer gives, (B, *feature map)."""

    @abstractmethod
    def outputs(self, inputs: Inputs) -> np.ndarray:
        """Logits or probabilities of the model, (B, K)."""

    @abstractmethod
    def _slopes(self, inputs: Inputs, layer: str, z: np.ndarray, target: int) -> np.ndarray: ...


class TorchSubject(Subject):
    """A PyTorch model in float64, with a forward hook on one of its layers."""

    def __init__(self, model: nn.Module, draws: Mapping[str, Draw | np.ndarray]) -> None:
        super().__init__(randomised(model).double().eval(), draws)

    def given(self, inputs: Inputs) -> dict[str, torch.Tensor]:
        return {name: torch.from_numpy(np.array(x)) for name, x in inputs.items()}

    def _main(self, inputs: Inputs) -> torch.Tensor:
        found = self.model(**self.given(inputs))
        return found["logits"] if "logits" in found else found["logits_per_image"]

    @contextmanager
    def _hooked(self, layer: str, z: torch.Tensor | None = None) -> Iterator[list[torch.Tensor]]:
        seen: list[torch.Tensor] = []

        def hook(module: nn.Module, args: Any, output: Any) -> Any:
            first = output[0] if isinstance(output, tuple) else output
            seen.append(first.detach().clone())
            if z is None:
                return None
            # What is in the batch several times over, such as windows, is unfolded in z.
            new = z.reshape(first.shape)
            return (new, *output[1:]) if isinstance(output, tuple) else new

        handle = self.model.get_submodule(layer).register_forward_hook(hook)
        try:
            yield seen
        finally:
            handle.remove()
        assert len(seen) == 1, f"{layer} runs {len(seen)} times"

    def features(self, inputs: Inputs, layer: str) -> np.ndarray:
        with torch.no_grad(), self._hooked(layer) as seen:
            self._main(inputs)
        return seen[0].numpy()

    def outputs(self, inputs: Inputs) -> np.ndarray:
        with torch.no_grad():
            return self._main(inputs).numpy()

    def _slopes(self, inputs: Inputs, layer: str, z: np.ndarray, target: int) -> np.ndarray:
        leaf = torch.from_numpy(z).requires_grad_()
        with self._hooked(layer, leaf.clone()):
            logits = self._main(inputs)
            (slope,) = torch.autograd.grad((logits.logsumexp(-1) - logits[:, target]).sum(), leaf)
        return slope.numpy()


def randomised(model: nn.Module) -> nn.Module:
    """Draw weights at which every layer matters. The packages draw some that are 0 or nearly."""
    generator = np.random.default_rng(0)
    with torch.no_grad():
        for name, tensor in (*model.named_parameters(), *model.named_buffers()):
            shape = tuple(tensor.shape)
            if not tensor.is_floating_point() or not shape or "inv_freq" in name:
                continue
            if len(shape) > 1:
                drawn = generator.normal(size=shape) / np.sqrt(np.prod(shape[1:]))
            elif "bias" in name or "mean" in name:
                drawn = generator.normal(size=shape) / 10
            else:
                drawn = generator.uniform(0.5, 1.5, size=shape)
            tensor.copy_(torch.from_numpy(drawn))
    return model


class KerasSubject(Subject):
    """A Keras model in float64 that ends in a softmax, with another output in the place of a layer's."""

    def __init__(self, build: Callable[[], keras.Model], draws: Mapping[str, Draw | np.ndarray]) -> None:
        policy = keras.config.dtype_policy()
        keras.utils.set_random_seed(0)
        keras.config.set_dtype_policy("float64")
        try:
            model = build()
        finally:
            keras.config.set_dtype_policy(policy)
        generator = np.random.default_rng(0)
        for weight in model.weights:
            if "gamma" in weight.path:
                weight.assign(generator.uniform(0.5, 1.5, weight.shape))
            elif "bias" in weight.path or "beta" in weight.path:
                weight.assign(generator.normal(0, 0.1, weight.shape))
        (draw,) = draws.values()
        adapt(model, draw(generator, 32), draw(generator, 16))
        super().__init__(model, draws)

    def given(self, inputs: Inputs) -> np.ndarray:
        (only,) = inputs.values()
        return only

    def features(self, inputs: Inputs, layer: str) -> np.ndarray:
        part = keras.Model(self.model.input, self.model.get_layer(layer).output)
        return part(self.given(inputs), training=False).numpy()

    def outputs(self, inputs: Inputs) -> np.ndarray:
        return self.model(self.given(inputs), training=False).numpy()

    def _slopes(self, inputs: Inputs, layer: str, z: np.ndarray, target: int) -> np.ndarray:
        one, given = self.model.get_layer(layer), self.given(inputs)
        leaf = tf.constant(z)
        with tf.GradientTape() as tape:
            tape.watch(leaf)
            one.call = lambda *args, **options: tf.identity(leaf)
            try:
                probabilities = self.model(given, training=False)
            finally:
                del one.call
            loss = -tf.reduce_sum(tf.math.log(probabilities[:, target]))
        return tape.gradient(loss, leaf).numpy()


def adapt(model: keras.Model, x: np.ndarray, others: np.ndarray) -> None:
    """Adapt a model with random weights to some images: no layer dies out, and no class is certain."""
    norms = [layer for layer in model.layers if isinstance(layer, keras.layers.BatchNormalization)]
    momenta = [layer.momentum for layer in norms]
    for layer in norms:
        layer.momentum = 0.0
    model(x, training=True)
    for layer, momentum in zip(norms, momenta, strict=True):
        layer.momentum = momentum
    last = next(layer for layer in reversed(model.layers) if layer.weights)
    activations = keras.Model(model.input, last.input)(others, training=False).numpy()
    last.kernel.assign(last.kernel / max(1.0, float(np.abs(activations).max()) / 10))
