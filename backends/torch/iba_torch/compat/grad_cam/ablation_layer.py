"""Modules that stand in for a layer and give its activations without a channel."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from iba_core.concepts.perturbation_maps import channels_to_ablate

_FAR_BELOW = 1e7
"""How far below the smallest activation a channel is set where activations may be negative."""

_LEVEL = 256
"""Channels of a level of the feature pyramid of Faster R-CNN."""

_ABSENT = -1000.0


class AblationLayer(nn.Module):
    """Gives activations (B, C, *places), each without one of its channels.

    A channel is set to 0 if that is the smallest activation, as it is after a ReLU. Otherwise it is set far
    below the smallest one.

    Attributes:
        indices: the channels to take away, one for each of the next activations.
        activations: the next activations, once `set_next_batch` has been called.

    Example:
        >>> layer = AblationLayer()
        >>> layer.indices = np.array([1, 0])
        >>> layer.set_next_batch(0, torch.tensor([[[0.0, 1.0], [2.0, 3.0]]]), num_channels_to_ablate=2)
        >>> layer(None).tolist()
        [[[0.0, 1.0], [0.0, 0.0]], [[0.0, 0.0], [2.0, 3.0]]]
    """

    def __init__(self) -> None:
        super().__init__()
        self.indices: npt.NDArray[np.int32] = np.zeros(0, np.int32)
        self.activations: Any = None

    def activations_to_be_ablated(
        self, activations: npt.NDArray[np.floating], ratio_channels_to_ablate: float = 1.0
    ) -> npt.NDArray[np.int32]:
        """The channels of an image's activations (C, *places) to take away, see `channels_to_ablate`."""
        self.indices = channels_to_ablate(activations, ratio_channels_to_ablate)
        return self.indices

    def set_next_batch(self, input_batch_index: int, activations: Any, num_channels_to_ablate: int) -> None:
        """Take the activations of one image, once for each channel to be taken away."""
        one = activations[input_batch_index]
        self.activations = one.unsqueeze(0).repeat(num_channels_to_ablate, *(1 for _ in one.shape))

    def forward(self, x: Any) -> Any:
        """The activations, each without its channel; `x` is not read."""
        return self._without(self.activations, 1)

    def _without(self, activations: torch.Tensor, axis: int) -> torch.Tensor:
        smallest = activations.min()
        value = smallest if smallest == 0 else smallest - _FAR_BELOW
        channels = activations.movedim(axis, 1)
        for copy, index in enumerate(self.indices[: len(channels)]):
            channels[copy, int(index)] = value
        return activations


class AblationLayerVit(AblationLayer):
    """Gives tokens (B, tokens, C), each without one of its channels; see `AblationLayer`.

    Example:
        >>> layer = AblationLayerVit()
        >>> layer.indices = np.array([1])
        >>> layer.set_next_batch(0, torch.tensor([[[0.0, 1.0], [2.0, 3.0]]]), num_channels_to_ablate=1)
        >>> layer(None).tolist()
        [[[0.0, 0.0], [2.0, 0.0]]]
    """

    def forward(self, x: Any) -> Any:
        """See `AblationLayer.forward`."""
        return self._without(self.activations, -1)


class AblationLayerFasterRCNN(AblationLayer):
    """Gives the feature pyramid of a Faster R-CNN, each without a channel of one of its five levels.

    The channels of the levels ``"0"`` to ``"3"`` and ``"pool"`` are counted on, 256 in each.

    Example:
        >>> layer = AblationLayerFasterRCNN()
        >>> layer.indices = np.array([4 * 256 + 1])
        >>> layer.set_next_batch(0, {"pool": torch.zeros(1, 256, 1, 1)}, num_channels_to_ablate=1)
        >>> layer(None)["pool"][0, :3].flatten().tolist()
        [0.0, -1000.0, 0.0]
    """

    def set_next_batch(
        self, input_batch_index: int, activations: Mapping[str, torch.Tensor], num_channels_to_ablate: int
    ) -> None:
        """See `AblationLayer.set_next_batch`."""
        self.activations = {
            name: level[input_batch_index].unsqueeze(0).repeat(num_channels_to_ablate, 1, 1, 1)
            for name, level in activations.items()
        }

    def forward(self, x: Any) -> Any:
        """See `AblationLayer.forward`."""
        copies = len(self.activations["pool"])
        for copy, index in enumerate(self.indices[:copies]):
            level, channel = divmod(int(index), _LEVEL)
            self.activations["pool" if level == 4 else str(level)][copy, channel] = _ABSENT
        return self.activations
