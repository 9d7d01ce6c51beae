"""The model that locates a concept, with the published parameters."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils import skip_init

from iba_core.arguments import require_bool
from iba_core.concepts.data import SegmentationConcept2D
from iba_core.concepts.detection import DetectionSpec
from iba_core.concepts.laplace import hessian_of, posterior_factor
from iba_core.framework.namespace import host_array
from iba_torch import concepts
from iba_torch.compat.hybrid_learning.concepts.models.concept_models._handles import (
    ConceptDetection2DTrainTestHandle,
)
from iba_torch.compat.hybrid_learning.concepts.models.embeddings import ConceptEmbedding
from iba_torch.compat.hybrid_learning.concepts.models.model_extension import ModelStump

__all__ = ["ConceptDetection2DTrainTestHandle", "ConceptDetectionModel2D"]

_uninitialized: Any = skip_init

_LOGGER = logging.getLogger(__name__)


class ConceptLayer(nn.Conv2d):
    """The convolution of one member of the ensemble.

    Attributes:
        hessian: (P, P), of the cross-entropy, with the bias as the first parameter; with `use_laplace`.
        var0: (1,), variance of the prior; 0 without a posterior.
    """

    hessian: Tensor
    var0: Tensor


class ConceptDetectionModel2D(concepts.ConceptDetectionModel2D):
    """`iba_torch.concepts.ConceptDetectionModel2D` with the published parameters, stump and embeddings.

    Every member of the ensemble is a convolution, ``concept_layer_0``, ``concept_layer_1`` and so on, so that
    the state dictionary is the published one. With `use_laplace`, each has the buffers ``hessian`` and
    ``var0``.

    Args:
        concept: see `iba_torch.concepts.ConceptDetectionModel2D`, also for the other arguments.
        model: the main model.
        layer_id: name of the layer.
        kernel_size: (height, width) of the window.
        in_channels: channels of the feature map. A number that differs from the layer's is kept, with a
            warning in the log.
        concept_name: name of the concept.
        apply_sigmoid: return probabilities.
        apply_padding: keep the size of the maps.
        ensemble_count: number of hyperplanes.
        use_laplace: approximate the posterior of the weights in training.
        use_bias: learn a bias.

    Raises:
        InputError: an argument is wrong, or a missing one cannot be derived from the others.
        LayerError: the model has no such layer.

    Example:
        >>> model = ConceptDetectionModel2D(in_channels=8, kernel_size=(3, 2), ensemble_count=2)
        >>> list(model.state_dict())[:2], model.concept_layer_1.weight.shape
        (['concept_layer_0.weight', 'concept_layer_0.bias'], torch.Size([1, 8, 3, 2]))
    """

    def __init__(
        self,
        concept: SegmentationConcept2D | None = None,
        model: nn.Module | None = None,
        layer_id: str | None = None,
        kernel_size: Sequence[int] | None = None,
        in_channels: int | None = None,
        concept_name: str | None = None,
        apply_sigmoid: bool = True,
        apply_padding: bool = True,
        ensemble_count: int = 1,
        use_laplace: bool = False,
        use_bias: bool = True,
    ) -> None:
        if kernel_size is None and None not in (in_channels, concept, model):
            derived = DetectionSpec.resolve(concept, model, layer_id, None, None, None, ensemble_count)
            kernel_size = derived.kernel_size
            if in_channels != derived.in_channels:
                _LOGGER.warning(
                    "in_channels=%r is kept, but layer %r has %d", in_channels, layer_id, derived.in_channels
                )
        super().__init__(
            concept, model, layer_id, kernel_size, in_channels, concept_name, apply_sigmoid, apply_padding,
            ensemble_count, use_laplace, use_bias,
        )  # fmt: skip
        self.concept_name = concept_name
        stump = None if self.stump is None else ModelStump(self.stump.model, self.stump.layer_id)
        # In a tuple, the stump is no child, and its parameters are not trained.
        self._stump = (stump,)

    # -- what the published attributes are ----------------------------------------------------------

    @property
    def main_model_stump(self) -> ModelStump | None:  # type: ignore[override]  # a module, as published
        """The main model up to the layer, as a module; None without a main model."""
        return self._stump[0]

    @property
    def concept_name(self) -> str | None:
        """Name of the concept; by default that of `concept`."""
        return self._spec.concept_name if self._concept_name is None else self._concept_name

    @concept_name.setter
    def concept_name(self, name: str | None) -> None:
        self._concept_name = name

    @property
    def weight(self) -> Tensor:  # type: ignore[override]  # of several layers
        """(ensemble_count, in_channels, *kernel_size), a copy of the layers' weights."""
        return self._filters()[0]

    @property
    def bias(self) -> Tensor | None:  # type: ignore[override]  # of several layers
        """(ensemble_count,), a copy of the layers' biases, or None."""
        return self._filters()[1]

    def reset_parameters(self) -> None:
        """Draw weight and bias of one layer after the other as `torch.nn.Conv2d`; forget the posterior."""
        for layer in self._layers():
            layer.reset_parameters()
            for buffer in layer.buffers():
                buffer.zero_()
        if self.laplace_factor is not None:
            self.laplace_factor.zero_()

    # -- embeddings -----------------------------------------------------------------------------------

    def to_embedding(self) -> list[ConceptEmbedding]:  # type: ignore[override]  # with objects
        """Copy the hyperplane of every member of the ensemble, with the concept and the model."""
        return [self._embedding(layer, **self.settings) for layer in self._layers()]

    def _embedding(self, layer: ConceptLayer, **meta: Any) -> ConceptEmbedding:
        return ConceptEmbedding(
            state_dict={name: host_array(value).copy() for name, value in layer.state_dict().items()},
            normal_vec_name="weight",
            bias_name="bias" if self.use_bias else None,
            main_model=self.main_model,
            model_stump=self.main_model_stump,
            **meta,
        )

    @classmethod
    def from_embedding(
        cls,
        embeddings_list: Any,
        legacy_warnings: bool = True,
        **kwargs: Any,
    ) -> Self:
        """Make a model from embeddings, with the concept and the model that the first one holds.

        Args:
            embeddings_list: one embedding, or one for each member of the ensemble.
            legacy_warnings: without effect, since the model holds all that the embeddings do.
            **kwargs: arguments of the model, which replace those in the embeddings; `main_model` is `model`.

        Raises:
            InputError: the embeddings do not form an ensemble, or contradict `kwargs`.
        """
        require_bool("legacy_warnings", legacy_warnings)
        planes = [embeddings_list] if isinstance(embeddings_list, ConceptEmbedding) else embeddings_list
        first = next(iter(planes), None) if isinstance(planes, (list, tuple)) else None
        known: dict[str, Any] = {}
        if isinstance(first, ConceptEmbedding):
            known = {"concept": first.concept, "model": first.main_model}
        if "main_model" in kwargs:
            kwargs["model"] = kwargs.pop("main_model")
        made = super().from_embedding(planes, False, **{**known, **kwargs})
        if made.use_laplace:
            for layer, plane in zip(made._layers(), planes, strict=True):
                layer.load_state_dict({**layer.state_dict(), **_buffers(plane)})
            made._read_posterior()
        return made

    # -- where the weights are ------------------------------------------------------------------------

    @staticmethod
    def _layer_name(index: int) -> str:
        return f"concept_layer_{index}"

    def _layers(self) -> list[ConceptLayer]:
        names = map(self._layer_name, range(self.ensemble_count))
        return [self.get_submodule(name) for name in names]  # type: ignore[misc]  # see below

    def _add_weights(self) -> None:
        for index in range(self.ensemble_count):
            layer = _uninitialized(ConceptLayer, self.in_channels, 1, self.kernel_size, bias=self.use_bias)
            if self.use_laplace:
                size = self._factor_shape()[1]
                # In float32, a Hessian and a weak prior may not add up to a positive definite matrix.
                layer.register_buffer("hessian", torch.zeros(size, size, dtype=torch.float64))
                layer.register_buffer("var0", torch.zeros(1, dtype=torch.float64))
            self.add_module(self._layer_name(index), layer)
        factors = torch.zeros(self._factor_shape()) if self.use_laplace else None
        self.register_buffer("laplace_factor", factors, persistent=False)
        self.register_load_state_dict_post_hook(_after_loading)  # type: ignore[no-untyped-call]  # of PyTorch

    def _filters(self) -> tuple[Tensor, Tensor | None]:
        layers = self._layers()
        biases = [layer.bias for layer in layers if layer.bias is not None]
        return torch.cat([layer.weight for layer in layers]), torch.cat(biases) if biases else None

    def _set_filters(self, weight: Tensor, bias: Tensor) -> None:
        for index, layer in enumerate(self._layers()):
            layer.weight.copy_(weight[index : index + 1])
            if layer.bias is not None:
                layer.bias.copy_(bias[index : index + 1])

    def load_laplace_factors(self, factors: Any) -> None:
        """Set the factors (E, P, P), and the layers' ``hessian`` and ``var0`` with them.

        Raises:
            InputError: the model does not `use_laplace`, or the shape differs.
        """
        super().load_laplace_factors(factors)
        for layer, factor in zip(self._layers(), np.asarray(factors, dtype=np.float64), strict=True):
            hessian, precision = hessian_of(factor)
            # The published order of the parameters has the bias first.
            layer.hessian.copy_(torch.from_numpy(np.roll(hessian, int(self.use_bias), axis=(0, 1))))
            layer.var0.fill_(1.0 / precision)

    def _read_posterior(self) -> None:
        """Derive the factors from the layers' ``hessian`` and ``var0``; a ``var0`` of 0 is no posterior."""
        if self.laplace_factor is None:
            return
        for index, layer in enumerate(self._layers()):
            variance = float(layer.var0)
            self.laplace_factor[index].zero_()
            if variance > 0:
                hessian = np.roll(
                    host_array(layer.hessian).astype(np.float64), -int(self.use_bias), axis=(0, 1)
                )
                self.laplace_factor[index].copy_(torch.from_numpy(posterior_factor(hessian, 1.0 / variance)))


def _after_loading(model: ConceptDetectionModel2D, _: Any) -> None:
    model._read_posterior()


def _buffers(plane: Any) -> dict[str, Tensor]:
    names = [name for name in ("hessian", "var0") if name in getattr(plane, "state_dict", {})]
    return {name: torch.from_numpy(np.asarray(plane.state_dict[name])) for name in names}
