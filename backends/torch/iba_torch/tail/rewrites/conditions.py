"""When a rewrite may do what a module does in the tail."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from iba_torch.tail.shadow import own_forward

NORMALIZATIONS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
AVERAGES = (nn.AdaptiveAvgPool2d,)
_FORWARD: dict[Any, Any] = {
    kind: kind.forward for kind in (*NORMALIZATIONS, *CONVOLUTIONS, *AVERAGES, nn.Sequential)
}
"""What the modules do that have rewrites."""


def is_differentiated(x: Any) -> bool:
    """Whether a gradient is taken with respect to a plain tensor."""
    # Other types stand in for tensors and record operations; constants of ours are not among the model's.
    return type(x) is torch.Tensor and x.requires_grad and torch.is_grad_enabled()


def is_of(kinds: tuple[Any, ...], module: nn.Module) -> bool:
    """Whether a module is of one of the kinds named here, and runs what PyTorch has for it."""
    kind = type(module)
    return kind in kinds and kind.forward is _FORWARD[kind] and own_forward(module) is None


def forwards() -> tuple[Any, ...]:
    """What these kinds of modules run now; somebody may have put something else there."""
    return tuple(kind.forward for kind in _FORWARD)


def is_sequential(module: nn.Module) -> bool:
    """Whether `module` does what `nn.Sequential` does and nothing else."""
    return (
        isinstance(module, nn.Sequential)
        and type(module).forward is _FORWARD[nn.Sequential]
        and own_forward(module) is None
    )
