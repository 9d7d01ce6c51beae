"""Batch normalisation of a model in evaluation mode, as the scale and shift that it is there."""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import Any, NamedTuple

import torch
from torch import nn

from iba_core.framework.normalization import scale_and_shift
from iba_torch.tail.calls import is_hooked
from iba_torch.tail.precision import autocast_dtype
from iba_torch.tail.rewrites.conditions import CONVOLUTIONS, NORMALIZATIONS, is_differentiated, is_of
from iba_torch.tail.rewrites.memory_order import is_channels_last

_PRECISIONS = (torch.float32, torch.float64)
"""In a lower one PyTorch computes scale and shift in float32, which would have to be done here, too."""

Pair = tuple[torch.Tensor, torch.Tensor]
State = dict[str, torch.Tensor | None]


class _Constants(NamedTuple):
    """Two tensors, and what they follow from."""

    pair: Pair
    origins: list[tuple[State, str, torch.Tensor | None, int]]
    """Tensors with the place and the name that they have in a module, and their versions."""

    def hold(self) -> bool:
        """Whether nothing has changed that they follow from."""
        for place, name, tensor, version in self.origins:
            if place.get(name) is not tensor or (tensor is not None and tensor._version != version):
                return False
        return True


class ScaleAndShift:
    """Does what batch normalisation does where a pass is differentiated.

    PyTorch's own backward pass also computes gradients for the statistics, which are constant here. It keeps
    the input for that, up to a third of all memory that a convolutional network keeps.

    Every pass of a head's tail asks it. What it has computed is kept until `forget`, unless the model itself
    writes into the tensors; it does not see writes into the weights from outside.
    """

    def __init__(self) -> None:
        self._known: dict[tuple[Any, ...], _Constants] = {}

    def __call__(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> torch.Tensor | None:
        """Output of the call of a normalisation; None where the module has to run itself."""
        if kwargs or len(args) != 1 or module.training or is_hooked(module):
            return None
        x = args[0]
        if not is_differentiated(x) or x.ndim < 2:
            return None
        constants = self._of((module,), x.dtype, _scale_and_shift)
        if constants is None or x.shape[1] != len(constants[0]):
            return None
        shape = (-1, *(1,) * (x.ndim - 2))
        scale, shift = constants
        return torch.addcmul(shift.reshape(shape), x, scale.reshape(shape))

    def convolved(self, convolution: Any, normalization: Any, x: Any) -> torch.Tensor | None:
        """Batch normalisation of what a convolution makes of `x`, by a convolution that does both.

        It spares a pass over the maps forward, and one backward. Only for an output of the convolution that
        nobody else sees.

        Args:
            convolution: a module of a kind that `can_merge` accepts.
            normalization: likewise.
            x: input of the convolution.

        Returns:
            None where hooks see one of the two, or where a copy of the weights, which is held, would take
            more memory than the maps that are spared.
        """
        if not is_differentiated(x) or normalization.training or is_hooked(normalization):
            return None
        if is_hooked(convolution):
            return None
        if x.ndim != len(convolution.kernel_size) + 2 or autocast_dtype(x.device) is not None:
            return None
        places = prod(size // stride for size, stride in zip(x.shape[2:], convolution.stride, strict=True))
        if (
            x.shape[0] * places
            < prod(convolution.kernel_size) * convolution.in_channels // convolution.groups
        ):
            return None
        merge = _merged_channels_last if is_channels_last(x) else _merged
        constants = self._of((normalization, convolution), x.dtype, merge)
        return None if constants is None else convolution._conv_forward(x, *constants)

    def forget(self) -> None:
        """Compute everything again."""
        self._known.clear()

    def _of(
        self, modules: tuple[Any, ...], dtype: torch.dtype, compute: Callable[..., Pair | None]
    ) -> Pair | None:
        """What `compute` gives for the modules, computed once for each open head.

        Returns:
            None where it gives nothing; where the tensors are of another precision than `dtype`, or that is
            a low one; and where changes in them could not be seen.
        """
        key = (compute, *modules)
        known = self._known.get(key)
        if known is not None and known.hold():
            return known.pair if known.pair[0].dtype == dtype else None
        states = [place for module in modules for place in (module._parameters, module._buffers)]
        tensors = [(place, name, tensor) for place in states for name, tensor in place.items()]
        floating = [tensor for *_, tensor in tensors if tensor is not None and tensor.is_floating_point()]
        # Tensors of inference mode have no versions.
        if dtype not in _PRECISIONS or any(part.dtype != dtype or part.is_inference() for part in floating):
            return None
        with torch.no_grad():
            pair = compute(*modules)
        if pair is None:
            return None
        origins = [(*item, 0 if item[2] is None else item[2]._version) for item in tensors]
        self._known[key] = _Constants(pair, origins)
        return pair


def is_normalization(module: nn.Module) -> bool:
    """Whether it is a batch normalisation, by its type."""
    return is_of(NORMALIZATIONS, module)


def can_merge(module: nn.Module, following: nn.Module) -> bool:
    """Whether the two are a convolution and a batch normalisation, by their types."""
    return is_normalization(following) and is_of(CONVOLUTIONS, module)


def _scale_and_shift(module: Any, bias: torch.Tensor | None = None) -> Pair | None:
    """What `module` does to each channel of x + bias; None where it has no statistics."""
    if module.running_mean is None or module.running_var is None:
        return None
    return scale_and_shift(
        module.running_mean, module.running_var, module.eps, module.weight, module.bias, bias
    )


def _merged(normalization: Any, convolution: Any) -> Pair | None:
    """Weight and bias of a convolution that scales and shifts its output as well."""
    if normalization.num_features != convolution.out_channels:
        return None
    constants = _scale_and_shift(normalization, convolution.bias)
    if constants is None:
        return None
    scale, shift = constants
    return convolution.weight * scale.reshape(-1, *(1,) * (convolution.weight.ndim - 1)), shift


def _merged_channels_last(normalization: Any, convolution: Any) -> Pair | None:
    """Likewise, in the order in memory of the maps, which the convolution would otherwise bring it into."""
    pair = _merged(normalization, convolution)
    return pair and (pair[0].contiguous(memory_format=torch.channels_last), pair[1])
