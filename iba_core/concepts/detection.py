"""The part that the concept detection models of all frameworks share.

A detection model is a convolution. Its weights are the normal vectors of the concept's hyperplanes, one for
each member of the ensemble. Its output is the signed distance of every window of the feature map.
"""

from __future__ import annotations

import warnings
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from iba_core.arguments import (
    LARGEST_COUNT,
    require_bool,
    require_data_format,
    require_layer,
    require_sequence,
    require_sizes,
    require_text,
    require_type,
    require_whole,
)
from iba_core.concepts.data import SegmentationConcept2D
from iba_core.concepts.embedding import ConceptEmbedding
from iba_core.concepts.hyperplanes import window_size
from iba_core.concepts.laplace import factor_filters, logit_variance, moderated
from iba_core.errors import InputError, LayerError
from iba_core.framework.adapter import Inputs, Model, ModelAdapter, Split, find_adapter
from iba_core.framework.arrays import require_array
from iba_core.framework.inputs import require_inputs
from iba_core.framework.layout import DataFormat, Layout, MapOrder
from iba_core.framework.namespace import Array, sigmoid

FloatArray = npt.NDArray[np.floating]

_ARCHITECTURE = ("apply_sigmoid", "apply_padding", "use_laplace", "use_bias")
"""Arguments of a detection model that an embedding keeps in its meta information."""


_ROUNDING = 1e-3
"""Difference of two passes that is due to rounding, relative to the greatest feature."""


# -- formulas ---------------------------------------------------------------------------------------


def embeddings_of(weight: npt.ArrayLike, bias: npt.ArrayLike, **meta: Any) -> list[ConceptEmbedding]:
    r"""Convert the filters of a convolution to hyperplanes, ``n = weight``, ``b = -bias / |weight|^2``.

    Args:
        weight: (E, C, kh, kw).
        bias: (E,).
        **meta: further arguments of every `ConceptEmbedding`.

    Returns:
        One embedding for each filter.
    """
    pairs = zip(np.asarray(weight), np.asarray(bias), strict=True)
    return [ConceptEmbedding(n, bias=b, **meta) for n, b in pairs]


def filters_of(embeddings: Sequence[ConceptEmbedding]) -> tuple[FloatArray, FloatArray]:
    r"""Make filters whose output is the signed distance: ``weight = s n``, ``bias = -b |weight|^2 / s``.

    With the scaling factor s = 1 this is ``weight = n``, ``bias = -b |weight|^2``.

    Args:
        embeddings: embeddings with normal vectors of one shape: (C, kh, kw), (C,), or (1, C, kh, kw) as the
            weight of a convolution with one filter.

    Returns:
        Weight (E, C, kh, kw) and bias (E,), float64.

    Raises:
        InputError: there is no embedding, the shapes differ, or the shape does not suit a convolution.

    Example:
        >>> weight, bias = filters_of([ConceptEmbedding([3.0, 4.0], bias=-10.0)])
        >>> weight.shape, bias
        ((1, 2, 1, 1), array([-10.]))
    """
    require_sequence("embeddings_list", embeddings, "concept embeddings")
    for embedding in embeddings:
        require_type("embeddings_list", embedding, ConceptEmbedding, "concept embeddings")
    shapes = [embedding.normal_vec.shape for embedding in embeddings]
    if len(set(shapes)) > 1:
        raise InputError(
            f"embeddings_list has normal vectors of shapes {shapes}; an ensemble needs one shape"
        )
    shape = shapes[0][1:] if len(shapes[0]) == 4 and shapes[0][0] == 1 else shapes[0]
    if len(shape) not in (1, 3):
        raise InputError(
            f"embeddings_list has normal vectors of shape {shapes[0]}; (C, height, width) or "
            "(C,) was expected"
        )
    planes = [embedding.scale() for embedding in embeddings]
    shape = shape if len(shape) == 3 else (*shape, 1, 1)
    weight = np.stack([plane.normal_vec.reshape(shape) for plane in planes])
    return weight, np.array([plane.bias for plane in planes])


# -- the layer ----------------------------------------------------------------------------------------


class ModelStump:
    """The part of a model up to a layer: called with inputs, it returns the layer's output.

    Args:
        model: a model of any framework that a backend serves. It is not changed.
        layer_id: the layer, an object or its name.
        backend: name of the backend; None to derive it from the model.
        data_format: where the channels of the layer's output are; None to find that out.

    Attributes:
        model: the model.
        layer_id: name of the layer.
        adapter: the model's adapter.
        split: the model, split at the layer.

    Raises:
        InputError: no backend serves the model.
        LayerError: the model has no such layer; the message offers the closest names.

    Example:
        >>> import torch
        >>> model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 1), torch.nn.Flatten())
        >>> stump = ModelStump(model, "0")
        >>> stump.maps(np.zeros((2, 3, 8, 8), np.float32)).shape
        (2, 8, 8, 4)
    """

    def __init__(
        self,
        model: Model,
        layer_id: Any,
        backend: str | None = None,
        data_format: DataFormat | None = None,
    ) -> None:
        require_data_format("data_format", data_format, optional=True)
        self.model = model
        self.adapter: ModelAdapter = find_adapter(model, backend)
        require_layer("layer_id", layer_id)
        self.split: Split = self.adapter.split(layer_id, data_format=data_format)
        self.layer_id: str = self.split.layer_name

    def __call__(self, inputs: Inputs) -> Array:
        """Compute the feature maps (B, *feature map) of a batch of inputs, without a graph."""
        return self.split.features(require_inputs("inputs", inputs, self.adapter.to_inputs))

    def maps(self, inputs: Inputs) -> FloatArray:
        """Compute the feature maps of a batch with channels last, (B, H, W, C), as a NumPy array.

        Raises:
            LayerError: the layer's output does not have two spatial axes and one channel axis.
        """
        return self.maps_of(self(inputs))

    def maps_of(self, output: Array) -> FloatArray:
        """Convert an output of the layer, (B, *feature map), as `maps` does."""
        features = self.adapter.framework.to_numpy(output)
        if features.ndim != 4:
            raise LayerError(
                f"layer {self.layer_id!r} gives features of shape {features.shape[1:]}; a concept needs "
                "feature maps with one channel axis and two spatial axes"
            )
        layout = Layout.of(features.shape[1:], self.split.data_format)
        order = (*layout.spatial_axes, layout.channel_axis)
        return np.ascontiguousarray(features.transpose(0, *(axis + 1 for axis in order)))

    @property
    def order(self) -> MapOrder:
        """How maps of the layer are turned to lie over the images, once the model has run.

        Raises:
            LayerError: the model exchanges rows and columns, and does not show where they are.
        """
        return self.split.map_order(Layout.of((1, 1, 1), self.split.data_format))

    def __repr__(self) -> str:
        return f"ModelStump({type(self.model).__name__}, layer_id={self.layer_id!r})"


class CommonPass:
    """The outputs of several layers of a model from one pass, where that is what each gives by itself.

    Args:
        stumps: the model up to each of the layers.
    """

    def __init__(self, stumps: Sequence[ModelStump]) -> None:
        self.stumps = stumps
        self._suffices: bool | None = None if len(stumps) > 1 else False

    def __call__(self, images: npt.NDArray[Any]) -> list[Array]:
        """Compute the feature maps (B, *feature map) of every layer for a batch of images."""
        if self._suffices is None:
            self._suffices = self._agrees(images[:1])
        return self._together(images) if self._suffices else [stump(images) for stump in self.stumps]

    def _together(self, images: npt.NDArray[Any]) -> list[Array]:
        adapter = self.stumps[0].adapter
        inputs = require_inputs("inputs", images, adapter.to_inputs)
        return adapter.features_of(inputs, [stump.layer_id for stump in self.stumps])

    def _agrees(self, image: npt.NDArray[Any]) -> bool:
        """Whether one pass gives what the split model gives, which has been checked against the model."""
        try:
            together = self._together(image)
        except LayerError:
            return False
        for stump, features in zip(self.stumps, together, strict=True):
            own, other = (stump.adapter.framework.to_numpy(each) for each in (stump(image), features))
            nearly = _ROUNDING * float(np.abs(own).max(initial=0.0))
            if own.shape != other.shape or not np.allclose(own, other, rtol=0, atol=nearly, equal_nan=True):
                return False
        return True


# -- the arguments of a detection model ---------------------------------------------------------------


@dataclass(frozen=True)
class DetectionSpec:
    """The complete arguments of a detection model, as far as they do not depend on the framework.

    Attributes:
        concept: the concept, if there is one.
        stump: the model up to the layer, if there is one.
        layer_id: name of the layer, if known.
        kernel_size: (height, width) of the window in pixels of the feature map.
        in_channels: channels of the feature map.
        concept_name: name of the concept, if known.
        ensemble_count: number of hyperplanes.
    """

    concept: SegmentationConcept2D | None
    stump: ModelStump | None
    layer_id: str | None
    kernel_size: tuple[int, int]
    in_channels: int
    concept_name: str | None
    ensemble_count: int

    @classmethod
    def resolve(
        cls,
        concept: SegmentationConcept2D | None,
        model: Model | None,
        layer_id: Any,
        kernel_size: Sequence[int] | None,
        in_channels: int | None,
        concept_name: str | None,
        ensemble_count: int,
    ) -> DetectionSpec:
        """Complete the arguments from the model, the layer and the concept.

        The output of the layer for the concept's first training image gives the number of channels. Together
        with the concept's `rel_size`, it gives the size of the window.

        Raises:
            InputError: an argument is wrong, or a missing one cannot be derived from the others.
            LayerError: the model has no such layer.
        """
        require_type("concept", concept, SegmentationConcept2D, "a SegmentationConcept2D", optional=True)
        require_text("concept_name", concept_name, "the name of a concept", optional=True)
        _check_sizes(ensemble_count, in_channels, kernel_size)
        if model is not None and layer_id is None:
            raise InputError(
                "model is given without layer_id; name the layer in which to look for the concept"
            )
        stump = None if model is None else ModelStump(model, layer_id)
        map_shape = None
        if (in_channels is None or kernel_size is None) and stump is not None and concept is not None:
            map_shape = stump.maps(concept.train_data[0][0][None]).shape[1:]
            if in_channels not in (None, map_shape[2]):
                warnings.warn(
                    f"in_channels={in_channels} is replaced by {map_shape[2]}, the number of channels of "
                    f"layer {stump.layer_id!r}",
                    stacklevel=3,
                )
            in_channels = map_shape[2]
        if in_channels is None:
            raise InputError("in_channels is missing; give it, or model, layer_id and concept to derive it")
        if kernel_size is None:
            rel_size = None if concept is None else concept.rel_size
            kernel_size = _window_or_pixel(rel_size, map_shape)
        if concept_name is None and concept is not None:
            concept_name = concept.name
        layer_name = layer_id if stump is None else stump.layer_id
        height, width = (int(side) for side in kernel_size)
        return cls(
            concept, stump, layer_name, (height, width), int(in_channels), concept_name, int(ensemble_count)
        )


def _check_sizes(ensemble_count: int, in_channels: int | None, kernel_size: Sequence[int] | None) -> None:
    require_whole("ensemble_count", ensemble_count, 1, LARGEST_COUNT)
    if in_channels is not None:
        require_whole("in_channels", in_channels, 1, LARGEST_COUNT)
    if kernel_size is not None:
        require_sizes("kernel_size", kernel_size)


def _window_or_pixel(rel_size: Sequence[float] | None, map_shape: Sequence[int] | None) -> tuple[int, int]:
    """Derive the window from the size of the concept; it is one pixel if that is not known."""
    if rel_size is None:
        warnings.warn(
            "kernel_size is set to (1, 1), since neither it nor the concept's rel_size is given",
            stacklevel=4,
        )
        return 1, 1
    if map_shape is None:
        raise InputError("kernel_size is missing; give it, or model and layer_id to derive it from rel_size")
    return window_size(rel_size, map_shape[:2])


class ConceptDetection:
    """The part of a detection model that is the same in every framework.

    A framework's model inherits from this class and from the framework's base class, in this order.

    Attributes:
        ensemble_count: number of hyperplanes, the size of the output's first axis.
        use_laplace: whether predictions in evaluation mode include the uncertainty of the weights.
        use_bias: whether a bias is learnt; else it is 0.
        padding: layer that puts zeros around the input, so that the output has the input's size; or None.
        activation: layer that maps the distances to [0, 1]; or None.
    """

    _spec: DetectionSpec
    ensemble_count: int
    use_laplace: bool
    use_bias: bool
    padding: Any
    activation: Any

    # -- added by each framework ------------------------------------------------------------------

    @abstractmethod
    def _filters(self) -> tuple[Array, Array | None]:
        """Return the variables weight (E, C, kh, kw) and bias (E,), or None for the bias."""

    @abstractmethod
    def _factors(self) -> Array:
        """Return the variable with the factors (E, P, P) of the posteriors."""

    @abstractmethod
    def _convolve(self, inp: Array, weight: Array, bias: Array | None) -> Array:
        """Convolve the padded input.

        Args:
            inp: a batch of feature maps, in the layout of the framework.
            weight: (K, C, kh, kw).
            bias: (K,) or None.

        Returns:
            (K, B, H', W').
        """

    @abstractmethod
    def hyperplanes(self) -> tuple[FloatArray, FloatArray]:
        """Return copies of the weight (E, C, kh, kw) and the bias (E,). Without `use_bias`, the bias is 0."""

    @abstractmethod
    def load_hyperplanes(self, weight: npt.ArrayLike, bias: npt.ArrayLike) -> None:
        """Set the weight (E, C, kh, kw) and the bias (E,). Without `use_bias`, the bias is ignored."""

    @abstractmethod
    def laplace_factors(self) -> FloatArray:
        """Return a copy of the factors (E, P, P) of the posteriors; see `iba_core.concepts.laplace`.

        Raises:
            InputError: the model does not `use_laplace`.
        """

    @abstractmethod
    def load_laplace_factors(self, factors: npt.ArrayLike) -> None:
        """Set the factors (E, P, P).

        Raises:
            InputError: the model does not `use_laplace`.
        """

    # -- the same in every framework --------------------------------------------------------------

    @property
    def concept(self) -> SegmentationConcept2D | None:
        """The concept for which this model was configured, or None."""
        return self._spec.concept

    @property
    def concept_name(self) -> str | None:
        """Name of the concept, if known."""
        return self._spec.concept_name

    @property
    def stump(self) -> ModelStump | None:
        """The main model up to the layer whose output is this model's input; None without a main model."""
        return self._spec.stump

    @property
    def main_model_stump(self) -> ModelStump | None:
        """The same as `stump`."""
        return self.stump

    @property
    def main_model(self) -> Any:
        """The main model, or None."""
        return None if self._spec.stump is None else self._spec.stump.model

    @property
    def layer_id(self) -> str | None:
        """Name of the layer whose output is this model's input, if known."""
        return self._spec.layer_id

    @property
    def in_channels(self) -> int:
        """Number of channels of the input."""
        return self._spec.in_channels

    @property
    def kernel_size(self) -> tuple[int, int]:
        """(height, width) of the window, in pixels of the feature map."""
        return self._spec.kernel_size

    @property
    def apply_sigmoid(self) -> bool:
        """Whether the output is a probability instead of a distance."""
        return self.activation is not None

    @property
    def apply_padding(self) -> bool:
        """Whether the output has the size of the input."""
        return self.padding is not None

    @property
    def settings(self) -> dict[str, Any]:
        """The constructor's arguments that reproduce this model, without its weights."""
        return {
            "concept": self.concept,
            "model": self.main_model,
            "layer_id": self.layer_id,
            "kernel_size": self.kernel_size,
            "in_channels": self.in_channels,
            "concept_name": self.concept_name,
            "apply_sigmoid": self.apply_sigmoid,
            "apply_padding": self.apply_padding,
            "ensemble_count": self.ensemble_count,
            "use_laplace": self.use_laplace,
            "use_bias": self.use_bias,
        }

    def to_embedding(self) -> list[ConceptEmbedding]:
        r"""Copy the hyperplane of every member of the ensemble.

        Normal vector and support factor are ``n = weight`` and ``b = -bias / |weight|^2``, so that
        :math:`(v - b n) \cdot n = d(v) = v \cdot weight + bias`, the model's output before the sigmoid.
        The meta information holds the names of concept, layer and model, and the model's architecture. It
        does not hold the uncertainty of the weights.

        Returns:
            One embedding for each member. Embeddings can be saved, and work in every framework.
        """
        meta = {name: getattr(self, name) for name in _ARCHITECTURE}
        if self.main_model is not None:
            kind = type(self.main_model)
            meta["main_model"] = f"{kind.__module__}.{kind.__qualname__}"
        if self.concept is not None:
            meta["rel_size"] = self.concept.rel_size
        return embeddings_of(
            *self.hyperplanes(), concept_name=self.concept_name, layer_id=self.layer_id, **meta
        )

    @classmethod
    def from_embedding(
        cls,
        embeddings_list: ConceptEmbedding | Sequence[ConceptEmbedding],
        legacy_warnings: bool = True,
        **kwargs: Any,
    ) -> Self:
        """Make a detection model with the hyperplanes of embeddings.

        The weight is the normal vector n, and the bias is ``-b |n|^2`` with the support factor b. A scaling
        factor is multiplied into both.

        Args:
            embeddings_list: one embedding, or one for each member of the ensemble.
            legacy_warnings: warn if the model cannot hold all that the embeddings do, or the embeddings lack
                what the model needs.
            **kwargs: arguments of the model, which replace those in the embeddings.

        Raises:
            InputError: the embeddings do not form an ensemble, or contradict `kwargs`.
        """
        if isinstance(embeddings_list, ConceptEmbedding):
            embeddings_list = [embeddings_list]
        require_bool("legacy_warnings", legacy_warnings)
        weight, bias = filters_of(embeddings_list)
        first = embeddings_list[0]
        known = {name: first.meta_info[name] for name in _ARCHITECTURE if name in first.meta_info}
        arguments: Mapping[str, Any] = {
            "kernel_size": weight.shape[2:],
            "in_channels": weight.shape[1],
            "ensemble_count": len(weight),
            "concept_name": first.concept_name,
            "layer_id": first.layer_id,
            **known,
            **kwargs,
        }
        if legacy_warnings:
            _warn_of_loss(embeddings_list, bool(arguments.get("use_laplace")))
        model = cls(**arguments)
        found, expected = weight.shape, (model.ensemble_count, model.in_channels, *model.kernel_size)
        if found != expected:
            raise InputError(
                f"embeddings_list gives weights of shape {found}, but the other arguments ask for {expected}"
            )
        if not model.use_bias and bias.any():
            raise InputError(f"use_bias=False, but the embeddings have the biases {bias.tolist()}")
        model.load_hyperplanes(weight, bias)
        return model

    def predictive(self, inp: Array) -> tuple[Array, Array]:
        """Predict with the posterior of the weights.

        Args:
            inp: a batch of feature maps, in the layout of the framework.

        Returns:
            The mean probability of the concept and the variance of the logit at every place, both
            (E, B, H', W').

        Raises:
            InputError: the model does not `use_laplace`.
        """
        logits, variance = self._logits(inp), self._variance(inp)
        return sigmoid(moderated(logits, variance)), variance

    def _distances(self, inp: Array, evaluates: bool) -> Array:
        """Compute the output before the activation, (E, B, H', W')."""
        logits = self._logits(inp)
        return moderated(logits, self._variance(inp)) if evaluates and self.use_laplace else logits

    def _logits(self, inp: Array) -> Array:
        return self._convolve(inp, *self._filters())

    def _variance(self, inp: Array) -> Array:
        filters = factor_filters(self._factors(), self.in_channels, self.kernel_size, self.use_bias)
        return logit_variance(self._convolve(inp, *filters), self.ensemble_count)

    def _factor_shape(self) -> tuple[int, int, int]:
        """Return (E, P, P), the shape of the factors."""
        size = self.in_channels * self.kernel_size[0] * self.kernel_size[1] + self.use_bias
        return self.ensemble_count, size, size

    def _require_laplace(self) -> None:
        if not self.use_laplace:
            raise InputError("the model has no posterior of its weights, with use_laplace=False")

    def _checked(self, values: npt.ArrayLike, shape: tuple[int, ...], name: str) -> FloatArray:
        return require_array(name, values, shape=shape).astype(np.float64)

    def _require_channels(self, channels: int | None, ndim: int) -> None:
        if ndim != 4 or channels != self.in_channels:
            raise InputError(
                f"inp has {ndim} axes and {channels} channels; it must be feature maps with 4 axes "
                f"and {self.in_channels} channels"
            )

    def _configure(self, spec: DetectionSpec, **flags: bool) -> None:
        for name, flag in flags.items():
            require_bool(name, flag)
        self._spec = spec
        self.ensemble_count = spec.ensemble_count
        self.use_laplace, self.use_bias = flags["use_laplace"], flags["use_bias"]


def _warn_of_loss(embeddings: Sequence[ConceptEmbedding], use_laplace: bool) -> None:
    factors = [embedding.scaling_factor for embedding in embeddings]
    if any(factor != 1 for factor in factors):
        warnings.warn(
            f"the scaling factors {factors} are multiplied into weight and bias; from now on they are 1",
            stacklevel=3,
        )
    if use_laplace:
        warnings.warn(
            "embeddings do not hold the uncertainty of the weights; it counts as 0 until the model is "
            "trained or its laplace_factors are loaded",
            stacklevel=3,
        )
