"""Where a layer keeps its channels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd

from iba_core.layout import DataFormat

_FIRST = (_ConvNd, _NormBase, nn.GroupNorm, nn.LocalResponseNorm)
_LAST_SIZES = {
    nn.Linear: "out_features",
    nn.Bilinear: "out_features",
    nn.Embedding: "embedding_dim",
    nn.RNNBase: "hidden_size",
    nn.MultiheadAttention: "embed_dim",
}


def channel_hint(module: nn.Module) -> tuple[DataFormat, int | None] | None:
    """What the type of `module` says about its output: the data format, and the channels if they are last."""
    if isinstance(module, _FIRST):
        return "channels_first", None
    if isinstance(module, nn.LayerNorm):
        return "channels_last", module.normalized_shape[-1]
    for kind, attribute in _LAST_SIZES.items():
        if isinstance(module, kind):
            size: Any = getattr(module, attribute)
            if isinstance(module, nn.RNNBase):
                size = (module.proj_size or size) * (2 if module.bidirectional else 1)
            return "channels_last", size
    return None


def data_format_of(shape: Sequence[int], hint: tuple[DataFormat, int | None] | None) -> DataFormat:
    """Data format of a feature map.

    Args:
        shape: its shape, without the batch axis.
        hint: what the last layer before it, as far as it is known, says. A block may well bring its
            channels to the last axis for a linear layer and back, so the number of channels has to agree.
    """
    if hint is not None and hint[0] == "channels_last" and shape and shape[-1] == hint[1]:
        return "channels_last"
    return "channels_first"
