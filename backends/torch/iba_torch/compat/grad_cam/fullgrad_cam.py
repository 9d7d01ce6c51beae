"""FullGrad."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from iba_core.concepts.perturbation_maps import combine_full_gradients, full_gradient_maps
from iba_core.framework.normalization import scale_and_shift
from iba_torch.compat.grad_cam.base_cam import BaseCAM, on_host
from iba_torch.compat.grad_cam.utils.find_layers import find_layer_predicate_recursive
from iba_torch.compat.grad_cam.utils.image import scale_accross_batch_and_channels, scale_cam_image
from iba_torch.compat.grad_cam.utils.svd_on_activations import get_2d_projection

_EPSILON = 1e-7
_SHRINK = 8


class FullGrad(BaseCAM):
    """FullGrad: the gradients of the input and of all biases of convolutions and batch normalisations.

    See `iba_core.concepts.perturbation_maps.full_gradient_maps` for the formula.

    Args:
        model: see `BaseCAM`. Its batch normalisations must have statistics.
        target_layers: not used, since all layers with a bias are. It has no default, as in the published
            package.
        reshape_transform: see `BaseCAM`.
        **options: see `BaseCAM`.

    Attributes:
        bias_data: the bias of each target layer, (C,).

    Example:
        >>> model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(144, 5))
        >>> FullGrad(model, [])(torch.rand(1, 3, 8, 8)).shape
        (1, 8, 8)
    """

    def __init__(
        self, model: nn.Module, target_layers: Any, reshape_transform: Any = None, **options: Any
    ) -> None:
        layers = find_layer_predicate_recursive(model, _has_bias)
        super().__init__(model, layers, reshape_transform, compute_input_gradient=True, **options)
        self.bias_data = [on_host(self.get_bias_data(layer)) for layer in layers]

    def get_bias_data(self, layer: nn.Module) -> torch.Tensor:
        """The bias of a layer, (C,): what it adds to a feature, whatever the feature is."""
        if isinstance(layer, nn.BatchNorm2d):
            statistics = layer.running_mean, layer.running_var, layer.eps, layer.weight, layer.bias
            _, shift = scale_and_shift(*statistics)
            return torch.as_tensor(shift).detach()
        return torch.as_tensor(layer.bias).detach()

    def compute_cam_per_layer(
        self, input_tensor: torch.Tensor, targets: Any, eigen_smooth: bool
    ) -> npt.NDArray[np.floating]:
        """The map of all layers and the input, (B, 1, H, W)."""
        kept, size = self.activations_and_grads, self.get_target_width_height(input_tensor)
        shape = tuple(reversed(size))
        assert input_tensor.grad is not None, "the pass before has asked for it"
        contributions = [on_host(input_tensor.grad) * on_host(input_tensor)]
        biases = {id(layer): bias for layer, bias in zip(self.target_layers, self.bias_data, strict=True)}
        for call, layer in enumerate(kept.layers_called):
            gradient = kept.gradient_of(call)
            if gradient is not None:
                contributions.append(on_host(gradient) * biases[id(layer)][:, None, None])
        maps = [full_gradient_maps(one, shape, _EPSILON) for one in contributions]
        if not eigen_smooth:
            return combine_full_gradients(maps)[:, None]
        # One small map for each layer: the principal component of many large ones takes too much memory.
        by_layer = np.concatenate([maps[0], *(one.sum(axis=1, keepdims=True) for one in maps[1:])], axis=1)
        small = scale_accross_batch_and_channels(by_layer, [max(1, side // _SHRINK) for side in size])
        return scale_accross_batch_and_channels(get_2d_projection(small)[:, None], size)

    def aggregate_multi_layers(self, cam_per_target_layer: Any) -> npt.NDArray[np.float32]:
        """Scale the map to the range from 0 to 1."""
        return scale_cam_image(np.sum(cam_per_target_layer, axis=1))


def _has_bias(layer: nn.Module) -> bool:
    return type(layer) in (nn.Conv2d, nn.BatchNorm2d) and layer.bias is not None
