"""Class activation maps and bits of a concept are the same in both frameworks."""

import numpy as np
import pytest

from iba_core import Explainer
from iba_core.concepts import ConceptEmbedding
from iba_core.pictures.images import sample_crops, sample_image
from iba_core.zoo.efficientnet_lite import PREPROCESSING
from iba_tf.concepts import cam as tf_cam
from iba_tf.efficientnet_lite import efficientnet_lite0 as keras_lite0
from iba_torch.concepts import cam as torch_cam
from iba_torch.efficientnet_lite import efficientnet_lite0 as torch_lite0
from tests.recorded_cam import CONCEPTS, METHODS, Net, concept_targets, read_record


@pytest.fixture(scope="module")
def record():
    return read_record()


@pytest.mark.parametrize("name", CONCEPTS)
def test_bits_of_a_concept_are_the_same_in_both_frameworks(both, record, name):
    results = []
    for backend in both:
        net = Net(backend, record)
        rng = np.random.default_rng(5)
        explainer = Explainer(net.model, layer="1")
        explainer.fit([net.images(rng.normal(size=(16, 3, 17, 20)))], progbar=False)
        target = concept_targets()[name]
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


@pytest.mark.parametrize("name", CONCEPTS)
def test_maps_of_a_concept_are_the_same_in_both_frameworks(both, record, name):
    maps = []
    for backend in both:
        net = Net(backend, record)
        target = concept_targets()[name]
        maps.append(net.cam.GradCAM(net.model, "1")(net.images(record["input"]), target))
        # One target for all images is that target for each.
        np.testing.assert_array_equal(
            net.cam.GradCAM(net.model, "1")(net.images(record["input"]), [target] * 2), maps[-1]
        )
    np.testing.assert_allclose(maps[0], maps[1], atol=1e-5)
    assert maps[0].max() == 1


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
