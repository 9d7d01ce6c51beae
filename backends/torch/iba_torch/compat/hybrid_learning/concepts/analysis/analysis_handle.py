"""The feature maps and masks that a concept is learnt from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from iba_core.concepts.data import SegmentationConcept2D
from iba_core.errors import InputError
from iba_torch.compat.hybrid_learning.concepts.models import ConceptDetectionModel2D
from iba_torch.compat.hybrid_learning.concepts.models.model_extension import ModelStump
from iba_torch.compat.hybrid_learning.datasets import DataTriple

__all__ = ["ConceptData", "data_for_concept_model"]


@dataclass(kw_only=True)
class ConceptData(DataTriple):
    """The feature maps and masks of a concept.

    Attributes:
        concept: the concept.

    Example:
        >>> from torch.utils.data import TensorDataset
        >>> from iba_torch.compat.hybrid_learning.concepts import SegmentationConcept2D
        >>> images = TensorDataset(torch.rand(2, 3, 8, 8), torch.ones(2, 1, 8, 8))
        >>> concept = SegmentationConcept2D("face", DataTriple(train=images, val=images, test=images))
        >>> network = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 1), torch.nn.Flatten())
        >>> data = data_for_concept_model(ConceptDetectionModel2D(concept, network, "0", kernel_size=(1, 1)))
        >>> data.train[0][0].shape
        torch.Size([4, 8, 8])
    """

    concept: SegmentationConcept2D


@dataclass(frozen=True)
class _FeatureMaps(Dataset[tuple[Tensor, Any]]):
    stump: ModelStump
    images: Any

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, Any]:
        image, mask = self.images[index]
        with torch.no_grad():
            return self.stump(torch.as_tensor(image)[None])[0], mask


def data_for_concept_model(
    concept_model: ConceptDetectionModel2D | None = None,
    main_model_stump: ModelStump | None = None,
    concept: SegmentationConcept2D | None = None,
    in_channels: int | None = None,
) -> ConceptData:
    """Give the feature maps and masks of a concept.

    Args:
        concept_model: model that has what is not given by the other arguments.
        main_model_stump: the model up to the layer.
        concept: the concept, with data for training, validation and test.
        in_channels: channels that the feature maps must have.

    Raises:
        InputError: something is missing, or the feature maps have other channels.

    Example:
        See `ConceptData`.
    """
    if concept_model is not None:
        main_model_stump = concept_model.main_model_stump if main_model_stump is None else main_model_stump
        concept = concept_model.concept if concept is None else concept
        in_channels = concept_model.in_channels if in_channels is None else in_channels
    if main_model_stump is None or concept is None:
        missing = "main_model_stump" if main_model_stump is None else "concept"
        raise InputError(f"{missing} is missing; give it, or a concept_model that has one")
    splits = {
        split: _FeatureMaps(main_model_stump, getattr(concept, f"{split}_data"))
        for split in ("train", "val", "test")
    }
    found = splits["train"][0][0].shape[0]
    if in_channels not in (None, found):
        raise InputError(
            f"in_channels={in_channels} must be {found}, as layer {main_model_stump.stump_head!r} has"
        )
    return ConceptData(concept=concept, **splits)
