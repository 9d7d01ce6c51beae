"""Eigen-CAM."""

from __future__ import annotations

from typing import Any

from torch import nn

from iba_torch.compat.grad_cam.base_cam import BaseCAM, FloatArray, on_host
from iba_torch.compat.grad_cam.utils.svd_on_activations import get_2d_projection


class EigenCAM(BaseCAM):
    """Eigen-CAM: see `get_2d_projection`, and `BaseCAM` for the arguments.

    The sign of the map is left open, as in the published package, so that a map may show where the evidence
    is *not*. `iba_torch.concepts.EigenCAM` chooses the sign.

    Example:
        >>> model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(144, 5))
        >>> EigenCAM(model, [model[0]])(torch.rand(1, 3, 8, 8)).shape
        (1, 8, 8)
    """

    def __init__(
        self, model: nn.Module, target_layers: Any, reshape_transform: Any = None, **options: Any
    ) -> None:
        super().__init__(model, target_layers, reshape_transform, uses_gradients=False, **options)

    def get_cam_image(
        self,
        input_tensor: Any,
        target_layer: Any,
        targets: Any,
        activations: Any,
        grads: Any,
        eigen_smooth: bool = False,
    ) -> FloatArray:
        """See `BaseCAM.get_cam_image`."""
        return get_2d_projection(on_host(activations))
