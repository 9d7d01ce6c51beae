"""Metrics and methods beside Captum and Quantus: the same numbers from packages that others wrote.

Sensitivity-n is not compared with Quantus. Its class of that name takes the highest values away step by
step and correlates over pictures, where the paper draws random sets within one; `tests/behaviour` has a plain
loop. The same holds for degradation: Quantus' region perturbation takes overlapping regions.
"""

import copy
import warnings

import numpy as np
import pytest
import torch
from torch import nn

from iba_core.evaluation import (
    Gradients,
    IntegratedGradients,
    Occlusion,
    ScoredModel,
    infidelity,
    mass_in_box,
    max_sensitivity,
    perturbation_curve,
    perturbation_pairs,
    pointing_game,
    road_hits,
    sparseness,
)
from iba_core.evaluation.places import Tiles, imputed
from iba_core.framework.layout import Layout

SIDE, IMAGES = 12, 4
CLASSES = np.array([0, 2, 1, 2])


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(), nn.Conv2d(6, 6, 3), nn.ReLU(), nn.Flatten()]
    return nn.Sequential(*layers, nn.Linear(600, 3)).double().eval()


@pytest.fixture(scope="module")
def x():
    return np.random.default_rng(1).normal(size=(IMAGES, 3, SIDE, SIDE))


@pytest.fixture(scope="module")
def maps():
    return np.random.default_rng(2).gamma(0.5, size=(IMAGES, SIDE, SIDE))


@pytest.fixture(scope="module")
def masks():
    found = np.random.default_rng(4).random((IMAGES, SIDE, SIDE)) < 0.2
    found[0] = False
    found[0, 0, 0] = True
    return found


def targets():
    return torch.from_numpy(CLASSES)


# -- Captum --------------------------------------------------------------------------------------------------


def test_gradients_are_captums(model, x):
    attr = pytest.importorskip("captum.attr")
    expected = attr.Saliency(model).attribute(torch.from_numpy(x), targets(), abs=False)
    np.testing.assert_allclose(Gradients(model, channels="none")(x, CLASSES), expected, atol=1e-12)


def test_integrated_gradients_are_captums(model, x):
    attr = pytest.importorskip("captum.attr")
    expected = attr.IntegratedGradients(model).attribute(torch.from_numpy(x), 0.0, targets(), n_steps=20)
    found = IntegratedGradients(model, steps=20, channels="none")(x, CLASSES)
    # Captum's weights of the points have nine digits.
    np.testing.assert_allclose(found, expected.detach(), atol=1e-9)


def test_occlusion_is_captums(model, x):
    attr = pytest.importorskip("captum.attr")
    patch = (3, 4, 4)
    expected = attr.Occlusion(model).attribute(torch.from_numpy(x), patch, patch, target=targets())
    # Captum gives each number the fall of the whole tile.
    found = Occlusion(model, tile=4)(x, CLASSES) * 16
    np.testing.assert_allclose(found, expected[:, 0].detach(), atol=1e-12)


@pytest.mark.parametrize("normalize", [True, False])
def test_infidelity_is_captums(model, x, maps, normalize):
    metrics = pytest.importorskip("captum.metrics")
    scored = ScoredModel(model, score="logit")
    options = {"n": 5, "samples": 12, "tile": 3, "baseline": "zero"}
    sets = drawn(scored, x, maps, **options)

    def perturb(inputs, baselines=None):
        # Captum repeats each picture for as many sets as it asks for.
        taken = torch.from_numpy(np.repeat(sets[:, :, None], 3, axis=2).reshape(inputs.shape)).double()
        return taken, inputs * (1 - taken)

    # A pixel's value is divided among its channels, which go together.
    full = torch.from_numpy(np.repeat(maps[:, None] / 3, 3, axis=1))
    expected = metrics.infidelity(
        model,
        perturb,
        torch.from_numpy(x),
        full,
        target=targets(),
        n_perturb_samples=12,
        normalize=normalize,
    )
    found = infidelity(scored, x, maps, CLASSES, normalize=normalize, **options)
    np.testing.assert_allclose(found, expected.detach(), atol=1e-9)


def drawn(scored, x, maps, *, n, samples, tile, baseline):
    """The places that are taken away, (B, samples, H, W), read off the sums of maps of single tiles."""
    tiles = Tiles.of((SIDE, SIDE), tile)
    taken = np.zeros((IMAGES, samples, SIDE, SIDE), bool)
    for number in range(len(tiles)):
        single = np.broadcast_to(tiles.numbers == number, maps.shape)
        options = {"n": n, "samples": samples, "tile": tile, "baseline": baseline}
        sums = perturbation_pairs(scored, x, single, CLASSES, **options)[:, 0, :, 0]
        taken |= (sums > 0)[..., None, None] & (tiles.numbers == number)
    return taken


def test_max_sensitivity_is_captums(model, x):
    metrics = pytest.importorskip("captum.metrics")
    method, seen = Gradients(model, channels="none"), []

    def recorded(images, classes):
        seen.append(images)
        return method(images, classes)

    found = max_sensitivity(model, recorded, x, CLASSES, radius=0.1, samples=5)
    # Captum wants the copies of a picture one after the other.
    disturbed = torch.from_numpy(np.stack(seen[1:], axis=1).reshape(-1, *x.shape[1:]))

    def explain(inputs, target):
        # Captum gives a tuple first, and wants one back.
        if isinstance(inputs, tuple):
            return (explain(inputs[0], target),)
        return torch.from_numpy(method(inputs.numpy(), target.numpy()))

    expected = metrics.sensitivity_max(
        explain, torch.from_numpy(x), lambda inputs: disturbed, n_perturb_samples=5, target=targets()
    )
    np.testing.assert_allclose(found, expected, atol=1e-9)


# -- Quantus -------------------------------------------------------------------------------------------------


@pytest.fixture
def quantus():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield pytest.importorskip("quantus", reason="is in requirements-alone.txt")


OPTIONS = {"disable_warnings": True, "normalise": False}


def judged(metric, model, x, maps, masks=None):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return metric(
            model=model,
            x_batch=x,
            y_batch=CLASSES,
            a_batch=maps[:, None],
            s_batch=None if masks is None else masks[:, None],
        )


def test_sparseness_is_quantus(quantus, model, x, maps):
    expected = judged(quantus.Sparseness(**OPTIONS), model, x, maps)
    # Quantus adds 1e-7 to every value before it sums them.
    np.testing.assert_allclose(sparseness(maps), expected, atol=1e-6)


def test_localisation_is_quantus(quantus, model, x, maps, masks):
    expected = judged(quantus.RelevanceMassAccuracy(**OPTIONS), model, x, maps, masks)
    np.testing.assert_allclose(mass_in_box(maps, masks), expected, atol=1e-9)
    hits = judged(quantus.PointingGame(**OPTIONS), model, x, maps, masks)
    np.testing.assert_array_equal(pointing_game(maps, masks), np.array(hits, float))


def test_deletion_is_quantus_pixel_flipping(quantus, model, x, maps):
    metric = quantus.PixelFlipping(
        features_in_step=12, perturb_baseline="black", return_auc_per_sample=False, **OPTIONS
    )
    full = np.random.default_rng(3).gamma(0.5, size=x.shape)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        # Quantus makes float32 of all inputs.
        single = copy.deepcopy(model).float()
        expected = metric(model=single, x_batch=x, y_batch=CLASSES, a_batch=full, softmax=True)
    # Black is the lowest value of a picture. Quantus leaves out the score before the first step.
    black = np.broadcast_to(x.min(axis=(1, 2, 3), keepdims=True), x.shape)
    found = perturbation_curve(model, x, full, CLASSES, steps=36, baseline=black)
    np.testing.assert_allclose(found[:, 1:], np.array(expected), atol=1e-6)


def test_imputation_is_quantus(quantus, x):
    from quantus.functions.perturb_func import noisy_linear_imputation

    mask = np.random.default_rng(6).random((SIDE, SIDE)) < 0.6
    expected = noisy_linear_imputation(x[0], np.flatnonzero(mask), noise=0.0)
    found = imputed(x[0], mask, Layout.of(x.shape[1:], "channels_first"))
    np.testing.assert_allclose(found, expected, atol=1e-9)


def test_road_is_quantus(quantus, model, x, maps):
    shares = (10, 30, 50, 70, 90)
    metric = quantus.ROAD(percentages=list(shares), noise=0.0, **OPTIONS)
    # Quantus counts pixels right for pictures of one channel.
    grey, single = x[:, :1].astype(np.float32), OfGrey(copy.deepcopy(model).float()).eval()
    expected = judged(metric, single, grey, maps)
    hits = road_hits(single, grey, maps, CLASSES, percentages=shares, noise=0.0)
    np.testing.assert_allclose(hits.mean(axis=0), [expected[share] for share in shares], atol=1e-9)


class OfGrey(nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, x):
        return self.model(x.expand(-1, 3, -1, -1))
