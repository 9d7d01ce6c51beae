"""Adam, once for all frameworks, whose own versions place epsilon differently."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from iba_core.framework.namespace import NAMESPACES, Array

BETA_1 = 0.9
BETA_2 = 0.999
EPSILON = 1e-8


class AdamState(NamedTuple):
    """A parameter and the running moments of its gradient, arrays of one shape."""

    parameter: Array
    first: Array
    second: Array


def bias_corrections(steps: int) -> npt.NDArray[np.float64]:
    """``(1 - beta_1^t, 1 - beta_2^t)`` for t = 1 ... steps, shape (steps, 2).

    They are computed in double precision: ``1 - 0.999`` in float32 is wrong in the fifth digit.
    """
    t = np.arange(1, steps + 1, dtype=np.float64)[:, None]
    return np.asarray(1.0 - np.array([[BETA_1, BETA_2]]) ** t, dtype=np.float64)


def adam_step(state: AdamState, gradient: Array, correction: Array, learning_rate: Array) -> AdamState:
    """One step of Adam (D. P. Kingma, J. Ba, https://arxiv.org/abs/1412.6980, algorithm 1).

    Args:
        state: parameter and moments before the step.
        gradient: gradient of the objective, of the shape of the parameter.
        correction: (2,), the row of `bias_corrections` for this step.
        learning_rate: scalar.
    """
    xp = NAMESPACES[type(gradient)]
    first = BETA_1 * state.first + (1.0 - BETA_1) * gradient
    second = BETA_2 * state.second + (1.0 - BETA_2) * xp.square(gradient)
    update = (first / correction[0]) / (xp.sqrt(second / correction[1]) + EPSILON)
    return AdamState(state.parameter - learning_rate * update, first, second)


def gradients_of(firsts: Sequence[Array]) -> list[Array]:
    """The gradients of consecutive steps, from the running mean of the gradient after each of them.

    Example:
        >>> state, gradient = AdamState(*np.zeros((3, 1))), np.array([2.0])
        >>> after = adam_step(state, gradient, bias_corrections(1)[0], 0.1)
        >>> gradients_of([after.first])[0].round(6)
        array([2.])
    """
    before = [0.0 * first for first in firsts[:1]] + list(firsts[:-1])
    return [(first - BETA_1 * old) / (1.0 - BETA_1) for old, first in zip(before, firsts, strict=True)]
