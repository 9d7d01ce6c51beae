"""One explainer in several threads: results are those of one thread, and models can be used meanwhile."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from threading import Event, Thread

import keras
import numpy as np
import pytest
from keras import layers

from iba_core import Explainer
from iba_tf import GraphModel, TensorFlowAdapter


def drawn(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def network():
    keras.utils.set_random_seed(0)
    x = inputs = keras.Input((8, 8, 3))
    x = skip = layers.Conv2D(4, 3, padding="same", name="stem")(x)
    x = layers.BatchNormalization(name="norm")(layers.Conv2D(4, 3, padding="same", name="conv")(x))
    x = layers.Dropout(0.5)(layers.ReLU()(layers.Add()([x, skip])))
    return keras.Model(inputs, layers.Dense(5, name="logits")(layers.Flatten()(x)))


@pytest.fixture(params=["layers", "operations"])
def explainer(request):
    model = network()
    adapter = TensorFlowAdapter(model if request.param == "layers" else GraphModel.from_keras(model))
    return Explainer(adapter, layer="conv").fit([drawn(8, 8, 8, 3)], progbar=False)


def test_eight_threads_give_what_one_gives(explainer):
    images = drawn(16, 8, 8, 3, seed=1)

    def explain(index):
        # Some batches are of two images, which is another shape.
        stop = index + 1 + index % 2
        return explainer.explain(images[index:stop], 1, seed=index, steps=3, samples=3)

    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(explain, range(14)))
    for index, found in enumerate(together):
        wanted = explain(index)
        np.testing.assert_array_equal(found.capacity, wanted.capacity)
        np.testing.assert_array_equal(found.model_losses, wanted.model_losses)


def test_tails_of_several_heads_are_open_at_once(explainer):
    split = explainer.adapter.split("conv")
    first, second = drawn(1, 8, 8, 3), drawn(2, 8, 8, 3, seed=1)
    with split.head(first) as one, split.head(second) as two:
        for tail, x in ((two, second), (one, first)):
            np.testing.assert_allclose(tail(tail.features), explainer.predict(x), rtol=1e-5, atol=1e-5)
        assert one.run == two.run


def test_models_train_and_run_as_ever_while_another_thread_explains():
    model, x = network(), drawn(8, 8, 8, 3)
    explainer = Explainer(model, layer="conv").fit([x], progbar=False)
    expected = np.asarray(model(x, training=False))
    dropout = layers.Dropout(0.5)
    done, failures = Event(), []

    def use():
        try:
            while not done.is_set():
                assert np.any(np.asarray(dropout(x, training=True)) == 0)
                np.testing.assert_allclose(model(x, training=False), expected, rtol=1e-5, atol=1e-5)
        except AssertionError as error:
            failures.append(error)

    thread = Thread(target=use)
    thread.start()
    try:
        for index in range(5):
            explainer.explain(x[index : index + 1], 1, steps=2, samples=2)
            # A graph of operations is traced, with Keras' classes patched for this thread.
            GraphModel.from_keras(network()).layers(x)
    finally:
        done.set()
        thread.join()
    assert not failures
