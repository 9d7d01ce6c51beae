"""What the network is asked to keep: the losses that a bottleneck preserves, once for all frameworks."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from iba_core.errors import InputError
from iba_core.framework.layout import DataFormat, Layout
from iba_core.framework.namespace import (
    Array,
    array_namespace,
    floored_log,
    full_precision,
    host_array,
    log_sum_exp,
    softmax,
)

Loss = Callable[..., Array]
"""``loss(outputs, *rows)``: losses (N,) of a model's outputs for N feature maps. Hashable and pure; `rows`
are tensors with a row for each of the N."""


def cross_entropy(logits: Array, classes: Array) -> Array:
    """Cross-entropy of integer classes, ``log(sum(exp(logits))) - logits[class]``.

    Args:
        logits: (..., K), unnormalised log-probabilities; half precision is widened to float32.
        classes: (...), integers from 0 to K - 1.

    Returns:
        Array (...), in nats.
    """
    xp, logits = array_namespace(logits), full_precision(logits)
    index = xp.expand_dims(xp.astype(classes, xp.int64), axis=-1)
    chosen = xp.squeeze(xp.take_along_axis(logits, index, axis=-1), axis=-1)
    return log_sum_exp(logits) - chosen


def cross_entropy_of_probabilities(probabilities: Array, classes: Array) -> Array:
    """Cross-entropy where the model ends in a softmax: the logarithms of its outputs are logits.

    Args:
        probabilities: (N, K), each row sums to 1. A probability of 0 counts as the smallest normal
            number of float32.
        classes: (N,), integers from 0 to K - 1.

    Returns:
        Array (N,), in nats.
    """
    return cross_entropy(floored_log(full_precision(probabilities)), classes)


def distribution_cross_entropy(logits: Array, probabilities: Array) -> Array:
    """Cross-entropy with a distribution over the classes, ``log(sum(exp(logits))) - sum(p * logits)``.

    It is least where the softmax of the logits is the distribution, and its entropy there.

    Args:
        logits: (..., K), unnormalised log-probabilities; half precision is widened to float32.
        probabilities: (..., K), summing to 1 along the last axis.

    Returns:
        Array (...), in nats.
    """
    xp, logits = array_namespace(logits), full_precision(logits)
    return log_sum_exp(logits) - xp.sum(xp.astype(probabilities, logits.dtype) * logits, axis=-1)


def main_output(outputs: Any) -> Any:
    """The array that a model's output is about: ``.logits`` if there is one, or the first entry.

    Outputs of half precision come in float32, so that no loss is computed in less.
    """
    if hasattr(outputs, "logits"):
        return main_output(outputs.logits)
    if isinstance(outputs, Mapping):
        return main_output(next(iter(outputs.values())))
    if isinstance(outputs, (tuple, list)):
        return main_output(outputs[0])
    return full_precision(outputs)


def _class_loss(outputs: Any, classes: Array) -> Array:
    return cross_entropy(main_output(outputs), classes)


def _distribution_loss(outputs: Any, probabilities: Array) -> Array:
    return distribution_cross_entropy(main_output(outputs), probabilities)


def _distribution_loss_of_probabilities(outputs: Any, probabilities: Array) -> Array:
    return distribution_cross_entropy(floored_log(main_output(outputs)), probabilities)


def _negative_output(outputs: Any, index: Array) -> Array:
    outputs = main_output(outputs)
    xp = array_namespace(outputs)
    chosen = xp.take_along_axis(outputs, xp.expand_dims(xp.astype(index, xp.int64), axis=-1), axis=-1)
    return -xp.squeeze(chosen, axis=-1)


def _squared_difference(outputs: Any, values: Array) -> Array:
    outputs = main_output(outputs)
    xp = array_namespace(outputs)
    squares = xp.square(outputs - xp.astype(values, outputs.dtype))
    return xp.mean(xp.reshape(squares, (int(outputs.shape[0]), -1)), axis=1)


def _region_loss_last(outputs: Any, classes: Array, weights: Array) -> Array:
    outputs = main_output(outputs)
    xp = array_namespace(outputs)
    losses = cross_entropy(outputs, classes) * xp.astype(weights, outputs.dtype)
    return xp.sum(losses, axis=(1, 2))


def _region_loss_first(outputs: Any, classes: Array, weights: Array) -> Array:
    outputs = main_output(outputs)
    return _region_loss_last(array_namespace(outputs).permute_dims(outputs, (0, 2, 3, 1)), classes, weights)


def _class_loss_of_probabilities(outputs: Any, classes: Array) -> Array:
    return cross_entropy_of_probabilities(main_output(outputs), classes)


def are_probabilities(outputs: npt.NDArray[Any]) -> bool:
    """Whether every row of `outputs` is a distribution: not negative, and summing to 1 within 1e-3."""
    return bool(np.all(outputs >= 0) and np.allclose(outputs.sum(axis=-1), 1.0, atol=1e-3))


def class_probabilities(outputs: npt.NDArray[Any]) -> npt.NDArray[np.floating]:
    """Probabilities (B, K) of a classifier's outputs, be they logits or probabilities already."""
    if are_probabilities(outputs):
        return outputs
    probabilities: npt.NDArray[np.floating] = softmax(outputs)
    return probabilities


class Target(ABC):
    """What is to be kept of the model's output, or of a layer's, for a batch of images.

    Attributes:
        layer: the layer whose output stands in for the model's, an object or its name; None for the model.
    """

    layer: Any = None

    def select(self, start: int, stop: int, images: int) -> Target:
        """The target of the images `start` to `stop` of a batch of `images`.

        Raises:
            InputError: the target is for another number of images.
        """
        return self

    @abstractmethod
    def resolve(self, outputs: npt.NDArray[Any]) -> tuple[Loss, tuple[npt.NDArray[Any], ...]]:
        """Loss, and its data per image, for images on which the model answers `outputs`.

        Args:
            outputs: the model's main output, or the layer's, for the B unrestricted images.

        Returns:
            A loss, and arrays with B rows that it takes after the outputs. Equal losses share a compiled
            step, so what differs between images belongs into the arrays.

        Raises:
            InputError: the target does not fit the outputs.
        """


@dataclass(frozen=True)
class ClassTarget(Target):
    """The class of a classifier, through its cross-entropy. The default of `Explainer.explain`.

    Attributes:
        classes: index of the class, one for all images or one each; None for the class predicted.

    Outputs that are probabilities already are recognised and not put through a softmax again.
    """

    classes: npt.ArrayLike | None = None

    least_outputs: ClassVar[int] = 2
    """Of fewer there is nothing to choose from."""

    def select(self, start: int, stop: int, images: int) -> Target:
        """See `Target.select`."""
        if self.classes is None or not np.ndim(self.classes):
            return self
        classes = np.asarray(self.classes)
        if classes.shape != (images,):
            raise InputError(
                f"target has shape {classes.shape} for {images} images; give one class, or one for each image"
            )
        return replace(self, classes=classes[start:stop])

    def resolve(self, outputs: npt.NDArray[Any]) -> tuple[Loss, tuple[npt.NDArray[Any], ...]]:
        """See `Target.resolve`; the row of an image is the index of its class."""
        loss = _class_loss_of_probabilities if are_probabilities(outputs) else _class_loss
        return loss, (self.resolve_classes(outputs),)

    def resolve_classes(self, outputs: npt.NDArray[Any]) -> npt.NDArray[np.int64]:
        """Indices of the classes, (B,), checked against the model's outputs."""
        if outputs.ndim != 2:
            raise InputError(
                f"target={self.classes!r} is a class, but the model's output has shape {outputs.shape}, "
                "not (images, classes); give a callable on the output instead"
            )
        images, count = outputs.shape
        if count < self.least_outputs:
            raise InputError(
                "the model has one output, whose cross-entropy is constant; give LogitTarget(0) to keep it "
                "high, or a callable on the output"
            )
        classes = np.argmax(outputs, axis=1) if self.classes is None else np.asarray(self.classes)
        if not np.issubdtype(classes.dtype, np.integer):
            raise InputError(f"target={classes.tolist()!r} must be a whole number, or one for each image")
        outside = np.atleast_1d(classes)[(np.atleast_1d(classes) < 0) | (np.atleast_1d(classes) >= count)]
        if outside.size:
            raise InputError(f"target={outside[0]} is outside the model's {count} classes, 0 to {count - 1}")
        return np.broadcast_to(classes, (images,)).astype(np.int64)


@dataclass(frozen=True)
class LogitTarget(ClassTarget):
    """One output as it is, such as the raw logit of a class or one of several regression outputs.

    Attributes:
        classes: index of the output, one for all images or one each; None for the largest.

    The loss is minus the output: unlike with `ClassTarget`, what the other outputs do is left open.
    """

    least_outputs: ClassVar[int] = 1

    def resolve(self, outputs: npt.NDArray[Any]) -> tuple[Loss, tuple[npt.NDArray[Any], ...]]:
        """See `Target.resolve`; the row of an image is the index of its output."""
        return _negative_output, (self.resolve_classes(outputs),)


@dataclass(frozen=True)
class DistributionTarget(Target):
    """All classes of a classifier at once: the distribution that it predicts for the unrestricted image.

    The loss is the cross-entropy with that distribution. Outputs that are probabilities already are
    recognised and not put through a softmax again.
    """

    def resolve(self, outputs: npt.NDArray[Any]) -> tuple[Loss, tuple[npt.NDArray[Any], ...]]:
        """See `Target.resolve`; the row of an image is its distribution."""
        if outputs.ndim != 2 or outputs.shape[1] < ClassTarget.least_outputs:
            raise InputError(
                f"a distribution over classes is to be kept, but the model's output has shape "
                f"{outputs.shape}, not (images, classes)"
            )
        loss = _distribution_loss_of_probabilities if are_probabilities(outputs) else _distribution_loss
        return loss, (class_probabilities(outputs),)


@dataclass(frozen=True, eq=False)
class RegressionTarget(Target):
    """Values that the outputs are to keep, by the mean of the squared differences.

    Attributes:
        values: of the shape of one image's output, or of a batch of them; None for what the model
            answers for the unrestricted image.
    """

    values: npt.ArrayLike | None = None
    images: slice = field(default_factory=lambda: slice(None))
    """Which images of the batch it is for."""

    def select(self, start: int, stop: int, images: int) -> Target:
        """See `Target.select`."""
        return replace(self, images=slice(start, stop))

    def resolve(self, outputs: npt.NDArray[Any]) -> tuple[Loss, tuple[npt.NDArray[Any], ...]]:
        """See `Target.resolve`; the row of an image are the values for it."""
        if self.values is None:
            return _squared_difference, (outputs,)
        values = host_array(self.values)
        if values.ndim == outputs.ndim:
            values = values[self.images]
        if values.shape not in (outputs.shape, outputs.shape[1:]):
            raise InputError(
                f"values have shape {values.shape}; the model's output for these images has {outputs.shape}"
            )
        return _squared_difference, (np.broadcast_to(values, outputs.shape).astype(outputs.dtype),)


@dataclass(frozen=True, eq=False)
class SegmentationTarget(Target):
    """A class within a region of a segmentation, by the mean cross-entropy over the region's pixels.

    Attributes:
        index: the class.
        mask: region, (H, W) of the model's output, true inside.
        data_format: where the classes are in the model's output, (B, K, H, W) or (B, H, W, K).
    """

    index: int
    mask: npt.ArrayLike
    data_format: DataFormat = "channels_first"

    def resolve(self, outputs: npt.NDArray[Any]) -> tuple[Loss, tuple[npt.NDArray[Any], ...]]:
        """See `Target.resolve`; the rows are class and weights of each pixel."""
        mask = host_array(self.mask).astype(bool)
        if outputs.ndim != 4:
            raise InputError(f"a segmentation was expected, but the model's output has shape {outputs.shape}")
        layout = Layout.of(outputs.shape[1:], self.data_format)
        count, size = outputs.shape[layout.channel_axis + 1], layout.spatial_shape(outputs.shape[1:])
        if mask.shape != size or not mask.any():
            raise InputError(
                f"mask has shape {mask.shape} and {mask.sum()} pixels set; it must have the shape {size} of "
                "the model's output, and at least one"
            )
        if not 0 <= self.index < count:
            raise InputError(f"index={self.index} is outside the model's {count} classes, 0 to {count - 1}")
        weights = np.broadcast_to(mask / mask.sum(), (len(outputs), *size)).astype(outputs.dtype)
        classes = np.full((len(outputs), *size), self.index, np.int64)
        return (_region_loss_first if self.data_format == "channels_first" else _region_loss_last), (
            classes,
            weights,
        )


@dataclass(frozen=True)
class ScoreTarget(Target):
    """A score of the output that is to stay high.

    Attributes:
        score: maps what the model returns for N feature maps to N scores, differentiably, with the
            functions of the model's framework.
    """

    score: Callable[[Any], Array]

    def __call__(self, outputs: Any) -> Array:
        """The loss: minus the score."""
        return -self.score(outputs)

    def resolve(self, outputs: npt.NDArray[Any]) -> tuple[Loss, tuple[npt.NDArray[Any], ...]]:
        """See `Target.resolve`; there is no data per image."""
        return self, ()


@dataclass(frozen=True)
class SumTarget(Target):
    """Several targets at once: the weighted sum of their losses.

    Attributes:
        targets: anything that `as_target` takes, each.
        weights: a factor for each; 1 if None.
    """

    targets: tuple[Any, ...]
    weights: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        if not self.targets or (self.weights is not None and len(self.weights) != len(self.targets)):
            raise InputError(
                f"{len(self.targets)} targets and weights={self.weights}; give targets, and a weight for each"
            )
        object.__setattr__(self, "layer", common_layer(as_target(target).layer for target in self.targets))

    def select(self, start: int, stop: int, images: int) -> Target:
        """See `Target.select`."""
        parts = tuple(as_target(target).select(start, stop, images) for target in self.targets)
        return SumTarget(parts, self.weights)

    def resolve(self, outputs: npt.NDArray[Any]) -> tuple[Loss, tuple[npt.NDArray[Any], ...]]:
        """See `Target.resolve`; the rows are those of the targets, one after the other."""
        losses, rows = zip(*(as_target(target).resolve(outputs) for target in self.targets), strict=True)
        weights = self.weights or (1.0,) * len(losses)
        loss = _WeightedSum(losses, tuple(map(len, rows)), weights)
        return loss, tuple(array for arrays in rows for array in arrays)


@dataclass(frozen=True)
class _WeightedSum:
    losses: tuple[Loss, ...]
    counts: tuple[int, ...]
    weights: tuple[float, ...]

    def __call__(self, outputs: Any, *rows: Array) -> Array:
        total: Array = 0.0
        for loss, count, weight in zip(self.losses, self.counts, self.weights, strict=True):
            total = total + weight * loss(outputs, *rows[:count])
            rows = rows[count:]
        return total


def common_layer(layers: Iterable[Any]) -> Any:
    """The one layer that several targets are about, None for the model's output.

    Raises:
        InputError: they are about different layers.
    """
    different: list[Any] = []
    for layer in layers:
        if layer not in different:
            different.append(layer)
    if len(different) > 1:
        raise InputError(f"the targets are about different layers, {different} (None is the model's output)")
    return different[0]


def as_target(target: Any) -> Target:
    """`Target` for what a user may give.

    Args:
        target: a target, None, an index, one index per image, a callable score, or a `ConceptEmbedding`.

    Raises:
        InputError: it is none of these.
    """
    # These import this module in their turn.
    from iba_core.concepts.embedding import ConceptEmbedding
    from iba_core.concepts.targets import ConceptEmbeddingTarget

    if isinstance(target, Target):
        return target
    if isinstance(target, ConceptEmbedding):
        return ConceptEmbeddingTarget(target)
    if callable(target):
        return ScoreTarget(target)
    if target is None:
        return ClassTarget()
    try:
        return ClassTarget(host_array(target))
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(
            f"target of type {type(target).__name__} is neither a class, nor one per image, nor a callable"
        ) from error
