"""The bare tail of the networks in plain PyTorch, without this library.

The library's own tail is no independent reference: it intercepts the calls of modules, which takes time, and
uses faster equivalents of some modules, which saves time.
"""

from __future__ import annotations

from collections.abc import Callable
from time import perf_counter
from typing import Any

import torch
from torch import nn


def tail_modules(network: str, model: nn.Module, layer: str) -> nn.Sequential:
    """List the modules of a network of `benchmarks.networks` after a layer, in the order of a pass."""
    return nn.Sequential(*_AFTER[network](model, layer))


class PlainTail:
    """Forward and backward passes of a tail over copies of a feature map, with gradients for the copies only.

    Args:
        tail: the modules of the tail.
        features: the feature map, (1, *feature map).
    """

    def __init__(self, tail: nn.Sequential, features: torch.Tensor) -> None:
        self.tail = tail
        self._features = features

    def seconds(self, steps: int, samples: int) -> float:
        """Time `steps` passes of `samples` copies, in seconds."""
        # Copy the features, since an explanation also holds them.
        features = self._features.clone()
        z = features.repeat_interleave(samples, 0)
        if z.ndim == 4 and z.device.type == "cpu":
            # Convolutions on a processor are fastest in this order.
            z = z.contiguous(memory_format=torch.channels_last)
        z.requires_grad_()
        learning = [parameter for parameter in self.tail.parameters() if parameter.requires_grad]
        try:
            for parameter in learning:
                parameter.requires_grad_(False)
            start = perf_counter()
            for _ in range(steps):
                torch.autograd.grad(self.tail(z).sum(), z)
            return perf_counter() - start
        finally:
            for parameter in learning:
                parameter.requires_grad_(True)


def _after_in_sequence(model: Any, layer: str) -> list[nn.Module]:
    """List the modules after a layer of a `Sequential`, or of a `Sequential` in it."""
    found: list[nn.Module] = []
    first, _, inner = layer.partition(".")
    children = dict(model.named_children())
    names = list(children)
    if inner:
        found += list(children[first].children())[int(inner) + 1 :]
    return found + [children[name] for name in names[names.index(first) + 1 :]]


def _after_in_resnet(model: Any, layer: str) -> list[nn.Module]:
    stage = int(layer.rpartition(".")[2])
    return [*model.resnet.encoder.stages[stage + 1 :], model.resnet.pooler, model.classifier]


def _after_in_vit(model: Any, layer: str) -> list[nn.Module]:
    block = int(layer.rpartition(".")[2])
    return [*model.vit.layers[block + 1 :], model.vit.layernorm, _ClassToken(), model.classifier]


class _ClassToken(nn.Module):
    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return tokens[:, 0]


_AFTER: dict[str, Callable[[Any, str], list[nn.Module]]] = {
    "efficientnet-lite0": _after_in_sequence,
    "vgg-16": _after_in_sequence,
    "resnet-50": _after_in_resnet,
    "vit-b-16": _after_in_vit,
}
