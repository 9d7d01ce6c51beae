"""The model that locates a concept, as version 1.0 has it: one hyperplane, with a sigmoid."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Self

from torch import Tensor, nn

from iba_core.arguments import require_type
from iba_core.concepts.data import SegmentationConcept2D
from iba_core.concepts.detection import DetectionSpec, filters_of
from iba_torch.compat.hybrid_learning.concepts.analysis import data_for_concept_model
from iba_torch.compat.hybrid_learning.concepts.embeddings import ConceptEmbedding
from iba_torch.compat.hybrid_learning.concepts.models import concept_models

__all__ = ["ConceptDetection2DTrainTestHandle", "ConceptDetectionModel2D"]


class ConceptDetectionModel2D(concept_models.ConceptDetectionModel2D):
    """`iba_torch.compat.hybrid_learning.concepts.models.ConceptDetectionModel2D` as version 1.0 has it.

    The convolution is ``concept_layer``, the output has no axis for the members of an ensemble, and there is
    one embedding instead of a list.

    Args:
        concept: the concept.
        model: the main model.
        layer_id: name of the layer.
        kernel_size: (height, width) of the window.
        in_channels: channels of the feature map. If `kernel_size` is None, a number that differs from the
            layer's is replaced, with a warning.
        concept_name: name of the concept, if `concept` is not given.

    Raises:
        InputError: an argument is wrong, or a missing one cannot be derived from the others.
        LayerError: the model has no such layer.

    Example:
        >>> import torch
        >>> model = ConceptDetectionModel2D(None, None, None, kernel_size=(3, 2), in_channels=8)
        >>> list(model.state_dict()), model(torch.rand(4, 8, 14, 14)).shape
        (['concept_layer.weight', 'concept_layer.bias'], torch.Size([4, 1, 14, 14]))
    """

    def __init__(
        self,
        concept: SegmentationConcept2D | None,
        model: nn.Module | None,
        layer_id: str | None,
        kernel_size: Sequence[int] | None = None,
        in_channels: int | None = None,
        concept_name: str | None = None,
    ) -> None:
        spec = DetectionSpec.resolve(concept, model, layer_id, kernel_size, in_channels, concept_name, 1)
        name = concept_name if concept is None else concept.name
        super().__init__(concept, model, layer_id, spec.kernel_size, spec.in_channels, name)

    @property
    def settings(self) -> dict[str, Any]:
        """The constructor's arguments that reproduce this model, without its weights."""
        names = ("concept", "model", "layer_id", "kernel_size", "in_channels")
        settings = super().settings
        return {name: settings[name] for name in names}

    def forward(self, inp: Tensor) -> Tensor:
        """Compute the heatmaps (B, 1, H, W) of feature maps (B, in_channels, H, W)."""
        return super().forward(inp)[0]

    def to_embedding(self) -> ConceptEmbedding:  # type: ignore[override]  # one, as published
        """Copy the hyperplane, with the concept and the model."""
        weight, bias = self.hyperplanes()
        return ConceptEmbedding(
            state_dict={"weight": weight, "bias": bias},
            normal_vec_name="weight",
            bias_name="bias",
            concept=self.concept,
            model_stump=self.main_model_stump,
            concept_name=self.concept_name,
        )

    @classmethod
    def from_embedding(  # type: ignore[override]  # the arguments of version 1.0
        cls,
        embedding: ConceptEmbedding,
        *,
        main_model: nn.Module | None = None,
        concept: SegmentationConcept2D | None = None,
    ) -> Self:
        """Make a model with the hyperplane of an embedding.

        Args:
            embedding: the hyperplane.
            main_model: the main model; by default that of the embedding.
            concept: the concept; by default that of the embedding.

        Raises:
            InputError: the normal vector does not suit a convolution.
        """
        require_type("embedding", embedding, ConceptEmbedding, "a ConceptEmbedding")
        weight, bias = filters_of([embedding])
        model = cls(
            embedding.concept if concept is None else concept,
            embedding.main_model if main_model is None else main_model,
            embedding.layer_id,
            weight.shape[2:],
            weight.shape[1],
            embedding.concept_name,
        )
        model.load_hyperplanes(weight, bias)
        return model

    @staticmethod
    def _layer_name(index: int) -> str:
        return "concept_layer"


class ConceptDetection2DTrainTestHandle(concept_models.ConceptDetection2DTrainTestHandle):
    """`concept_models.ConceptDetection2DTrainTestHandle` with the data of the model's own concept.

    Args:
        concept_model: the model, with a concept and a main model.
        settings: see the class of version 2.0.

    Raises:
        InputError: something is missing, or the model has other channels than the layer.

    Example:
        See the migration page.
    """

    def __init__(self, concept_model: ConceptDetectionModel2D, **settings: Any) -> None:
        super().__init__(concept_model, data_for_concept_model(concept_model), **settings)
