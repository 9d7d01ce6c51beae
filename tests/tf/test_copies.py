"""Copies and pickles of adapters and graph models are models of their own."""

from __future__ import annotations

import copy
import pickle

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from iba_core import Explainer
from iba_core.errors import InputError
from iba_tf import GraphModel, TensorFlowAdapter

v1 = tf.compat.v1

WAYS = {"deepcopy": copy.deepcopy, "pickle": lambda x: pickle.loads(pickle.dumps(x))}


@pytest.fixture(params=WAYS)
def copied(request):
    return WAYS[request.param]


def drawn(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def functional():
    keras.utils.set_random_seed(0)
    x = inputs = keras.Input((6, 6, 3), name="image")
    x = layers.Conv2D(4, 3, activation="relu", name="conv")(x)
    return keras.Model(inputs, layers.Dense(3, name="logits")(layers.Flatten(name="flat")(x)))


@keras.saving.register_keras_serializable("iba_tests_of_copies")
class Subclassed(keras.Model):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.conv = layers.Conv2D(4, 3, activation="relu", name="conv")
        self.logits = layers.Dense(3, name="logits")

    def build(self, shape):
        self.conv.build(shape)
        self.logits.build((None, 64))
        self.built = True

    def call(self, image):
        x = self.conv(image)
        return self.logits(tf.reshape(x, (tf.shape(x)[0], 64)))


def legacy():
    tf_keras = pytest.importorskip("tf_keras")
    return tf_keras.Sequential(
        [
            tf_keras.Input((6, 6, 3)),
            tf_keras.layers.Conv2D(4, 3, activation="relu", name="conv"),
            tf_keras.layers.Flatten(),
            tf_keras.layers.Dense(3, name="logits"),
        ]
    )


def subclassed():
    model = Subclassed()
    model(np.zeros((1, 6, 6, 3), np.float32))
    return model


@pytest.mark.parametrize("make", [functional, subclassed, legacy], ids=lambda make: make.__name__)
class TestKeras:
    def test_an_adapter_of_a_copy_has_a_model_of_its_own(self, make, copied):
        model, x = make(), drawn(2, 6, 6, 3)
        adapter = TensorFlowAdapter(model)
        adapter.split("conv").features(x)
        before = np.asarray(adapter.predict(x))
        other = copied(adapter)
        assert other.model is not model
        np.testing.assert_allclose(other.predict(x), before, rtol=1e-5)
        other.model.set_weights([2 * weight + 1 for weight in other.model.get_weights()])
        np.testing.assert_array_equal(adapter.predict(x), before)
        np.testing.assert_allclose(other.predict(x), other.model(x), rtol=1e-5)

    def test_a_copied_explainer_explains_its_own_model(self, make, copied):
        x = drawn(8, 6, 6, 3)
        options = {"target": 1, "seed": 0, "steps": 2, "samples": 2}
        explainer = Explainer(make(), layer="conv").fit([x], progbar=False)
        expected = explainer.explain(x[:1], **options)
        other = copied(explainer)
        np.testing.assert_allclose(other.explain(x[:1], **options).capacity, expected.capacity, rtol=1e-5)
        other.adapter.model.set_weights([0.5 * weight for weight in other.adapter.model.get_weights()])
        assert not np.allclose(other.explain(x[:1], **options).outputs, expected.outputs)
        again = explainer.explain(x[:1], **options)
        np.testing.assert_array_equal(again.capacity, expected.capacity)


def frozen():
    graph = tf.Graph()
    with graph.as_default():
        x = v1.placeholder(tf.float32, (None, 4), name="x")
        x = tf.cond(tf.reduce_sum(x) > 1e9, lambda: x, lambda: tf.tanh(x), name="branch")
        tf.matmul(tf.identity(x, name="feature"), drawn(4, 3), name="out")
    return GraphModel.from_graph_def(graph.as_graph_def())


def from_keras():
    inputs = keras.Input((4,))
    x = layers.Dense(4, activation="tanh", name="feature")(inputs)
    return GraphModel.from_keras(keras.Model(inputs, layers.Dense(3, name="out")(x)))


def with_signature():
    weight = tf.Variable(drawn(4, 3), name="weight")
    function = tf.function(lambda x: tf.tanh(x, name="feature") @ weight)
    return GraphModel.from_function(function, tf.TensorSpec((None, 4), name="x"))


@pytest.mark.parametrize("make", [frozen, from_keras, with_signature], ids=lambda make: make.__name__)
def test_a_graph_model_with_a_graph_is_copied_with_its_variables(make, copied):
    model, x = make(), drawn(2, 4)
    expected = np.asarray(model.predict(x))
    other = copied(model)
    np.testing.assert_allclose(other.predict(x), expected, rtol=1e-6)
    assert set(other.variables) == set(model.variables)
    for variable in other.variables.values():
        variable.assign(variable + 1.0)
    np.testing.assert_array_equal(model.predict(x), expected)
    if model.variables:
        assert not np.allclose(other.predict(x), expected)
    for each in (model, other):
        with each.split("feature").head(x) as tail:
            np.testing.assert_allclose(tail(tail.features), each.predict(x), rtol=1e-6)
    adapter = copied(TensorFlowAdapter(model))
    np.testing.assert_allclose(adapter.predict(x), expected, rtol=1e-6)


def session():
    graph = tf.Graph()
    with graph.as_default():
        x = v1.placeholder(tf.float32, (None, 4), name="x")
        out = tf.matmul(tf.tanh(x, name="feature"), v1.get_variable("weight", (4, 3)), name="out")
        running = v1.Session(graph=graph)
        running.run(v1.global_variables_initializer())
    return GraphModel.from_session(graph, running, outputs=out)


def without_signature():
    weight = tf.Variable(drawn(4, 3), name="weight")
    return GraphModel.from_function(lambda x: tf.tanh(x, name="feature") @ weight)


@pytest.mark.parametrize(
    ("make", "reason"), [(session, "a live session"), (without_signature, "follows from its inputs")]
)
def test_other_graph_models_are_copied_but_say_why_they_cannot_be_pickled(make, reason):
    model, x = make(), drawn(2, 4)
    expected = np.asarray(model.predict(x))
    other = copy.deepcopy(model)
    other.predict(x)
    for variable in other.variables.values():
        variable.assign(variable + 1.0)
    assert not np.allclose(other.predict(x), expected)
    np.testing.assert_array_equal(model.predict(x), expected)
    with pytest.raises(InputError, match=f"cannot be pickled: .*{reason}") as raised:
        pickle.dumps(TensorFlowAdapter(model))
    assert "\n" not in str(raised.value)


def test_an_adapter_of_a_function_is_copied_with_variables_of_its_own():
    weight = tf.Variable(drawn(4, 3))
    adapter = TensorFlowAdapter(tf.function(lambda x: tf.tanh(x, name="feature") @ weight))
    x = drawn(2, 4)
    expected = np.asarray(adapter.predict(x))
    other = copy.deepcopy(adapter)
    np.testing.assert_allclose(other.predict(x), expected, rtol=1e-6)
    weight.assign(2 * weight)
    np.testing.assert_allclose(other.predict(x), expected, rtol=1e-6)
    np.testing.assert_allclose(adapter.predict(x), 2 * expected, rtol=1e-6)
