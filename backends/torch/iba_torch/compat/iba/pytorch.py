"""The names of `IBA.pytorch`."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from os import PathLike
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import nn

import iba_torch
from iba_core import get_tqdm, ifnone, plot_saliency_map
from iba_core.arguments import require_whole
from iba_core.bottleneck.adam import AdamState, gradients_of
from iba_core.bottleneck.formulas import Mask, mask_from_alpha
from iba_core.bottleneck.optimization import Callback, Problem, StepReport
from iba_core.bottleneck.settings import BottleneckSettings
from iba_core.errors import InputError
from iba_core.framework.layout import Layout
from iba_torch import (
    ImageFolder,
    TorchWelfordEstimator,
    imagenet_transform,
    tensor_to_np_img,
    to_saliency_map,
)
from iba_torch.bottlenecks.iba import Mode
from iba_torch.compat.iba.published import Published, in_published_unit
from iba_torch.images import ImageNetTransform

__all__ = [
    "IBA",
    "TorchWelfordEstimator",
    "get_imagenet_folder",
    "get_tqdm",
    "ifnone",
    "imagenet_transform",
    "insert_into_sequential",
    "plot_saliency_map",
    "tensor_to_np_img",
    "to_saliency_map",
]


class IBA(Published):
    """`iba_torch.IBA`, with `alpha` as a parameter from `estimate` on, and a capacity in bits.

    Within `restrict_flow`, the mask follows `alpha`, so that a loop of one's own can train it.

    Example:
        >>> iba = IBA(model.relu, optimization_steps=2)
        >>> iba.estimate(model, batches)
        >>> [tuple(parameter.shape) for parameter in iba.parameters()]
        [(4, 8, 8)]
        >>> def loss(x):
        ...     return torch.nn.functional.cross_entropy(model(x), torch.ones(len(x)).long())
        >>> bits = iba.analyze(x[:1], loss, mode="capacity")
        >>> bits.shape
        (4, 8, 8)
        >>> iba.detach()
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._firsts: list[torch.Tensor] = []

    def estimate(
        self,
        model: nn.Module,
        dataloader: Iterable[Any],
        device: torch.device | str | None = None,
        n_samples: int = 10000,
        progbar: bool | None = None,
        reset: bool = True,
    ) -> None:
        """See `iba_torch.IBA.estimate`. Afterwards, `alpha` is a parameter of the features' shape."""
        super().estimate(model, dataloader, device, n_samples, progbar, reset)
        mean = torch.as_tensor(self.estimator.mean())
        if self.alpha is None or self.alpha.shape != mean.shape:
            self.alpha = nn.Parameter(torch.full_like(mean, self.initial_alpha))

    def analyze(
        self,
        input_t: Any,
        model_loss_fn: Callable[[Any], torch.Tensor],
        mode: Mode = "saliency",
        *args: Any,
        **kwargs: Any,
    ) -> npt.NDArray[np.floating]:
        """See `iba_torch.IBA.analyze`.

        Returns:
            For ``"saliency"``, (H, W) in bits per pixel. For ``"capacity"``, an array of the shape of the
            feature map, in bits.
        """
        self._firsts = []
        return in_published_unit(super().analyze(input_t, model_loss_fn, mode, *args, **kwargs), mode)

    def _kept_alpha(self, alpha: torch.Tensor) -> dict[str, Any]:
        found = alpha[0] if len(alpha) == 1 else alpha
        if self.alpha is None or self.alpha.shape != found.shape:
            self.alpha = nn.Parameter(found.detach().clone())
        with torch.no_grad():
            self.alpha.copy_(found)
        return {}

    def _present_mask(self, problem: Problem, layout: Layout, settings: BottleneckSettings) -> Mask:
        if self.alpha is None:
            return super()._present_mask(problem, layout, settings)
        alpha = self.alpha.to(problem.mean)
        of_batch = alpha[None] if alpha.ndim < problem.mean.ndim else alpha[:]
        return mask_from_alpha(of_batch, problem.matrices, layout)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        alpha = state_dict.get(f"{prefix}alpha")
        if isinstance(alpha, torch.Tensor) and (self.alpha is None or self.alpha.shape != alpha.shape):
            self.alpha = nn.Parameter(torch.empty_like(alpha))
        super()._load_from_state_dict(state_dict, prefix, *args)

    def _step_callback(self) -> Callback:
        def keep(step: int, state: AdamState, report: StepReport) -> None:
            self._firsts.append(state.first.detach().clone())

        return keep

    @property
    def _alpha_grads(self) -> list[npt.NDArray[np.floating]]:
        return [gradient[0].cpu().numpy() for gradient in gradients_of(self._firsts)]

    @property
    def _model_loss(self) -> list[float]:
        return [float(loss) for loss in self.model_losses.mean(axis=1)]

    @property
    def _information_loss(self) -> list[float]:
        beta = self.beta if self._last_settings is None else self._last_settings.beta
        return [float(information) / beta if beta else 0.0 for information in self.informations.mean(axis=1)]

    @property
    def _loss(self) -> list[float]:
        return [float(loss) for loss in (self.model_losses + self.informations).mean(axis=1)]


def insert_into_sequential(sequential: nn.Sequential, layer: nn.Module, idx: int) -> nn.Sequential:
    """See `iba_torch.insert_into_sequential`; `idx` is that of `list.insert`.

    Example:
        >>> net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU())
        >>> [type(child).__name__ for child in insert_into_sequential(net, nn.Identity(), -1)]
        ['Conv2d', 'Identity', 'ReLU']
    """
    if isinstance(sequential, nn.Sequential) and isinstance(idx, int):
        count = len(sequential)
        idx = max(idx + count, 0) if idx < 0 else min(idx, count)
    return iba_torch.insert_into_sequential(sequential, layer, idx)


def get_imagenet_folder(
    path: str | PathLike[str],
    image_size: int = 224,
    transform: Callable[[Image.Image], Any] | str | None = "default",
) -> ImageFolder:
    """Open a folder of pictures, in one folder per class, as a data set for an ImageNet network.

    Other than in `iba_torch.get_imagenet_folder`, the default transform first cuts out the middle 256 x 256
    pixels, and then resizes them.

    Args:
        path: the folder.
        image_size: side in pixels of the square that the network sees.
        transform: function from a Pillow image to a tensor; ``"default"`` for the one described.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> root = Path(tempfile.mkdtemp())
        >>> (root / "cat").mkdir()
        >>> Image.new("RGB", (300, 400)).save(root / "cat" / "1.png")
        >>> get_imagenet_folder(root)[0][0].shape
        torch.Size([3, 224, 224])
    """
    require_whole("image_size", image_size, 1, 2**13)
    if isinstance(transform, str):
        if transform != "default":
            raise InputError(f"transform={transform!r} is neither 'default' nor a callable")
        transform = ImageNetTransform(image_size, 256, crop_first=True)
    return ImageFolder(path, transform)
