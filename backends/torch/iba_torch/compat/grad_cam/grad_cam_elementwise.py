"""Element-wise Grad-CAM."""

from __future__ import annotations

from typing import Any

from iba_core.concepts.activation_maps import elementwise_weights
from iba_torch.compat.grad_cam.base_cam import BaseCAM, FloatArray, combined, on_host


class GradCAMElementWise(BaseCAM):
    """Element-wise Grad-CAM: see `elementwise_weights` for the formula, and `BaseCAM` for the arguments.

    Example:
        >>> model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(144, 5))
        >>> GradCAMElementWise(model, [model[0]])(torch.rand(1, 3, 8, 8)).shape
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
        features, slopes = on_host(activations), on_host(grads)
        return combined(features * elementwise_weights(features, slopes), eigen_smooth)
