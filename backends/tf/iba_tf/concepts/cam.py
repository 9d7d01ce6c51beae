"""Class activation maps of Keras models.

The classes are those of `iba_core.concepts.cam`, which works for Keras models directly.
"""

from __future__ import annotations

from collections.abc import Sequence

import keras
import numpy.typing as npt
import tensorflow as tf

from iba_core.concepts.cam import (
    AblationCAM,
    EigenCAM,
    EigenGradCAM,
    GradCAM,
    GradCAMElementWise,
    GradCAMPlusPlus,
    HiResCAM,
    LayerCAM,
    ScoreCAM,
    XGradCAM,
)
from iba_core.concepts.targets import (
    ClassifierOutputTarget,
    ConceptEmbeddingTarget,
    DifferenceFromConceptTarget,
    SimilarityToConceptTarget,
)
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


def preprocess_image(
    img: npt.ArrayLike, mean: Sequence[float] = (0.5, 0.5, 0.5), std: Sequence[float] = (0.5, 0.5, 0.5)
) -> tf.Tensor:
    """Normalise a picture as `iba_core.pictures.cam.preprocess_image` does, to a tensor.

    Returns:
        Tensor float32, (1, H, W, C), or (1, C, H, W) if that is `keras.config.image_data_format`.

    Example:
        >>> preprocess_image([[[0.0, 0.5, 1.0]]]).numpy().ravel()
        array([-1.,  0.,  1.], dtype=float32)
    """
    return tf.constant(preprocess_array(img, mean, std, keras.config.image_data_format()))
