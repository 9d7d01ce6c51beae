"""Eigen-CAM of activations times gradients."""

from __future__ import annotations

from typing import Any

from iba_core.concepts.activation_maps import hires_cam_weights
from iba_torch.compat.grad_cam.base_cam import BaseCAM, FloatArray, on_host
from iba_torch.compat.grad_cam.utils.svd_on_activations import get_2d_projection


class EigenGradCAM(BaseCAM):
    """Eigen-CAM of activations times gradients: see `get_2d_projection`, and `BaseCAM` for the arguments.

    The sign of the map is left open. `iba_torch.concepts.EigenGradCAM` chooses it.

    Example:
        >>> model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(144, 5))
        >>> EigenGradCAM(model, [model[0]])(torch.rand(1, 3, 8, 8)).shape
        (1, 8, 8)
    """

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
        features = on_host(activations)
        return get_2d_projection(features * hires_cam_weights(features, on_host(grads)))
