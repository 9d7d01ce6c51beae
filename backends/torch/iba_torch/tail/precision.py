"""Autocast, which the model may run under and the bottleneck may not."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch


def autocast_dtype(device: torch.device) -> torch.dtype | None:
    """What autocast casts to on a device; None where it is off."""
    kind = device.type
    if not torch.amp.is_autocast_available(kind) or not torch.is_autocast_enabled(kind):
        return None
    return torch.get_autocast_dtype(kind)


@contextmanager
def without_autocast(device: torch.device) -> Iterator[AbstractContextManager[Any]]:
    """Context in which nothing is cast to a lower precision.

    Args:
        device: device of the tensors.

    Yields:
        A context, to be entered as often as needed, in which it is as it was outside.
    """
    kind, dtype = device.type, autocast_dtype(device)
    if dtype is None:
        yield nullcontext()
        return
    outside = torch.autocast(kind, dtype=dtype, cache_enabled=torch.is_autocast_cache_enabled())
    with torch.autocast(kind, enabled=False):
        yield outside
