"""The average over the places of maps, with a gradient in their order in memory."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from iba_torch.tail.calls import is_hooked
from iba_torch.tail.rewrites.conditions import AVERAGES, is_differentiated, is_of
from iba_torch.tail.rewrites.memory_order import is_channels_last


def is_average(module: nn.Module) -> bool:
    """Whether it averages over all places of maps, by its type and its size."""
    return is_of(AVERAGES, module) and module.output_size in (1, (1, 1))


def averaged(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> torch.Tensor | None:
    """Stands in for the average over all places, a module that `is_average`, where channels lie last.

    PyTorch's own backward pass gives a gradient with the channels first. The layers before then mix the two
    orders: a convolution and its activation took a tenth to a fifth longer, forward and backward.

    Returns:
        Output of the call, (B, C, 1, 1); None where hooks see it, or its input is not of this kind.
    """
    if kwargs or len(args) != 1 or is_hooked(module):
        return None
    x: Any = args[0]
    if not is_differentiated(x) or not is_channels_last(x):
        return None
    averages: torch.Tensor = x.permute(0, 2, 3, 1).flatten(1, 2).mean(1)
    return averages[:, :, None, None]
