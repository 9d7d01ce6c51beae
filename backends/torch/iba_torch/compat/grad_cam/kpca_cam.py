"""Eigen-CAM with a kernel."""

from __future__ import annotations

from typing import Any

from torch import nn

from iba_torch.compat.grad_cam.base_cam import BaseCAM, FloatArray, on_host
from iba_torch.compat.grad_cam.utils.svd_on_activations import get_2d_projection_kernel


class KPCA_CAM(BaseCAM):  # noqa: N801 # the published name
    """Eigen-CAM with a kernel: see `get_2d_projection_kernel`, and `BaseCAM` for the other arguments.

    Args:
        model: see `BaseCAM`.
        target_layers: see `BaseCAM`.
        reshape_transform: see `BaseCAM`.
        kernel: see `sklearn.decomposition.KernelPCA`.
        gamma: see `sklearn.decomposition.KernelPCA`.
        **options: see `BaseCAM`.

    Example:
        >>> model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(144, 5))
        >>> KPCA_CAM(model, [model[0]])(torch.rand(1, 3, 8, 8)).shape
        (1, 8, 8)
    """

    def __init__(
        self,
        model: nn.Module,
        target_layers: Any,
        reshape_transform: Any = None,
        kernel: str = "sigmoid",
        gamma: float | None = None,
        **options: Any,
    ) -> None:
        super().__init__(model, target_layers, reshape_transform, uses_gradients=False, **options)
        self.kernel, self.gamma = kernel, gamma

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
        return get_2d_projection_kernel(on_host(activations), self.kernel, self.gamma)
