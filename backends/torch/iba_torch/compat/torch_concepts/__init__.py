"""The names of the package torch_concepts (PyPI: pytorch-concepts 1.0.0a1) that this library offers."""

from iba_torch.compat.torch_concepts import nn

__all__ = ["nn"]
