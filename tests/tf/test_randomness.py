"""Models that draw random numbers outside of training: one seed gives one map, or the model is refused."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from iba_core import Explainer, InputError, LayerError
from iba_tf import GraphModel

X = np.random.default_rng(0).normal(size=(2, 6, 6, 3)).astype(np.float32)


class Noisy(keras.layers.Layer):
    """Adds noise to what passes, of one of the generators that TensorFlow and Keras have."""

    def __init__(self, kind):
        super().__init__(name=kind)
        self.generator = {
            "tensorflow": None,
            "Keras": keras.random.SeedGenerator(3),
            "Generator": tf.random.Generator.from_seed(1),
            "Generator_in_training": tf.random.Generator.from_seed(1),
        }[kind]

    def call(self, x, training=False):
        if self.name == "tensorflow":
            return x + 0.1 * tf.random.normal(tf.shape(x))
        if self.name == "Keras":
            return x + 0.1 * keras.random.normal(keras.ops.shape(x), seed=self.generator)
        if training or self.name == "Generator":
            return x + 0.1 * self.generator.normal(tf.shape(x))
        return x


def noisy(kind):
    keras.utils.set_random_seed(0)
    return keras.Sequential(
        [
            keras.Input((6, 6, 3)),
            keras.layers.Conv2D(4, 3, name="conv"),
            Noisy(kind),
            keras.layers.GlobalAveragePooling2D(),
            keras.layers.Dense(3),
        ]
    )


def explainer_of(model, layer="conv"):
    return Explainer(model, layer, steps=3, samples=2).fit([X], progbar=False)


@pytest.mark.parametrize("as_graph", [False, True], ids=["layers", "operations"])
def test_numbers_that_no_seed_governs_are_refused_with_a_seed(as_graph):
    model = noisy("tensorflow")
    explainer = explainer_of(GraphModel.from_keras(model) if as_graph else model)
    for use in (
        lambda: explainer.explain(X, target=1, seed=0),
        lambda: explainer.predict_restricted(X, explainer.explain(X, target=1), seed=0),
    ):
        with pytest.raises(InputError, match="draws random numbers by itself, which seed=0 does not govern"):
            use()
    explainer.explain(X, target=1)


def test_generators_of_keras_begin_at_their_seeds_and_stay_where_they_are():
    model = noisy("Keras")
    explainer = explainer_of(model)
    first = explainer.explain(X, target=1, seed=0)
    model(X)
    state = model.get_layer("Keras").generator.state.numpy()
    np.testing.assert_array_equal(explainer.explain(X, target=1, seed=0).capacity, first.capacity)
    np.testing.assert_array_equal(model.get_layer("Keras").generator.state.numpy(), state)


@pytest.mark.parametrize("as_graph", [False, True], ids=["layers", "operations"])
def test_generators_of_tensorflow_are_not_moved(as_graph):
    model = noisy("Generator")
    state = model.get_layer("Generator").generator.state.numpy()
    with pytest.raises(LayerError, match=r"draws from a tf\.random\.Generator"):
        explainer_of(GraphModel.from_keras(model) if as_graph else model)
    np.testing.assert_array_equal(model.get_layer("Generator").generator.state.numpy(), state)


def test_what_draws_in_training_alone_is_explained():
    explainer = explainer_of(noisy("Generator_in_training"))
    first, second = (explainer.explain(X, target=1, seed=0).capacity for _ in range(2))
    np.testing.assert_array_equal(first, second)


def test_dropout_in_a_branch_that_is_not_taken_is_explained():
    @tf.function(input_signature=[tf.TensorSpec([None, 6, 6, 3])])
    def function(x):
        features = tf.nn.relu(x, name="features")
        is_training = tf.constant(False)
        passed = tf.cond(is_training, lambda: tf.nn.dropout(features, 0.5), lambda: 1.0 * features)
        return tf.reduce_mean(passed, axis=(1, 2))

    graph, options = function.get_concrete_function(), {"steps": 3, "samples": 2}
    explainer = Explainer(graph, "features", data_format="channels_last", **options)
    explainer.fit([X], progbar=False)
    first, second = (explainer.explain(X, target=1, seed=0).capacity for _ in range(2))
    np.testing.assert_array_equal(first, second)
