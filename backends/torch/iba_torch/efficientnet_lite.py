"""EfficientNet-Lite0 as plain PyTorch layers."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import nn

from iba_core.zoo import efficientnet_lite as spec


class Residual(nn.Sequential):
    """Layers whose input is added to their output."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Compute ``input + layers(input)``."""
        return input + cast(torch.Tensor, super().forward(input))  # type: ignore[no-untyped-call]


def efficientnet_lite0(pretrained: bool = True) -> nn.Sequential:
    """Make EfficientNet-Lite0 for ImageNet, in evaluation mode.

    Its children are ``stem``, ``blocks`` (``blocks.0`` to ``blocks.15``), ``head``, ``pool``, ``flatten`` and
    ``classifier``. It maps float32 images (B, 3, 224, 224) to logits (B, 1000). Its attribute
    ``preprocessing`` prepares the images, and its attribute ``class_names`` names the logits.

    Args:
        pretrained: load the ImageNet weights. Otherwise the weights are random and there are no
            ``class_names``.

    Raises:
        MissingDependencyError: `pretrained` is set, but the weights or the class names are not installed.

    Example:
        >>> model = efficientnet_lite0(pretrained=False)
        >>> model(torch.zeros(1, 3, 224, 224)).shape
        torch.Size([1, 1000])
    """
    model: Any = of_blocks(spec.BLOCKS)
    model.preprocessing = spec.PREPROCESSING
    if pretrained:
        model.load_state_dict(
            {name: torch.as_tensor(array) for name, array in spec.pretrained_weights().items()}
        )
        model.class_names = spec.class_names()
    return cast(nn.Sequential, model.eval())


def of_blocks(blocks: Sequence[spec.Block]) -> nn.Sequential:
    """Make an EfficientNet-Lite of these blocks, with random weights."""
    return _sequential(
        stem=_convolution(3, spec.STEM_CHANNELS, kernel=3, stride=2),
        blocks=nn.Sequential(*(_block(block) for block in blocks)),
        head=_convolution(blocks[-1].channels_out, spec.HEAD_CHANNELS),
        pool=nn.AdaptiveAvgPool2d(1),
        flatten=nn.Flatten(),
        classifier=nn.Linear(spec.HEAD_CHANNELS, spec.CLASSES),
    )


def _block(block: spec.Block) -> nn.Sequential:
    inside = block.channels_inside
    layers: dict[str, nn.Module] = {}
    if block.expansion > 1:
        layers["expand"] = _convolution(block.channels_in, inside)
    layers["depthwise"] = _convolution(inside, inside, block.kernel, block.stride, groups=inside)
    layers["project"] = _convolution(inside, block.channels_out, activation=False)
    return (Residual if block.skips else nn.Sequential)(OrderedDict(layers))


def _convolution(
    channels_in: int,
    channels_out: int,
    kernel: int = 1,
    stride: int = 1,
    groups: int = 1,
    activation: bool = True,
) -> nn.Sequential:
    """Make a convolution with batch normalisation and, with `activation`, ReLU6."""
    before, after = spec.same_padding(kernel, stride)
    layers: dict[str, nn.Module] = {}
    if before != after:
        # Conv2d can only pad both sides equally.
        layers["pad"] = nn.ZeroPad2d((before, after, before, after))
        before = 0
    layers["conv"] = nn.Conv2d(channels_in, channels_out, kernel, stride, before, groups=groups, bias=False)
    layers["norm"] = nn.BatchNorm2d(channels_out, eps=spec.NORM_EPSILON)
    if activation:
        layers["act"] = nn.ReLU6()
    return _sequential(**layers)


def _sequential(**layers: nn.Module) -> nn.Sequential:
    return nn.Sequential(OrderedDict(layers))
