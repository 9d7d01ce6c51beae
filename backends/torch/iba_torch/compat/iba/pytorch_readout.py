"""The names of `IBA.pytorch_readout`."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

import iba_torch
from iba_core.bottleneck.saliency import saliency_maps
from iba_core.framework.namespace import host_array
from iba_torch import TorchWelfordEstimator
from iba_torch.bottlenecks.iba import Mode
from iba_torch.compat.iba.published import Published, in_published_unit

__all__ = ["IBAReadout", "TorchWelfordEstimator"]


class IBAReadout(iba_torch.IBAReadout, Published):
    """`iba_torch.IBAReadout`, whose `analyze` also takes a closure, and gives a capacity in bits.

    As the published one, it resizes features corner to corner, and cuts alpha off at plus and minus 5. The
    states of trained readouts of that package load.

    Example:
        >>> iba = IBAReadout(model.conv, [model.conv, model.logits], model)
        >>> iba.estimate(model, batches)
        >>> iba.analyze(x[:1], lambda images: model(images).sum()).shape
        (8, 8)
        >>> iba.detach()
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.corners, self.alpha_bound = True, 5.0

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        if f"{prefix}conv1.weight" in state_dict:
            _rename_published(state_dict, prefix)
            # The layers are those of this readout: the published state does not name its own.
            state_dict[f"{prefix}_extra_state"] = self.get_extra_state()
        super()._load_from_state_dict(state_dict, prefix, *args)

    def analyze(  # type: ignore[override]  # takes a model, as its base
        self,
        input_t: Any,
        model: nn.Module | Callable[[Any], Any] | None = None,
        mode: Mode = "saliency",
        **kwargs: Any,
    ) -> npt.NDArray[np.floating]:
        """See `iba_torch.IBAReadout.analyze`.

        Args:
            input_t: (1, C, H, W).
            model: the model, or a function that runs it once, such as the closure of `IBA.analyze`.
            mode: ``"saliency"`` or ``"capacity"``.
            **kwargs: arguments of `IBA.analyze` have no effect, and are warned of.

        Returns:
            For ``"saliency"``, (H, W) in bits per pixel. For ``"capacity"``, an array of the shape of the
            feature map, in bits.
        """
        own = {name: kwargs.pop(name) for name in ("pass_mask",) if name in kwargs}
        if kwargs:
            warnings.warn(f"the readout bottleneck ignores {', '.join(kwargs)}", stacklevel=2)
        if model is None or isinstance(model, nn.Module):
            return in_published_unit(super().analyze(input_t, model, mode, **own), mode)
        with self.restrict_flow(), torch.no_grad():
            model(input_t)
        nats = host_array(self.capacity())
        if mode == "capacity":
            return in_published_unit(nats, mode)
        layout = self._what_is_known().readout.bottleneck.layout
        order = self._readout_model().map_order(layout, input_t)
        maps = saliency_maps(nats[None], layout, self._readout_model().spatial_shape(input_t), order)
        found: npt.NDArray[np.floating] = maps[0]
        return found


def _rename_published(state_dict: dict[str, Any], prefix: str) -> None:
    """Give the entries of a trained published readout the names and shapes that they have here."""
    old = f"{prefix}_readout_estimators."
    for name in [name for name in state_dict if name.startswith(old)]:
        state_dict[f"{prefix}estimators.{name.removeprefix(old)}"] = state_dict.pop(name)
    for layer in range(3):
        for kind in ("weight", "bias"):
            values = state_dict.pop(f"{prefix}conv{layer + 1}.{kind}")
            # A 1x1 convolution over places in a row.
            values = values[..., 0] if kind == "weight" else values
            state_dict[f"{prefix}network.{2 * layer}.{kind}"] = values
