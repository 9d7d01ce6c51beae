"""Data sets of a concept. The published data sets and their handles are left out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch.utils.data import ConcatDataset, Dataset

__all__ = ["DataTriple"]


@dataclass(kw_only=True)
class DataTriple:
    """The data sets for training, validation and test.

    Args:
        train: data set to learn from.
        val: data set to stop training early by.
        test: data set for the final results.

    Example:
        >>> import torch
        >>> data = torch.utils.data.TensorDataset(torch.rand(4, 3, 8, 8), torch.ones(4, 1, 8, 8))
        >>> len(DataTriple(train=data, val=data, test=data).train_val)
        8
    """

    train: Dataset[Any]
    val: Dataset[Any]
    test: Dataset[Any]

    @property
    def train_val(self) -> Dataset[Any]:
        """The data for training, followed by that for validation."""
        return ConcatDataset([self.train, self.val])

    @property
    def data(self) -> Dataset[Any]:
        """All data."""
        return ConcatDataset([self.train, self.val, self.test])

    @property
    def info(self) -> dict[str, int]:
        """The number of entries of each data set."""
        return {split: len(getattr(self, split)) for split in ("train", "val", "test")}
