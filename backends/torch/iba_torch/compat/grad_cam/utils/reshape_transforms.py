"""Make feature maps (B, C, H, W) of what layers of transformers and detectors give."""

from __future__ import annotations

from collections.abc import Mapping

import torch


def vit_reshape_transform(tensor: torch.Tensor, height: int = 14, width: int = 14) -> torch.Tensor:
    """Fold the tokens of a vision transformer, (B, 1 + height * width, C), without the class token.

    Example:
        >>> vit_reshape_transform(torch.zeros(2, 7, 5), height=2, width=3).shape
        torch.Size([2, 5, 2, 3])
    """
    return swinT_reshape_transform(tensor[:, 1:], height, width)


def swinT_reshape_transform(  # noqa: N802 # the published name
    tensor: torch.Tensor, height: int = 7, width: int = 7
) -> torch.Tensor:
    """Fold the tokens of a Swin transformer, (B, height * width, C).

    Example:
        >>> swinT_reshape_transform(torch.zeros(2, 6, 5), height=2, width=3).shape
        torch.Size([2, 5, 2, 3])
    """
    return tensor.reshape(len(tensor), height, width, tensor.shape[2]).permute(0, 3, 1, 2)


def fasterrcnn_reshape_transform(x: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """Put the sizes of the maps of a feature pyramid side by side, each resized to those of ``x["pool"]``.

    Args:
        x: what the backbone of a detector gives: maps (B, C, H, W) by the names of the levels.

    Example:
        >>> levels = {"0": torch.zeros(1, 4, 8, 8), "pool": torch.zeros(1, 4, 2, 2)}
        >>> fasterrcnn_reshape_transform(levels).shape
        torch.Size([1, 8, 2, 2])
    """
    size = x["pool"].shape[-2:]
    levels = (torch.nn.functional.interpolate(level.abs(), size, mode="bilinear") for level in x.values())
    return torch.cat(list(levels), dim=1)
