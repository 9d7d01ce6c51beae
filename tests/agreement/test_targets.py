"""Every kind of target, explained in both frameworks, against a closure written by hand in PyTorch."""

import numpy as np
import pytest
import torch
from torch.nn import functional

from iba_core import (
    ClassTarget,
    DistributionTarget,
    Explainer,
    LogitTarget,
    RegressionTarget,
    ScoreTarget,
    SegmentationTarget,
    SumTarget,
)
from iba_core.concepts import DifferenceFromConceptTarget, SimilarityToConceptTarget
from iba_torch import IBA
from tests.backends import Activation, AveragePool, Conv, Torch, both_backends

SIZE, CLASSES = 6, 5
RNG = np.random.default_rng(0)
KERNELS = [RNG.normal(size=(3, 3, 3, 4)), RNG.normal(size=(1, 1, 4, CLASSES))]
IMAGES = RNG.normal(size=(30, SIZE, SIZE, 3))
VALUES = RNG.normal(size=(2, CLASSES))
REFERENCE = RNG.normal(size=CLASSES)
REGION = np.arange(SIZE * SIZE).reshape(SIZE, SIZE) % 3 == 0
SETTINGS = {"samples": 3, "steps": 3, "beta": 2.0}


LAYERS = [
    Conv("features", 4, bias=False),
    Activation("tanh", "tanh"),
    Conv("pixels", CLASSES, 1, bias=False),
    AveragePool("pool"),
]


def make_model(backend, pools):
    weights = {"features": KERNELS[:1], "pixels": KERNELS[1:]}
    layers = LAYERS if pools else LAYERS[:-1]
    return backend.network((SIZE, SIZE, 3), layers, dtype="float64", weights=weights)


def fitted(model, data):
    return Explainer(model, "features", **SETTINGS).fit([data], progbar=False)


def entropy(classes):
    return lambda outputs, image: functional.cross_entropy(outputs, torch.tensor(classes)[image])


def similarity(outputs, image):
    return functional.cosine_similarity(outputs, torch.from_numpy(REFERENCE)[None]).mean()


PREDICTED = make_model(Torch(), True)(torch.from_numpy(Torch().images(IMAGES[:2]))).detach()

CASES = {
    "a class": (2, entropy([2, 2])),
    "one class each": ([0, 3], entropy([0, 3])),
    "the class predicted": (None, entropy(PREDICTED.argmax(1).tolist())),
    "the class predicted, named": (ClassTarget(), entropy(PREDICTED.argmax(1).tolist())),
    "a callable": (lambda y: y[:, 1] - 2 * y[:, 3], lambda y, image: (2 * y[:, 3] - y[:, 1]).mean()),
    "a score": (ScoreTarget(lambda y: y[:, 1] ** 2), lambda y, image: -(y[:, 1] ** 2).mean()),
    "a logit": (LogitTarget(4), lambda y, image: -y[:, 4].mean()),
    "one logit each": (
        LogitTarget([4, 1]),
        lambda y, image: -y.gather(1, torch.tensor([4, 1])[image, None]).mean(),
    ),
    "all classes": (
        DistributionTarget(),
        lambda y, image: functional.cross_entropy(y, PREDICTED.softmax(1)[image]),
    ),
    "values": (
        RegressionTarget(VALUES),
        lambda y, image: functional.mse_loss(y, torch.from_numpy(VALUES)[image]),
    ),
    "the values predicted": (RegressionTarget(), lambda y, image: functional.mse_loss(y, PREDICTED[image])),
    "similarity": (SimilarityToConceptTarget(REFERENCE), lambda y, image: -similarity(y, image)),
    "difference": (DifferenceFromConceptTarget(REFERENCE), lambda y, image: similarity(y, image) - 1),
    "a sum": (
        SumTarget((1, LogitTarget([0, 2]), SimilarityToConceptTarget(REFERENCE)), weights=(1.0, 0.5, 3.0)),
        lambda y, image: (
            entropy([1, 1])(y, image)
            - 0.5 * y.gather(1, torch.tensor([0, 2])[image, None]).mean()
            - 3 * similarity(y, image)
        ),
    ),
}  # fmt: skip


def compare(target, loss, pools=True, target_last=None):
    """Both frameworks' capacities, and that of the closure for each image by itself."""
    here, there = both_backends()
    first, model = here.images(IMAGES), make_model(here, pools)
    ours = fitted(model, first).explain(first[:2], target, seed=1)
    theirs = fitted(make_model(there, pools), IMAGES).explain(
        IMAGES[:2], target if target_last is None else target_last, seed=1
    )
    assert ours.capacity.max() > 0.01
    np.testing.assert_allclose(
        ours.capacity_channels_first(), theirs.capacity_channels_first(), rtol=1e-6, atol=1e-9
    )
    np.testing.assert_allclose(ours.model_losses, theirs.model_losses, rtol=1e-6, atol=1e-9)

    iba = IBA(model.features, batch_size=3, optimization_steps=3, beta=2.0)
    iba.estimate(model, [torch.from_numpy(first)])
    for image in range(2):
        x = torch.from_numpy(first[image : image + 1])

        def closure(inputs, image=image):
            return loss(model(inputs), torch.full((len(inputs),), image))

        found = iba.analyze(x, closure, "capacity", seed=1)
        np.testing.assert_allclose(ours.capacity[image], found, rtol=1e-6, atol=1e-9)
        np.testing.assert_allclose(ours.model_losses[:, image], iba.model_losses[:, 0], rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("name", CASES)
def test_a_target_means_what_its_formula_says(name):
    compare(*CASES[name])


def test_a_region_of_a_segmentation():
    def loss(outputs, image):
        pixels = functional.cross_entropy(
            outputs, torch.full((len(outputs), SIZE, SIZE), 2), reduction="none"
        )
        return pixels[:, torch.from_numpy(REGION)].mean()

    compare(SegmentationTarget(2, REGION), loss, False, SegmentationTarget(2, REGION, "channels_last"))
