"""Losses and metrics of concept masks as `torch.nn.Module`.

The formulas, arguments and settings are those of `iba_core.concepts.losses` and `iba_core.concepts.metrics`.
``loss(outputs, targets)`` takes tensors on any device and is differentiable in the outputs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor, nn

from iba_core.concepts import losses as formulas
from iba_core.concepts import metrics
from iba_core.concepts.masks import BatchReduction

__all__ = [
    "BalancedBCELoss",
    "BalancedPenaltyReducedFocalLoss",
    "BatchReduction",
    "IoU",
    "Net2VecLoss",
    "SetIoU",
    "TverskyLoss",
    "WeightedLossSum",
]


class _CalledAsModule:
    # This is the first base class, so that a call runs the module's hooks before the formula.
    __call__ = nn.Module.__call__


class Net2VecLoss(_CalledAsModule, formulas.Net2VecLoss, nn.Module):
    """`iba_core.concepts.losses.Net2VecLoss` as a module.

    Example:
        >>> import torch
        >>> loss = Net2VecLoss(factor_pos_class=0.75)
        >>> loss(torch.tensor([[0.75, 0.5]]), torch.tensor([[1, 0]])).item()
        -0.6875
    """


class TverskyLoss(_CalledAsModule, formulas.TverskyLoss, nn.Module):
    """`iba_core.concepts.losses.TverskyLoss` as a module.

    Example:
        >>> import torch
        >>> TverskyLoss()(torch.tensor([[1.0, 0.0]]), torch.tensor([[1, 0]])).item()
        0.0
    """


class BalancedBCELoss(_CalledAsModule, formulas.BalancedBCELoss, nn.Module):
    """`iba_core.concepts.losses.BalancedBCELoss` as a module.

    Example:
        >>> import torch
        >>> loss = BalancedBCELoss(factor_pos_class=0.5, from_logit=True)
        >>> loss(torch.zeros(2, 2), torch.eye(2)).round(decimals=4)  # log(2) / 2
        tensor(0.3466)
    """


class BalancedPenaltyReducedFocalLoss(_CalledAsModule, formulas.BalancedPenaltyReducedFocalLoss, nn.Module):
    """`iba_core.concepts.losses.BalancedPenaltyReducedFocalLoss` as a module.

    Example:
        >>> import torch
        >>> loss = BalancedPenaltyReducedFocalLoss(alpha=0, beta=0)
        >>> loss(torch.full((1, 2), 0.5), torch.tensor([[1.0, 0.0]])).round(decimals=4)  # log(2)
        tensor(0.6931)
    """


class WeightedLossSum(_CalledAsModule, formulas.WeightedLossSum, nn.Module):
    """`iba_core.concepts.losses.WeightedLossSum` as a module. Losses that are modules are its children.

    Example:
        >>> import torch
        >>> loss = WeightedLossSum([Net2VecLoss(), TverskyLoss()], weights=[0.0, 2.0])
        >>> loss(torch.zeros(2, 2), torch.eye(2))
        tensor(2.)
    """

    def __init__(
        self, losses: Sequence[Callable[..., Tensor]], weights: Sequence[float] | None = None
    ) -> None:
        super().__init__(losses, weights)
        for index, loss in enumerate(losses):
            if isinstance(loss, nn.Module):
                self.add_module(str(index), loss)


class IoU(_CalledAsModule, metrics.IoU, nn.Module):
    """`iba_core.concepts.metrics.IoU` as a module.

    Example:
        >>> import torch
        >>> IoU()(torch.tensor([[0.9, 0.8]]), torch.tensor([[1, 0]])).round(decimals=4)
        tensor(0.5000)
    """


class SetIoU(_CalledAsModule, metrics.SetIoU, nn.Module):
    """`iba_core.concepts.metrics.SetIoU` as a module. Its sums stay on the device of the masks.

    Example:
        >>> import torch
        >>> metric = SetIoU()
        >>> metric.update(torch.tensor([[0.9, 0.8]]), torch.tensor([[1, 0]]))
        >>> metric.value().round(decimals=4)
        tensor(0.5000)
    """

    def update(self, outputs: Tensor, targets: Tensor) -> None:
        """Add a batch to the set, without a graph."""
        super().update(outputs.detach(), targets.detach())
