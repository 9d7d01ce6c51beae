"""Score-CAM."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from iba_core.arguments import require_whole
from iba_core.concepts.perturbation_maps import score_cam_weights
from iba_torch.compat.grad_cam.base_cam import BaseCAM


class ScoreCAM(BaseCAM):
    """Score-CAM: see `score_cam_weights` for the formula, and `BaseCAM` for the arguments.

    Attributes:
        batch_size: how many masked images the model sees at once. Set it to change it.

    Example:
        >>> model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(144, 5))
        >>> ScoreCAM(model, [model[0]])(torch.rand(1, 3, 8, 8)).shape
        (1, 8, 8)
    """

    def __init__(
        self, model: nn.Module, target_layers: Any, reshape_transform: Any = None, **options: Any
    ) -> None:
        super().__init__(model, target_layers, reshape_transform, uses_gradients=False, **options)
        self.batch_size = 16

    def get_cam_weights(
        self, input_tensor: Any, target_layer: Any, targets: Any, activations: Any, grads: Any
    ) -> npt.NDArray[np.float64]:
        """See `BaseCAM.get_cam_weights`."""

        def score(image: int, masks: torch.Tensor) -> npt.NDArray[np.float64]:
            return self.scores_of(input_tensor[image] * masks.to(input_tensor.dtype)[:, None], targets[image])

        features = torch.as_tensor(activations).to(self.device)
        batch_size = require_whole("batch_size", self.batch_size, 1)
        return score_cam_weights(features, input_tensor.shape[2:], score, batch_size)
