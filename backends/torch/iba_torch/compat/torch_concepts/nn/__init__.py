"""Layers of concepts."""

from iba_torch.compat.torch_concepts.nn.modules.low.encoders.selector import SelectorZU

__all__ = ["SelectorZU"]
