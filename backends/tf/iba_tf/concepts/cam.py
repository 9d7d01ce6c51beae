"""Class activation maps of Keras models.

The methods and their arguments are those of `iba_core.concepts.cam`, which serves Keras models as they are.
"""

from __future__ import annotations

from collections.abc import Sequence

import keras
import numpy.typing as npt
import tensorflow as tf

from iba_core.concepts.cam import EigenCAM, GradCAM, GradCAMPlusPlus, HiResCAM, LayerCAM, XGradCAM
from iba_core.concepts.targets import (
    ClassifierOutputTarget,
    ConceptEmbeddingTarget,
    DifferenceFromConceptTarget,
    SimilarityToConceptTarget,
)
from iba_core.pictures.cam import preprocess_image as preprocess_array
from iba_core.pictures.cam import show_cam_on_image

__all__ = [
    "ClassifierOutputTarget",
    "ConceptEmbeddingTarget",
    "DifferenceFromConceptTarget",
    "EigenCAM",
    "GradCAM",
    "GradCAMPlusPlus",
    "HiResCAM",
    "LayerCAM",
    "SimilarityToConceptTarget",
    "XGradCAM",
    "preprocess_image",
    "show_cam_on_image",
]


def preprocess_image(
    img: npt.ArrayLike, mean: Sequence[float] = (0.5, 0.5, 0.5), std: Sequence[float] = (0.5, 0.5, 0.5)
) -> tf.Tensor:
    """`iba_core.pictures.cam.preprocess_image` as a tensor, float32.

    Returns:
        Tensor (1, H, W, C), or (1, C, H, W) where `keras.config.image_data_format` says so.
    """
    return tf.constant(preprocess_array(img, mean, std, keras.config.image_data_format()))
