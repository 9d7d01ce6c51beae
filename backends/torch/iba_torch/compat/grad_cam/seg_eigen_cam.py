"""Seg-Eigen-CAM."""

from __future__ import annotations

from typing import Any

import numpy as np

from iba_torch.compat.grad_cam.base_cam import BaseCAM, FloatArray, on_host
from iba_torch.compat.grad_cam.utils.svd_on_activations import get_2d_projection_with_sign_correction


class SegEigenCAM(BaseCAM):
    """Seg-Eigen-CAM: see `component_with_positive_peak`, and `BaseCAM` for the arguments.

    Example:
        >>> model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(144, 5))
        >>> SegEigenCAM(model, [model[0]])(torch.rand(1, 3, 8, 8)).shape
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
        return get_2d_projection_with_sign_correction(np.abs(on_host(grads)) * on_host(activations))
