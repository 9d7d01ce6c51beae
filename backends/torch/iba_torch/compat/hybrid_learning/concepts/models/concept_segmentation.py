"""The model that locates a concept pixel by pixel, as version 1.0 has it."""

from __future__ import annotations

from torch import nn

from iba_core.concepts.data import SegmentationConcept2D
from iba_torch.compat.hybrid_learning.concepts.models.concept_detection import ConceptDetectionModel2D

__all__ = ["ConceptSegmentationModel2D"]


class ConceptSegmentationModel2D(ConceptDetectionModel2D):
    """`ConceptDetectionModel2D` of version 1.0 with a window of one pixel.

    Args:
        concept: the concept.
        model: the main model.
        layer_id: name of the layer.
        in_channels: channels of the feature map; by default those of the layer.

    Raises:
        InputError: an argument is wrong.

    Example:
        >>> network = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Flatten())
        >>> ConceptSegmentationModel2D(None, network, layer_id="0", in_channels=4).kernel_size
        (1, 1)
    """

    def __init__(
        self,
        concept: SegmentationConcept2D | None,
        model: nn.Module | None,
        layer_id: str | None,
        in_channels: int | None = None,
    ) -> None:
        super().__init__(concept, model, layer_id, kernel_size=(1, 1), in_channels=in_channels)
