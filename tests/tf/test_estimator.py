"""The estimator that computes the features itself."""

import inspect

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from iba_core import WelfordEstimator
from iba_core.errors import InputError, NotEstimatedError, StateError
from iba_tf import IBALayer, TFWelfordEstimator

X = np.random.default_rng(0).normal(size=(20, 4)).astype(np.float32)


@pytest.fixture
def v1():
    """A v1 graph with a session: features ``max(2 x, 0)``."""
    graph = tf.Graph()
    with graph.as_default():
        x = tf.compat.v1.placeholder(tf.float32, (None, 4), name="x")
        tf.nn.relu(2 * x, name="feature")
        with tf.compat.v1.Session(graph=graph) as session:
            yield graph, x, session


def assert_is_that_of(estimator, features):
    expected = WelfordEstimator()
    expected.fit(features)
    np.testing.assert_allclose(estimator.mean(), expected.mean(), rtol=1e-6)
    np.testing.assert_allclose(estimator.std(), expected.std(), rtol=1e-6)
    np.testing.assert_array_equal(estimator.active_neurons(), expected.active_neurons())


def test_a_v1_graph_with_its_session(v1):
    graph, x, session = v1
    for name, options in (("feature:0", {}), (graph.get_tensor_by_name("feature:0"), {"session": session})):
        estimator = TFWelfordEstimator(name, graph)
        estimator.fit({x: X[:5]}, **options)
        estimator.fit_generator(({x: X[i : i + 5]} for i in (5, 10, 15)), progbar=False, **options)
        assert estimator.n_samples() == 20
        assert_is_that_of(estimator, np.maximum(2 * X, 0))


def test_run_kwargs_reach_the_session(v1):
    graph, x, session = v1
    metadata = tf.compat.v1.RunMetadata()
    options = tf.compat.v1.RunOptions(trace_level=tf.compat.v1.RunOptions.FULL_TRACE)
    TFWelfordEstimator("feature:0", graph).fit(
        {x: X}, session, run_kwargs={"options": options, "run_metadata": metadata}
    )
    assert metadata.step_stats.dev_stats


def test_a_symbolic_tensor_of_a_keras_model():
    model = keras.Sequential(
        [keras.Input((4,), name="x"), layers.Dense(3, activation="relu"), layers.Dense(2)]
    )
    features = model.layers[0].output
    estimator = TFWelfordEstimator(features)
    estimator.fit({model.inputs[0]: X[:12]})
    estimator.fit({"x": X[12:]})
    assert_is_that_of(estimator, model.layers[0](X))
    assert estimator.feature_name == features.name


def test_arrays_are_features():
    estimator = TFWelfordEstimator(feature_name=None)
    estimator.fit(X)
    assert_is_that_of(estimator, X)


def test_a_layer_takes_it_and_feeds_it(tmp_path):
    inputs = keras.Input((4,))
    hidden = layers.Dense(6)
    x = hidden(inputs)
    estimator = TFWelfordEstimator(x)
    estimator.fit({inputs: X})
    iba = IBALayer(estimator=estimator, steps=2)
    model = keras.Model(inputs, layers.Dense(3)(iba(x)))
    iba.set_classification_loss(model.output)
    assert iba.analyze(X[:1], target=0).shape == (6,)
    iba.fit(X)
    assert estimator.n_samples() == 40
    iba.load_state_dict(iba.state_dict())
    assert iba.estimator.n_samples() == 40
    assert iba.estimator.feature_name == x.name
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras").get_layer(iba.name)
    np.testing.assert_array_equal(loaded.estimator.std(), estimator.std())


def test_the_state_makes_a_round_trip_with_the_name(tmp_path):
    estimator = TFWelfordEstimator("conv/Relu:0")
    with pytest.raises(NotEstimatedError):
        estimator.state_dict()
    estimator.fit(X)
    other = TFWelfordEstimator(feature_name=None)
    other.load_state_dict(estimator.state_dict())
    estimator.save(tmp_path / "state.safetensors")
    for restored in (other, TFWelfordEstimator.load(tmp_path / "state.safetensors")):
        assert restored.feature_name == "conv/Relu:0"
        assert restored.n_samples() == 20
        assert_is_that_of(restored, X)
    assert WelfordEstimator.load(tmp_path / "state.safetensors").n_samples() == 20
    with pytest.raises(StateError, match="lacks"):
        other.load_state_dict({"mean": X[0]})


def test_wrong_uses(v1):
    graph, x, session = v1
    with pytest.raises(InputError, match="'nowhere:0' is no tensor of the graph"):
        TFWelfordEstimator("nowhere:0", graph).fit({x: X}, session)
    with pytest.raises(InputError, match="names no features"):
        TFWelfordEstimator(None).fit({x: X}, session)


def test_no_session():
    with pytest.raises(InputError, match="session=None, and there is no default session"):
        TFWelfordEstimator("feature:0").fit({"x": X})


def test_the_signatures_are_the_references():
    assert list(inspect.signature(TFWelfordEstimator).parameters) == ["feature_name", "graph"]
    assert list(inspect.signature(TFWelfordEstimator.fit).parameters)[1:] == [
        "feed_dict",
        "session",
        "run_kwargs",
    ]
    assert list(inspect.signature(TFWelfordEstimator.fit_generator).parameters)[1:] == [
        "generator",
        "session",
        "progbar",
        "run_kwargs",
    ]
