"""The order of maps in memory: the convolutions of a processor prefer the channels last."""

from __future__ import annotations

import torch


def gains_by_order(tensor: torch.Tensor) -> bool:
    """Whether convolutions are faster on maps like `tensor`, (B, C, H, W), with their channels last.

    Those of a processor are, by a fifth, and need no copies of the maps.
    """
    return tensor.ndim == 4 and tensor.device.type == "cpu" and tensor.dtype == torch.float32


def is_channels_last(tensor: torch.Tensor) -> bool:
    """Whether maps (B, C, H, W) lie in memory with their channels last, and in no other order as well."""
    return (
        tensor.ndim == 4
        and tensor.is_contiguous(memory_format=torch.channels_last)
        and not tensor.is_contiguous()
    )
