"""What watches the steps of an optimisation: convergence, rises of the loss, and the search for beta."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from iba_core.bottleneck.adam import AdamState
from iba_core.bottleneck.survival import Answer
from iba_core.framework.namespace import NAMESPACES, Array

_GROWTH = 1.15
"""Factor of beta after a step in which the target has survived."""

_SETTLED = 0.9
"""Bits are settled where a step leaves this part of them."""

_TRIES = 2
"""Steps in a row that are taken back. At the default beta, a second is rare; at ten times it, the rule."""

_LEAST_SHARE = 1e-3
"""Shares below it, also negative ones, shrink beta alike."""


class Convergence:
    """Which images of a batch have converged: their maps changed by no more than a tolerance.

    Args:
        tolerance: the sum of absolute changes of the map between two steps, as a share of the map's sum.
        images: number of images.
    """

    def __init__(self, tolerance: float, images: int) -> None:
        self._tolerance = tolerance
        self._last: npt.NDArray[np.floating] | None = None
        self.running: npt.NDArray[np.bool_] = np.ones(images, bool)
        self.steps: npt.NDArray[np.int_] = np.zeros(images, int)

    def see(self, maps: npt.NDArray[np.floating]) -> None:
        """Take in the maps after a step, (B, ...)."""
        maps = maps.reshape(len(maps), -1)
        self.steps += self.running
        if self._last is not None:
            change = np.abs(maps - self._last).sum(axis=1)
            self.running &= ~(change <= self._tolerance * maps.sum(axis=1))
        self._last = maps


class RiseGuard:
    """Takes back the steps of Adam after which the model's loss has risen too far.

    Adam's first steps have all the same length, so they close every feature by half before the loss says
    which ones matter. Such a step is made again from the state before it, with a gradient that has seen its
    end. Nothing leaves the device, and no pass of the tail is lost.

    Where beta is large, the objective itself asks for a loss that rises, and each new try rises again. After
    a few of them in a row, the image is left to its steps.

    Args:
        most: the most nats by which the loss of an image may rise in one step.

    Attributes:
        parameter: of the last state that was kept, (B, *feature map); None before the first step.
    """

    def __init__(self, most: float) -> None:
        self._most = most
        self._known: tuple[Array, Array] | None = None
        self.parameter: Array | None = None

    def checked(self, old: AdamState, new: AdamState, loss: Array) -> AdamState:
        """The state after a step.

        Args:
            old: the state before the step.
            new: the state after it.
            loss: the model's loss of each image at the old state, (B,).
        """
        rose, self.parameter = self.kept(old.parameter, loss)
        again = self.parameter + (new.parameter - old.parameter)
        where = NAMESPACES[type(loss)].where
        return new._replace(parameter=where(by_image(rose, again), again, new.parameter))

    def kept(self, parameter: Array, loss: Array) -> tuple[Array, Array]:
        """Boolean (B,), of which images the last step is taken back, and the parameter that is kept of all.

        Args:
            parameter: after the last step.
            loss: the model's loss of each image there, (B,).
        """
        xp = NAMESPACES[type(loss)]
        if self._known is None or self.parameter is None:
            self._known, self.parameter = (loss, xp.zeros_like(loss)), parameter
        least, tries = self._known
        too_far = loss > least + self._most
        tries = xp.where(too_far, tries + 1, xp.where(tries > _TRIES, tries, xp.zeros_like(tries)))
        rose = too_far & (tries <= _TRIES)
        self._known = xp.where(rose, least, loss), tries
        return rose, xp.where(by_image(rose, parameter), self.parameter, parameter)


class BetaSearch:
    """Finds for each image the largest beta that keeps its target, while the steps are made.

    After each step, the beta of an image shrinks by up to a half where too little of its target has
    survived. Where enough has, it grows a little, but only once the bits have settled: while they still fall,
    the target survives any beta, and one that had grown by then would be far too large in the end. Of all
    states in which enough has survived, that with the fewest bits is known.

    Args:
        answer: the losses to compare with.
        keep: share of the target that is to survive.

    Attributes:
        factors: (B,), by which to multiply beta in the next step.
        best: (B,), the factor at the state with the fewest bits.
    """

    def __init__(self, answer: Answer, keep: float) -> None:
        self._answer = answer
        self._keep = keep
        images = len(answer.whole)
        self._nats = np.full(images, np.inf)
        self._last = np.full(images, np.inf)
        self.factors: npt.NDArray[np.float64] = np.ones(images)
        self.best: npt.NDArray[np.float64] = np.ones(images)

    def see(
        self, losses: npt.NDArray[np.floating], informations: npt.NDArray[np.floating]
    ) -> npt.NDArray[np.bool_]:
        """Take in the report of a step, two arrays (B,), and adapt the factors.

        Returns:
            Boolean (B,): where the state before the step is the best so far.
        """
        shares = self._answer.shares(losses[:, None])[:, 0]
        kept, nats = shares >= self._keep, informations / self.factors
        better = kept & (nats < self._nats)
        self._nats = np.where(better, nats, self._nats)
        self.best = np.where(better, self.factors, self.best)
        lacking = np.log(self._keep / np.maximum(np.nan_to_num(shares, nan=self._keep), _LEAST_SHARE))
        shrunk = np.exp2(-np.clip(lacking, 0.0, 1.0))
        grown = np.where(nats > _SETTLED * self._last, _GROWTH, 1.0)
        self._last = nats
        self.factors = self.factors * np.where(kept, grown, shrunk)
        return better


def by_image(values: Array, like: Array) -> Array:
    """Values for each image, (B,) or (1,), with as many axes as `like` has."""
    return NAMESPACES[type(values)].reshape(values, (-1, *(1,) * (len(like.shape) - 1)))
