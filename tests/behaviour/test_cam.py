"""Class activation maps and bits of a concept, as published elsewhere and as their definitions say."""

from __future__ import annotations

from itertools import product

import keras
import numpy as np
import pytest
import torch
from torch import nn

from iba_core import Explainer, InputError, LayerError, SumTarget
from iba_core.concepts import (
    ClassifierOutputTarget,
    ConceptEmbedding,
    activation_maps,
)
from iba_core.framework.adapter import find_adapter
from iba_torch.concepts import cam as torch_cam
from tests.backends import Activation, Conv
from tests.recorded_cam import METHODS, Net, planes, read_record

AS_PUBLISHED = {"GradCAMPlusPlus": {"epsilon": 1e-6}}
"""Arguments with which a method does as the package, where that does otherwise than the paper."""


@pytest.fixture(scope="module")
def record():
    return read_record()


@pytest.fixture(scope="module")
def net(backend, record):
    return Net(backend, record)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("variant", ["", ".predicted", ".eigen_smooth", ".two_layers"])
def test_maps_are_those_of_the_published_package(net, record, method, variant, monkeypatch):
    layers = ["1", "5"] if variant == ".two_layers" else ["3"]
    targets = None if variant == ".predicted" else [ClassifierOutputTarget(1), ClassifierOutputTarget(3)]
    smooth = variant == ".eigen_smooth"

    def maps():
        options = AS_PUBLISHED.get(method, {})
        with getattr(net.cam, method)(model=net.model, target_layers=layers, **options) as cam:
            return cam(input_tensor=net.images(record["input"]), targets=targets, eigen_smooth=smooth)

    found = [maps()]
    if smooth or method.startswith("Eigen"):
        # The package leaves the sign of a principal component to chance, per image and layer.
        original = activation_maps.principal_component
        for signs in product((1, -1), repeat=len(layers)):
            remaining = iter(signs)
            monkeypatch.setattr(
                activation_maps, "principal_component", lambda *x, left=remaining: next(left) * original(*x)
            )
            found.append(maps())
    assert found[0].shape == (2, 17, 20)
    assert found[0].dtype == np.float32
    for image, expected in enumerate(record[method + variant]):
        error = min(np.abs(candidate[image] - expected).max() for candidate in found)
        assert error < 1e-5


def test_faint_scores(net, record):
    """Gradients as small as those deep in most networks: the package's constant outweighs them."""
    x = net.images(record["input"])
    faint = [lambda row: 1e-3 * row[1], lambda row: 1e-3 * row[3]]
    published = net.cam.GradCAMPlusPlus(net.model, "3", epsilon=1e-6)(x, faint)
    np.testing.assert_allclose(published, record["GradCAMPlusPlus.faint"], atol=1e-5)
    # In the paper's formula, half the gradient remains of a gradient that is small.
    weights = np.maximum(record["7.weight"], 0).astype(np.float64)
    adapter = find_adapter(net.model)
    features = adapter.split("5").features(adapter.to_inputs(x))
    last = net.backend.channels_last(net.backend.to_numpy(features))
    summed = [np.einsum("hwc,c->hw", image, weights[i]) for image, i in zip(last, (1, 3), strict=True)]
    found = net.cam.GradCAMPlusPlus(net.model, "5")(x, [lambda row: 1e-9 * row[1], lambda row: 1e-9 * row[3]])
    np.testing.assert_allclose(found, activation_maps.combine_layers([np.stack(summed)], (17, 20)), atol=1e-6)
    for epsilon in (-1e-6, np.nan, "1e-6", True):
        with pytest.raises(InputError, match="epsilon="):
            net.cam.GradCAMPlusPlus(net.model, "3", epsilon=epsilon)


@pytest.mark.parametrize("layer", ["0", "2", "4"])
@pytest.mark.parametrize("scale", [1.0, 1e-9])
def test_principal_components_are_positive_where_the_evidence_is(net, record, layer, scale):
    """Before a ReLU, the activations alone do not say in which direction the evidence lies."""
    x, adapter = net.images(record["input"]), find_adapter(net.model)

    def rows(features):
        """(B, H, W, C) as (B, H * W, C)."""
        last = net.backend.channels_last(adapter.framework.to_numpy(features)).astype(np.float64)
        return last.reshape(2, -1, last.shape[-1]), last.shape[:3]

    def expected(channels, evidence, shape):
        maps = []
        for image, wanted in zip(channels, evidence, strict=True):
            centred = image - image.mean(axis=0)
            component = centred @ np.linalg.eigh(centred.T @ centred)[1][:, -1]
            maps.append(component * np.sign(np.corrcoef(component, wanted)[0, 1]))
        return activation_maps.combine_layers([np.reshape(maps, shape)], (17, 20))

    def check(found, wanted):
        np.testing.assert_allclose(found, wanted, atol=1e-4)

    for category in range(5):
        target = [lambda row, i=category: scale * row[i]] * 2
        with adapter.split(layer).head(adapter.to_inputs(x)) as tail:
            *_, slopes = adapter.framework.value_and_grad(
                lambda z, run=tail, one=target[0]: (one(run(z)[0]) + one(run(z)[1]), ()), tail.features
            )
            (features, shape), (slopes, _) = rows(tail.features), rows(slopes)
        check(
            net.cam.EigenCAM(net.model, layer)(x, target),
            expected(features, (features * slopes).sum(axis=2), shape),
        )
        weighted = features * slopes.mean(axis=1, keepdims=True)
        check(
            net.cam.GradCAM(net.model, layer)(x, target, eigen_smooth=True),
            expected(weighted, weighted.sum(axis=2), shape),
        )
    predicted = adapter.framework.to_numpy(adapter.predict(adapter.to_inputs(x))).argmax(axis=1)
    check(net.cam.EigenCAM(net.model, layer)(x), net.cam.EigenCAM(net.model, layer)(x, predicted))


def test_an_output_without_classes_has_a_principal_component(backend):
    """The positive part of the component is then where the layer is most active."""
    model = backend.network((8, 8, 3), [Conv("first", 4), Activation("act"), Conv("map", 2)])
    x = backend.images(np.random.default_rng(0).normal(size=(2, 8, 8, 3)).astype(np.float32))
    adapter = find_adapter(model)
    maps = backend.module("concepts.cam").EigenCAM(model, "act")(x)
    features = adapter.split("act").features(adapter.to_inputs(x))
    activity = backend.channels_last(backend.to_numpy(features)) ** 2
    for found, energy in zip(maps, activity.sum(axis=-1), strict=True):
        assert np.corrcoef(found.ravel(), energy.ravel())[0, 1] > 0.7


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
    with pytest.raises(InputError, match="holds 3 targets for 2 images"):
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
    with pytest.raises(InputError, match="input_tensor is an empty batch"):
        net.cam.GradCAM(net.model, "3")(x[:0])
    with pytest.raises(InputError, match="input_tensor holds"):
        net.cam.GradCAM(net.model, "3")(x * np.nan)
    # A layer without places cannot be laid over a picture.
    with pytest.raises(InputError, match="reshape_transform"):
        net.cam.GradCAM(net.model, "6")(x)


# -- concepts ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["layer", "windows"])
def test_a_layer_of_the_model_is_as_good_as_a_model_that_ends_there(net, record, name):
    plane = planes()[name]
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


def test_concepts_in_different_layers_do_not_mix(net, record):
    both = [planes()["layer"], planes()["windows"]]
    with pytest.raises(InputError, match="different layers"):
        net.cam.GradCAM(net.model, "1")(net.images(record["input"]), both)


def test_the_layer_of_a_concept_comes_after_the_split(net, record):
    cam = net.cam.GradCAM(net.model, "5")
    with pytest.raises(LayerError, match="'4'"):
        cam(net.images(record["input"]), planes()["windows"])
    unknown = ConceptEmbedding(np.ones(8), bias=0.0, layer_id="conv5")
    with pytest.raises(LayerError, match="conv5"):
        cam(net.images(record["input"]), unknown)


@pytest.mark.parametrize("method", ["ScoreCAM", "AblationCAM"])
def test_measured_weights_do_not_depend_on_how_many_are_measured_at_once(net, record, method):
    x = net.images(record["input"])
    kind = getattr(net.cam, method)
    for target in ([1, 3], planes()["layer"], lambda row: row[1] * 1.0):
        whole, singly = (kind(net.model, "3", batch_size=size)(x, target) for size in (64, 1))
        np.testing.assert_allclose(whole, singly, atol=1e-5)
    # Another image of the batch does not count.
    alone = kind(net.model, "3")(x[1:], [3])
    np.testing.assert_allclose(kind(net.model, "3")(x, [1, 3])[1:], alone, atol=1e-5)
    with pytest.raises(InputError, match="batch_size=0"):
        kind(net.model, "3", batch_size=0)
