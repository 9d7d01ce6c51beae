"""Where a layer keeps its channels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd

from iba_core.errors import InputError
from iba_core.framework.layout import DataFormat

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


def require_channels(module: nn.Module, shape: Sequence[int]) -> None:
    """Explain why a layer cannot take the model's input, if its channels are the reason.

    Args:
        module: the layer.
        shape: of the input, with the batch axis.

    Raises:
        InputError: the layer is a convolution or linear, and takes another number of channels.
    """
    if isinstance(module, _ConvNd) and len(shape) == len(module.kernel_size) + 2:
        wanted, given, other, right = module.in_channels, shape[1], shape[-1], "first"
    elif isinstance(module, nn.Linear):
        wanted, given, other, right = module.in_features, shape[-1], shape[1], "last"
    else:
        return
    if given != wanted:
        hint = f"; the channels must come {right}" * (other == wanted)
        sizes = ", ".join(map(str, shape[1:]))
        raise InputError(
            f"the input has shape (batch, {sizes}), but the model's first layer, {type(module).__name__}, "
            f"takes {wanted} channels{hint}"
        )


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
