"""Features of many layers from one pass."""

import numpy as np
import pytest

from iba_core.errors import LayerError
from iba_core.framework.adapter import ModelAdapter, find_adapter
from tests.backends import SMALL, SMALL_LAYER, Counter, smooth_images


def test_one_pass_gives_what_the_splits_give(backend):
    adapter = find_adapter(backend.small())
    inputs = adapter.to_inputs(backend.images(smooth_images(2)))
    # The flattened images of the last layers are no feature map, but features they are.
    layers = [layer.name for layer in SMALL if layer.name != "logits"]
    features = adapter.features_of(inputs, layers)
    for layer, found, expected in zip(
        layers, features, ModelAdapter.features_of(adapter, inputs, layers), strict=True
    ):
        np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-12, err_msg=layer)


def test_the_features_stay_as_they_were_though_the_next_layer_writes_into_them(backend):
    adapter = find_adapter(backend.small())
    inputs = adapter.to_inputs(backend.images(smooth_images(2)))
    (features,) = adapter.features_of(inputs, [SMALL_LAYER])
    assert adapter.framework.to_numpy(features).min() < 0


def test_the_model_runs_once_for_all_layers(backend):
    model = backend.network((12, 12, 3), [Counter("counter"), *SMALL])
    adapter = find_adapter(model)
    inputs = adapter.to_inputs(backend.images(smooth_images(2)).astype(np.float32))
    adapter.features_of(inputs, ["first"])
    before = backend.calls(model)
    adapter.features_of(inputs, ["first", SMALL_LAYER, "third"])
    assert backend.calls(model) - before == 1


def test_a_layer_that_is_not_there_is_named(backend):
    adapter = find_adapter(backend.small())
    inputs = adapter.to_inputs(backend.images(smooth_images(2)))
    with pytest.raises(LayerError, match="fourth"):
        adapter.features_of(inputs, ["first", "fourth"])
