"""Pictures with a reddish square to learn, and a small network to learn it in."""

from typing import Any

import numpy as np

from iba_core.concepts import SegmentationConcept2D
from tests.backends import Activation, AveragePool, Backend, Conv

QUICK = {"epochs": 30, "learning_rate": 0.1, "progbar": False}

LAYERS = [Conv("0", 6), Activation("1"), AveragePool("2", 2), Conv("3", 6), AveragePool("4", keepdims=True)]


def squares(count, seed):
    """Noise, channels first, with a reddish square in each image, and the masks of the squares."""
    rng = np.random.default_rng(seed)
    images = rng.normal(0, 0.5, (count, 3, 16, 16)).astype(np.float32)
    masks = np.zeros((count, 16, 16), np.float32)
    for image, mask, (y, x) in zip(images, masks, rng.integers(0, 10, (count, 2)), strict=True):
        image[:, y : y + 6, x : x + 6] += np.array([1.5, -0.5, 0.0])[:, None, None]
        mask[y : y + 6, x : x + 6] = 1
    return images, masks


def make_model(backend: Backend) -> Any:
    """The network, with layers 0 to 4."""
    rng = np.random.default_rng(7)
    weights = {}
    for name, channels in (("0", 3), ("3", 6)):
        kernel = rng.normal(size=(6, channels, 3, 3)).astype(np.float32) / channels
        weights[name] = [kernel.transpose(2, 3, 1, 0), rng.normal(size=6)]
    return backend.network((16, 16, 3), LAYERS, weights=weights)


def images_of(backend: Backend, images: np.ndarray) -> np.ndarray:
    """Bring images (B, C, H, W) into the backend's data format."""
    return backend.images(np.moveaxis(images, 1, -1))


def make_concept(backend: Backend, counts=(40, 16, 16), **arguments: Any) -> SegmentationConcept2D:
    """The concept, with as many pictures to train with, to validate with and to test with."""
    parts = [
        None if not count else (images_of(backend, images), masks)
        for seed, count in enumerate(counts)
        for images, masks in [squares(max(count, 1), seed)]
    ]
    return SegmentationConcept2D("square", *parts, **arguments)
