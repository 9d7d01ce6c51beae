"""Class activation maps and bits of a concept: the same in both frameworks, and as published elsewhere."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import torch
from torch import nn

from iba_core import Explainer, InputError, LayerError, SumTarget
from iba_core.concepts import (
    ClassifierOutputTarget,
    ConceptEmbedding,
    DifferenceFromConceptTarget,
    SimilarityToConceptTarget,
    activation_maps,
)
from iba_core.pictures.images import sample_crops, sample_image
from iba_core.zoo.efficientnet_lite import PREPROCESSING
from iba_tf.concepts import cam as tf_cam
from iba_tf.efficientnet_lite import efficientnet_lite0 as keras_lite0
from iba_torch.concepts import cam as torch_cam
from iba_torch.efficientnet_lite import efficientnet_lite0 as torch_lite0

# Made by record_cam.py, which tells how.
RECORD = Path(__file__).parent / "data" / "pytorch_grad_cam_1_5_7.npz"

METHODS = ["GradCAM", "GradCAMPlusPlus", "HiResCAM", "LayerCAM", "XGradCAM", "EigenCAM"]

TOLERANCES = {
    # The package adds a constant to the denominator.
    "GradCAMPlusPlus": 1e-3,
}


@pytest.fixture(scope="module")
def record():
    with np.load(RECORD, allow_pickle=False) as file:
        return dict(file)


@dataclass
class Net:
    """The recorded network in one framework, its layers by the same names."""

    model: Any
    cam: Any
    images: Any
    """Brings images (B, C, H, W) into the form that the model takes."""


class Pool(nn.Module):
    def forward(self, x):
        return x.sum((2, 3))


def torch_net(record):
    layers = [nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Conv2d(6, 8, 3, stride=2), nn.ReLU(), nn.Conv2d(8, 8, 3)]
    model = nn.Sequential(*layers, nn.ReLU(), Pool(), nn.Linear(8, 5)).double()
    model.load_state_dict({k: torch.from_numpy(v) for k, v in record.items() if k[0].isdigit()})
    return Net(model, torch_cam, torch.from_numpy)


def keras_net(record):
    x = inputs = keras.Input((17, 20, 3), dtype="float64")
    for name, filters, stride in (("0", 6, 1), ("2", 8, 2), ("4", 8, 1)):
        x = keras.layers.Conv2D(filters, 3, strides=stride, name=name, dtype="float64")(x)
        x = keras.layers.ReLU(name=str(int(name) + 1), dtype="float64")(x)
    x = keras.layers.Lambda(lambda t: keras.ops.sum(t, axis=(1, 2)), name="6", dtype="float64")(x)
    model = keras.Model(inputs, keras.layers.Dense(5, name="7", dtype="float64")(x))
    for name in ("0", "2", "4"):
        kernel = record[f"{name}.weight"].transpose(2, 3, 1, 0)
        model.get_layer(name).set_weights([kernel, record[f"{name}.bias"]])
    model.get_layer("7").set_weights([record["7.weight"].T, record["7.bias"]])
    return Net(model, tf_cam, lambda x: np.moveaxis(x, 1, -1))


NETS = {"torch": torch_net, "tensorflow": keras_net}


@pytest.fixture(scope="module", params=NETS)
def net(request, record):
    return NETS[request.param](record)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("variant", ["", ".predicted", ".eigen_smooth", ".two_layers"])
def test_maps_are_those_of_the_published_package(net, record, method, variant, monkeypatch):
    layers = ["1", "5"] if variant == ".two_layers" else ["3"]
    targets = None if variant == ".predicted" else [ClassifierOutputTarget(1), ClassifierOutputTarget(3)]
    smooth = variant == ".eigen_smooth"

    def maps():
        with getattr(net.cam, method)(model=net.model, target_layers=layers) as cam:
            return cam(input_tensor=net.images(record["input"]), targets=targets, eigen_smooth=smooth)

    found = [maps()]
    if smooth or method == "EigenCAM":
        # The package leaves the sign of a principal component to chance, per image and layer.
        original = activation_maps.principal_component
        for signs in product((1, -1), repeat=len(layers)):
            remaining = iter(signs)
            monkeypatch.setattr(
                activation_maps, "principal_component", lambda x, left=remaining: next(left) * original(x)
            )
            found.append(maps())
    assert found[0].shape == (2, 17, 20)
    assert found[0].dtype == np.float32
    for image, expected in enumerate(record[method + variant]):
        error = min(np.abs(candidate[image] - expected).max() for candidate in found)
        assert error < TOLERANCES.get(method, 1e-5)


def test_smoothing_over_views_is_that_of_the_published_package(net, record):
    with net.cam.GradCAM(net.model, ["3"]) as cam:
        maps = cam(net.images(record["input"]), [1, 3], aug_smooth=True)
    np.testing.assert_allclose(maps, record["GradCAM.aug_smooth"], atol=1e-5)


def test_the_overlay_is_close_to_that_of_the_published_package(record):
    # Matplotlib's "jet" and OpenCV's differ by some levels.
    for name, options in (("overlay", {"use_rgb": True}), ("overlay.bgr", {"image_weight": 0.7})):
        found = torch_cam.show_cam_on_image(record["picture"], record["GradCAM"][0], **options)
        difference = np.abs(found.astype(int) - record[name])
        assert difference.max() <= 20
        assert difference.mean() <= 3


def test_a_target_may_be_given_in_many_ways(net, record):
    x = net.images(record["input"])
    cam = net.cam.GradCAM(net.model, "3")
    expected = cam(x, [ClassifierOutputTarget(1), ClassifierOutputTarget(1)])
    both = np.array([1, 1])
    for targets in (
        1,
        [1, 1],
        both,
        torch.from_numpy(both),
        np.int64(1),
        lambda row: row[1],
        [lambda row: row[1]] * 2,
        ClassifierOutputTarget(1),
    ):
        np.testing.assert_array_equal(cam(x, targets), expected)
    np.testing.assert_allclose(cam(x, SumTarget((ClassifierOutputTarget(1),))), expected, atol=1e-6)
    with pytest.raises(InputError, match="3 targets are given for 2 images"):
        cam(x, [1, 2, 3])
    with pytest.raises(InputError, match="outside the model's 5 classes"):
        cam(x, 5)


def test_images_of_a_batch_do_not_mix(net, record):
    x = net.images(record["input"])
    cam = net.cam.GradCAM(net.model, ["1", "3"])
    together = cam(x, [1, 3])
    for i, target in enumerate([1, 3]):
        np.testing.assert_allclose(cam(x[i : i + 1], [target])[0], together[i], atol=1e-6)


def test_without_a_layer_the_last_that_resolves_the_image_is_taken(net, record):
    x = net.images(record["input"])
    cam = net.cam.GradCAM(model=net.model)
    maps = cam(input_tensor=x, targets=[1, 3])
    assert cam.target_layers == ["5"]
    np.testing.assert_array_equal(maps, net.cam.GradCAM(net.model, "5")(x, [1, 3]))


def test_what_is_refused(net, record):
    x = net.images(record["input"])
    with pytest.raises(LayerError, match="no layer 'conv'"):
        net.cam.GradCAM(net.model, ["conv"])
    with pytest.raises(InputError, match="target_layers is empty"):
        net.cam.GradCAM(net.model, [])
    with pytest.raises(InputError, match="empty batch"):
        net.cam.GradCAM(net.model, "3")(x[:0])
    with pytest.raises(InputError, match="input_tensor holds"):
        net.cam.GradCAM(net.model, "3")(x * np.nan)
    # A layer without places cannot be laid over a picture.
    with pytest.raises(InputError, match="reshape_transform"):
        net.cam.GradCAM(net.model, "6")(x)


# -- concepts ---------------------------------------------------------------------------------------


def planes(record):
    rng = np.random.default_rng(3)
    return {
        "output": ConceptEmbedding(rng.normal(size=5), bias=0.3),
        "layer": ConceptEmbedding(rng.normal(size=8), bias=-0.2, layer_id="5"),
        "windows": ConceptEmbedding(rng.normal(size=(8, 2, 3)), bias=0.1, layer_id="4"),
    }


def concept_targets(record):
    reference = np.random.default_rng(4).normal(size=5)
    return {
        "similarity": SimilarityToConceptTarget(reference),
        "difference": DifferenceFromConceptTarget(reference),
        "classifier": ClassifierOutputTarget(2),
        **planes(record),
    }


CONCEPTS = ["similarity", "difference", "classifier", "output", "layer", "windows"]


@pytest.mark.parametrize("name", CONCEPTS)
def test_bits_of_a_concept_are_the_same_in_both_frameworks(record, name):
    results = []
    for make in NETS.values():
        net = make(record)
        rng = np.random.default_rng(5)
        explainer = Explainer(net.model, layer="1")
        explainer.fit([net.images(rng.normal(size=(16, 3, 17, 20)))], progbar=False)
        target = concept_targets(record)[name]
        # A target for each image of the batch is resolved by itself.
        result = explainer.explain(net.images(record["input"]), target=target, seed=0, steps=5, beta=1.0)
        parts = explainer.explain(
            net.images(record["input"]), target=target, seed=0, steps=5, beta=1.0, max_batch=10
        )
        np.testing.assert_allclose(parts.saliency, result.saliency, rtol=1e-6)
        assert np.isfinite(result.saliency).all()
        assert (result.total_bits > 0).all()
        results.append(result)
    ours, theirs = results
    assert ours.saliency.shape == (2, 17, 20)
    np.testing.assert_allclose(ours.saliency, theirs.saliency, rtol=1e-6, atol=1e-12)
    np.testing.assert_allclose(ours.model_losses, theirs.model_losses, rtol=1e-6)


@pytest.mark.parametrize("name", ["layer", "windows"])
def test_a_layer_of_the_model_is_as_good_as_a_model_that_ends_there(net, record, name):
    plane = planes(record)[name]
    if isinstance(net.model, nn.Module):
        stump = net.model[: int(plane.layer_id) + 1]
    else:
        stump = keras.Model(net.model.input, net.model.get_layer(plane.layer_id).output)
    settings = plane.settings
    settings["layer_id"] = None
    at_output = ConceptEmbedding(**settings)
    crops = net.images(np.random.default_rng(5).normal(size=(16, 3, 17, 20)))
    x = net.images(record["input"])
    results = [
        Explainer(model, layer="1").fit([crops], progbar=False).explain(x, target=target, seed=0, beta=1.0)
        for model, target in ((net.model, plane), (stump, at_output))
    ]
    np.testing.assert_allclose(results[0].capacity, results[1].capacity, rtol=1e-6, atol=1e-12)
    np.testing.assert_allclose(results[0].outputs, results[1].outputs, rtol=1e-6)


@pytest.mark.parametrize("name", CONCEPTS)
def test_maps_of_a_concept_are_the_same_in_both_frameworks(record, name):
    maps = []
    for make in NETS.values():
        net = make(record)
        target = concept_targets(record)[name]
        maps.append(net.cam.GradCAM(net.model, "1")(net.images(record["input"]), target))
        # One target for all images is that target for each.
        np.testing.assert_array_equal(
            net.cam.GradCAM(net.model, "1")(net.images(record["input"]), [target] * 2), maps[-1]
        )
    np.testing.assert_allclose(maps[0], maps[1], atol=1e-5)
    assert maps[0].max() == 1


def test_concepts_in_different_layers_do_not_mix(net, record):
    both = [planes(record)["layer"], planes(record)["windows"]]
    with pytest.raises(InputError, match="different layers"):
        net.cam.GradCAM(net.model, "1")(net.images(record["input"]), both)


def test_the_layer_of_a_concept_comes_behind_the_cut(net, record):
    cam = net.cam.GradCAM(net.model, "5")
    with pytest.raises(LayerError, match="'4'"):
        cam(net.images(record["input"]), planes(record)["windows"])
    unknown = ConceptEmbedding(np.ones(8), bias=0.0, layer_id="conv5")
    with pytest.raises(LayerError, match="conv5"):
        cam(net.images(record["input"]), unknown)


# -- a pretrained network ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def lite0():
    return torch_lite0(), keras_lite0()


@pytest.fixture(scope="module")
def photographs():
    return np.stack([PREPROCESSING(sample_image(name)) for name in ("cat", "coffee")])


@pytest.mark.parametrize("method", METHODS)
def test_maps_of_a_pretrained_network(lite0, photographs, method):
    first = np.ascontiguousarray(np.moveaxis(photographs, -1, 1))
    ours = getattr(torch_cam, method)(lite0[0], ["head", "blocks.10"])(first)
    theirs = getattr(tf_cam, method)(lite0[1], ["head", "blocks.10"])(photographs)
    # The maps are in [0, 1]; Grad-CAM++ takes third powers of gradients that were summed in another order.
    # Where a neuron is rounded to the other side of a ReLU6's kink, its gradient is there or not.
    difference = np.abs(ours - theirs)
    assert np.quantile(difference, 0.98) < 5e-4
    assert difference.max() < 5e-3


def test_bits_of_a_concept_in_a_pretrained_network(lite0, photographs):
    plane = ConceptEmbedding(
        np.random.default_rng(6).normal(0, 0.05, 320), bias=0.1, layer_id="blocks.15", concept_name="none"
    )
    results = []
    for model, data_format in zip(lite0, ("channels_first", "channels_last"), strict=True):
        crops = sample_crops(8, PREPROCESSING, data_format=data_format)
        explainer = Explainer(model, layer="blocks.7").fit(crops, progbar=False)
        image = photographs[:1] if data_format == "channels_last" else np.moveaxis(photographs[:1], -1, 1)
        results.append(explainer.explain(image, target=plane, seed=0, steps=3, samples=2))
    ours, theirs = results
    np.testing.assert_allclose(ours.total_bits, theirs.total_bits, rtol=1e-3)
    assert np.abs(ours.saliency - theirs.saliency).max() < 1e-2 * ours.saliency.max()
