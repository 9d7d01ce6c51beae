"""Embeddings with the constructor of version 1.0, where they had this module."""

from __future__ import annotations

from typing import Any

import numpy.typing as npt

from iba_torch.compat.hybrid_learning.concepts.models import embeddings

__all__ = ["ConceptEmbedding"]


class ConceptEmbedding(embeddings.ConceptEmbedding):
    """`iba_torch.compat.hybrid_learning.concepts.models.ConceptEmbedding` as version 1.0 makes it.

    Args:
        normal_vec: n.
        support_factor: b.
        scaling_factor: s.
        concept: the concept.
        model_stump: the model up to the layer.
        concept_name: name of the concept, if `concept` is not given.
        layer_id: name of the layer, if `model_stump` is not given.
        settings: the arguments of version 2.0, instead of `normal_vec` and `support_factor`.

    Raises:
        InputError: the hyperplane is no hyperplane.

    Example:
        >>> ConceptEmbedding([3.0, 4.0], 0.4, concept_name="face").normalize().scaling_factor
        5.0
    """

    def __init__(
        self,
        normal_vec: npt.ArrayLike | None = None,
        support_factor: npt.ArrayLike | None = None,
        scaling_factor: npt.ArrayLike = 1.0,
        concept: Any = None,
        model_stump: Any = None,
        concept_name: str | None = None,
        layer_id: str | None = None,
        **settings: Any,
    ) -> None:
        super().__init__(
            normal_vec=normal_vec,
            support_factor=support_factor,
            scaling_factor=scaling_factor,
            concept=concept,
            model_stump=model_stump,
            concept_name=concept_name,
            layer_id=layer_id,
            **settings,
        )
