"""Tails that end at a layer, and class activation maps of every shape of Keras model."""

from __future__ import annotations

import keras
import numpy as np
import pytest

from iba_core import InputError, LayerError, Tokens
from iba_tf import TensorFlowAdapter
from iba_tf.concepts.cam import EigenCAM, GradCAM, preprocess_image


def test_a_tail_can_end_at_any_later_layer(model, inputs):
    adapter = TensorFlowAdapter(model)
    graph = adapter.graph
    places = graph.layers
    prepared = dict(zip((entry.tensor for entry in graph.inputs), graph.prepare(inputs), strict=True))
    values = dict(
        zip(
            (place.tensors[0] for place in places),
            graph.evaluate([place.tensors[0] for place in places], prepared),
            strict=True,
        )
    )
    images = len(next(iter(prepared.values())))
    checked = 0
    for place in places:
        later = graph.dependents([place.tensors[0]])
        try:
            adapter.split(place.name)
        except LayerError:
            continue
        for end in places:
            if end.tensors[0] not in later:
                with pytest.raises(LayerError, match="does not depend on layer"):
                    adapter.split(place.name, end_layer=end.name)
                continue
            if len(values[end.tensors[0]]) != images:
                continue  # the same for all images
            with adapter.split(place.name, end_layer=end.name).head(inputs) as tail:
                found = tail(np.repeat(tail.features, 3, axis=0))
            expected = np.repeat(values[end.tensors[0]], 3, axis=0)
            np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
            checked += 1
    assert checked


def snapshot(model, inputs):
    return {
        "weights": [weight.numpy().tobytes() for weight in model.weights],
        "trainable": [layer.trainable for layer in model.layers],
        "nodes": [len(layer._inbound_nodes) for layer in model.layers],
        "output": [np.asarray(x).tobytes() for x in keras.tree.flatten(model(inputs, training=False))],
    }


def test_the_model_stays_as_it_was(models):
    model = models.randomize(models.residual())
    inputs = models.sample_inputs(model)
    before = snapshot(model, inputs)
    for method in (GradCAM, EigenCAM):
        with method(model, ["add", "relu1"]) as cam:
            assert cam(inputs).shape == (2, 8, 8)
            cam(inputs, [1, lambda row: row[2]], eigen_smooth=True)

    def refuse(row):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError), GradCAM(model, "add") as cam:
        cam(inputs, refuse)
    with pytest.raises(InputError), GradCAM(model, "add") as cam:
        cam(inputs, 99)
    assert snapshot(model, inputs) == before


def test_nested_models_and_layer_objects(models):
    model = models.randomize(models.nested())
    inputs = models.sample_inputs(model)
    by_name = GradCAM(model, ["backbone/conv2"])(inputs, 3)
    by_object = GradCAM(model, [model.get_layer("backbone").get_layer("conv2")])(inputs, 3)
    np.testing.assert_array_equal(by_name, by_object)
    # The skip connection goes around conv2 and add: outer_add is the last that everything passes.
    cam = GradCAM(model)
    cam(inputs)
    assert cam.target_layers == ["outer_add"]


def test_a_callable_unfolds_tokens(models):
    inputs = keras.Input((8, 8, 3))
    x = keras.layers.Conv2D(4, 4, strides=4)(inputs)
    x = keras.layers.Reshape((4, 4), name="tokens")(x)
    outputs = keras.layers.Dense(5)(keras.layers.Flatten()(keras.layers.ReLU()(x)))
    model = models.randomize(keras.Model(inputs, outputs))
    images = models.sample_inputs(model)
    cam = GradCAM(model, "tokens", reshape_transform=Tokens(grid=(2, 2)))
    by_function = GradCAM(
        model, "tokens", reshape_transform=lambda t: keras.ops.reshape(t, (t.shape[0], 2, 2, 4))
    )
    np.testing.assert_array_equal(cam(images, 1), by_function(images, 1))


def test_preprocessing_gives_a_tensor():
    tensor = preprocess_image(np.full((4, 5, 3), 0.75), mean=[0.5] * 3, std=[0.25] * 3)
    np.testing.assert_array_equal(tensor.numpy(), np.ones((1, 4, 5, 3), np.float32))
