"""A model as the metrics see it: one score for each input."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, Self

import numpy as np
import numpy.typing as npt

from iba_core.arguments import is_whole_number, require_callable, require_choice, require_text, require_whole
from iba_core.errors import InputError
from iba_core.framework.adapter import Inputs, Model, ModelAdapter, find_adapter
from iba_core.framework.arrays import as_array
from iba_core.framework.framework import require_finite
from iba_core.framework.inputs import arrays_of, require_inputs
from iba_core.framework.layout import Layout
from iba_core.framework.namespace import NAMESPACES, Array
from iba_core.targets import (
    ClassTarget,
    Target,
    both_classes,
    class_probabilities,
    kind_of_outputs,
    main_output,
)

Floats = npt.NDArray[np.floating]

Classes = Any
"""What a metric asks about: the index of a class, one for all images or one for each; None for the class
predicted."""

Score = Literal["probability", "logit"] | Callable[[npt.NDArray[Any]], npt.ArrayLike]
"""What is measured of the outputs: the probability of the class, its output as it is, or a function that maps
the outputs (N, ...) to scores (N,)."""

MAX_BATCH = 64
"""How many inputs pass the model at once on an accelerator. A processor takes as many as its caches hold."""


class ScoredModel:
    """A model together with the score that metrics follow while inputs change.

    All metrics take one in place of a model. Make it once and use it for many: a framework may compile a
    model anew for each.

    Args:
        model: a model of any framework, its adapter, or an `Explainer`, whose model and output are taken.
        score: ``"probability"`` of the class, its ``"logit"`` (the output as it is), or a function that maps
            the outputs (N, ...), NumPy, to scores (N,).
        output: name or number of the output, of a model that has several.
        activation: function that the outputs end in, ``"softmax"``, ``"sigmoid"`` or ``"other"``, where
            their values do not tell.
        max_batch: how many inputs pass the model at once. If None, `MAX_BATCH`; on a processor, as many as
            its caches hold, see `Framework.preferred_batch`.

    Raises:
        InputError: no backend serves the model, or an argument is wrong.

    Example:
        >>> scored = ScoredModel(model, score="logit")
        >>> scored.scores(scored.tensor(x), np.array([0, 1])).shape
        (2,)
    """

    def __init__(
        self,
        model: Model,
        *,
        score: Score = "probability",
        output: int | str | None = None,
        activation: str | None = None,
        max_batch: int | None = None,
    ) -> None:
        own = getattr(model, "adapter", None)
        self.adapter: ModelAdapter = own if isinstance(own, ModelAdapter) else find_adapter(model)
        if not callable(score):
            require_choice("score", score, ("probability", "logit"))
        elif isinstance(score, type):
            require_callable("score", None, "'probability', 'logit' or a function of the outputs")
        self.score: Score = score
        self.output: int | str | None = getattr(model, "output", None) if output is None and own else output
        if output is not None and not is_whole_number(output, -(2**31)):
            require_text("output", output, "the name or the position of an output")
        if activation is not None:
            require_choice("activation", activation, ("softmax", "sigmoid", "other"))
        self.activation = activation
        self._max_batch = None if max_batch is None else require_whole("max_batch", max_batch, 1)
        # Once one output is outside of [0, 1], all are logits, also those of a batch where none is.
        self._has_logits = False

    @classmethod
    def of(cls, model: Model | Self) -> Self:
        """The scored model that an argument is or means."""
        return model if isinstance(model, cls) else cls(model)

    def tensor(self, x: Inputs, name: str = "x") -> Array:
        """The only array of a batch of inputs as a tensor of the model's device, checked.

        Raises:
            InputError: there are several arrays, or a value that is not finite.
        """
        arrays = list(arrays_of(require_inputs(name, x, self.adapter.to_inputs)))
        if len(arrays) != 1:
            raise InputError(
                f"{name} holds {len(arrays)} arrays; metrics change one, of a model with one input"
            )
        require_finite(self.host(arrays[0]), name)
        return arrays[0]

    def host(self, array: Array) -> npt.NDArray[Any]:
        """An array of the framework as NumPy's."""
        return self.adapter.framework.to_numpy(array)

    def max_batch(self, x: Array) -> int:
        """How many inputs like those of `x` pass the model at once."""
        preferred = self.adapter.framework.preferred_batch(tuple(x.shape[1:]), x)
        return self._max_batch or preferred or MAX_BATCH

    def layout(self, x: Array) -> Layout:
        """Meaning of the axes of one input."""
        return Layout.of(tuple(x.shape[1:]), self.adapter.data_format)

    def outputs(self, x: Array) -> npt.NDArray[Any]:
        """Main outputs (N, ...) of the model for inputs (N, ...), at most `max_batch` at once."""
        most = self.max_batch(x)
        parts = [
            self.host(main_output(self.adapter.predict(x[start : start + most]), self.output))
            for start in range(0, int(x.shape[0]), most)
        ]
        return np.concatenate(parts)

    def classes(self, x: Array, target: Classes = None) -> npt.NDArray[np.int64]:
        """The classes (B,) that a target means for inputs (B, ...); all 0 if the score is a function.

        Raises:
            InputError: the target is no class, or the model has no such class.
        """
        images = int(x.shape[0])
        if callable(self.score):
            if target is not None:
                raise InputError(
                    "target is given, but score= is a function of the outputs; give one of the two"
                )
            return np.zeros(images, np.int64)
        wanted = target if isinstance(target, ClassTarget) else _class_target(target)
        if (
            wanted.classes is not None
            and np.ndim(wanted.classes)
            and len(np.asarray(wanted.classes)) != images
        ):
            wanted.select(0, images, images)
        outputs = self.outputs(x)
        return wanted.ending_in(self._activation(outputs)).resolve_classes(outputs)

    def scores(self, x: Array, classes: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
        """Scores (N,) of inputs (N, ...) for the classes (N,), float64."""
        return self.scores_of(self.outputs(x), classes)

    def scores_of(self, outputs: npt.NDArray[Any], classes: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
        """Scores (N,) of outputs (N, ...) that the model has given."""
        if callable(self.score):
            found = as_array("what score gives", self.score(outputs))
            if found.shape != (len(outputs),):
                raise InputError(
                    f"score gives shape {found.shape} for {len(outputs)} rows of outputs; one number for "
                    "each row was expected"
                )
            return found.astype(np.float64)
        if self.score == "probability":
            outputs = class_probabilities(outputs.astype(np.float64), self._activation(outputs))
        elif self._activation(outputs) == "sigmoid":
            outputs = np.asarray(both_classes(outputs))
        return np.asarray(outputs[np.arange(len(outputs)), classes], np.float64)

    def predicted(self, x: Array) -> npt.NDArray[np.int64]:
        """The classes (N,) that the model predicts."""
        return self.classes(x, None)

    def class_score(self, classes: npt.NDArray[np.int64]) -> Callable[[Any], Array]:
        """What gradients are taken of: the sum of the outputs for the classes, as they are.

        Returns:
            A function that maps what the model returns, tensors, to a scalar.
        """

        def score(outputs: Any) -> Array:
            found = main_output(outputs, self.output)
            xp = NAMESPACES[type(found)]
            if callable(self.score):
                return xp.sum(self.score(found))
            if int(found.shape[-1]) == 1:
                # One output speaks for the second of two classes and against the first.
                signs = self.adapter.framework.asarray(2.0 * classes - 1.0, like=found)
                return xp.sum(found[:, 0] * signs)
            chosen = np.zeros(tuple(found.shape))
            chosen[np.arange(len(classes)), classes] = 1.0
            return xp.sum(found * self.adapter.framework.asarray(chosen, like=found))

        return score

    def _activation(self, outputs: npt.NDArray[Any]) -> str:
        """The function that outputs end in, as far as it is known.

        Raises:
            InputError: their values leave it open, and nobody has said it.
        """
        if (
            self.activation is not None
            or self.score != "probability"
            or outputs.ndim != 2
            or self._has_logits
        ):
            return self.activation or "other"
        if outputs.min() < 0 or outputs.max() > 1:
            self._has_logits = True
            return "other"
        try:
            kind = kind_of_outputs(outputs, "unknown")
        except InputError as error:
            raise InputError(
                "the model's outputs lie between 0 and 1 and do not sum to 1, so they could be probabilities "
                "or not; say which with ScoredModel(model, activation='sigmoid') or activation='other'"
            ) from error
        return "softmax" if kind == "softmax" else "other"


def _class_target(target: Classes) -> ClassTarget:
    if isinstance(target, Target) or (callable(target) and not hasattr(target, "shape")):
        raise InputError(
            f"target is a {type(target).__name__}; metrics take the index of a class, one for each image, or "
            "None, and another question as ScoredModel(model, score=function of the outputs)"
        )
    return ClassTarget(target)
