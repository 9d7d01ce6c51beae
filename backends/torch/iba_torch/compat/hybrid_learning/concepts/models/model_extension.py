"""The part of a model up to a layer, as a module that holds the whole model."""

from __future__ import annotations

from typing import Any

from torch import nn

from iba_core.errors import LayerError

__all__ = ["ModelStump"]


class ModelStump(nn.Module):
    """Return the output of a layer from a pass of the whole model.

    Modes, devices and dtypes of the module are those of the model, and its outputs have a graph. Like the
    published class, it puts the model into evaluation mode when it is made. There is no hook on the model
    between two passes.

    Args:
        model: the model.
        stump_head: name of the layer; ``""`` is the model itself.

    Attributes:
        wrapped_model: the model.

    Raises:
        LayerError: the model has no such layer.

    Example:
        >>> import torch
        >>> model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Flatten())
        >>> stump = ModelStump(model, stump_head="0")
        >>> stump(torch.rand(2, 3, 8, 8)).shape, stump.wrapped_model is model
        (torch.Size([2, 4, 8, 8]), True)
    """

    def __init__(self, model: nn.Module, stump_head: str) -> None:
        super().__init__()
        self.wrapped_model = model
        self.stump_head = stump_head
        self.eval()

    @property
    def stump_head(self) -> str:
        """Name of the layer."""
        return self._stump_head

    @stump_head.setter
    def stump_head(self, stump_head: str) -> None:
        names = [name for name, _ in self.wrapped_model.named_modules()]
        if not isinstance(stump_head, str) or stump_head not in names:
            raise LayerError(f"stump_head={stump_head!r} must be one of the layers {names}")
        self._stump_head = stump_head

    def forward(self, *inps: Any) -> Any:
        """Run the model, and return the first output of the layer."""
        outputs: list[Any] = []
        layer = self.wrapped_model.get_submodule(self.stump_head)
        handle = layer.register_forward_hook(lambda _module, _inputs, output: outputs.append(output))
        try:
            self.wrapped_model(*inps)
        finally:
            handle.remove()
        if not outputs:
            raise LayerError(f"the model does not call its layer {self.stump_head!r}")
        return outputs[0]
