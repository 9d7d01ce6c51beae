"""Targets for concepts, for class activation maps and for bottlenecks.

A target can be called on the output for one image and gives a score, as the maps of `iba_core.concepts.cam`
need it. It is also a `Target`, as `Explainer.explain` needs it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import array_api_compat
import numpy as np
import numpy.typing as npt

from iba_core.arguments import given, require_data_format, require_whole
from iba_core.concepts.hyperplanes import NO_PADDING, signed_distance, windows
from iba_core.errors import InputError
from iba_core.framework.arrays import require_array
from iba_core.framework.layout import DataFormat, Layout
from iba_core.framework.namespace import Array, array_namespace, full_precision, host_array, log_sigmoid
from iba_core.targets import LogitTarget, Loss, Target, main_output

Rows = tuple[npt.NDArray[Any], ...]
"""Data of a loss, one row for each image."""


def cosine_similarity(a: Array, b: Array) -> Array:
    """Compute the cosine of the angle between vectors, along the last axis.

    Args:
        a: (..., D), floating point.
        b: (..., D), of the same framework.

    Returns:
        Array (...), from -1 to 1, float32 or float64; 0 where a vector is zero.

    Example:
        >>> cosine_similarity(np.array([3.0, 4.0]), np.array([[1.0, 0.0], [0.0, 0.0]]))
        array([0.6, 0. ])
    """
    xp = array_namespace(a, b)

    def unit(x: Array) -> Array:
        x = full_precision(x)
        squares = xp.sum(xp.square(x), axis=-1, keepdims=True)
        # The square root has no gradient at zero.
        return x / xp.sqrt(xp.where(squares > 0, squares, xp.ones_like(squares)))

    return xp.sum(unit(a) * unit(b), axis=-1)


class ScoredOutput(Target):
    """A target that gives the output for each image a score. By default, its loss is minus the score."""

    def __call__(self, model_output: Array) -> Array:
        """Compute the score of one image.

        Args:
            model_output: the model's output for one image, without a batch axis.

        Returns:
            Scalar, differentiable in the output.

        Raises:
            InputError: the output has a shape that does not suit the target.
        """
        return -_apply(self.resolve(host_array(model_output)[None]), model_output)


@dataclass(frozen=True)
class ClassifierOutputTarget(ScoredOutput):
    """One output of a classifier, such as the logit of a class. The score is the output itself.

    Attributes:
        category: index of the output; None for the largest output.
        layer: layer whose output to use, an object or its name; None for the model's output.

    Example:
        >>> float(ClassifierOutputTarget(1)(np.array([0.5, 2.0, -1.0])))
        2.0
    """

    category: int | None = None
    layer: Any = None

    def __post_init__(self) -> None:
        if self.category is not None:
            object.__setattr__(self, "category", require_whole("category", self.category))

    def resolve(self, outputs: npt.NDArray[Any]) -> tuple[Loss, Rows]:
        """See `Target.resolve`. The row of an image is the index of the output."""
        return LogitTarget(self.category).resolve(outputs)


@dataclass(frozen=True, eq=False)
class SimilarityToConceptTarget(ScoredOutput):
    """The similarity of the output to a reference: the cosine of the angle between them, from -1 to 1.

    Attributes:
        features: the reference: the model's output for a picture of the concept, without a batch axis, of
            any framework. Gradients do not flow through it.
        layer: layer whose output the features are; None for the model's output.

    Raises:
        InputError: the features are empty, zero or not finite.

    Example:
        >>> target = SimilarityToConceptTarget(np.array([3.0, 4.0]))
        >>> float(target(np.array([1.0, 0.0])))
        0.6
    """

    features: Any
    layer: Any = None

    def __post_init__(self) -> None:
        features = require_array("features", self.features)
        if not features.any():
            raise InputError(f"features, of shape {features.shape}, are all zero; a direction is needed")

    def resolve(self, outputs: npt.NDArray[Any]) -> tuple[Loss, Rows]:
        """See `Target.resolve`. The row of an image holds the features."""
        return _negative_similarity, (self._references(outputs),)

    def _references(self, outputs: npt.NDArray[Any]) -> npt.NDArray[Any]:
        features = host_array(self.features)
        if features.shape != outputs.shape[1:]:
            raise InputError(
                f"features have shape {features.shape}, but {_source(self.layer)} for an image has shape "
                f"{outputs.shape[1:]}"
            )
        return np.broadcast_to(features, outputs.shape).astype(outputs.dtype)


class DifferenceFromConceptTarget(SimilarityToConceptTarget):
    """The difference of the output from a reference: 1 minus the cosine of the angle between them.

    Attributes:
        features: see `SimilarityToConceptTarget`.
        layer: see `SimilarityToConceptTarget`.

    Example:
        >>> target = DifferenceFromConceptTarget(np.array([3.0, 4.0]))
        >>> float(target(np.array([1.0, 0.0])))
        0.4
    """

    def resolve(self, outputs: npt.NDArray[Any]) -> tuple[Loss, Rows]:
        """See `Target.resolve`. The row of an image holds the features."""
        return _negative_difference, (self._references(outputs),)


class Embedding(Protocol):
    """The properties of a `ConceptEmbedding` that its target needs."""

    normal_vec: npt.NDArray[np.float64]
    bias: float
    kernel_size: tuple[int, ...]
    layer_id: str | None

    def scale(self) -> Embedding:
        """Return the same distance with scaling factor 1."""


@dataclass(frozen=True, eq=False)
class ConceptEmbeddingTarget(ScoredOutput):
    """The side of a hyperplane on which the model's output, or the output of a layer, lies.

    With the signed distance d of a `ConceptEmbedding`, ``sigmoid(d)`` is the probability of the concept, as a
    detection model with these weights predicts it. The score is d. The loss, for a bottleneck, is the
    cross-entropy ``-log sigmoid(d)``, in nats. The scale of the hyperplane matters: a hyperplane of a trained
    detection model is as confident as that model, and a hyperplane of length 1 is never very confident.

    In a feature map, each place (each window of the embedding's kernel size) has its own distance. The score
    is their mean, weighted with the probability of the concept at the place in the original image. The loss
    is weighted in the same way.

    Attributes:
        embedding: the hyperplane, a `ConceptEmbedding`.
        layer: layer in whose output it lies; by default the embedding's `layer_id`, or the model's output if
            that is None.
        data_format: where the channels of that output are; needed only if the shape does not tell.

    Raises:
        InputError: the embedding does not fit the output (raised when the target is used).

    Example:
        >>> from iba_core.concepts import ConceptEmbedding
        >>> target = ConceptEmbeddingTarget(ConceptEmbedding([3.0, 4.0], bias=-10.0))
        >>> float(target(np.array([2.0, 3.5])))
        10.0
    """

    embedding: Embedding
    layer: Any = None
    data_format: DataFormat | None = None

    def __post_init__(self) -> None:
        if not all(
            hasattr(self.embedding, name) for name in ("normal_vec", "bias", "kernel_size", "layer_id")
        ):
            raise InputError(f"{given('embedding', self.embedding)} must be a ConceptEmbedding")
        require_data_format("data_format", self.data_format, optional=True)
        if self.layer is None:
            object.__setattr__(self, "layer", self.embedding.layer_id)

    def __call__(self, model_output: Array) -> Array:
        """See `ScoredOutput.__call__`. The score is the signed distance."""
        loss, rows = self.resolve(host_array(model_output)[None])
        return _apply((_ConceptScore(loss.layout, loss.window), rows), model_output)

    def resolve(self, outputs: npt.NDArray[Any]) -> tuple[_ConceptLoss, Rows]:
        """See `Target.resolve`. The rows are the normal vector, the bias, and the weights of the places."""
        plane, shape = self.embedding.scale(), outputs.shape[1:]
        window = (plane.kernel_size[0], plane.kernel_size[1])
        layout = self._layout(shape)
        sizes = layout.spatial_shape(shape)
        if window != (1, 1) and (len(sizes) != 2 or window[0] > sizes[0] or window[1] > sizes[1]):
            raise self._misfit(shape)
        images = len(outputs)
        normals = np.broadcast_to(plane.normal_vec.reshape(-1), (images, plane.normal_vec.size))
        biases = np.full(images, plane.bias)
        presence = log_sigmoid(_distances(outputs.astype(np.float64), normals, biases, layout, window))
        axes = tuple(range(1, presence.ndim))
        # Relative to the most probable place, since all probabilities round to 0 if the concept is absent.
        present = np.exp(presence - presence.max(axis=axes, keepdims=True))
        weights = present / present.sum(axis=axes, keepdims=True)
        rows = tuple(array.astype(outputs.dtype) for array in (normals, biases, weights))
        return _ConceptLoss(layout, window), rows

    def _layout(self, shape: tuple[int, ...]) -> Layout:
        normal = self.embedding.normal_vec
        channels = normal.size if normal.ndim < 3 else normal.shape[-3]
        if normal.ndim > 3 and normal.size != np.prod(normal.shape[-3:]):
            raise self._misfit(shape)
        formats: list[DataFormat] = (
            ["channels_first", "channels_last"] if self.data_format is None else [self.data_format]
        )
        if not 1 <= len(shape) <= 4:
            raise self._misfit(shape)
        layouts = {Layout.of(shape, data_format) for data_format in formats}
        fitting = [layout for layout in layouts if shape[layout.channel_axis] == channels]
        if not fitting:
            raise self._misfit(shape)
        if len(fitting) > 1:
            raise InputError(
                f"the {channels} channels of the embedding may be the first or the last axis of an output of "
                f"shape {shape}; give ConceptEmbeddingTarget(embedding, data_format=...)"
            )
        return fitting[0]

    def _misfit(self, shape: tuple[int, ...]) -> InputError:
        return InputError(
            f"the embedding has a normal vector of shape {self.embedding.normal_vec.shape}, which does not "
            f"fit {_source(self.layer)} for an image, of shape {shape}"
        )


def _source(layer: Any) -> str:
    return "the model's output" if layer is None else f"the output of layer {layer!r}"


@dataclass(frozen=True)
class _ConceptLoss:
    layout: Layout
    window: tuple[int, int]

    def __call__(self, outputs: Any, normals: Array, biases: Array, weights: Array) -> Array:
        distances = _distances(main_output(outputs), normals, biases, self.layout, self.window)
        return -_weighted_sum(log_sigmoid(distances), weights)


@dataclass(frozen=True)
class _ConceptScore:
    layout: Layout
    window: tuple[int, int]

    def __call__(self, outputs: Any, normals: Array, biases: Array, weights: Array) -> Array:
        return _weighted_sum(_distances(outputs, normals, biases, self.layout, self.window), weights)


def _weighted_sum(values: Array, weights: Array) -> Array:
    xp = array_namespace(values)
    weighted = values * xp.astype(weights, values.dtype)
    return xp.sum(xp.reshape(weighted, (int(values.shape[0]), -1)), axis=1)


def _distances(
    outputs: Array, normals: Array, biases: Array, layout: Layout, window: tuple[int, int]
) -> Array:
    """Compute the signed distance of every window of a batch of feature maps.

    Args:
        outputs: (N, *feature map).
        normals: (N, C * height * width of the window).
        biases: (N,).
        layout: meaning of the axes of one feature map.
        window: (1, 1) for feature maps without two spatial axes.

    Returns:
        Array (N, *places), with one place for each window that lies in the map.
    """
    xp = array_namespace(outputs)
    order = (*layout.spatial_axes, layout.channel_axis)
    channels_last = xp.permute_dims(outputs, (0, *(axis + 1 for axis in order)))
    shape = (int(normals.shape[0]), *(1 for _ in layout.spatial_axes))
    return signed_distance(
        windows(channels_last, window, NO_PADDING),
        xp.reshape(xp.astype(normals, outputs.dtype), (*shape, -1)),
        xp.reshape(xp.astype(biases, outputs.dtype), shape),
    )


def _apply(resolved: tuple[Loss, Rows], model_output: Array) -> Array:
    """Compute a loss for the output of one image."""
    loss, rows = resolved
    xp = array_namespace(model_output)
    device = array_api_compat.device(model_output)

    def tensor(row: npt.NDArray[Any]) -> Array:
        dtype = None if row.dtype.kind in "iu" else model_output.dtype
        return xp.asarray(row, dtype=dtype, device=device)

    return loss(xp.expand_dims(model_output, axis=0), *map(tensor, rows))[0]


def _negative_similarity(outputs: Any, references: Array) -> Array:
    outputs = main_output(outputs)
    xp = array_namespace(outputs)
    count = int(outputs.shape[0])
    return -cosine_similarity(xp.reshape(outputs, (count, -1)), xp.reshape(references, (count, -1)))


def _negative_difference(outputs: Any, references: Array) -> Array:
    return -1.0 - _negative_similarity(outputs, references)
