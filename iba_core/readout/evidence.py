"""What the model's own answer says about a mask, before a readout network reads it.

The features alone show the contents of an image. The answer rests on a part of them, which its gradient
shows, at first order and where it is taken. Between noise alone, where the answer is another one, and the
whole features, where it is saturated, the gradient is taken at several openings lambda, the same for all
features:

    z = mu + lambda (R - mu) + (1 - lambda) sigma n

The sum of ``-d loss / d lambda`` over the openings tells by how much the loss falls as a feature opens, as
the sum along a path does in integrated gradients (M. Sundararajan, A. Taly, Q. Yan, "Axiomatic Attribution
for Deep Networks", ICML 2017, https://arxiv.org/abs/1703.01365). Each opening has one pair of copies, with a
noise and its negation. The noise is always the same, so a readout stays a function of the image.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from iba_core.bottleneck.formulas import Mask, restrict
from iba_core.bottleneck.noise import seeded_normal
from iba_core.errors import InputError
from iba_core.framework.framework import Framework
from iba_core.framework.layout import Layout
from iba_core.framework.namespace import Array, array_namespace
from iba_core.readout.model import NestedPass
from iba_core.targets import cross_entropy, main_output

OPENINGS = (0.4, 0.5, 0.6, 0.7)
"""The lambdas. Below, the answer is mostly lost; above, it is mostly settled."""

_SEED = 0
"""Of the noise."""


class Copy(NamedTuple):
    """One noisy copy of each image."""

    opening: Array
    """lambda, (1, 1, ...)."""
    noise: Array
    """Standard normal, (1, *feature map)."""


def copies(
    shape: tuple[int, ...], layout: Layout, tensor: Callable[[npt.NDArray[np.generic]], Array]
) -> tuple[Copy, ...]:
    """Two copies for each of `OPENINGS`.

    Args:
        shape: of one feature map.
        layout: meaning of its axes.
        tensor: makes a tensor of an array.

    Example:
        >>> found = copies((3, 4), Layout.of((3, 4), "channels_first"), np.asarray)
        >>> len(found), found[0].noise.shape, bool((found[0].noise == -found[1].noise).all())
        (8, (1, 3, 4), True)
    """
    drawn = seeded_normal(_SEED, 0, len(OPENINGS), shape, layout)
    one = (1,) * (len(shape) + 1)
    return tuple(
        Copy(tensor(np.full(one, opening)), tensor(sign * noise[None]))
        for opening, noise in zip(OPENINGS, drawn, strict=True)
        for sign in (1.0, -1.0)
    )


class AnswerReader:
    """Asks a model by how much the loss of its answer falls as the features open.

    Keep the object: it compiles a pass once for each shape.

    Args:
        framework: of the model.
        relu: clip the copies at 0, as the bottleneck does.
    """

    def __init__(self, framework: Framework, relu: bool) -> None:
        self._framework, self._relu = framework, relu
        self._gain = framework.compile(self._gain_of_copy)
        self._predicted = framework.compile(_predicted)

    def gains(
        self,
        nested: NestedPass,
        copies: Sequence[Copy],
        mean: Array,
        std: Array,
        active: Array,
        classes: Array | None = None,
    ) -> Array:
        """Sum of ``-d loss / d lambda`` over noisy copies.

        The loss is the cross-entropy of the outputs, taken as logits.

        Args:
            nested: the images.
            copies: from `copies`.
            mean: mu of the features, (1, *feature map).
            std: their sigma, likewise.
            active: boolean, likewise: the features that the bottleneck acts on. All others are set to 0.
            classes: (B,), whole numbers; None for the class predicted of each image.

        Returns:
            Nats, (B, *feature map); 0 where the bottleneck does not act.

        Raises:
            LayerError: the outputs do not depend on the layer, or have no gradient.
            InputError: they are not the scores of classes.
        """
        classes = self._predicted(nested) if classes is None else classes
        total: Array = 0.0
        for copy in copies:
            total = total + self._gain(nested, classes, copy, mean, std, active)
        return total

    def _gain_of_copy(
        self, nested: NestedPass, classes: Array, copy: Copy, mean: Array, std: Array, active: Array
    ) -> Array:
        xp = array_namespace(mean)
        features = xp.astype(nested.features, mean.dtype)
        zeros, noise = xp.zeros_like(features), mean + std * copy.noise
        z = xp.where(active, restrict(features, Mask(copy.opening, 1.0 - copy.opening), noise), zeros)

        def loss(z: Array) -> tuple[Array, tuple[()]]:
            passed = xp.maximum(z, xp.zeros_like(z)) if self._relu else z
            return xp.sum(cross_entropy(_scores(nested.outputs(passed)), classes)), ()

        _, _, slope = self._framework.value_and_grad(loss, z)
        return xp.where(active, -xp.astype(slope, mean.dtype) * (features - noise), zeros)


def _predicted(nested: NestedPass) -> Array:
    """The class that the unrestricted outputs choose, (B,)."""
    scores = _scores(nested.outputs(nested.features))
    return array_namespace(scores).argmax(scores, axis=1)


def _scores(outputs: Any) -> Array:
    """Scores of the classes, (B, K).

    Raises:
        InputError: the outputs are something else.
    """
    scores = main_output(outputs)
    shape = tuple(int(size) for size in scores.shape)
    if len(shape) != 2 or shape[1] < 2:
        raise InputError(
            "gradients=True asks for the scores of two classes or more, (images, classes), and the model "
            f"gives the shape {shape}; make the readout without it"
        )
    return scores
