"""Bottleneck attribution as described in the paper, in plain PyTorch, to compare the library with.

K. Schulz et al., "Restricting the Flow", ICLR 2020, section 3 and algorithm "per-sample bottleneck". It is
not optimised: in every step, the whole network runs on the whole batch of noisy copies, a hook inserts the
bottleneck, the capacity is computed for every copy, and `backward` computes all gradients, including those of
the weights.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn
from torch.nn import functional


class PublishedBottleneck:
    """A per-sample bottleneck after a layer of a network.

    Args:
        model: the network, in evaluation mode.
        layer: a module of the network whose output is a feature map (B, C, H, W) or tokens (B, N, C).
        mean: mean of the features, with the shape of one feature map.
        std: standard deviation of the features, of the same shape.
        active: mask of the active features, of the same shape.
    """

    def __init__(
        self, model: nn.Module, layer: nn.Module, mean: torch.Tensor, std: torch.Tensor, active: torch.Tensor
    ) -> None:
        self.model = model
        self.layer = layer
        self.mean = mean
        self.std = std.clamp(min=0.01)
        self.active = active.to(mean.dtype)
        self.alpha = nn.Parameter(torch.full_like(mean[None], 5.0))
        self.capacity = torch.zeros(())

    def explain(
        self, x: torch.Tensor, target: int, steps: int = 10, samples: int = 10, beta: float = 10.0
    ) -> torch.Tensor:
        """Compute the saliency map (H, W) of one image, in bits per place of the layer.

        Args:
            x: the image, (1, C, H, W).
            target: class to explain.
            steps: number of optimiser steps.
            samples: number of noisy copies.
            beta: weight of the mean capacity.
        """
        self.alpha.data.fill_(5.0)
        optimizer = torch.optim.Adam([self.alpha], lr=1.0)
        batch = x.expand(samples, -1, -1, -1)
        targets = torch.full((samples,), target)
        hook = self.layer.register_forward_hook(self._restrict)
        try:
            for _ in range(steps):
                optimizer.zero_grad()
                outputs = self.model(batch)
                logits = getattr(outputs, "logits", outputs)
                loss = functional.cross_entropy(logits, targets) + beta * self.capacity.mean()
                loss.backward()
                optimizer.step()
        finally:
            hook.remove()
            self.model.zero_grad()
        bits = self.capacity.detach().mean(0) / math.log(2)
        return bits.sum(0) if bits.ndim == 3 else bits.sum(1)

    def _restrict(self, module: nn.Module, args: Any, output: Any) -> Any:
        features = output[0] if isinstance(output, tuple) else output
        mask = self._smooth(torch.sigmoid(self.alpha.expand_as(features)))
        noise = self.mean + self.std * torch.randn_like(features)
        normalized = (features - self.mean) / self.std
        mu, log_variance = normalized * mask, torch.log(torch.clamp((1 - mask) ** 2, min=1e-24))
        self.capacity = -0.5 * (1 + log_variance - mu**2 - log_variance.exp()) * self.active
        restricted = (mask * features + (1 - mask) * noise) * self.active
        return (restricted, *output[1:]) if isinstance(output, tuple) else restricted

    @staticmethod
    def _smooth(mask: torch.Tensor) -> torch.Tensor:
        """Smooth a mask of a feature map by a Gaussian of standard deviation 1; tokens are not smoothed."""
        if mask.ndim != 4:
            return mask
        offsets = torch.arange(-2.0, 3.0)
        line = torch.exp(-(offsets**2) / 2)
        kernel = torch.outer(line, line) / line.sum() ** 2
        channels = mask.shape[1]
        padded = functional.pad(mask, (2, 2, 2, 2), mode="reflect")
        return functional.conv2d(padded, kernel.expand(channels, 1, 5, 5), groups=channels)
