"""Concepts, given by data sets of PyTorch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any, ClassVar, Self

import numpy as np
import numpy.typing as npt

from iba_core import concepts
from iba_core.errors import InputError
from iba_core.framework.arrays import as_array

__all__ = ["Concept", "ConceptTypes", "SegmentationConcept2D"]


class ConceptTypes(Enum):
    """Kinds of data that a concept can have. This library serves segmentations.

    Example:
        >>> ConceptTypes.SEGMENTATION.value
        'segmentation'
    """

    SEGMENTATION = "segmentation"
    IMAGE_LEVEL = "image_level"
    BBOX = "bbox"


class SegmentationConcept2D(concepts.SegmentationConcept2D):
    """`iba_core.concepts.SegmentationConcept2D` from a `DataTriple`.

    Args:
        name: name of the concept.
        data: object with the data sets `train`, `val` and `test`. Each has a length, and its entries are
            pairs of an image (C, H, W) and a mask (H, W) or (1, H, W).
        rel_size: size of the concept relative to the image: (height, width), or one number for both.

    Attributes:
        data: the data sets.
        train_data: `SegmentationData` whose entries are those of the data set; `val_data` and `test_data`,
            too.

    Raises:
        InputError: the training data is missing or empty, or the data or `rel_size` is wrong.

    Example:
        >>> import torch
        >>> from iba_torch.compat.hybrid_learning.datasets import DataTriple
        >>> data = torch.utils.data.TensorDataset(torch.rand(4, 3, 8, 8), torch.ones(4, 1, 8, 8))
        >>> triple = DataTriple(train=data, val=data, test=data)
        >>> concept = SegmentationConcept2D("face", data=triple, rel_size=0.25)
        >>> concept.rel_size, concept.train_data[0][0].shape
        ((0.25, 0.25), torch.Size([3, 8, 8]))
    """

    def __init__(self, name: str, data: Any, rel_size: float | Sequence[float] | None = None) -> None:
        if getattr(data, "train", None) is None:
            raise InputError(
                f"data={data!r} has no training data; give a DataTriple(train=..., val=..., test=...)"
            )
        if isinstance(rel_size, (int, float)):
            rel_size = (rel_size, rel_size)
        parts = {
            split: None if getattr(data, split, None) is None else _Data(getattr(data, split))
            for split in ("val", "test")
        }
        sizes: Any = rel_size  # the base class checks them
        super().__init__(name, _Data(data.train), parts["val"], parts["test"], sizes)
        self.data = data

    @classmethod
    def new(cls, concept: Any) -> Self:
        """Make a concept from the settings of another one, with the same data."""
        return cls(**concept.settings)

    @property
    def settings(self) -> dict[str, Any]:
        """The constructor's arguments that reproduce this concept."""
        return {"name": self.name, "data": self.data, "rel_size": self.rel_size}

    @property
    def type(self) -> ConceptTypes:
        """The kind of data."""
        return ConceptTypes.SEGMENTATION

    @property
    def train_val_data(self) -> Any:
        """The training and validation data as one data set."""
        return self.data.train_val

    def __eq__(self, other: object) -> bool:
        """Whether name, data and relative size are equal."""
        if not isinstance(other, SegmentationConcept2D):
            return NotImplemented
        return self.settings == other.settings

    # Data sets that compare by value allow no hash.
    __hash__: ClassVar[None] = None  # type: ignore[assignment]


Concept = SegmentationConcept2D
"""The published base class; segmentations are the only kind that this library serves."""


class _Data(concepts.SegmentationData):
    """A data set of PyTorch as `SegmentationData`, with the entries and the attributes of the data set."""

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset
        super().__init__(_Column(dataset, 0, lambda image: image), _Column(dataset, 1, _mask))

    def __getitem__(self, index: int) -> Any:
        return self.dataset[index]

    def __getattr__(self, name: str) -> Any:
        if name == "dataset" or name.startswith("__"):
            raise AttributeError(name)
        return getattr(self.dataset, name)

    def __eq__(self, other: object) -> bool:
        return bool(self.dataset == getattr(other, "dataset", other))

    __hash__: ClassVar[None] = None  # type: ignore[assignment]


@dataclass(frozen=True)
class _Column(Sequence[Any]):
    """The images or the masks of a data set of pairs."""

    dataset: Any
    place: int
    convert: Callable[[Any], Any]

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: Any) -> Any:
        entry = self.dataset[index]
        if not isinstance(entry, (tuple, list)) or len(entry) != 2:
            raise InputError(f"data[{index}] is {type(entry).__name__}; it must be a pair (image, mask)")
        return self.convert(entry[self.place])


def _mask(mask: Any) -> npt.NDArray[Any]:
    array = as_array("mask", mask)
    return array[0] if array.ndim == 3 and array.shape[0] == 1 else np.asarray(array)
