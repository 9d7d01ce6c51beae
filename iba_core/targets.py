"""What the network is asked to keep: the losses that a bottleneck preserves, once for all frameworks."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from iba_core.errors import InputError
from iba_core.namespace import Array, array_namespace, log_sum_exp

Loss = Callable[..., Array]
"""``loss(outputs, *rows)``: losses (N,) of a model's outputs for N feature maps. Hashable and pure; `rows`
are tensors with a row for each of the N."""

# The smallest normal number of float32: its logarithm is finite in every precision that can hold it.
_TINY = float(np.finfo(np.float32).tiny)


def cross_entropy(logits: Array, classes: Array) -> Array:
    """Cross-entropy of integer classes, ``log(sum(exp(logits))) - logits[class]``.

    Args:
        logits: (N, K), unnormalised log-probabilities.
        classes: (N,), integers from 0 to K - 1.

    Returns:
        Array (N,), in nats.
    """
    xp = array_namespace(logits)
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
    xp = array_namespace(probabilities)
    floor = xp.zeros_like(probabilities) + _TINY
    return cross_entropy(xp.log(xp.maximum(probabilities, floor)), classes)


def main_output(outputs: Any) -> Any:
    """The array that a model's output is about: ``.logits`` if there is one, or the first entry."""
    if hasattr(outputs, "logits"):
        return outputs.logits
    if isinstance(outputs, Mapping):
        return main_output(next(iter(outputs.values())))
    if isinstance(outputs, (tuple, list)):
        return main_output(outputs[0])
    return outputs


def _class_loss(outputs: Any, classes: Array) -> Array:
    return cross_entropy(main_output(outputs), classes)


def _class_loss_of_probabilities(outputs: Any, classes: Array) -> Array:
    return cross_entropy_of_probabilities(main_output(outputs), classes)


def are_probabilities(outputs: npt.NDArray[Any]) -> bool:
    """Whether every row of `outputs` is a distribution: not negative, and summing to 1 within 1e-3."""
    return bool(np.all(outputs >= 0) and np.allclose(outputs.sum(axis=-1), 1.0, atol=1e-3))


def class_probabilities(outputs: npt.NDArray[Any]) -> npt.NDArray[np.floating]:
    """Probabilities (B, K) of a classifier's outputs, be they logits or probabilities already."""
    if are_probabilities(outputs):
        return outputs
    exponentials = np.exp(outputs - outputs.max(axis=-1, keepdims=True))
    probabilities: npt.NDArray[np.floating] = exponentials / exponentials.sum(axis=-1, keepdims=True)
    return probabilities


class Target(ABC):
    """What is to be kept of the model's output, for a batch of images."""

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
            outputs: the model's main output for the B unrestricted images.

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

    def select(self, start: int, stop: int, images: int) -> Target:
        """See `Target.select`."""
        if self.classes is None or not np.ndim(self.classes):
            return self
        classes = np.asarray(self.classes)
        if classes.shape != (images,):
            raise InputError(
                f"target has shape {classes.shape} for {images} images; give one class, or one for each image"
            )
        return ClassTarget(classes[start:stop])

    def resolve(self, outputs: npt.NDArray[Any]) -> tuple[Loss, tuple[npt.NDArray[Any], ...]]:
        """See `Target.resolve`; the row of an image is the index of its class."""
        if outputs.ndim != 2:
            raise InputError(
                f"target={self.classes!r} is a class, but the model's output has shape {outputs.shape}, "
                "not (images, classes); give a callable on the output instead"
            )
        images, count = outputs.shape
        classes = np.argmax(outputs, axis=1) if self.classes is None else np.asarray(self.classes)
        if not np.issubdtype(classes.dtype, np.integer):
            raise InputError(f"target={self.classes!r} must be a whole number, or one for each image")
        outside = np.atleast_1d(classes)[(np.atleast_1d(classes) < 0) | (np.atleast_1d(classes) >= count)]
        if outside.size:
            raise InputError(f"target={outside[0]} is outside the model's {count} classes, 0 to {count - 1}")
        loss = _class_loss_of_probabilities if are_probabilities(outputs) else _class_loss
        return loss, (np.broadcast_to(classes, (images,)).astype(np.int64),)


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


def as_target(target: Any) -> Target:
    """`Target` for what a user may give: one, None, an index, one index per image, or a callable score.

    Raises:
        InputError: it is none of these.
    """
    if isinstance(target, Target):
        return target
    if callable(target):
        return ScoreTarget(target)
    if target is None:
        return ClassTarget()
    try:
        return ClassTarget(np.asarray(target))
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(
            f"target of type {type(target).__name__} is neither a class, nor one per image, nor a callable"
        ) from error
