"""Class activation maps of PyTorch models.

The methods and their arguments are those of `iba_core.concepts.cam`. The argument `use_cuda` exists for code
that was written for older versions of pytorch-grad-cam.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy.typing as npt
import torch
from torch import nn

from iba_core.arguments import require_bool
from iba_core.concepts import cam
from iba_core.concepts.cam import ReshapeTransform
from iba_core.concepts.targets import (
    ClassifierOutputTarget,
    ConceptEmbeddingTarget,
    DifferenceFromConceptTarget,
    SimilarityToConceptTarget,
)
from iba_core.errors import InputError
from iba_core.pictures.cam import preprocess_image as preprocess_array
from iba_core.pictures.cam import show_cam_on_image

__all__ = [
    "AblationCAM",
    "ClassifierOutputTarget",
    "ConceptEmbeddingTarget",
    "DifferenceFromConceptTarget",
    "EigenCAM",
    "EigenGradCAM",
    "GradCAM",
    "GradCAMElementWise",
    "GradCAMPlusPlus",
    "HiResCAM",
    "LayerCAM",
    "ScoreCAM",
    "SimilarityToConceptTarget",
    "XGradCAM",
    "preprocess_image",
    "show_cam_on_image",
]


class _TorchCAM(cam.BaseCAM):
    """`iba_core.concepts.cam.BaseCAM` for a PyTorch model.

    Args:
        model: an `nn.Module`. It stays on its device, and inputs are moved there.
        target_layers: modules or their names; see `iba_core.concepts.cam.BaseCAM`.
        reshape_transform: see `iba_core.concepts.cam.BaseCAM`.
        use_cuda: require the model to be on a CUDA device.
        **options: further arguments of the method, see `iba_core.concepts.cam`.

    Raises:
        InputError: `use_cuda` is set, but the model is not on a CUDA device.
    """

    def __init__(
        self,
        model: nn.Module,
        target_layers: Any = None,
        reshape_transform: ReshapeTransform | None = None,
        use_cuda: bool = False,
        **options: Any,
    ) -> None:
        if require_bool("use_cuda", use_cuda):
            elsewhere = next((p.device for p in model.parameters() if not p.is_cuda), None)
            if elsewhere is not None:
                raise InputError(f"use_cuda=True, but the model is on {elsewhere}; call model.cuda() first")
        super().__init__(model, target_layers, reshape_transform, **options)


class GradCAM(_TorchCAM, cam.GradCAM):
    """`iba_core.concepts.cam.GradCAM` for a PyTorch model.

    Example:
        >>> net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.LazyLinear(5))
        >>> _ = net(torch.zeros(1, 3, 8, 8))
        >>> with GradCAM(model=net, target_layers=[net[1]]) as cam:
        ...     cam(input_tensor=torch.rand(2, 3, 8, 8), targets=[ClassifierOutputTarget(3)] * 2).shape
        (2, 8, 8)
    """


class GradCAMPlusPlus(_TorchCAM, cam.GradCAMPlusPlus):
    """`iba_core.concepts.cam.GradCAMPlusPlus` for a PyTorch model.

    Example:
        >>> net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(144, 5))
        >>> GradCAMPlusPlus(net, ["0"], epsilon=1e-6)(torch.rand(1, 3, 8, 8)).shape
        (1, 8, 8)
    """


class HiResCAM(_TorchCAM, cam.HiResCAM):
    """`iba_core.concepts.cam.HiResCAM` for a PyTorch model.

    Example:
        >>> net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(144, 5))
        >>> HiResCAM(net, ["0"])(torch.rand(1, 3, 8, 8)).shape
        (1, 8, 8)
    """


class LayerCAM(_TorchCAM, cam.LayerCAM):
    """`iba_core.concepts.cam.LayerCAM` for a PyTorch model.

    Example:
        >>> net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(144, 5))
        >>> LayerCAM(net, ["0"])(torch.rand(1, 3, 8, 8)).shape
        (1, 8, 8)
    """


class XGradCAM(_TorchCAM, cam.XGradCAM):
    """`iba_core.concepts.cam.XGradCAM` for a PyTorch model.

    Example:
        >>> net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(144, 5))
        >>> XGradCAM(net, ["0"])(torch.rand(1, 3, 8, 8)).shape
        (1, 8, 8)
    """


class EigenCAM(_TorchCAM, cam.EigenCAM):
    """`iba_core.concepts.cam.EigenCAM` for a PyTorch model.

    Example:
        >>> net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(144, 5))
        >>> EigenCAM(net, ["0"])(torch.rand(1, 3, 8, 8)).shape
        (1, 8, 8)
    """


class EigenGradCAM(_TorchCAM, cam.EigenGradCAM):
    """`iba_core.concepts.cam.EigenGradCAM` for a PyTorch model.

    Example:
        >>> net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(144, 5))
        >>> EigenGradCAM(net, ["0"])(torch.rand(1, 3, 8, 8)).shape
        (1, 8, 8)
    """


class GradCAMElementWise(_TorchCAM, cam.GradCAMElementWise):
    """`iba_core.concepts.cam.GradCAMElementWise` for a PyTorch model.

    Example:
        >>> net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(144, 5))
        >>> GradCAMElementWise(net, ["0"])(torch.rand(1, 3, 8, 8)).shape
        (1, 8, 8)
    """


class ScoreCAM(_TorchCAM, cam.ScoreCAM):
    """`iba_core.concepts.cam.ScoreCAM` for a PyTorch model.

    Example:
        >>> net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(144, 5))
        >>> ScoreCAM(net, ["0"], batch_size=2)(torch.rand(1, 3, 8, 8)).shape
        (1, 8, 8)
    """


class AblationCAM(_TorchCAM, cam.AblationCAM):
    """`iba_core.concepts.cam.AblationCAM` for a PyTorch model.

    Example:
        >>> net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(144, 5))
        >>> AblationCAM(net, ["0"])(torch.rand(1, 3, 8, 8)).shape
        (1, 8, 8)
    """


def preprocess_image(
    img: npt.ArrayLike, mean: Sequence[float] = (0.5, 0.5, 0.5), std: Sequence[float] = (0.5, 0.5, 0.5)
) -> torch.Tensor:
    """Normalise a picture as `iba_core.pictures.cam.preprocess_image` does, to a tensor.

    Returns:
        Tensor (1, C, H, W), float32.

    Example:
        >>> preprocess_image([[[0.0, 0.5, 1.0]]]).flatten()
        tensor([-1.,  0.,  1.])
    """
    return torch.from_numpy(preprocess_array(img, mean, std))
