"""The network whose class activation maps were recorded from a published package, and concepts in it."""

from pathlib import Path

import numpy as np

from iba_core.concepts import (
    ClassifierOutputTarget,
    ConceptEmbedding,
    DifferenceFromConceptTarget,
    SimilarityToConceptTarget,
)
from tests.backends import Activation, AveragePool, Backend, Conv, Dense

# Made by data/record_cam.py, which tells how.
RECORD = Path(__file__).parent / "data" / "pytorch_grad_cam_1_5_7.npz"

SHAPE = (17, 20, 3)
LAYERS = [
    Conv("0", 6, padding="valid"),
    Activation("1"),
    Conv("2", 8, strides=2, padding="valid"),
    Activation("3"),
    Conv("4", 8, padding="valid"),
    Activation("5"),
    AveragePool("6"),
    Dense("7", 5),
]

METHODS = [
    "GradCAM",
    "GradCAMPlusPlus",
    "HiResCAM",
    "LayerCAM",
    "XGradCAM",
    "EigenCAM",
    "EigenGradCAM",
    "GradCAMElementWise",
    "ScoreCAM",
    "AblationCAM",
]


def read_record() -> dict[str, np.ndarray]:
    """Inputs, weights and maps of the recorded network."""
    with np.load(RECORD, allow_pickle=False) as file:
        return dict(file)


class Net:
    """The recorded network in one framework, its layers by the same names."""

    def __init__(self, backend: Backend, record: dict[str, np.ndarray]):
        self.backend = backend
        self.cam = backend.module("concepts.cam")
        weights = {
            name: [record[f"{name}.weight"].transpose(2, 3, 1, 0), record[f"{name}.bias"]]
            for name in ("0", "2", "4")
        }
        # The recorded network sums over the 5 x 6 pixels of the last feature maps, and this one averages.
        weights["7"] = [30 * record["7.weight"].T, record["7.bias"]]
        self.model = backend.network(SHAPE, LAYERS, dtype="float64", weights=weights)

    def images(self, x: np.ndarray) -> np.ndarray:
        """Bring images (B, C, H, W) into the form that the model takes."""
        return self.backend.images(np.moveaxis(x, 1, -1))


def planes():
    rng = np.random.default_rng(3)
    return {
        "output": ConceptEmbedding(rng.normal(size=5), bias=0.3),
        "layer": ConceptEmbedding(rng.normal(size=8), bias=-0.2, layer_id="5"),
        "windows": ConceptEmbedding(rng.normal(size=(8, 2, 3)), bias=0.1, layer_id="4"),
    }


def concept_targets():
    reference = np.random.default_rng(4).normal(size=5)
    return {
        "similarity": SimilarityToConceptTarget(reference),
        "difference": DifferenceFromConceptTarget(reference),
        "classifier": ClassifierOutputTarget(2),
        **planes(),
    }


CONCEPTS = ["similarity", "difference", "classifier", "output", "layer", "windows"]
