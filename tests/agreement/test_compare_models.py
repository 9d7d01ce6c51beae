"""A network and its port, beside each other: the layer at which a port begins to differ is named."""

import numpy as np
import pytest

from iba_core.evaluation import compare_models
from iba_core.framework.adapter import find_adapter
from iba_core.pictures.images import sample_image
from iba_core.zoo import efficientnet_lite as spec
from tests.backends import SMALL, both_backends, smooth_images


@pytest.fixture(scope="module")
def small():
    return {backend.name: (backend.small(), backend.images(smooth_images(2))) for backend in both_backends()}


@pytest.mark.parametrize("first", ["torch", "tensorflow"])
def test_the_channels_are_brought_to_one_place(small, first):
    (second,) = set(small) - {first}
    model, x = small[first]
    found = compare_models(model, small[second][0], [x])
    assert found.names == (first, second)
    assert found.agree, str(found)
    # What is flattened has another order in the other framework, and that is no fault.
    assert found.differ_alone == ["flat"]
    assert all(layer.relative < 1e-12 for layer in found.layers if layer.first != "flat")


@pytest.mark.parametrize("layer", ["first", "norm", "third"])
def test_the_altered_layer_is_named_across_frameworks(small, layer):
    port = find_adapter(small["tensorflow"][0])
    arrays = port.weights()[layer]
    arrays[0] *= 1.001
    found = compare_models(small["torch"][0], port.with_weights({layer: arrays}), [small["torch"][1]])
    assert found.begins_at == layer
    assert layer in found.verdict


def test_square_features_are_not_read_by_their_sizes():
    """6 x 6 places of 6 channels: any order of the axes has the same sizes."""
    models = [
        backend.network((6, 6, 6), [*SMALL[:1], *SMALL[-2:]], dtype="float64") for backend in both_backends()
    ]
    x = np.random.default_rng(0).normal(size=(2, 6, 6, 6))
    found = compare_models(*models, [both_backends()[0].images(x)])
    assert found.layers[0].relative < 1e-12
    assert found.agree


def test_efficientnet_lite0_agrees_until_a_layer_is_altered():
    torch_model, keras_model = (find_backend(name) for name in ("torch", "tf"))
    # Adapters are kept, so that nothing is traced twice.
    adapters = find_adapter(torch_model), find_adapter(keras_model)
    picture = np.moveaxis(spec.PREPROCESSING(sample_image("cat")), -1, 0)[None]
    found = compare_models(*adapters, [picture])
    assert found.agree
    assert found.begins_at is None
    assert not found.differ_alone
    assert (found.paired_by, found.outputs.same_class) == ("name", 1.0)
    assert len(found.layers) > 140
    layer = keras_model.get_layer("blocks.7.depthwise.conv")
    # A single filter of 480, by a fifth.
    (kernel,) = layer.get_weights()
    kernel[:, :, 17] *= 1.2
    layer.set_weights([kernel])
    found = compare_models(*adapters, [picture])
    assert found.begins_at == "blocks.7.depthwise.conv"
    assert found.outputs.relative < 0.05


def find_backend(name):
    if name == "torch":
        from iba_torch.efficientnet_lite import efficientnet_lite0
    else:
        from iba_tf.efficientnet_lite import efficientnet_lite0
    return efficientnet_lite0()
