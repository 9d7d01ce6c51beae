"""The padding of a window."""

from iba_torch.compat.hybrid_learning.datasets.transforms import same_padding

__all__ = ["same_padding"]
