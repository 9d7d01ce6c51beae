"""What the published bottlenecks have besides their documented names: attributes, and older names."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from iba_core.bottleneck.saliency import to_bits
from iba_core.bottleneck.smoothing import smooth, smoothing_matrices
from iba_core.framework.layout import Layout
from iba_torch.bottlenecks.iba import IBA, Mode


class Smooth(nn.Module):
    """The Gaussian filter of the mask, as a module without parameters.

    Args:
        sigma: standard deviation of the Gaussian, in features.
    """

    def __init__(self, sigma: float) -> None:
        super().__init__()
        self.sigma = sigma

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Smooth maps (B, C, *places)."""
        layout = Layout.of(x.shape[1:], "channels_first")
        matrices = smoothing_matrices(x.shape[1:], layout, self.sigma)
        smoothed: torch.Tensor = smooth(x, [torch.as_tensor(matrix).to(x) for matrix in matrices], layout)
        return smoothed


class Published(IBA):
    """A bottleneck with the further attributes and older names."""

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        # The published filter has its kernel in the state; here it follows from sigma.
        state_dict.pop(f"{prefix}smooth.conv.weight", None)
        super()._load_from_state_dict(state_dict, prefix, *args)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.sigmoid = nn.Sigmoid()

    @property
    def smooth(self) -> Smooth | None:
        """The filter of the mask; None without smoothing."""
        return Smooth(self.sigma) if self.sigma else None

    @property
    def device(self) -> torch.device | None:
        """Device of the estimated features; None before `estimate`."""
        device: torch.device | None = getattr(self.estimator, "device", None)
        return device

    def supress_information(self) -> AbstractContextManager[None]:
        """Older name of `restrict_flow`."""
        return self.restrict_flow()

    @property
    def _buffer_capacity(self) -> torch.Tensor | None:
        return self._capacity

    @property
    def _mean(self) -> torch.Tensor:
        return self._as_tensor(self._statistics(self.active_neurons_threshold).mean)

    @property
    def _std(self) -> torch.Tensor:
        return self._as_tensor(self._statistics(self.active_neurons_threshold).std)

    @property
    def _active_neurons(self) -> torch.Tensor:
        return self._as_tensor(self._statistics(self.active_neurons_threshold).active)

    def _as_tensor(self, array: npt.NDArray[Any]) -> torch.Tensor:
        return torch.tensor(array, dtype=torch.float32, device=self.device)


def in_published_unit(maps: npt.NDArray[np.floating], mode: Mode) -> npt.NDArray[np.floating]:
    """What `analyze` returns, with a capacity in bits."""
    return to_bits(maps) if mode == "capacity" else maps
