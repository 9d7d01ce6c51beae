"""Checkpoints: parts of a model that the backward pass runs again, as they are."""

from __future__ import annotations

import sys
from types import FrameType, TracebackType
from typing import NoReturn

from torch.utils.checkpoint import CheckpointFunction

from iba_core.errors import LayerError

_FORWARD, _BACKWARD = CheckpointFunction.forward.__code__, CheckpointFunction.backward.__code__


def require_no_reentrant() -> None:
    """Refuse a module that runs in a checkpoint of the reentrant kind.

    Raises:
        LayerError: it does.
    """
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        if frame.f_code is _FORWARD:
            _refuse()
        frame = frame.f_back


def refuse_reentrant(error: BaseException) -> None:
    """Refuse a model where an error of a gradient comes from a checkpoint of that kind.

    Raises:
        LayerError: it does.
    """
    traceback: TracebackType | None = error.__traceback__
    while traceback is not None and traceback.tb_next is not None:
        traceback = traceback.tb_next
    if traceback is not None and traceback.tb_frame.f_code is _BACKWARD:
        _refuse()


def _refuse() -> NoReturn:
    raise LayerError(
        "the model runs a part after the layer in torch.utils.checkpoint with use_reentrant=True, which "
        "gives no gradient for features; give it use_reentrant=False, or turn checkpointing off"
    ) from None
