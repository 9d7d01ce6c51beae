"""What the memory selector must be as a Keras layer."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from iba_tf.concepts import SelectorZU


@pytest.fixture
def x():
    return np.random.default_rng(0).normal(size=(8, 6)).astype(np.float32)


def test_attributes():
    selector = SelectorZU(in_features=64, memory_size=10, exogenous_size=32, out_features=5, temperature=0.5)
    assert isinstance(selector.memory, keras.layers.Embedding)
    assert isinstance(selector.selector, keras.Sequential)
    assert len(selector.trainable_weights) == 5
    latent = keras.random.normal((4, 64))
    assert selector.selector(latent).shape == (4, 5, 10)
    for sampling in (False, True):
        assert selector(latent, sampling=sampling).shape == (4, 5, 32)


def test_sampling_follows_the_seed_and_reaches_every_weight(x):
    first, second = (SelectorZU(6, 3, 4, 5, temperature=0.5, seed=3) for _ in range(2))
    second.load_arrays(first.to_arrays())
    with tf.GradientTape() as tape:
        selected = first(x, sampling=True)
        loss = tf.reduce_sum(selected**2)
    np.testing.assert_array_equal(selected, second(x, sampling=True))
    for weight, gradient in zip(
        first.trainable_weights, tape.gradient(loss, [w.value for w in first.trainable_weights]), strict=True
    ):
        assert gradient is not None, weight.path
        assert np.abs(gradient).sum() > 0, weight.path


def test_it_works_inside_models_and_compiled_functions(x, tmp_path):
    inputs = keras.Input((6,))
    selector = SelectorZU(6, 3, 4, 5, 0.5, None, False, attention_over="concepts", name="memory_selector")
    model = keras.Model(inputs, keras.layers.Flatten()(selector(inputs)))
    assert model.output_shape == (None, 20)
    expected = selector(x).numpy().reshape(8, 20)
    np.testing.assert_allclose(model.predict(x, verbose=0), expected, rtol=1e-6)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_allclose(loaded.predict(x, verbose=0), expected, rtol=1e-6)
    copy = loaded.get_layer("memory_selector")
    assert (copy.temperature, copy.attention_over) == (0.5, "concepts")
    assert "selector.2.bias" not in copy.to_arrays()
    traced = tf.function(lambda batch: selector(batch, sampling=True))
    assert not np.array_equal(traced(x), traced(x))


def test_mixed_precision_keeps_weights_in_float32(x):
    selector = SelectorZU(6, 3, 4, 5, dtype="mixed_float16")
    for sampling in (False, True):
        selected = selector(x, sampling=sampling)
        assert selected.dtype == tf.float16
        assert np.isfinite(selected).all()
    assert {weight.dtype for weight in selector.trainable_weights} == {"float32"}
