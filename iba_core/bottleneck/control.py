"""What watches the steps of an optimisation: convergence, rises of the loss, and the search for beta."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from iba_core.bottleneck.adam import AdamState
from iba_core.bottleneck.survival import shares_of
from iba_core.framework.namespace import NAMESPACES, Array

_LEAST_FACTOR = 0.3
"""The least by which one step multiplies beta."""

_STRIDES = (1.0, 3.0)
"""The shortest and the longest stride of an offset of alpha, between which it is the logarithm of the factor
by which more or less survives than is asked for."""

TRIALS = 4
"""Of an offset. They move a mask by up to 12, and find what lies within the shortest stride to an eighth."""

_TRIES = 2
"""Steps in a row that are taken back. At the default beta, a second is rare; at ten times it, the rule."""


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
    """Lowers beta for the images that lose their target, while the steps are made.

    After each step, beta shrinks in proportion to what is lacking. It never grows: while the mask closes, the
    target survives any beta, and one that had grown by then would be far too large in the end. What is kept
    beyond the share that was asked for is the business of `OffsetSearch`. Nothing leaves the device.

    Args:
        whole: the model's loss of each unrestricted image, (B,).
        baseline: its loss when nothing passes, (B,); None if it is minus the logarithm of a probability.
        keep: share of the target that is to survive.

    Attributes:
        factors: (B,), by which to multiply beta in the next step.
    """

    def __init__(self, whole: Array, baseline: Array | None, keep: float) -> None:
        self._whole, self._baseline = whole, baseline
        self._keep = keep
        self.factors: Array = NAMESPACES[type(whole)].ones_like(whole)

    def see(self, losses: Array) -> Array:
        """Take in the model's losses in a step, (B,), and return by what the factors change, (B,)."""
        xp = NAMESPACES[type(losses)]
        change = shares_of(losses, self._whole, self._baseline) / self._keep
        # A share of NaN says that there is nothing to keep, and compares as False.
        ones = xp.ones_like(change)
        change = xp.where(change < 1.0, change, ones)
        change = xp.where(change > _LEAST_FACTOR, change, _LEAST_FACTOR * ones)
        self.factors = self.factors * change
        return change


class OffsetSearch:
    """Finds for each image the least offset of alpha at which enough of its target survives.

    The bits rise with the offset, and so does what survives, but for noise. Equal strides go on until one
    offset has enough and another has not; each further trial is half-way between the two.

    Args:
        shares: that survive at an offset of 0, (B, S).
        keep: share of the target that is to survive.

    Attributes:
        trial: (B,), the offsets to try next.
        found: (B,), the least offsets with enough, or the largest tried if no trial had enough.
        shares: that survive at those, (B, S).
    """

    def __init__(self, shares: npt.NDArray[np.floating], keep: float) -> None:
        self._keep = keep
        # The largest offset with too little, and the least with enough.
        self._lost_at, self._kept_at = (np.full(len(shares), end) for end in (-np.inf, np.inf))
        means = shares.mean(axis=1)
        factors = np.log(np.maximum(means, np.exp(-_STRIDES[1]) * keep) / keep)
        # Shares of NaN say that there is nothing to keep: those images do not move.
        self._strides = np.where(np.isnan(means), 0.0, np.clip(np.abs(factors), *_STRIDES))
        self.trial: npt.NDArray[np.floating] = np.zeros(len(shares))
        self.found: npt.NDArray[np.floating] = self.trial
        self.shares: npt.NDArray[np.floating] = shares
        self.see(shares)

    def see(self, shares: npt.NDArray[np.floating]) -> None:
        """Take in the shares that survive at the trial's offsets, (B, S), and choose the next ones."""
        lost = self._lost(shares)
        self._lost_at = np.where(lost, self.trial, self._lost_at)
        self._kept_at = np.where(lost, self._kept_at, self.trial)
        # While none has enough, each trial is more open than the one before.
        better = ~lost | np.isinf(self._kept_at)
        self.found = np.where(better, self.trial, self.found)
        self.shares = np.where(better[:, None], shares, self.shares)
        ends = np.stack([self._lost_at, self._kept_at])
        further = self.trial + np.where(lost, self._strides, -self._strides)
        self.trial = np.where(np.isfinite(ends).all(axis=0), ends.mean(axis=0), further)

    def _lost(self, shares: npt.NDArray[np.floating]) -> npt.NDArray[np.bool_]:
        return np.asarray(shares.mean(axis=1) < self._keep)


def by_image(values: Array, like: Array) -> Array:
    """Values for each image, (B,) or (1,), with as many axes as `like` has."""
    return NAMESPACES[type(values)].reshape(values, (-1, *(1,) * (len(like.shape) - 1)))
