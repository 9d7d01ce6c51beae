"""Targets: what the network is asked to keep, as the losses that a bottleneck keeps low."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal, Protocol, Self, runtime_checkable

import numpy as np
import numpy.typing as npt
from scipy.special import expit

from iba_core.arguments import (
    given,
    require_callable,
    require_choice,
    require_data_format,
    require_numbers,
    require_sequence,
    require_type,
    require_whole,
)
from iba_core.errors import InputError
from iba_core.framework.arrays import as_array, require_array, require_mask
from iba_core.framework.comparison import all_close
from iba_core.framework.inputs import arrays_of
from iba_core.framework.layout import DataFormat, Layout
from iba_core.framework.namespace import (
    Array,
    array_namespace,
    floored_log,
    full_precision,
    log_sum_exp,
    softmax,
)

Loss = Callable[..., Array]
"""``loss(outputs, *rows)``: losses (N,) of a model's outputs for N feature maps, in nats. `rows` are tensors
with a row for each of the N. The function is hashable and depends on its arguments alone."""


OutputKind = Literal["softmax", "sigmoid", "sigmoid_logits", "logits"]
"""What the outputs of a classifier are, see `kind_of_outputs`."""


def cross_entropy(logits: Array, classes: Array) -> Array:
    """Compute the cross-entropy of integer classes, ``log(sum(exp(logits))) - logits[class]``.

    Args:
        logits: (..., K), unnormalised log-probabilities; half precision becomes float32.
        classes: (...), integers from 0 to K - 1.

    Returns:
        Array (...), in nats.

    Example:
        >>> cross_entropy(np.array([[0.0, np.log(3.0)]]), np.array([0])).round(4)  # log(4)
        array([1.3863])
    """
    chosen = _chosen(logits, classes)
    return log_sum_exp(full_precision(logits)) - full_precision(chosen)


def cross_entropy_of_probabilities(probabilities: Array, classes: Array) -> Array:
    """Compute the cross-entropy of a model that ends in a softmax, with the logarithms of its outputs.

    Args:
        probabilities: (N, K), each row sums to 1. A probability of 0 counts as the smallest normal number of
            float32.
        classes: (N,), integers from 0 to K - 1.

    Returns:
        Array (N,), in nats.

    Example:
        >>> cross_entropy_of_probabilities(np.array([[0.25, 0.75]]), np.array([0])).round(4)  # log(4)
        array([1.3863])
    """
    return cross_entropy(floored_log(full_precision(probabilities)), classes)


def distribution_cross_entropy(logits: Array, probabilities: Array) -> Array:
    """Compute the cross-entropy with a distribution, ``log(sum(exp(logits))) - sum(p * logits)``.

    Its minimum is the entropy of the distribution, where the softmax of the logits is the distribution.

    Args:
        logits: (..., K), unnormalised log-probabilities; half precision becomes float32.
        probabilities: (..., K), summing to 1 along the last axis.

    Returns:
        Array (...), in nats.

    Example:
        >>> distribution_cross_entropy(np.zeros((1, 2)), np.array([[0.5, 0.5]])).round(4)  # log(2)
        array([0.6931])
    """
    xp, logits = array_namespace(logits), full_precision(logits)
    return log_sum_exp(logits) - xp.sum(xp.astype(probabilities, logits.dtype) * logits, axis=-1)


def main_output(outputs: Any, output: int | str | None = None) -> Any:
    """Find the array of a model's output that a target is about.

    Of several outputs it is the one called ``logits``, as attribute or key. Otherwise it is the only array of
    a mapping, or its only floating-point array with two axes. Of a tuple or list, it is the first entry.
    Entries that are None do not count. Outputs in half precision become float32, so that losses are computed
    in at least that.

    Args:
        outputs: what the model returns: an array, or a mapping, tuple, list or object of arrays.
        output: name or number of the output to use.

    Raises:
        InputError: there is no such output, or it is not clear which one is meant.

    Example:
        >>> main_output({"scores": [np.array([1.0, 2.0]), None]})
        array([1., 2.])
        >>> main_output({"hidden": np.zeros((1, 3, 2)), "scores": np.ones((1, 2))})
        array([[1., 1.]])
    """
    return full_precision(_main_array(outputs, output))


def _main_array(outputs: Any, output: int | str | None) -> Any:
    if output is not None:
        return _main_array(_entry(outputs, output), None)
    if hasattr(outputs, "logits"):
        return _main_array(outputs.logits, None)
    if isinstance(outputs, Mapping):
        return _main_array(_main_entry({key: x for key, x in outputs.items() if x is not None}), None)
    if isinstance(outputs, (tuple, list)):
        return _main_array(next((x for x in outputs if x is not None), None), None)
    if not hasattr(outputs, "shape"):
        raise InputError(
            f"the model returns {type(outputs).__name__}, in which no array is found; name one with output="
        )
    return outputs


def main_index(outputs: Any, output: int | str | None = None) -> int:
    """Number of the main output among the arrays of a model's output, in the order of `arrays_of`.

    Example:
        >>> main_index({"hidden": np.zeros((1, 3, 2)), "logits": np.ones((1, 2))})
        1
    """
    main = _main_array(outputs, output)
    return next((i for i, array in enumerate(arrays_of(outputs)) if array is main), 0)


def _main_entry(entries: dict[Any, Any]) -> Any:
    if "logits" in entries:
        return entries["logits"]
    if len(entries) == 1:
        return next(iter(entries.values()))
    flat = [
        x for x in entries.values() if hasattr(x, "shape") and len(x.shape) == 2 and "float" in str(x.dtype)
    ]
    if len(flat) != 1:
        raise InputError(f"the model has the outputs {list(entries)}; say which one is meant with output=")
    return flat[0]


def _entry(outputs: Any, output: int | str) -> Any:
    try:
        if isinstance(output, str) and not isinstance(outputs, Mapping):
            return getattr(outputs, output)
        if isinstance(output, int) and isinstance(outputs, Mapping):
            return list(outputs.values())[output]
        return outputs[output]
    except (AttributeError, IndexError, KeyError, TypeError):
        names = list(outputs) if isinstance(outputs, Mapping) else type(outputs).__name__
        raise InputError(f"output={output!r} is not among the model's outputs: {names}") from None


def first_output(outputs: Any, output: int | str | None = None) -> Any:
    """`main_output`, or the first array where it is not clear which one is meant.

    It is for targets that look at all outputs themselves.

    Example:
        >>> first_output({"a": np.zeros((1, 2)), "b": np.ones((1, 2))})
        array([[0., 0.]])
    """
    try:
        return main_output(outputs, output)
    except InputError:
        if output is not None or (first := next(arrays_of(outputs), None)) is None:
            raise
        return full_precision(first)


@dataclass(frozen=True)
class OfOutput:
    """A loss of one of several outputs.

    Attributes:
        loss: the loss; it gets that output alone.
        output: name or number of the output.

    Example:
        >>> loss = OfOutput(lambda outputs: outputs.sum(axis=1), "scores")
        >>> loss({"scores": np.ones((1, 2)), "hidden": np.zeros((1, 5))})
        array([2.])
    """

    loss: Any
    output: int | str

    def __call__(self, outputs: Any, *rows: Array) -> Array:
        """Compute the loss."""
        return self.loss(main_output(outputs, self.output), *rows)


def _class_loss(outputs: Any, classes: Array) -> Array:
    return cross_entropy(main_output(outputs), classes)


def _distribution_loss(outputs: Any, probabilities: Array) -> Array:
    return distribution_cross_entropy(main_output(outputs), probabilities)


def _distribution_loss_of_probabilities(outputs: Any, probabilities: Array) -> Array:
    return distribution_cross_entropy(floored_log(main_output(outputs)), probabilities)


def _chosen(outputs: Array, index: Array) -> Array:
    """One entry along the last axis of each row, (...)."""
    xp = array_namespace(outputs)
    chosen = xp.take_along_axis(outputs, xp.expand_dims(xp.astype(index, xp.int64), axis=-1), axis=-1)
    return xp.squeeze(chosen, axis=-1)


def _negative_output(outputs: Any, index: Array) -> Array:
    return -_chosen(main_output(outputs), index)


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


def binary_cross_entropy(probabilities: Array, classes: Array) -> Array:
    """Compute minus the logarithm of one of several probabilities that do not sum to 1.

    A model that ends in a sigmoid gives them: each class by itself is there or not. One output stands for two
    classes, absent (0) and present (1).

    Args:
        probabilities: (N, K), in [0, 1]. A probability of 0 counts as the smallest normal number of float32.
        classes: (N,), integers from 0 to K - 1; 0 or 1 if K is 1.

    Returns:
        Array (N,), in nats.

    Example:
        >>> binary_cross_entropy(np.array([[0.5, 0.9]]), np.array([0])).round(4)  # log(2)
        array([0.6931])
        >>> binary_cross_entropy(np.array([[0.25]]), np.array([0])).round(4)  # -log(1 - 0.25)
        array([0.2877])
    """
    return -floored_log(_chosen(both_classes(full_precision(probabilities)), classes))


def both_classes(probabilities: Array) -> Array:
    """Give a single probability (N, 1) beside that of its absence, (N, 2); return others as they are.

    Example:
        >>> both_classes(np.array([[0.25]]))
        array([[0.75, 0.25]])
    """
    if int(probabilities.shape[-1]) > 1:
        return probabilities
    xp = array_namespace(probabilities)
    return xp.concat([1.0 - probabilities, probabilities], axis=-1)


def binary_cross_entropy_of_logits(logits: Array, classes: Array) -> Array:
    """Compute `binary_cross_entropy` from the arguments of the sigmoids; exact also where these are 0 or 1.

    Args:
        logits: (N, K), of one class each; half precision becomes float32. One of them stands for two classes.
        classes: (N,), integers from 0 to K - 1; 0 or 1 if K is 1.

    Returns:
        Array (N,), in nats.

    Example:
        >>> binary_cross_entropy_of_logits(np.array([[0.0]]), np.array([1])).round(4)  # log(2)
        array([0.6931])
    """
    xp, logits = array_namespace(logits), full_precision(logits)
    # The probability of a class is that of a softmax of its logit beside 0.
    wanted = logits if int(logits.shape[-1]) > 1 else xp.concat([-logits, logits], axis=-1)
    chosen = _chosen(wanted, classes)
    return log_sum_exp(xp.stack([xp.zeros_like(chosen), chosen], axis=-1)) - chosen


def _sigmoid_logits_loss(outputs: Any, classes: Array) -> Array:
    return binary_cross_entropy_of_logits(main_output(outputs), classes)


def _sigmoid_loss(outputs: Any, classes: Array) -> Array:
    return binary_cross_entropy(main_output(outputs), classes)


def _every_sigmoid_logits_loss(outputs: Any, probabilities: Array) -> Array:
    found = main_output(outputs)
    xp = array_namespace(found)
    pairs = xp.stack([xp.zeros_like(found), found], axis=-1)
    return xp.sum(log_sum_exp(pairs) - xp.astype(probabilities, found.dtype) * found, axis=-1)


def _every_sigmoid_loss(outputs: Any, probabilities: Array) -> Array:
    found = main_output(outputs)
    xp = array_namespace(found)
    wanted = xp.astype(probabilities, found.dtype)
    terms = wanted * floored_log(found) + (1.0 - wanted) * floored_log(1.0 - found)
    return -xp.sum(terms, axis=-1)


_CLASS_LOSSES: dict[OutputKind, Loss] = {
    "logits": _class_loss,
    "softmax": _class_loss_of_probabilities,
    "sigmoid": _sigmoid_loss,
    "sigmoid_logits": _sigmoid_logits_loss,
}
_DISTRIBUTION_LOSSES: dict[OutputKind, Loss] = {
    "logits": _distribution_loss,
    "softmax": _distribution_loss_of_probabilities,
    "sigmoid": _every_sigmoid_loss,
    "sigmoid_logits": _every_sigmoid_logits_loss,
}


_ACTIVATIONS = ("softmax", "sigmoid", "sigmoid_logits", "other", "unknown")


def _check_activation(activation: str | None) -> None:
    if activation is not None and not (isinstance(activation, str) and activation in _ACTIVATIONS):
        require_choice("activation", activation, _ACTIVATIONS)


def are_probabilities(outputs: npt.NDArray[Any]) -> bool:
    """Whether every row of `outputs` is a distribution: not negative, and with a sum of 1 within 1e-3.

    Example:
        >>> are_probabilities(np.array([[0.2, 0.8]])), are_probabilities(np.array([[0.2, 3.0]]))
        (True, False)
    """
    return bool(np.all(outputs >= 0) and all_close(outputs.sum(axis=-1), 1.0, atol=1e-3))


def kind_of_outputs(outputs: npt.NDArray[Any], activation: str | None = None) -> OutputKind:
    """Tell what the outputs of a classifier are.

    Args:
        outputs: (B, K).
        activation: the function that they are computed by: ``"softmax"``, ``"sigmoid"`` or ``"other"``;
            ``"sigmoid_logits"`` if a sigmoid is still to be applied, as by a loss that takes logits;
            ``"unknown"`` if the model does not tell; None if nobody has asked it.

    Returns:
        ``"softmax"`` for probabilities that sum to 1, ``"sigmoid"`` for one probability for each class,
        ``"sigmoid_logits"`` for their logits, and ``"logits"`` for anything else.

    Raises:
        InputError: the activation is unknown, and the outputs could be probabilities or not.

    Example:
        >>> kind_of_outputs(np.array([[0.2, 0.8]])), kind_of_outputs(np.array([[0.2, 3.0]]))
        ('softmax', 'logits')
        >>> kind_of_outputs(np.array([[0.2, 0.9]]), "sigmoid")
        'sigmoid'
    """
    if activation == "sigmoid_logits":
        return "sigmoid_logits"
    if outputs.size and not (np.min(outputs) >= 0 and np.max(outputs) <= 1):
        return "logits"
    if activation == "sigmoid":
        return "sigmoid"
    if outputs.shape[-1] > 1 and are_probabilities(outputs):
        return "softmax"
    if activation == "unknown":
        raise InputError(
            "the model's outputs lie between 0 and 1 and do not sum to 1, so they could be probabilities or "
            "not; say which with ClassTarget(..., activation='sigmoid') or activation='other'"
        )
    return "logits"


def class_probabilities(outputs: npt.NDArray[Any], activation: str | None = None) -> npt.NDArray[np.floating]:
    """Convert the outputs (B, K) of a classifier to probabilities.

    Args:
        outputs: see `kind_of_outputs`.
        activation: likewise.

    Returns:
        Array (B, K). A single probability, of a sigmoid, stands beside that of its absence, (B, 2).

    Example:
        >>> class_probabilities(np.array([[0.0, np.log(3.0)]]))
        array([[0.25, 0.75]])
    """
    kind = kind_of_outputs(outputs, activation)
    if kind in ("sigmoid", "sigmoid_logits"):
        return np.asarray(both_classes(outputs if kind == "sigmoid" else expit(outputs)))
    found: npt.NDArray[np.floating] = softmax(outputs) if kind == "logits" else outputs
    return found


class Target(ABC):
    """What to keep of the output of a model, or of a layer, for a batch of images.

    Attributes:
        layer: layer whose output to use, an object or its name; None for the model's output.

    Example:
        A target that keeps the sum of the outputs low:

        >>> class SmallSum(Target):
        ...     def resolve(self, outputs):
        ...         return (lambda outputs: outputs.sum(axis=1)), ()
        >>> loss, rows = SmallSum().resolve(np.ones((2, 3)))
        >>> loss(np.ones((2, 3)), *rows)
        array([3., 3.])
    """

    layer: Any = None

    needs_main_output: ClassVar[bool] = True
    """Whether it must be clear which of several outputs is meant."""

    log_likelihood: ClassVar[bool] = False
    """Whether the loss is minus the logarithm of a probability. What survives of the target is then a share
    of that probability, and otherwise a share of the score (minus the loss) above its baseline."""

    def ending_in(self, activation: str) -> Target:
        """Return the target for a model whose output ends in a function, see `kind_of_outputs`."""
        return self

    def select(self, start: int, stop: int, images: int) -> Target:
        """Return the target for the images `start` to `stop` of a batch of `images`.

        Raises:
            InputError: the target is for another number of images.
        """
        return self

    @abstractmethod
    def resolve(self, outputs: npt.NDArray[Any]) -> tuple[Loss, tuple[npt.NDArray[Any], ...]]:
        """Give the loss, and its data for each image.

        Args:
            outputs: main output of the model, or of the layer, for the B unrestricted images.

        Returns:
            A loss, and arrays with B rows that it takes after the outputs. Equal losses share a compiled
            step, so put into the arrays all that differs between images.

        Raises:
            InputError: the target does not fit the outputs.
        """


@runtime_checkable
class HasTarget(Protocol):
    """An object that can be used as a target, such as a `ConceptEmbedding`."""

    def as_target(self) -> Target:
        """Return the target."""


@dataclass(frozen=True)
class ClassTarget(Target):
    """A class of a classifier, with the cross-entropy as loss. The default of `Explainer.explain`.

    Outputs that are probabilities are recognised; no second softmax is applied to them. Those of a sigmoid
    need not sum to 1: there the loss is ``-log(p)`` of the class. A single sigmoid is a classifier of two
    classes, 0 and 1, whose probability it gives for class 1.

    A model that leaves the sigmoid to its loss, such as `torch.nn.BCEWithLogitsLoss`, gives logits that say
    nothing of that. There, ``activation="sigmoid_logits"`` applies it.

    Attributes:
        classes: index of the class, one for all images or one for each; None for the predicted class.
        activation: function that the outputs are computed by, ``"softmax"``, ``"sigmoid"`` or ``"other"``;
            ``"sigmoid_logits"`` if they are the logits of sigmoids; None to learn it from the model.

    Example:
        >>> loss, rows = ClassTarget(1).resolve(np.array([[0.25, 0.75]]))
        >>> loss(np.array([[0.25, 0.75]]), *rows).round(4)  # -log(0.75)
        array([0.2877])
    """

    classes: npt.ArrayLike | None = None
    activation: str | None = None

    least_outputs: ClassVar[int] = 2
    """Smallest number of outputs that the target can be used for."""

    log_likelihood: ClassVar[bool] = True

    def __post_init__(self) -> None:
        _check_activation(self.activation)
        if self.classes is not None and type(self.classes) is not int:
            classes = as_array("target", self.classes)
            if classes.dtype.kind not in "iu" or classes.ndim > 1 or not classes.size:
                raise InputError(
                    f"{given('target', self.classes)} must be a class (a whole number), or one for each image"
                )
            object.__setattr__(self, "classes", classes)

    def ending_in(self, activation: str) -> Self:
        """See `Target.ending_in`."""
        return replace(self, activation=activation) if self.activation is None else self

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
        """See `Target.resolve`. The row of an image is the index of its class."""
        classes = self.resolve_classes(outputs)
        return _CLASS_LOSSES[kind_of_outputs(outputs, self.activation)], (classes,)

    def resolve_classes(self, outputs: npt.NDArray[Any]) -> npt.NDArray[np.int64]:
        """Return the indices (B,) of the classes, checked against the outputs.

        Raises:
            InputError: the indices do not fit the outputs.
        """
        if outputs.ndim != 2:
            raise InputError(
                f"target={self.classes!r} is a class, but the model's output has shape {outputs.shape}, "
                "not (images, classes); give a function of the output, such as the score of a box, or a "
                "SegmentationTarget"
            )
        if self.activation in ("sigmoid", "sigmoid_logits"):
            outputs = class_probabilities(outputs, self.activation)
        images, count = outputs.shape
        if count < self.least_outputs:
            raise InputError(
                "the model has one output, which could be the logit of a class or a score: give "
                "ClassTarget(1, activation='sigmoid_logits') for the class, 0 or 1, whose probability is its "
                "sigmoid, or LogitTarget(0) to keep a score high"
            )
        classes = np.argmax(outputs, axis=1) if self.classes is None else np.asarray(self.classes)
        if classes.shape not in ((), (1,), (images,)):
            raise InputError(
                f"target has shape {classes.shape} for {images} images; give one class, or one for each image"
            )
        outside = np.atleast_1d(classes)[(np.atleast_1d(classes) < 0) | (np.atleast_1d(classes) >= count)]
        if outside.size:
            raise InputError(f"target={outside[0]} is outside the model's {count} classes, 0 to {count - 1}")
        return np.broadcast_to(classes, (images,)).astype(np.int64)


@dataclass(frozen=True)
class LogitTarget(ClassTarget):
    """One output, such as the logit of a class or one of several regression outputs.

    The loss is minus the output. Unlike in `ClassTarget`, the other outputs do not matter.

    Attributes:
        classes: index of the output, one for all images or one for each; None for the largest.

    Example:
        >>> loss, rows = LogitTarget(0).resolve(np.array([[2.0, 5.0]]))
        >>> loss(np.array([[2.0, 5.0]]), *rows)
        array([-2.])
    """

    least_outputs: ClassVar[int] = 1
    log_likelihood: ClassVar[bool] = False

    def ending_in(self, activation: str) -> Self:
        """See `Target.ending_in`: the output itself is meant, whatever it is."""
        return self

    def resolve(self, outputs: npt.NDArray[Any]) -> tuple[Loss, tuple[npt.NDArray[Any], ...]]:
        """See `Target.resolve`. The row of an image is the index of its output."""
        return _negative_output, (self.resolve_classes(outputs),)


@dataclass(frozen=True)
class DistributionTarget(Target):
    """All classes of a classifier at once: the distribution that it predicts for the unrestricted image.

    The loss is the cross-entropy with that distribution. Outputs that are probabilities are recognised; no
    second softmax is applied to them. With a sigmoid, each class is a distribution of its own, and the loss
    is the sum over the classes.

    Attributes:
        activation: as of `ClassTarget`.

    Example:
        >>> outputs = np.array([[0.0, 0.0]])
        >>> loss, rows = DistributionTarget().resolve(outputs)
        >>> loss(outputs, *rows).round(4)  # the entropy, log(2)
        array([0.6931])
    """

    activation: str | None = None

    def __post_init__(self) -> None:
        _check_activation(self.activation)

    def ending_in(self, activation: str) -> Self:
        """See `Target.ending_in`."""
        return replace(self, activation=activation) if self.activation is None else self

    def resolve(self, outputs: npt.NDArray[Any]) -> tuple[Loss, tuple[npt.NDArray[Any], ...]]:
        """See `Target.resolve`. The row of an image is its distribution."""
        of_sigmoids = self.activation in ("sigmoid", "sigmoid_logits")
        if outputs.ndim != 2 or (outputs.shape[1] < 2 and not of_sigmoids):
            raise InputError(
                f"DistributionTarget needs classes, but the model's output has shape {outputs.shape}, "
                "not (images, classes)"
            )
        kind = kind_of_outputs(outputs, self.activation)
        found = expit(outputs) if kind == "sigmoid_logits" else outputs
        probabilities = found if of_sigmoids else class_probabilities(outputs, self.activation)
        return _DISTRIBUTION_LOSSES[kind], (probabilities,)


@dataclass(frozen=True, eq=False)
class RegressionTarget(Target):
    """Values that the outputs should keep. The loss is the mean of the squared differences.

    Attributes:
        values: array with the shape of the output for one image, or for a batch; None for the model's output
            for the unrestricted image.
        images: images of the batch that the target is for.

    Example:
        >>> loss, rows = RegressionTarget([1.0, 2.0]).resolve(np.array([[1.0, 5.0]]))
        >>> loss(np.array([[1.0, 5.0]]), *rows)
        array([4.5])
    """

    values: npt.ArrayLike | None = None
    images: slice = field(default_factory=lambda: slice(None))

    def __post_init__(self) -> None:
        require_type("images", self.images, slice, "a slice")
        if self.values is not None:
            object.__setattr__(self, "values", require_array("values", self.values))

    def select(self, start: int, stop: int, images: int) -> Target:
        """See `Target.select`."""
        return replace(self, images=slice(start, stop))

    def resolve(self, outputs: npt.NDArray[Any]) -> tuple[Loss, tuple[npt.NDArray[Any], ...]]:
        """See `Target.resolve`. The row of an image holds its values."""
        if self.values is None:
            return _squared_difference, (outputs,)
        values = np.asarray(self.values)
        if values.ndim == outputs.ndim:
            values = values[self.images]
        if values.shape not in (outputs.shape, outputs.shape[1:]):
            raise InputError(
                f"values have shape {values.shape}; they must have the shape of the model's output for these "
                f"images, {outputs.shape}, or for one image"
            )
        return _squared_difference, (np.broadcast_to(values, outputs.shape).astype(outputs.dtype),)


@dataclass(frozen=True, eq=False)
class SegmentationTarget(Target):
    """A class within a region of a segmentation. The loss is the mean cross-entropy over the region's pixels.

    Attributes:
        index: index of the class.
        mask: the region, (H, W) of the model's output, true inside.
        data_format: ``"channels_first"`` for outputs (B, K, H, W), ``"channels_last"`` for (B, H, W, K).

    Example:
        >>> outputs = np.zeros((1, 2, 1, 3))
        >>> loss, rows = SegmentationTarget(1, [[True, True, False]]).resolve(outputs)
        >>> loss(outputs, *rows).round(4)  # log(2)
        array([0.6931])
    """

    index: int
    mask: npt.ArrayLike
    data_format: DataFormat = "channels_first"

    log_likelihood: ClassVar[bool] = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "index", require_whole("index", self.index))
        require_data_format("data_format", self.data_format)
        mask = require_mask("mask", self.mask)
        if mask.ndim != 2 or not mask.any():
            raise InputError(
                f"mask has shape {mask.shape} and {mask.sum()} pixels set; it must be (H, W), with at least "
                "one pixel set"
            )
        object.__setattr__(self, "mask", mask)

    def resolve(self, outputs: npt.NDArray[Any]) -> tuple[Loss, tuple[npt.NDArray[Any], ...]]:
        """See `Target.resolve`. The rows are the class and the weight of each pixel."""
        mask = np.asarray(self.mask)
        if outputs.ndim != 4:
            raise InputError(f"a segmentation was expected, but the model's output has shape {outputs.shape}")
        layout = Layout.of(outputs.shape[1:], self.data_format)
        count, size = outputs.shape[layout.channel_axis + 1], layout.spatial_shape(outputs.shape[1:])
        if mask.shape != size:
            raise InputError(
                f"mask has shape {mask.shape}; it must have the shape {size} of the model's output"
            )
        if self.index >= count:
            raise InputError(f"index={self.index} is outside the model's {count} classes, 0 to {count - 1}")
        weights = np.broadcast_to(mask / mask.sum(), (len(outputs), *size)).astype(outputs.dtype)
        classes = np.full((len(outputs), *size), self.index, np.int64)
        return (_region_loss_first if self.data_format == "channels_first" else _region_loss_last), (
            classes,
            weights,
        )


@dataclass(frozen=True)
class ScoreTarget(Target):
    """A score of the output that should stay high. The loss is minus the score.

    Attributes:
        score: function that maps the model's output for N feature maps to N scores. It must be
            differentiable, and use the functions of the model's framework.

    Example:
        >>> target = ScoreTarget(lambda outputs: outputs[:, 0])
        >>> target(np.array([[2.0, 5.0]]))
        array([-2.])
    """

    score: Callable[[Any], Array]

    needs_main_output: ClassVar[bool] = False

    def __post_init__(self) -> None:
        require_callable("score", self.score, "a function of the model's output")

    def __call__(self, outputs: Any) -> Array:
        """Compute the loss, minus the score."""
        score = self.score(outputs)
        if not hasattr(score, "shape"):
            raise InputError(f"target is a function that gives {type(score).__name__}; scores were expected")
        return -score

    def resolve(self, outputs: npt.NDArray[Any]) -> tuple[Loss, tuple[npt.NDArray[Any], ...]]:
        """See `Target.resolve`. There are no rows."""
        return self, ()


@dataclass(frozen=True)
class SumTarget(Target):
    """Several targets at once. The loss is the weighted sum of their losses.

    Attributes:
        targets: targets, or what `as_target` converts to one.
        weights: a factor for each target; None for 1.

    Raises:
        InputError: there is no target, the numbers of targets and weights differ, or the targets are for
            different layers.

    Example:
        >>> loss, rows = SumTarget((LogitTarget(0), LogitTarget(1)), (1.0, 10.0)).resolve(np.ones((1, 2)))
        >>> loss(np.ones((1, 2)), *rows)
        array([-11.])
    """

    targets: tuple[Any, ...]
    weights: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        require_sequence("targets", self.targets, "targets")
        object.__setattr__(self, "targets", tuple(as_target(target, "targets") for target in self.targets))
        if self.weights is not None:
            weights = require_numbers("weights", self.weights, counts=(len(self.targets),))
            object.__setattr__(self, "weights", weights)
        object.__setattr__(self, "layer", common_layer(target.layer for target in self.targets))

    def ending_in(self, activation: str) -> Target:
        """See `Target.ending_in`."""
        return SumTarget(tuple(as_target(part).ending_in(activation) for part in self.targets), self.weights)

    def select(self, start: int, stop: int, images: int) -> Target:
        """See `Target.select`."""
        parts = tuple(target.select(start, stop, images) for target in self.targets)
        return SumTarget(parts, self.weights)

    def resolve(self, outputs: npt.NDArray[Any]) -> tuple[Loss, tuple[npt.NDArray[Any], ...]]:
        """See `Target.resolve`. The rows of the targets follow one another."""
        losses, rows = zip(*(target.resolve(outputs) for target in self.targets), strict=True)
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
    """Return the layer that several targets are for, or None for the model's output.

    Raises:
        InputError: they are for different layers.

    Example:
        >>> common_layer(["fc", "fc"])
        'fc'
    """
    different: list[Any] = []
    for layer in layers:
        if layer not in different:
            different.append(layer)
    if len(different) > 1:
        raise InputError(
            f"the targets are for different layers, {different} (None is the model's output); give targets "
            "for one layer"
        )
    return different[0]


def as_target(target: Any, name: str = "target") -> Target:
    """Convert an argument of a user to a `Target`.

    Args:
        target: a target; an object with a method ``as_target``, such as a `ConceptEmbedding`; a callable
            score; the index of a class, or one for each image; or None for the predicted class.
        name: name of the argument, for the message.

    Raises:
        InputError: it is none of these.

    Example:
        >>> as_target(3) == ClassTarget(3)
        True
    """
    if isinstance(target, Target):
        return target
    if isinstance(target, HasTarget):
        return target.as_target()
    if callable(target) and not isinstance(target, type):
        return ScoreTarget(target)
    if target is None or type(target) is int:
        return ClassTarget(target)
    try:
        return ClassTarget(target)
    except InputError as error:
        raise InputError(
            f"{given(name, target)} must be a class (a whole number), one per image, a function of the "
            "output or a Target"
        ) from error
