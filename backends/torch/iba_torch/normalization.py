"""Batch normalisation of a model in evaluation mode, as the scale and shift that it is there."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

_KINDS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
_HOOKS = ("_forward_pre_hooks", "_forward_hooks", "_backward_pre_hooks", "_backward_hooks")


class ScaleAndShift:
    """Stands in for batch normalisation where a pass is differentiated, while no weight changes.

    PyTorch's own backward pass takes twice the time and keeps its input for it, a third of what a
    convolutional network keeps, though with constant statistics neither is needed.
    """

    def __init__(self) -> None:
        self._known: dict[nn.Module, tuple[torch.Tensor, torch.Tensor] | None] = {}

    def __call__(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> torch.Tensor | None:
        """Output of the call; None where `module` is no batch normalisation, or not one of this kind."""
        # What stands in for tensors records operations, and must not take constants of ours for the model's.
        if type(module) not in _KINDS or kwargs or len(args) != 1 or type(args[0]) is not torch.Tensor:
            return None
        x = args[0]
        if not (x.requires_grad and torch.is_grad_enabled()):
            return None
        if module not in self._known:
            self._known[module] = _scale_and_shift(module)
        known = self._known[module]
        if known is None or known[0].dtype != x.dtype or x.ndim < 2 or x.shape[1] != len(known[0]):
            return None
        scale, shift = (tensor.reshape(-1, *(1,) * (x.ndim - 2)) for tensor in known)
        return torch.addcmul(shift, x, scale)


def _scale_and_shift(module: Any) -> tuple[torch.Tensor, torch.Tensor] | None:
    """Scale and shift of each channel, as S. Ioffe and C. Szegedy (2015) have them in inference."""
    if (
        module.training
        or module.running_mean is None
        or "forward" in vars(module)
        or any(getattr(module, hooks) for hooks in _HOOKS)
    ):
        return None
    with torch.no_grad():
        scale = torch.rsqrt(module.running_var + module.eps)
        if module.affine:
            scale = scale * module.weight
        shift = -module.running_mean * scale
        return scale, shift + module.bias if module.affine else shift
