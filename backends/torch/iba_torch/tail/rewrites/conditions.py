"""When a rewrite may do what a module does in the tail."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from iba_torch.tail.calls import is_hooked
from iba_torch.tail.shadow import own_forward

NORMALIZATIONS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_FORWARD: dict[Any, Any] = {
    kind: kind.forward for kind in (*NORMALIZATIONS, *CONVOLUTIONS, nn.AdaptiveAvgPool2d)
}
"""What the modules do that have rewrites."""


def is_differentiated(x: Any) -> bool:
    """Whether a gradient is taken with respect to a plain tensor."""
    # Other types stand in for tensors and record operations; constants of ours are not among the model's.
    return type(x) is torch.Tensor and x.requires_grad and torch.is_grad_enabled()


def is_plain(module: nn.Module) -> bool:
    """Whether a module of a kind named here does what its class does when it does not learn, unwatched."""
    if own_forward(module) is not None or type(module).forward is not _FORWARD[type(module)]:
        return False
    return not (module.__dict__["training"] or is_hooked(module))


def is_sequential(module: nn.Module) -> bool:
    """Whether `module` does what `nn.Sequential` does and nothing else."""
    return (
        isinstance(module, nn.Sequential)
        and type(module).forward is nn.Sequential.forward
        and own_forward(module) is None
    )
