"""A memory of concept embeddings with attention, as `keras.layers.Layer`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import keras
import numpy.typing as npt
import tensorflow as tf

from iba_core.arguments import require_seed
from iba_core.concepts import selection

_TRANSPOSED = ("selector.0.weight", "selector.2.weight")


@keras.saving.register_keras_serializable(package="iba_tf")
class SelectorZU(keras.layers.Layer):
    """Select an embedding for each concept from a learnt memory, by attention or by sampling.

    The formulas are those of `iba_core.concepts.selection`.

    Args:
        in_features: number of entries of an input.
        memory_size: number of memory slots of each concept.
        exogenous_size: number of entries of a slot.
        out_features: number of concepts.
        temperature: positive number. The smaller it is, the closer the attention is to the choice of one
            slot.
        args: further arguments of the last `keras.layers.Dense`: activation, use_bias, ...
        attention_over: ``"slots"`` if the weights of each concept's slots sum to 1. ``"concepts"`` if the
            weights of each slot sum to 1 over the concepts, for weights from `torch_concepts`.
        seed: seed of the sampling.
        name: name of the layer.
        dtype: dtype or policy of the layer.
        trainable: whether the weights are trained.
        kwargs: further arguments of the last `keras.layers.Dense` by name.

    Attributes:
        memory: `keras.layers.Embedding` with one row for each concept, which holds its slots.
        selector: `keras.Sequential` that maps inputs (B, in_features) to scores (B, out_features,
            memory_size).

    Raises:
        InputError: a size or the temperature is not positive, or `attention_over` is unknown.

    Example:
        >>> selector = SelectorZU(in_features=64, memory_size=10, exogenous_size=32, out_features=5)
        >>> selector(keras.random.normal((4, 64))).shape
        TensorShape([4, 5, 32])
    """

    def __init__(
        self,
        in_features: int,
        memory_size: int,
        exogenous_size: int,
        out_features: int,
        temperature: float = 1.0,
        *args: Any,
        attention_over: selection.AttentionAxis = "slots",
        seed: int | None = None,
        name: str | None = None,
        dtype: Any = None,
        trainable: bool = True,
        **kwargs: Any,
    ) -> None:
        selection.require_arguments(
            in_features, memory_size, exogenous_size, out_features, temperature, attention_over
        )
        super().__init__(name=name, dtype=dtype, trainable=trainable)
        self.in_features = in_features
        self.memory_size = memory_size
        self.exogenous_size = exogenous_size
        self.out_features = out_features
        self.temperature = temperature
        self.attention_over = attention_over
        require_seed("seed", seed, 2**31 - 1)
        self.seed = seed
        self._seeds = keras.random.SeedGenerator(seed)
        self.memory = keras.layers.Embedding(
            out_features,
            memory_size * exogenous_size,
            embeddings_initializer=keras.initializers.RandomNormal(stddev=1.0),
            dtype=self.dtype_policy,
            name="memory",
        )
        scores = keras.layers.Dense(out_features * memory_size, *args, dtype=self.dtype_policy, **kwargs)
        self.selector = keras.Sequential(
            [
                keras.layers.Dense(exogenous_size, dtype=self.dtype_policy),
                keras.layers.LeakyReLU(negative_slope=selection.LEAKY_SLOPE, dtype=self.dtype_policy),
                scores,
                keras.layers.Reshape((out_features, memory_size), dtype=self.dtype_policy),
            ],
            name="selector",
        )
        self.memory.build(())
        self.selector.build((None, in_features))

    def call(self, input: tf.Tensor, sampling: bool = False) -> tf.Tensor:
        """Select the embedding of each concept for a batch of inputs.

        Args:
            input: (..., in_features).
            sampling: draw one slot of each concept from its attention weights (Gumbel-softmax, with
                straight-through gradients) instead of taking their weighted mean.

        Returns:
            (..., out_features, exogenous_size).

        Raises:
            InputError: the input has another number of features.
        """
        selection.require_features(tuple(input.shape), self.in_features)
        leading = keras.ops.shape(input)[:-1]
        scores = self.selector(keras.ops.reshape(input, (-1, self.in_features)))
        noise = None
        if sampling:
            uniform = keras.random.uniform(keras.ops.shape(scores), dtype="float32", seed=self._seeds)
            noise = keras.ops.cast(selection.gumbel(uniform), scores.dtype)
        weights = selection.attention(
            scores, self.temperature, self.attention_over, noise, stop_gradient=tf.stop_gradient
        )
        slots = keras.ops.reshape(
            keras.ops.cast(self.memory.embeddings, scores.dtype),
            (self.out_features, self.memory_size, self.exogenous_size),
        )
        selected = selection.select(weights, slots)
        return keras.ops.reshape(selected, (*leading, self.out_features, self.exogenous_size))

    def compute_output_shape(self, input_shape: tuple[int | None, ...]) -> tuple[int | None, ...]:
        """Compute the shape of the output for inputs of a shape."""
        return (*input_shape[:-1], self.out_features, self.exogenous_size)

    def to_arrays(self) -> dict[str, npt.NDArray[Any]]:
        """Copy all weights, named and laid out as in PyTorch, for `load_arrays` of either framework."""
        return {
            name: keras.ops.convert_to_numpy(variable).T.copy()
            if name in _TRANSPOSED
            else keras.ops.convert_to_numpy(variable)
            for name, variable in self._by_name().items()
        }

    def load_arrays(self, arrays: Mapping[str, npt.ArrayLike]) -> None:
        """Load the weights that `to_arrays` of either framework has returned.

        Raises:
            InputError: the names or shapes differ.
        """
        shapes = {name: value.shape for name, value in self.to_arrays().items()}
        weights = selection.require_weights(arrays, shapes)
        for name, variable in self._by_name().items():
            variable.assign(weights[name].T if name in _TRANSPOSED else weights[name])

    def _by_name(self) -> dict[str, keras.Variable]:
        hidden, _, scores, _ = self.selector.layers
        variables = {
            "memory.weight": self.memory.embeddings,
            "selector.0.weight": hidden.kernel,
            "selector.0.bias": hidden.bias,
            "selector.2.weight": scores.kernel,
        }
        return {**variables, "selector.2.bias": scores.bias} if scores.use_bias else variables

    def get_config(self) -> dict[str, Any]:
        """Return the constructor's arguments that reproduce this layer."""
        own = ("in_features", "memory_size", "exogenous_size", "out_features", "temperature")
        linear = self.selector.layers[2].get_config()
        for name in ("name", "trainable", "dtype", "units"):
            del linear[name]
        return {
            **super().get_config(),
            **{name: getattr(self, name) for name in (*own, "attention_over", "seed")},
            **linear,
        }
