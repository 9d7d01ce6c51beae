"""Batch normalisation of a model in evaluation mode, as the scale and shift that it is there."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

_KINDS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
_HOOKS = ("_forward_pre_hooks", "_forward_hooks", "_backward_pre_hooks", "_backward_hooks")
_PRECISIONS = (torch.float32, torch.float64)
"""In a lower one PyTorch computes scale and shift in float32, which would have to be done here, too."""


class _Known(NamedTuple):
    """Scale and shift of each channel, and the tensors that they follow from, with their versions."""

    scale: torch.Tensor
    shift: torch.Tensor
    state: list[torch.Tensor]
    versions: list[int]


class ScaleAndShift:
    """Stands in for batch normalisation where a pass is differentiated.

    PyTorch's own backward pass also computes what constant statistics do not need, and keeps the input for
    it, which can be a third of what a convolutional network keeps.
    """

    def __init__(self) -> None:
        self._known: dict[nn.Module, _Known] = {}

    def __call__(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> torch.Tensor | None:
        """Output of the call; None where `module` is no batch normalisation, or not one of this kind."""
        if type(module) not in _KINDS or kwargs or len(args) != 1:
            return None
        x = args[0]
        # Other types stand in for tensors and record operations; constants of ours are not among the model's.
        if type(x) is not torch.Tensor or not x.requires_grad or not torch.is_grad_enabled():
            return None
        if not _is_plain(module) or x.dtype not in _PRECISIONS or x.ndim < 2:
            return None
        parts = (module.running_mean, module.running_var, module.weight, module.bias)
        state = [part for part in parts if part is not None]
        if any(part.is_inference() for part in state):  # They have no versions.
            return None
        scale, shift = self._constants(module, state)
        if scale.dtype != x.dtype or x.shape[1] != len(scale):
            return None
        shape = (-1, *(1,) * (x.ndim - 2))
        return torch.addcmul(shift.reshape(shape), x, scale.reshape(shape))

    def _constants(self, module: Any, state: list[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        """Scale and shift, computed anew once a weight or a statistic has changed."""
        versions = [part._version for part in state]
        known = self._known.get(module)
        if known is None or known.versions != versions or any(map(_is_not, known.state, state)):
            self._known[module] = known = _Known(*_scale_and_shift(module), state, versions)
        return known.scale, known.shift


def _is_plain(module: Any) -> bool:
    """Whether the module does what its class does, by constant statistics, and nobody watches."""
    return not (
        module.training
        or module.running_mean is None
        or module.running_var is None
        or "forward" in vars(module)
        or type(module).forward is not _BatchNorm.forward
        or any(getattr(module, hooks) for hooks in _HOOKS)
        or nn.modules.module._has_any_global_hook()
    )


def _scale_and_shift(module: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Of each channel, as S. Ioffe and C. Szegedy (2015) have them in inference."""
    with torch.no_grad():
        scale = torch.rsqrt(module.running_var + module.eps)
        if module.weight is not None:
            scale = scale * module.weight
        shift = -module.running_mean * scale
        return scale, shift if module.bias is None else shift + module.bias


def _is_not(one: object, other: object) -> bool:
    return one is not other
