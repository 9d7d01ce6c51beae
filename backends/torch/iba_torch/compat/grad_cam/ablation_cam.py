"""Ablation-CAM."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from iba_core.arguments import require_number, require_whole
from iba_core.concepts.perturbation_maps import ablation_weights
from iba_core.errors import LayerError
from iba_torch.compat.grad_cam.ablation_layer import AblationLayer
from iba_torch.compat.grad_cam.base_cam import BaseCAM
from iba_torch.compat.grad_cam.utils.find_layers import replace_layer_recursive


class AblationCAM(BaseCAM):
    """Ablation-CAM: see `iba_core.concepts.perturbation_maps.ablation_weights`.

    Args:
        model: see `BaseCAM`.
        target_layers: see `BaseCAM`.
        reshape_transform: see `BaseCAM`.
        ablation_layer: the module that takes the layer's place, see `AblationLayer`.
        batch_size: how many versions of an image the model sees at once.
        ratio_channels_to_ablate: share of the channels to try, see `channels_to_ablate`; the others get the
            weight 0. 1 for all of them.
        **options: see `BaseCAM`.

    Example:
        >>> model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(144, 5))
        >>> AblationCAM(model, [model[0]])(torch.rand(1, 3, 8, 8)).shape
        (1, 8, 8)
    """

    def __init__(
        self,
        model: nn.Module,
        target_layers: Any,
        reshape_transform: Any = None,
        ablation_layer: AblationLayer | None = None,
        batch_size: int = 32,
        ratio_channels_to_ablate: float = 1.0,
        **options: Any,
    ) -> None:
        self.batch_size = require_whole("batch_size", batch_size, 1)
        self.ratio_channels_to_ablate = require_number(
            "ratio_channels_to_ablate", ratio_channels_to_ablate, 0, 1
        )
        self.ablation_layer = AblationLayer() if ablation_layer is None else ablation_layer
        super().__init__(model, target_layers, reshape_transform, uses_gradients=False, **options)
        self.activations: Any = None

    def save_activation(self, module: nn.Module, input: Any, output: Any) -> None:
        """Keep what the layer gives: the hook."""
        self.activations = output

    def assemble_ablation_scores(
        self,
        new_scores: Sequence[float],
        original_score: float,
        ablated_channels: npt.NDArray[np.integer],
        number_of_channels: int,
    ) -> list[float]:
        """Scores of all channels: those measured, and the score of the whole image for the others."""
        scores = np.full(number_of_channels, original_score, np.float64)
        scores[ablated_channels] = new_scores
        return list(scores)

    def get_cam_weights(
        self, input_tensor: Any, target_layer: Any, targets: Any, activations: Any, grads: Any
    ) -> npt.NDArray[np.float64]:
        """See `BaseCAM.get_cam_weights`."""
        handle = target_layer.register_forward_hook(self.save_activation)
        try:
            images = zip(input_tensor, targets, strict=True)
            whole = [self.scores_of(image[None], target)[0] for image, target in images]
            with torch.no_grad(), self.activations_and_grads.paused():
                self.model(input_tensor)
        finally:
            handle.remove()
        with _in_place_of(self.model, target_layer, self.ablation_layer):
            ablated = [
                self._ablated(image, input_tensor, targets[image], activations[image], whole[image])
                for image in range(len(targets))
            ]
        self.activations = self.ablation_layer.activations = None
        return ablation_weights(whole, np.array(ablated))

    def _ablated(
        self, image: int, input_tensor: torch.Tensor, target: Any, activations: Any, whole: float
    ) -> list[float]:
        """Scores of an image without each of the channels."""
        layer = self.ablation_layer
        channels = layer.activations_to_be_ablated(activations, self.ratio_channels_to_ablate)
        scores: list[float] = []
        for start in range(0, len(channels), self.batch_size):
            count = min(self.batch_size, len(channels) - start)
            layer.set_next_batch(
                input_batch_index=image, activations=self.activations, num_channels_to_ablate=count
            )
            copies = input_tensor[image].expand(count, *input_tensor.shape[1:])
            scores += list(self.scores_of(copies, target))
            layer.indices = layer.indices[count:]
        return self.assemble_ablation_scores(scores, whole, channels, len(activations))


@contextmanager
def _in_place_of(model: nn.Module, layer: nn.Module, other: nn.Module) -> Iterator[None]:
    """Context in which another module stands where a layer of the model is."""
    if not replace_layer_recursive(model, layer, other):
        raise LayerError(f"the target layer {type(layer).__name__} is not a module of the model")
    try:
        yield
    finally:
        replace_layer_recursive(model, other, layer)
