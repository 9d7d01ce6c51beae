"""What layers of a model give, and the gradients with respect to it, caught by hooks."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

ReshapeTransform = Callable[[Any], torch.Tensor]
"""Makes feature maps (B, C, *places) of what a layer gives."""


class ActivationsAndGradients:
    """Hooks on layers that keep what the layers give in the next pass, and its gradients.

    Args:
        model: the model.
        target_layers: modules of it.
        reshape_transform: makes feature maps (B, C, *places) of what a layer gives; None if it gives them.
        detach: keep tensors on the host and without a graph. If False, the tensors stay as they are.

    Attributes:
        activations: one tensor for each call of a layer, in the order of the calls.
        gradients: the gradients that have arrived, in the same order.
        layers_called: the layer of each call.

    Example:
        >>> model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten())
        >>> kept = ActivationsAndGradients(model, [model[0]], None)
        >>> kept(torch.zeros(1, 1, 4, 4)).sum().backward()
        >>> kept.activations[0].shape, kept.gradients[0].sum()
        (torch.Size([1, 2, 2, 2]), tensor(8.))
        >>> kept.release()
    """

    def __init__(
        self,
        model: nn.Module,
        target_layers: Iterable[nn.Module],
        reshape_transform: ReshapeTransform | None,
        detach: bool = True,
    ) -> None:
        self.model = model
        self.reshape_transform = reshape_transform
        self.detach = detach
        self.activations: list[torch.Tensor] = []
        self.layers_called: list[nn.Module] = []
        self._gradients: dict[int, torch.Tensor] = {}
        self._paused = False
        self.handles: list[RemovableHandle] = []
        for layer in target_layers:
            self.handles.append(layer.register_forward_hook(self.save_activation))
            self.handles.append(layer.register_forward_hook(self.save_gradient))

    def __call__(self, x: Any) -> Any:
        """Run the model on `x`, and keep the outputs of the layers in place of earlier ones."""
        self._forget()
        return self.model(x)

    @property
    def gradients(self) -> list[torch.Tensor]:
        """The gradients that have arrived, in the order of the calls."""
        return [gradient for _, gradient in sorted(self._gradients.items())]

    def gradient_of(self, call: int) -> torch.Tensor | None:
        """The gradient of one call; None if none has arrived."""
        return self._gradients.get(call)

    def save_activation(self, module: nn.Module, input: Any, output: Any) -> None:
        """Keep what a layer gives: the hook."""
        if not self._paused:
            self.activations.append(self._kept(output))
            self.layers_called.append(module)

    def save_gradient(self, module: nn.Module, input: Any, output: Any) -> None:
        """Keep the gradient of what a layer has just given, once it arrives: the hook."""
        # Only the call's own tensor has the gradient; a hook on the module misses in-place changes.
        if self._paused or not getattr(output, "requires_grad", False):
            return
        call = len(self.activations) - 1
        gradients = self._gradients

        def keep(gradient: torch.Tensor) -> None:
            gradients[call] = self._kept(gradient)

        output.register_hook(keep)

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Context in which further passes of the model are not kept."""
        before, self._paused = self._paused, True
        try:
            yield
        finally:
            self._paused = before

    def clear(self) -> None:
        """Forget what is kept."""
        self._forget()

    def release(self) -> None:
        """Forget what is kept, and remove the hooks."""
        self._forget()
        for handle in self.handles:
            handle.remove()
        self.handles.clear()

    def _forget(self) -> None:
        # Gradients of an earlier pass may still arrive: they go to a dictionary that nobody reads any more.
        self.activations, self.layers_called, self._gradients = [], [], {}

    def _kept(self, output: Any) -> Any:
        if not self.detach:
            return output
        found = output if self.reshape_transform is None else self.reshape_transform(output)
        return found.cpu().detach()
