"""Information bottleneck attribution in the style of Captum, for its metrics and pictures.

It does not need Captum (N. Kokhlikyan et al., https://arxiv.org/abs/2009.07896).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import wraps
from typing import Any, Self, TypeVar, cast

import numpy as np
import torch
from torch import nn

from iba_core.arguments import given
from iba_core.errors import InputError
from iba_core.explainer import Explainer
from iba_core.framework.inputs import take
from iba_core.targets import ScoreTarget
from iba_torch.framework import move_to

F = TypeVar("F", bound=Callable[..., Any])


def _wrapped(function: F) -> F:
    """The function with itself as ``__wrapped__``, which Captum's noise tunnel calls."""

    @wraps(function)
    def call(*args: Any, **options: Any) -> Any:
        return function(*args, **options)

    return cast(F, call)


class InformationBottleneckAttribution:
    """Bits per pixel, with the interface of `captum.attr.LayerAttribution`.

    Args:
        forward_func: an `nn.Module`. It is not changed.
        layer: the layer that the bottleneck comes after, a module or its name.
        data: batches of inputs like those to explain, see `Explainer.fit`. None to call `fit` later.
        seed: makes the maps reproducible, as metrics that compare maps need it; None for new noise in each
            call.
        **settings: further arguments of `iba_core.Explainer`.

    Attributes:
        forward_func: the model.
        layer: the layer.
        explainer: the `Explainer` that does the work.
        multiplies_by_inputs: False, as Captum calls methods whose maps are no products with the input.

    Raises:
        InputError: `forward_func` is no module.
        LayerError: the model has no such layer.

    Example:
        >>> net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 5))
        >>> iba = InformationBottleneckAttribution(net, net[1], data=[torch.rand(9, 3, 8, 8)], steps=2)
        >>> iba.attribute(torch.rand(2, 3, 8, 8), target=1).shape
        torch.Size([2, 3, 8, 8])
    """

    multiplies_by_inputs = False

    def __init__(
        self,
        forward_func: nn.Module,
        layer: nn.Module | str,
        data: Iterable[Any] | None = None,
        *,
        seed: int | None = 0,
        **settings: Any,
    ) -> None:
        if not isinstance(forward_func, nn.Module):
            raise InputError(f"{given('forward_func', forward_func)} must be an nn.Module")
        self.forward_func, self.layer, self.seed = forward_func, layer, seed
        self.explainer = Explainer(forward_func, layer, **settings)
        if data is not None:
            self.fit(data)

    def fit(self, data: Iterable[Any], n_samples: int = 5000) -> Self:
        """Estimate mean and standard deviation of the layer's features, see `Explainer.fit`."""
        self.explainer.fit(data, n_samples, progbar=False)
        return self

    @_wrapped
    def attribute(
        self,
        inputs: torch.Tensor | tuple[torch.Tensor, ...],
        target: Any = None,
        additional_forward_args: Any = None,
        **options: Any,
    ) -> Any:
        """Compute the bits per pixel of a batch.

        Args:
            inputs: (B, C, H, W), or a tuple of one such tensor.
            target: as in Captum: the index of a class; one for each input, a list or a tensor; a tuple of
                indices of an output with more axes, or a list with a tuple for each input; or None, here for
                the class predicted. Also anything that `Explainer.explain` takes.
            additional_forward_args: further inputs of the model, a tensor or a tuple.
            **options: arguments of `Explainer.explain`.

        Returns:
            Tensor of the shape, dtype and device of the inputs, or a tuple of one if they are one. The bits
            of a pixel are divided evenly among its channels, so that the sum over the channels is the map.

        Raises:
            NotEstimatedError: neither `data` nor `fit` was given.
            InputError: there are several inputs to attribute to, or the target does not fit.
        """
        image = inputs[0] if isinstance(inputs, tuple) else inputs
        if not isinstance(image, torch.Tensor) or (isinstance(inputs, tuple) and len(inputs) != 1):
            raise InputError(
                "inputs must be one tensor; give the model's other inputs as additional_forward_args"
            )
        more = additional_forward_args
        others = () if more is None else more if isinstance(more, tuple) else (more,)
        whole = (image, *others) if others else image
        options = {"seed": self.seed, **options}
        if isinstance(target, list) and target and all(isinstance(one, tuple) for one in target):
            if len(target) != len(image):
                raise InputError(
                    f"target holds {len(target)} targets for {len(image)} inputs; give one for each"
                )
            saliency = np.concatenate(
                [
                    self.explainer.explain(take(whole, i, i + 1), _as_target(one), **options).saliency
                    for i, one in enumerate(target)
                ]
            )
        else:
            saliency = self.explainer.explain(whole, _as_target(target), **options).saliency
        channels = image.shape[1]
        maps = move_to(torch.from_numpy(saliency), image.dtype, image.device)
        # Captum's metrics flatten maps without copying them.
        attributions = (maps / channels).unsqueeze(1).expand(-1, channels, *maps.shape[1:]).contiguous()
        return (attributions,) if isinstance(inputs, tuple) else attributions

    def has_convergence_delta(self) -> bool:
        """False: the bits do not add up to a score."""
        return False

    @property
    def is_delta_supported(self) -> bool:
        """False, see `has_convergence_delta`."""
        return False

    @classmethod
    def get_name(cls) -> str:
        """Name of the method, for Captum's tables."""
        return "Information Bottleneck Attribution"


def _as_target(target: Any) -> Any:
    """A target of Captum as a target of `Explainer.explain`."""
    if isinstance(target, torch.Tensor):
        return target.tolist()
    if isinstance(target, tuple):
        return ScoreTarget(lambda outputs: outputs[(slice(None), *target)])
    return target
