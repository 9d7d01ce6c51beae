"""Batch normalisation merged into convolutions: the same numbers, and only where that is possible."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from iba_core import Explainer
from iba_tf import TensorFlowAdapter
from iba_tf.graphs.calls import CallGraph
from iba_tf.graphs.normalization import MergedCall, merged
from iba_tf.models.network import KerasNetwork

SIDE = 16

CONVOLUTIONS = {
    "dense": lambda **options: layers.Conv2D(6, 3, **options),
    "strided, no bias": lambda **options: layers.Conv2D(6, 3, strides=2, use_bias=False, **options),
    "dilated": lambda **options: layers.Conv2D(6, 3, dilation_rate=2, **options),
    "groups": lambda **options: layers.Conv2D(6, 3, groups=2, **options),
    "pointwise": lambda **options: layers.Conv2D(6, 1, **options),
    "depthwise": lambda **options: layers.DepthwiseConv2D(3, depth_multiplier=2, **options),
}


def fill(model):
    generator = np.random.default_rng(0)
    for weight in model.weights:
        drawn = generator.normal(size=weight.shape)
        weight.assign(np.abs(drawn) + 0.1 if "variance" in weight.path else drawn)
    return model


def network(convolution, normalization=None, between=(), after=()):
    x = inputs = keras.Input((SIDE, SIDE, 3))
    x = layers.Conv2D(4, 1, name="features")(x)
    for layer in (convolution, *between, normalization or layers.BatchNormalization(name="norm"), *after):
        x = layer(x)
    x = layers.ReLU(6.0)(x)
    x = layers.GlobalAveragePooling2D()(x)
    return fill(keras.Model(inputs, layers.Dense(3)(x)))


def merged_in(model):
    """How many pairs of layers after the features run as one."""
    graph = CallGraph.of(model)
    _, start = graph.find("features")
    nodes = graph.needed_for(graph.flat_outputs, [start])
    return sum(isinstance(node, MergedCall) for node in merged(nodes, graph.flat_outputs))


def tail_of(model, rewrites=True):
    """The tail after the features, as a function of them alone."""
    split = KerasNetwork(model, rewrites=rewrites).split("features")
    with split.head(np.zeros((1, *model.input_shape[1:]), np.float32)) as tail:
        assert tail.carry == ()
        return lambda z: tail.run(z, ())


def features(rows=16):
    return tf.constant(np.random.default_rng(1).normal(size=(rows, SIDE, SIDE, 4)).astype(np.float32))


@tf.function(autograph=False)
def gradient(tail, z):
    with tf.GradientTape(watch_accessed_variables=False) as tape:
        tape.watch(z)
        y = tail(z)
    return y, tape.gradient(y, z)


def assert_same(model):
    tail = tail_of(model)
    rest = keras.Model(model.get_layer("features").output, model.output)
    z = features()
    found, wanted = gradient(tail, z), gradient(lambda z: rest(z, training=False), z)
    for got, expected in zip(found, wanted, strict=True):
        np.testing.assert_allclose(got, expected, rtol=2e-5, atol=2e-5 * np.abs(expected).max())


@pytest.mark.parametrize("options", [{}, {"scale": False}, {"center": False}], ids=str)
@pytest.mark.parametrize("kind", CONVOLUTIONS)
def test_output_and_gradient_are_those_of_the_two_layers(kind, options, monkeypatch):
    model = network(CONVOLUTIONS[kind](), layers.BatchNormalization(name="norm", **options))

    def refuse(*args, **kwargs):
        raise AssertionError("the normalisation has run by itself")

    assert merged_in(model) == 1
    assert_same(model)
    tail = tail_of(model)
    monkeypatch.setattr(layers.BatchNormalization, "call", refuse)
    tail(features())


@pytest.mark.parametrize("kind", [layers.Conv1D, layers.DepthwiseConv1D])
def test_sequences_are_merged_too(kind):
    inputs = keras.Input((64, 3))
    x = layers.Conv1D(4, 1, name="features")(inputs)
    x = kind(**{"filters": 5} if kind is layers.Conv1D else {}, kernel_size=3, padding="same")(x)
    x = layers.BatchNormalization()(x)
    model = fill(keras.Model(inputs, layers.Dense(2)(layers.GlobalAveragePooling1D()(x))))
    assert merged_in(model) == 1
    z = np.random.default_rng(0).normal(size=(8, 64, 4)).astype(np.float32)
    rest = keras.Model(model.get_layer("features").output, model.output)
    np.testing.assert_allclose(tail_of(model)(tf.constant(z)), rest(z), rtol=1e-4, atol=1e-4)


class Doubled(layers.Conv2D):
    def convolution_op(self, inputs, kernel):
        return 2 * super().convolution_op(inputs, kernel)


class Shifted(layers.BatchNormalization):
    def call(self, inputs, training=None, mask=None):
        return super().call(inputs, training, mask) + 1


def patched():
    layer = layers.Conv2D(6, 3)
    layer.call = lambda x: 3 * type(layer).call(layer, x)
    return layer


@pytest.mark.parametrize(
    "model",
    [
        lambda: network(layers.Conv2D(6, 3, activation="tanh")),
        lambda: network(layers.Conv2D(6, 3), between=[layers.ReLU()]),
        lambda: network(Doubled(6, 3)),
        lambda: network(layers.Conv2D(6, 3), Shifted()),
        lambda: network(patched()),
        lambda: network(layers.Conv2D(6, 3), layers.BatchNormalization(axis=1)),
        lambda: network(layers.Conv2D(6, 3), layers.LayerNormalization()),
        lambda: network(layers.Conv2DTranspose(6, 3)),
    ],
    ids=[
        "activation",
        "ReLU between",
        "convolution",
        "normalisation",
        "patched",
        "axis",
        "other",
        "transposed",
    ],
)
def test_everything_else_is_left_to_the_layers(model):
    made = model()
    assert_same(made)
    assert merged_in(made) == 0


def test_a_result_that_others_take_stays():
    inputs = keras.Input((SIDE, SIDE, 3))
    x = layers.Conv2D(4, 1, name="features")(inputs)
    x = layers.Conv2D(4, 3, padding="same")(x)
    x = layers.Add()([x, layers.BatchNormalization()(x)])
    model = fill(keras.Model(inputs, layers.GlobalAveragePooling2D()(x)))
    assert_same(model)
    assert merged_in(model) == 0


def test_a_result_that_the_model_returns_stays():
    inputs = keras.Input((SIDE, SIDE, 3))
    x = layers.Conv2D(4, 1, name="features")(inputs)
    x = layers.Conv2D(4, 3)(x)
    model = fill(keras.Model(inputs, [x, layers.BatchNormalization()(x)]))
    assert merged_in(model) == 0
    assert len(tail_of(model)(features())) == 2


def test_large_weights_for_small_maps_are_not_copied():
    model = network(layers.Conv2D(8, SIDE), layers.BatchNormalization(name="norm"))
    assert_same(model)
    assert merged_in(model) == 1
    ran = []
    call = type(model.get_layer("norm")).call
    model.get_layer("norm").call = lambda *args, **kwargs: (
        ran.append(1) or call(model.get_layer("norm"), *args, **kwargs)
    )
    tail_of(model)(features())
    assert ran


def test_layers_of_half_precision_are_left_alone():
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        model = network(layers.Conv2D(6, 3))
    finally:
        keras.config.set_dtype_policy("float32")
    assert merged_in(model) == 0


def test_the_model_stays_as_it_is_and_its_changes_are_seen():
    model = network(layers.Conv2D(6, 3))
    before = [weight.numpy() for weight in model.weights]
    x = np.random.default_rng(0).normal(size=(4, SIDE, SIDE, 3)).astype(np.float32)
    explainer = Explainer(model, "features").fit([x], progbar=False)
    first = explainer.explain(x[:1], 1, seed=0)
    for weight, old in zip(model.weights, before, strict=True):
        np.testing.assert_array_equal(weight.numpy(), old)
    np.testing.assert_allclose(first.outputs, model(x[:1]), rtol=1e-4, atol=1e-4)
    model.get_layer("norm").gamma.assign(-before[[w.path for w in model.weights].index("norm/gamma")])
    second = explainer.explain(x[:1], 1, seed=0)
    np.testing.assert_allclose(second.outputs, model(x[:1]), rtol=1e-4, atol=1e-4)
    assert not np.allclose(first.capacity, second.capacity)


def test_with_and_without_rewrites_a_map_is_the_same():
    model = network(layers.Conv2D(6, 3))
    x = np.random.default_rng(0).normal(size=(4, SIDE, SIDE, 3)).astype(np.float32)
    maps = []
    for rewrites in (True, False):
        adapter = TensorFlowAdapter(model, rewrites=rewrites)
        explainer = Explainer(adapter, "features").fit([x], progbar=False)
        maps.append(explainer.explain(x[:1], 1, seed=0, steps=3, samples=3).capacity)
    np.testing.assert_allclose(*maps, rtol=1e-3, atol=1e-4)


def test_without_rewrites_the_layers_run_by_themselves():
    model = network(layers.Conv2D(6, 3))
    ran = []
    norm = model.get_layer("norm")
    call = type(norm).call
    norm.call = lambda *args, **kwargs: ran.append(1) or call(norm, *args, **kwargs)
    tail_of(model, rewrites=False)(features())
    assert ran
