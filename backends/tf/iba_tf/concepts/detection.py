"""The model that locates a concept in a feature map, as `keras.layers.Layer`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
import numpy.typing as npt
import tensorflow as tf

from iba_core.arguments import require_data_format
from iba_core.concepts.data import SegmentationConcept2D
from iba_core.concepts.detection import ConceptDetection, DetectionSpec, ModelStump
from iba_core.concepts.hyperplanes import fan_in_bound, same_padding
from iba_core.framework.layout import DataFormat

__all__ = ["ConceptDetectionModel2D", "ModelStump"]


@keras.saving.register_keras_serializable(package="iba_tf")
class ConceptDetectionModel2D(ConceptDetection, keras.layers.Layer):
    """Find the windows of a feature map that belong to a concept.

    The model is an ensemble of hyperplanes in the space of the windows, computed as one convolution with a
    filter for each. `iba_core.concepts.train_detection_model` learns the hyperplanes, and `to_embedding`
    returns them.

    Args:
        concept: the concept, with segmentation data. It is used to derive `kernel_size` and `in_channels`.
        model: the model that gives the feature maps, kept as `main_model`. It is also used to derive
            `kernel_size` and `in_channels`. Its variables are not variables of this layer.
        layer_id: the layer of `model` whose output is this layer's input, a layer or its name.
        kernel_size: (height, width) of the window, in pixels of the feature map; by default the concept's
            `rel_size` times the size of the layer's output, or (1, 1) with a warning if the concept has no
            `rel_size`.
        in_channels: channels of the feature map; derived if it or `kernel_size` is None. A wrong value is
            then replaced with a warning.
        concept_name: name of the concept; by default that of `concept`.
        apply_sigmoid: return probabilities instead of distances.
        apply_padding: put zeros around the input, so that the output has the input's size.
        ensemble_count: number of hyperplanes.
        use_laplace: approximate the posterior of the weights in training, and return the mean probability
            outside training, see `iba_core.concepts.laplace`. With ``apply_sigmoid=False``, return its logit.
        use_bias: learn a bias. Without one, the hyperplanes pass through the origin.
        data_format: position of the channels of the feature maps; by default that of `layer_id`, or Keras's
            own.
        **kwargs: arguments of `keras.layers.Layer`: name, dtype, trainable.

    Attributes:
        kernel: (*kernel_size, in_channels, ensemble_count), the layout of Keras.
        bias: (ensemble_count,), or None.
        activation: `keras.layers.Activation` of a sigmoid, or None.
        padding: `keras.layers.ZeroPadding2D`, or None.

    Raises:
        InputError: an argument is wrong, or a missing one cannot be derived from the others.
        LayerError: the model has no such layer.

    Example:
        >>> model = ConceptDetectionModel2D(in_channels=8, kernel_size=(3, 2), ensemble_count=5)
        >>> model(keras.random.normal((4, 14, 14, 8))).shape
        TensorShape([5, 4, 14, 14, 1])
    """

    def __init__(
        self,
        concept: SegmentationConcept2D | None = None,
        model: keras.Model | None = None,
        layer_id: str | keras.Operation | None = None,
        kernel_size: Sequence[int] | None = None,
        in_channels: int | None = None,
        concept_name: str | None = None,
        apply_sigmoid: bool = True,
        apply_padding: bool = True,
        ensemble_count: int = 1,
        use_laplace: bool = False,
        use_bias: bool = True,
        data_format: DataFormat | None = None,
        **kwargs: Any,
    ) -> None:
        spec = DetectionSpec.resolve(
            concept, model, layer_id, kernel_size, in_channels, concept_name, ensemble_count
        )
        super().__init__(**kwargs)
        self._configure(
            spec,
            apply_sigmoid=apply_sigmoid,
            apply_padding=apply_padding,
            use_laplace=use_laplace,
            use_bias=use_bias,
        )
        require_data_format("data_format", data_format, optional=True)
        if data_format is None:
            data_format = (
                keras.config.image_data_format() if spec.stump is None else spec.stump.split.data_format
            )
        self.data_format: DataFormat = data_format
        bound = fan_in_bound(spec.kernel_size, spec.in_channels)
        start = keras.initializers.RandomUniform(-bound, bound)
        self.kernel = self.add_weight(
            shape=(*spec.kernel_size, spec.in_channels, ensemble_count), initializer=start, name="kernel"
        )
        self.bias: keras.Variable | None = None
        if use_bias:
            # Clone the initializer, since it would repeat its numbers.
            self.bias = self.add_weight(shape=(ensemble_count,), initializer=start.clone(), name="bias")
        self.laplace_factor: keras.Variable | None = None
        if use_laplace:
            self.laplace_factor = self.add_weight(
                shape=self._factor_shape(), initializer="zeros", trainable=False, name="laplace_factor"
            )
        self.activation = (
            keras.layers.Activation("sigmoid", dtype=self.dtype_policy) if apply_sigmoid else None
        )
        self.padding = None
        if apply_padding:
            self.padding = keras.layers.ZeroPadding2D(
                same_padding(spec.kernel_size), data_format="channels_last", dtype=self.dtype_policy
            )
        self.built = True

    def reset_parameters(self) -> None:
        """Draw weight and bias from U(-k, k), k = 1 / sqrt(fan in), and forget the posterior."""
        bound = fan_in_bound(self.kernel_size, self.in_channels)
        for variable in self.trainable_variables:
            variable.assign(keras.random.uniform(variable.shape, -bound, bound))
        if self.laplace_factor is not None:
            self.laplace_factor.assign(keras.ops.zeros_like(self.laplace_factor))

    def call(self, inp: tf.Tensor, training: bool = False) -> tf.Tensor:
        """Compute the heatmaps of a batch of feature maps.

        Args:
            inp: (B, H, W, in_channels), or (B, in_channels, H, W) with channels first.
            training: ignore the uncertainty of the weights.

        Returns:
            (ensemble_count, B, H, W, 1), or (ensemble_count, B, 1, H, W) with channels first: the probability
            of the concept in the window around each place, or with ``apply_sigmoid=False`` the signed
            distance. Without padding, H and W are smaller.

        Raises:
            InputError: the input has another number of axes or channels.
        """
        axis = 1 if self.data_format == "channels_first" else -1
        self._require_channels(inp.shape[axis] if len(inp.shape) > 1 else None, len(inp.shape))
        maps = self._distances(inp, evaluates=not training)
        maps = tf.expand_dims(maps, 2 if self.data_format == "channels_first" else -1)
        return maps if self.activation is None else self.activation(maps)

    def compute_output_shape(self, input_shape: tuple[int | None, ...]) -> tuple[int | None, ...]:
        """Compute the shape of the output for inputs of a shape."""
        batch, *places = input_shape
        del places[0 if self.data_format == "channels_first" else -1]
        if not self.apply_padding:
            places = [
                None if size is None else size - side + 1
                for size, side in zip(places, self.kernel_size, strict=True)
            ]
        channel = (1, *places) if self.data_format == "channels_first" else (*places, 1)
        return (self.ensemble_count, batch, *channel)

    def _filters(self) -> tuple[tf.Tensor, tf.Tensor | None]:
        bias = None if self.bias is None else tf.convert_to_tensor(self.bias)
        return tf.transpose(tf.convert_to_tensor(self.kernel), (3, 2, 0, 1)), bias

    def _factors(self) -> tf.Tensor:
        self._require_laplace()
        return tf.convert_to_tensor(self.laplace_factor)

    def _convolve(self, inp: tf.Tensor, weight: tf.Tensor, bias: tf.Tensor | None) -> tf.Tensor:
        # TensorFlow cannot convolve maps with channels first on every device.
        maps = tf.transpose(inp, (0, 2, 3, 1)) if self.data_format == "channels_first" else inp
        padded = maps if self.padding is None else self.padding(maps)
        kernel = tf.cast(tf.transpose(weight, (2, 3, 1, 0)), padded.dtype)
        output = tf.nn.conv2d(padded, kernel, strides=1, padding="VALID")
        if bias is not None:
            output += tf.cast(bias, output.dtype)
        return tf.transpose(output, (3, 0, 1, 2))

    def hyperplanes(self) -> tuple[npt.NDArray[np.floating], npt.NDArray[np.floating]]:
        """Return copies of the weight (E, C, kh, kw) and the bias (E,). Without `use_bias`, the bias is 0."""
        weight = _to_numpy(self.kernel).transpose(3, 2, 0, 1).copy()
        bias = np.zeros(self.ensemble_count, weight.dtype) if self.bias is None else _to_numpy(self.bias)
        return weight, bias

    def load_hyperplanes(self, weight: npt.ArrayLike, bias: npt.ArrayLike) -> None:
        """Set the weight (E, C, kh, kw) and the bias (E,). Without `use_bias`, the bias is ignored.

        Raises:
            InputError: the shapes differ.
        """
        shape = (self.ensemble_count, self.in_channels, *self.kernel_size)
        values = self._checked(weight, shape, "weight")
        biases = self._checked(bias, (self.ensemble_count,), "bias")
        self.kernel.assign(values.transpose(2, 3, 1, 0))
        if self.bias is not None:
            self.bias.assign(biases)

    def laplace_factors(self) -> npt.NDArray[np.floating]:
        """Return a copy of the factors (E, P, P) of the posteriors, zeros before training.

        Raises:
            InputError: the model does not `use_laplace`.
        """
        return _to_numpy(self._factors())

    def load_laplace_factors(self, factors: npt.ArrayLike) -> None:
        """Set the factors (E, P, P).

        Raises:
            InputError: the model does not `use_laplace`, or the shape differs.
        """
        self._require_laplace()
        assert self.laplace_factor is not None
        self.laplace_factor.assign(self._checked(factors, self._factor_shape(), "factors"))

    def get_config(self) -> dict[str, Any]:
        """Return the constructor's arguments that reproduce this layer, without concept and model."""
        own = {name: value for name, value in self.settings.items() if name not in ("concept", "model")}
        return {**super().get_config(), **own, "data_format": self.data_format}


def _to_numpy(value: Any) -> npt.NDArray[Any]:
    return np.array(keras.ops.convert_to_numpy(keras.ops.cast(value, "float32")))
