"""Removing the softmax from the end of a model."""

import keras
import numpy as np
import pytest
import tensorflow as tf
import tf_keras
from keras import layers

from iba_core.errors import LayerError
from iba_tf import IBALayer, model_wo_softmax

X = np.random.default_rng(0).normal(size=(5, 4)).astype(np.float32)


def softmax(x):
    e = np.exp(x - np.max(x, axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def argument():
    return keras.Sequential([keras.Input((4,)), layers.Dense(6), layers.Dense(3, activation="softmax")])


def layer():
    return keras.Sequential([keras.Input((4,)), layers.Dense(3), layers.Softmax()])


def activation():
    return keras.Sequential([keras.Input((4,)), layers.Dense(3), layers.Activation("softmax")])


def operation():
    inputs = keras.Input((4,))
    return keras.Model(inputs, keras.ops.softmax(layers.Dense(3)(inputs)))


def nested():
    inputs = keras.Input((4,))
    return keras.Model(inputs, argument()(layers.Dense(4)(inputs)))


def nested_twice():
    inputs = keras.Input((4,))
    return keras.Model(inputs, nested()(layers.ReLU()(inputs)))


@pytest.mark.parametrize("kind", ["argument", "layer", "nested", "outputs"])
def test_models_of_keras_2_lose_it_too(kind):
    layers, inputs = tf_keras.layers, tf_keras.Input((4,))
    end = layers.Dense(3, activation="softmax")
    if kind == "argument":
        model = tf_keras.Sequential([layers.Dense(6, input_shape=(4,)), end])
    elif kind == "layer":
        model = tf_keras.Model(inputs, layers.Softmax()(layers.Dense(3)(inputs)))
    elif kind == "nested":
        inner = tf_keras.Sequential([layers.Dense(6, input_shape=(4,)), end])
        model = tf_keras.Model(inputs, inner(layers.Dense(4)(inputs)))
    else:
        model = tf_keras.Model(inputs, [end(inputs), layers.Dense(2)(inputs)])
    before = [x.numpy() for x in tf.nest.flatten(model(X))]
    logits = model_wo_softmax(model)
    assert isinstance(logits, tf_keras.Model)
    found = [x.numpy() for x in tf.nest.flatten(logits(X))]
    assert not np.allclose(found[0].sum(axis=-1), 1)
    np.testing.assert_allclose(softmax(found[0]), before[0], rtol=1e-5)
    for untouched, expected in zip(found[1:], before[1:], strict=True):
        np.testing.assert_array_equal(untouched, expected)
    assert logits.count_params() == model.count_params()
    np.testing.assert_array_equal(tf.nest.flatten(model(X))[0], before[0])


@pytest.mark.parametrize("build", [argument, layer, activation, operation, nested, nested_twice])
def test_the_softmax_of_the_new_model_is_the_old_one(build):
    model = build()
    before = model.predict(X, verbose=0)
    logits = model_wo_softmax(model)
    found = logits.predict(X, verbose=0)
    assert not np.allclose(found.sum(axis=-1), 1)
    np.testing.assert_allclose(softmax(found), before, rtol=1e-5)
    np.testing.assert_array_equal(model.predict(X, verbose=0), before)
    assert logits.count_params() == model.count_params()


def test_of_several_outputs_only_those_with_a_softmax_change():
    inputs = keras.Input((4,), name="x")
    x = layers.Dense(5, activation="relu")(inputs)
    outputs = {
        "classes": layers.Dense(3, activation="softmax", name="classes")(x),
        "score": layers.Dense(1, name="score")(x),
    }
    model = keras.Model({"x": inputs}, outputs)
    logits = model_wo_softmax(model)
    before, after = model({"x": X}), logits({"x": X})
    np.testing.assert_allclose(softmax(after["classes"].numpy()), before["classes"], rtol=1e-5)
    np.testing.assert_array_equal(after["score"], before["score"])


def test_of_a_nested_model_with_several_outputs_the_right_one_changes():
    inner = keras.Input((4,))
    pair = keras.Model(inner, [layers.Dense(2)(inner), layers.Dense(3, activation="softmax")(inner)])
    inputs = keras.Input((4,))
    first, second = pair(inputs)
    model = keras.Model(inputs, [first, second])
    before, after = model(X), model_wo_softmax(model)(X)
    np.testing.assert_array_equal(after[0], before[0])
    np.testing.assert_allclose(softmax(after[1].numpy()), before[1], rtol=1e-5)


def test_a_last_layer_that_is_shared_is_replaced_once():
    left, right = keras.Input((4,)), keras.Input((4,))
    shared = layers.Dense(3, activation="softmax")
    model = keras.Model([left, right], [shared(left), shared(right)])
    logits = model_wo_softmax(model)
    assert logits.count_params() == model.count_params()
    for found, expected in zip(logits([X, -X]), model([X, -X]), strict=True):
        np.testing.assert_allclose(softmax(found.numpy()), expected, rtol=1e-5)


def test_layers_are_shared_but_the_last():
    model = argument()
    logits = model_wo_softmax(model)
    model.layers[0].kernel.assign(np.zeros((4, 6)))
    np.testing.assert_allclose(logits(X), np.zeros((5, 3)), atol=1e-7)
    assert logits.layers[-1] is not model.layers[-1]


def test_a_softmax_in_the_middle_stays():
    inputs = keras.Input((4,))
    x = layers.Dense(3, activation="softmax")(inputs)
    model = keras.Model(inputs, layers.Dense(2)(x))
    np.testing.assert_array_equal(model_wo_softmax(model)(X), model(X))


def test_it_can_be_explained():
    inputs = keras.Input((4,))
    iba = IBALayer(steps=2)
    model = keras.Model(inputs, layers.Dense(3, activation="softmax")(iba(layers.Dense(6)(inputs))))
    target = iba.set_classification_loss(model_wo_softmax(model).output)
    iba.fit({model.input: X})
    assert iba.analyze({model.input: X[:1], target: 1}).shape == (6,)


def test_a_model_without_a_graph_is_refused():
    with pytest.raises(LayerError, match="is not built"):
        model_wo_softmax(keras.Sequential([layers.Dense(3)]))


@pytest.mark.parametrize("wrap", [False, True], ids=["layer", "nested"])
def test_probabilities_that_are_used_inside_stay_so(wrap):
    inputs = keras.Input((4,))
    end = layers.Dense(3, activation="softmax")
    if wrap:
        inner = keras.Input((4,))
        end = keras.Model(inner, end(inner))
    probabilities = end(inputs)
    model = keras.Model(inputs, [probabilities, layers.Dense(2)(probabilities)])
    before, after = model(X), model_wo_softmax(model)(X)
    np.testing.assert_allclose(softmax(after[0].numpy()), before[0], rtol=1e-5)
    np.testing.assert_allclose(after[1], before[1], rtol=1e-6)
