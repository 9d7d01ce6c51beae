"""XGrad-CAM."""

from __future__ import annotations

from typing import Any

from iba_core.concepts.activation_maps import xgrad_cam_weights
from iba_torch.compat.grad_cam.base_cam import BaseCAM, on_host, per_channel


class XGradCAM(BaseCAM):
    """XGrad-CAM: see `xgrad_cam_weights` for the formula, and `BaseCAM` for the arguments.

    Example:
        >>> model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(144, 5))
        >>> XGradCAM(model, [model[0]])(torch.rand(1, 3, 8, 8)).shape
        (1, 8, 8)
    """

    def get_cam_weights(
        self, input_tensor: Any, target_layer: Any, targets: Any, activations: Any, grads: Any
    ) -> Any:
        """See `BaseCAM.get_cam_weights`."""
        return per_channel(xgrad_cam_weights(on_host(activations), on_host(grads)))
