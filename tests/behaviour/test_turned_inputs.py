"""Inputs that a model turns before the layer, where nothing but the user says what its axes mean."""

import numpy as np
import pytest

from iba_core import Explainer, LayerError

# As many channels as there are columns or rows, so that no size tells them apart.
IMAGES = np.random.default_rng(0).normal(size=(3, 8, 4, 8)).astype(np.float32)


def torch_model(order):
    import torch
    from torch import nn

    class Turned(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer, self.out = nn.GELU(), nn.Linear(256, 5)

        def forward(self, x):
            return self.out(self.layer(x.permute(0, *order)).flatten(1))

    torch.manual_seed(0)
    return Turned().eval()


def keras_model(order):
    import keras
    from keras import layers

    keras.utils.set_random_seed(0)
    inputs = keras.Input((8, 4, 8))
    x = layers.Activation("gelu", name="layer")(layers.Permute(order)(inputs))
    return keras.Model(inputs, layers.Dense(5)(layers.Flatten()(x)))


@pytest.mark.parametrize(
    ("order", "told", "places"),
    [
        ((2, 3, 1), "channels_last", (4, 8)),  # channels, rows, columns before
        ((3, 1, 2), "channels_first", (8, 4)),  # rows, columns, channels before
        ((1, 2, 3), "channels_first", (4, 8)),
        ((1, 2, 3), "channels_last", (8, 4)),
    ],
)
def test_the_map_has_the_places_of_the_input(backend, order, told, places):
    """What the user says of the features holds for the axes of the input that they come from."""
    model = torch_model(order) if backend.name == "torch" else keras_model(order)
    x = backend.asarray(IMAGES, np.float32)
    with pytest.raises(LayerError, match="data_format="):
        Explainer(model, "layer").fit([x], progbar=False)
    explainer = Explainer(model, "layer", data_format=told, steps=2, samples=2, smooth_std=0.0)
    found = explainer.fit([x], progbar=False).explain(x, 1, seed=0)
    assert found.saliency.shape == (3, *places)
    # The layer has as many places as the input, so that nothing is resized: they only lie elsewhere.
    bits = found.capacity.sum(1 if told == "channels_first" else -1) / np.log(2)
    if bits.shape != found.saliency.shape:
        bits = np.swapaxes(bits, 1, 2)
    np.testing.assert_allclose(found.saliency, bits, rtol=1e-4, atol=1e-5)
