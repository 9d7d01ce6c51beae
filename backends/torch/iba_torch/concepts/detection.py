"""The model that locates a concept in a feature map, as `torch.nn.Module`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional

from iba_core.concepts.data import SegmentationConcept2D
from iba_core.concepts.detection import ConceptDetection, DetectionSpec, ModelStump
from iba_core.concepts.hyperplanes import fan_in_bound, same_padding
from iba_core.framework.namespace import host_array
from iba_torch.tail.precision import keeps_settings, without_gradients

__all__ = ["ConceptDetectionModel2D", "ModelStump"]


class ConceptDetectionModel2D(ConceptDetection, nn.Module):
    """Find the windows of a feature map that belong to a concept.

    The model is an ensemble of hyperplanes in the space of the windows, computed as one convolution with a
    filter for each. `iba_core.concepts.train_detection_model` learns the hyperplanes, and `to_embedding`
    returns them.

    Args:
        concept: the concept, with segmentation data. It is used to derive `kernel_size` and `in_channels`.
        model: the model that gives the feature maps, kept as `main_model`. It is also used to derive
            `kernel_size` and `in_channels`. Its parameters are not parameters of this module.
        layer_id: the layer of `model` whose output is this module's input, a module or its name.
        kernel_size: (height, width) of the window, in pixels of the feature map; by default the concept's
            `rel_size` times the size of the layer's output, or (1, 1) with a warning if the concept has no
            `rel_size`.
        in_channels: channels of the feature map; derived if it or `kernel_size` is None. A wrong value is
            then replaced with a warning.
        concept_name: name of the concept; by default that of `concept`.
        apply_sigmoid: return probabilities instead of distances.
        apply_padding: put zeros around the input, so that the output has the input's size.
        ensemble_count: number of hyperplanes.
        use_laplace: approximate the posterior of the weights in training, and return the mean probability
            in evaluation mode, see `iba_core.concepts.laplace`. With ``apply_sigmoid=False``, return its
            logit.
        use_bias: learn a bias. Without one, the hyperplanes pass through the origin.

    Attributes:
        weight: (ensemble_count, in_channels, *kernel_size).
        bias: (ensemble_count,), or None.
        activation: `torch.nn.Sigmoid`, or None.
        padding: `torch.nn.ZeroPad2d`, or None.

    Raises:
        InputError: an argument is wrong, or a missing one cannot be derived from the others.
        LayerError: the model has no such layer.

    Example:
        >>> model = ConceptDetectionModel2D(in_channels=8, kernel_size=(3, 2), ensemble_count=5)
        >>> model(torch.randn(4, 8, 14, 14)).shape
        torch.Size([5, 4, 1, 14, 14])
    """

    laplace_factor: Tensor | None

    def __init__(
        self,
        concept: SegmentationConcept2D | None = None,
        model: nn.Module | None = None,
        layer_id: str | nn.Module | None = None,
        kernel_size: Sequence[int] | None = None,
        in_channels: int | None = None,
        concept_name: str | None = None,
        apply_sigmoid: bool = True,
        apply_padding: bool = True,
        ensemble_count: int = 1,
        use_laplace: bool = False,
        use_bias: bool = True,
    ) -> None:
        spec = DetectionSpec.resolve(
            concept, model, layer_id, kernel_size, in_channels, concept_name, ensemble_count
        )
        super().__init__()
        self._configure(
            spec,
            apply_sigmoid=apply_sigmoid,
            apply_padding=apply_padding,
            use_laplace=use_laplace,
            use_bias=use_bias,
        )
        (above, below), (left, right) = same_padding(spec.kernel_size)
        self.padding: nn.ZeroPad2d | None = None
        if apply_padding:
            self.padding = nn.ZeroPad2d((left, right, above, below))
        self._add_weights()
        self.activation: nn.Sigmoid | None = nn.Sigmoid() if apply_sigmoid else None
        self.reset_parameters()

    def _add_weights(self) -> None:
        """Make the parameters and the buffer of the posterior, without values."""
        count = self.ensemble_count
        self.weight = nn.Parameter(torch.empty(count, self.in_channels, *self.kernel_size))
        self.bias = nn.Parameter(torch.empty(count)) if self.use_bias else None
        self.register_buffer(
            "laplace_factor", torch.zeros(self._factor_shape()) if self.use_laplace else None
        )

    @keeps_settings
    def reset_parameters(self) -> None:
        """Draw weight and bias from U(-k, k), k = 1 / sqrt(fan in), and forget the posterior."""
        bound = fan_in_bound(self.kernel_size, self.in_channels)
        with without_gradients():
            for parameter in self.parameters():
                parameter.uniform_(-bound, bound)
            if self.laplace_factor is not None:
                self.laplace_factor.zero_()

    def forward(self, inp: Tensor) -> Tensor:
        """Compute the heatmaps of a batch of feature maps.

        Args:
            inp: (B, in_channels, H, W).

        Returns:
            (ensemble_count, B, 1, H, W): the probability of the concept in the window around each place, or
            with ``apply_sigmoid=False`` the signed distance. Without padding, H and W are smaller.

        Raises:
            InputError: the input has another number of axes or channels.
        """
        self._require_channels(inp.shape[1] if inp.ndim > 1 else None, inp.ndim)
        maps = self._distances(inp, evaluates=not self.training)[:, :, None]
        return maps if self.activation is None else cast(Tensor, self.activation(maps))

    def _filters(self) -> tuple[Tensor, Tensor | None]:
        return self.weight, self.bias

    def _factors(self) -> Tensor:
        self._require_laplace()
        assert self.laplace_factor is not None
        return self.laplace_factor

    def _convolve(self, inp: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        padded = inp if self.padding is None else self.padding(inp)
        return functional.conv2d(padded, weight, bias).transpose(0, 1)

    def hyperplanes(self) -> tuple[npt.NDArray[np.floating], npt.NDArray[np.floating]]:
        """Return copies of the weight (E, C, kh, kw) and the bias (E,). Without `use_bias`, the bias is 0."""
        weight, bias = self._filters()
        bias = torch.zeros(self.ensemble_count) if bias is None else bias
        return host_array(weight).copy(), host_array(bias).copy()

    @keeps_settings
    def load_hyperplanes(self, weight: npt.ArrayLike, bias: npt.ArrayLike) -> None:
        """Set the weight (E, C, kh, kw) and the bias (E,). Without `use_bias`, the bias is ignored.

        Raises:
            InputError: the shapes differ.
        """
        shape = (self.ensemble_count, self.in_channels, *self.kernel_size)
        values = torch.from_numpy(self._checked(weight, shape, "weight"))
        biases = torch.from_numpy(self._checked(bias, shape[:1], "bias"))
        with without_gradients():
            self._set_filters(values, biases)

    def _set_filters(self, weight: Tensor, bias: Tensor) -> None:
        self.weight.copy_(weight)
        if self.bias is not None:
            self.bias.copy_(bias)

    def laplace_factors(self) -> npt.NDArray[np.floating]:
        """Return a copy of the factors (E, P, P) of the posteriors, zeros before training.

        Raises:
            InputError: the model does not `use_laplace`.
        """
        return host_array(self._factors()).copy()

    def load_laplace_factors(self, factors: npt.ArrayLike) -> None:
        """Set the factors (E, P, P).

        Raises:
            InputError: the model does not `use_laplace`, or the shape differs.
        """
        variable = self._factors()
        variable.copy_(torch.from_numpy(self._checked(factors, self._factor_shape(), "factors")))

    def extra_repr(self) -> str:
        """Return the arguments that the child modules do not show."""
        shown = ("concept_name", "layer_id", "in_channels", "kernel_size", "ensemble_count", "use_laplace")
        return ", ".join(f"{name}={getattr(self, name)!r}" for name in shown)
