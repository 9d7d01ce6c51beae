"""Losses to learn a concept with: functions of predicted masks and true masks.

Every class computes on the arrays of any framework. The classes of the same names in `iba_torch.concepts` are
`torch.nn.Module`, those in `iba_tf.concepts` are `keras.losses.Loss`.

The entries of a predicted mask are probabilities, or logits for some losses. The entries of a true mask are
between 0 and 1. A 1-D array is one 1-D mask, and a 2-D array is one 2-D mask. An array with more axes holds
2-D masks, and its axis 0 is the batch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from iba_core.arguments import (
    require_bool,
    require_callable,
    require_number,
    require_numbers,
    require_sequence,
)
from iba_core.concepts.masks import (
    AreaFunction,
    BatchFunction,
    BatchReduction,
    MaskFunction,
    Reduction,
    as_masks,
    as_reduction,
    binarize,
)
from iba_core.errors import InputError
from iba_core.framework.layout import DataFormat
from iba_core.framework.namespace import Array, array_namespace, floored_log, log_sigmoid, sigmoid


def _log_probabilities(outputs: Array, from_logit: bool) -> tuple[Array, Array]:
    """Compute the logarithms of the probabilities of foreground and background."""
    if from_logit:
        return log_sigmoid(outputs), log_sigmoid(-outputs)
    return floored_log(outputs), floored_log(1.0 - outputs)


class Net2VecLoss(AreaFunction):
    r"""The weighted area in which prediction and truth agree, with a minus sign.

    For a mask with predicted probabilities :math:`p` and binarised truth :math:`t`, it is

    .. math:: -\bigl(b \sum p\,t + (1 - b) \sum (1 - p)(1 - t)\bigr),

    the true positives and true negatives of R. Fong, A. Vedaldi, *Net2Vec*, CVPR 2018
    (https://arxiv.org/abs/1801.03454), eq. 3, with a minus sign, so that minimising it learns the concept. It
    is a sum over pixels: larger masks have larger losses.

    Args:
        factor_pos_class: weight b of the foreground, between 0 and 1. The background has the weight 1 - b.
        reduction: function, or its name, that reduces the losses of the masks of a batch.
        target_thresh: entries of the true masks above it are foreground.
        data_format: position of the channel axis in arrays with four or more axes.
        kwargs: arguments of the framework's base class.

    Raises:
        InputError: an argument is wrong.

    Example:
        >>> import numpy as np
        >>> loss = Net2VecLoss(factor_pos_class=0.75)
        >>> float(loss(np.array([[0.9, 0.2]]), np.array([[1, 0]])))
        -0.875
    """

    def __init__(
        self,
        factor_pos_class: float = 0.5,
        reduction: Reduction | str = BatchReduction.mean,
        target_thresh: float = 0.0,
        data_format: DataFormat | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(reduction, data_format, **kwargs)
        self.factor_pos_class: float = require_number("factor_pos_class", factor_pos_class, 0, 1)
        self.target_thresh: float = require_number("target_thresh", target_thresh)

    def values(self, outputs: Array, targets: Array) -> Array:
        """Compute the loss of each mask.

        Args:
            outputs: predicted masks, probabilities, shape (W,), (H, W) or (B, ..., H, W).
            targets: true masks of the same shape.

        Returns:
            Array (B, ...), or a scalar array for a single mask.
        """
        _, p, t = as_masks(outputs, targets)
        t = binarize(t, self.target_thresh)
        b = self.factor_pos_class
        return -self.area(b * p * t + (1.0 - b) * (1.0 - p) * (1.0 - t))


class TverskyLoss(AreaFunction):
    r"""One minus the Tversky index; for :math:`b = 0.5` the Dice loss.

    With the soft true positives :math:`TP = \sum p\,t`, false positives :math:`FP = \sum p\,(1 - t)` and
    false negatives :math:`FN = \sum (1 - p)\,t` of a mask, it is

    .. math:: 1 - \frac{TP + s}{TP + b\,FP + (1 - b)\,FN + s},

    S. S. M. Salehi et al., https://arxiv.org/abs/1706.05721, eq. 3. If the true and the predicted mask are
    both empty, it is 0 instead of 0 / 0.

    Args:
        factor_false_positives: weight b of the false positives, between 0 and 1.
        reduction: function, or its name, that reduces the losses of the masks of a batch.
        target_thresh: entries of the true masks above it are foreground.
        from_logit: whether the outputs are logits instead of probabilities.
        smooth: summand s, at least 0. With 0, a mask without foreground has no gradient.
        data_format: position of the channel axis in arrays with four or more axes.
        kwargs: arguments of the framework's base class.

    Raises:
        InputError: an argument is wrong.

    Example:
        >>> import numpy as np
        >>> loss = TverskyLoss(factor_false_positives=0.5)
        >>> float(loss(np.array([[1.0, 1.0, 0.0]]), np.array([[1, 0, 1]])))
        0.5
    """

    def __init__(
        self,
        factor_false_positives: float = 0.7,
        reduction: Reduction | str = BatchReduction.mean,
        target_thresh: float = 0.0,
        from_logit: bool = False,
        smooth: float = 0.0,
        data_format: DataFormat | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(reduction, data_format, **kwargs)
        self.factor_false_positives: float = require_number(
            "factor_false_positives", factor_false_positives, 0, 1
        )
        self.target_thresh: float = require_number("target_thresh", target_thresh)
        self.from_logit: bool = require_bool("from_logit", from_logit)
        self.smooth: float = require_number("smooth", smooth, 0)

    def values(self, outputs: Array, targets: Array) -> Array:
        """Compute the loss of each mask, between 0 and 1.

        Args:
            outputs: predicted masks, shape (W,), (H, W) or (B, ..., H, W).
            targets: true masks of the same shape.

        Returns:
            Array (B, ...), or a scalar array for a single mask.
        """
        xp, p, t = as_masks(outputs, targets)
        if self.from_logit:
            p = sigmoid(p)
        t = binarize(t, self.target_thresh)
        b = self.factor_false_positives
        found = self.area(p * t) + self.smooth
        whole = found + b * self.area(p * (1.0 - t)) + (1.0 - b) * self.area((1.0 - p) * t)
        one = xp.zeros_like(whole) + 1.0
        nothing = whole == 0
        # The inner choice keeps the gradient finite, since it also flows through the branch not chosen.
        return xp.where(nothing, 0.0 * one, 1.0 - found / xp.where(nothing, one, whole))


class BalancedBCELoss(BatchFunction):
    r"""Binary cross-entropy of each pixel, in nats, with a weight for each class.

    .. math:: -\bigl(b\,t \log p + (1 - b)(1 - t) \log (1 - p)\bigr)

    Args:
        factor_pos_class: weight b of the foreground, between 0 and 1. None for the share of the background
            in the batch, ``1 - targets.mean()``, which gives both classes the same total weight.
        reduction: function, or its name, that reduces the losses of all pixels of a batch; ``"none"`` keeps
            one loss for each pixel.
        from_logit: whether the outputs are logits instead of probabilities. Prefer logits: a probability
            that is rounded to 0 or 1 has no gradient.
        soft_weights: what a pixel with a true mask t between 0 and 1 counts as. True: as foreground for a
            share of t and as background for the rest, as in the formula. False: as foreground, so that b is
            the weight of its whole cross-entropy. Masks of 0 and 1 are not affected.
        kwargs: arguments of the framework's base class.

    Raises:
        InputError: an argument is wrong.

    Example:
        >>> import numpy as np
        >>> loss = BalancedBCELoss(factor_pos_class=0.5, from_logit=True)
        >>> round(float(loss(np.zeros((2, 2)), np.eye(2))), 4)  # log(2) / 2
        0.3466
    """

    def __init__(
        self,
        factor_pos_class: float | None = None,
        reduction: Reduction | str = BatchReduction.mean,
        from_logit: bool = False,
        soft_weights: bool = True,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.factor_pos_class: float | None = (
            None if factor_pos_class is None else require_number("factor_pos_class", factor_pos_class, 0, 1)
        )
        self.reduction: Reduction = as_reduction(reduction)
        self.from_logit: bool = require_bool("from_logit", from_logit)
        self.soft_weights: bool = require_bool("soft_weights", soft_weights)

    def values(self, outputs: Array, targets: Array) -> Array:
        """Compute the loss of each pixel.

        Args:
            outputs: predicted masks or logits of any shape.
            targets: true masks of the same shape. Values between 0 and 1 are not binarised.

        Returns:
            Array of the same shape, in nats.
        """
        xp, p, t = as_masks(outputs, targets, pixels=True)
        b = 1.0 - xp.mean(t) if self.factor_pos_class is None else self.factor_pos_class
        log_p, log_q = _log_probabilities(p, self.from_logit)
        if self.soft_weights:
            return -(b * t * log_p + (1.0 - b) * (1.0 - t) * log_q)
        foreground = binarize(t, 0.0)
        weight = b * foreground + (1.0 - b) * (1.0 - foreground)
        return -weight * (t * log_p + (1.0 - t) * log_q)


class BalancedPenaltyReducedFocalLoss(BatchFunction):
    r"""Focal loss of key-point heatmaps, with a weight for each class.

    A pixel is foreground where the true mask is exactly 1. The other pixels have less weight the closer their
    true mask is to 1. With N foreground pixels in the batch (N = 1 if there are none), it is

    .. math:: -\frac{1}{N} \Bigl(b \sum_{t = 1} (1 - p)^\alpha \log p
              + (1 - b) \sum_{t < 1} (1 - t)^\beta p^\alpha \log (1 - p)\Bigr),

    X. Zhou et al., *Objects as Points*, https://arxiv.org/abs/1904.07850, eq. 1.

    Args:
        factor_pos_class: weight b of the foreground, between 0 and 1.
        alpha: exponent of the predicted mask, 0 or at least 1.
        beta: exponent of the true mask, at least 0.
        from_logit: whether the outputs are logits instead of probabilities.
        kwargs: arguments of the framework's base class.

    Attributes:
        reduction: always the sum. The division by N is part of each pixel's value.

    Raises:
        InputError: an argument is wrong.

    Example:
        >>> import numpy as np
        >>> loss = BalancedPenaltyReducedFocalLoss(alpha=0, beta=0)
        >>> round(float(loss(np.full((1, 2), 0.5), np.array([[1.0, 0.0]]))), 4)  # log(2)
        0.6931
    """

    def __init__(
        self,
        factor_pos_class: float = 0.5,
        alpha: float = 2,
        beta: float = 4,
        from_logit: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        alpha = require_number("alpha", alpha)
        if not (alpha == 0 or alpha >= 1):
            raise InputError(f"alpha={alpha!r} must be 0 or at least 1; in between, gradients are infinite")
        self.factor_pos_class: float = require_number("factor_pos_class", factor_pos_class, 0, 1)
        self.alpha: float = alpha
        self.beta: float = require_number("beta", beta, 0)
        self.from_logit: bool = require_bool("from_logit", from_logit)
        self.reduction: Reduction = BatchReduction.sum

    def values(self, outputs: Array, targets: Array) -> Array:
        """Compute the share of each pixel in the loss.

        Args:
            outputs: predicted masks or logits of any shape.
            targets: true masks of the same shape, between 0 and 1.

        Returns:
            Array of the same shape.
        """
        xp, p, t = as_masks(outputs, targets, pixels=True)
        log_p, log_q = _log_probabilities(p, self.from_logit)
        if self.from_logit:
            p, q = xp.exp(log_p), xp.exp(log_q)
        else:
            q = 1.0 - p
        foreground = t == 1
        found = self.factor_pos_class * _power(q, self.alpha) * log_p
        spurious = (1.0 - self.factor_pos_class) * _power(1.0 - t, self.beta) * _power(p, self.alpha) * log_q
        count = xp.sum(xp.astype(foreground, p.dtype))
        return -xp.where(foreground, found, spurious) / xp.maximum(count, xp.zeros_like(count) + 1.0)


def _power(base: Array, exponent: float) -> Array:
    # The derivative of 0^0 is 0 * 0^-1, which is NaN in one framework and 0 in the other.
    return base**exponent if exponent else array_namespace(base).zeros_like(base) + 1.0


class WeightedLossSum(MaskFunction):
    """Weighted sum of losses.

    Args:
        losses: functions of the same arguments that return arrays of the same shape.
        weights: a weight for each loss; by default equal weights that sum to 1.
        kwargs: arguments of the framework's base class.

    Raises:
        InputError: there is no loss, or the numbers of losses and weights differ.

    Example:
        >>> import numpy as np
        >>> loss = WeightedLossSum([Net2VecLoss(), TverskyLoss()], weights=[0.0, 2.0])
        >>> float(loss(np.zeros((2, 2)), np.eye(2)))
        2.0
    """

    losses: Sequence[Callable[..., Array]]

    def __init__(
        self,
        losses: Sequence[Callable[..., Array]],
        weights: Sequence[float] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        require_sequence("losses", losses, "losses")
        for loss in losses:
            require_callable("losses", loss, "a list of functions")
        self.losses = list(losses)
        self.weights: list[float] = [1.0 / len(losses)] * len(losses)
        if weights is not None:
            self.weights = list(require_numbers("weights", weights, counts=(len(losses),)))

    def forward(self, *inp: Array) -> Array:
        """Compute the weighted sum of the losses, each called with the same arguments."""
        first, *others = (weight * loss(*inp) for weight, loss in zip(self.weights, self.losses, strict=True))
        return sum(others, start=first)
