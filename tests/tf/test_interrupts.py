"""What Keras and TensorFlow keep of a call is as before after an interrupt that they do not take care of."""

import copy

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers
from keras.src.backend.common import global_state
from tensorflow.python.eager import context

from iba_core import Explainer
from iba_tf import TensorFlowAdapter

X = np.random.default_rng(0).normal(size=(4, 8, 8, 3)).astype("float32")


class Subclassed(keras.Model):
    def __init__(self, **options):
        super().__init__(**options)
        self.conv, self.pool = layers.Conv2D(4, 3, name="conv"), layers.GlobalAveragePooling2D()
        self.out = layers.Dense(3)

    def call(self, x):
        return self.out(self.pool(self.conv(x)))


def functional():
    inputs = keras.Input((8, 8, 3))
    x = layers.GlobalAveragePooling2D()(layers.Conv2D(4, 3, name="conv")(inputs))
    return keras.Model(inputs, layers.Dense(3)(x))


def subclassed():
    model = Subclassed()
    model(X)
    return model


@pytest.mark.parametrize("number", [0, 2])
@pytest.mark.parametrize("make", [functional, subclassed])
def test_a_call_that_is_interrupted_is_forgotten(make, number, monkeypatch):
    model = make()
    actions = [lambda: Explainer(model, "conv", steps=1, samples=2).fit([X], progbar=False)]
    if make is functional:
        actions.append(lambda: copy.deepcopy(TensorFlowAdapter(model)))
    for act in actions:
        left = [number]
        begin = layers.Layer._get_call_context

        def begun(layer, begin=begin, left=left):
            found = begin(layer)
            left[0] -= 1
            if left[0] == -1:
                raise KeyboardInterrupt
            return found

        with monkeypatch.context() as patched:
            patched.setattr(layers.Layer, "_get_call_context", begun)
            with pytest.raises(KeyboardInterrupt):
                act()
        assert global_state.get_global_attribute("current_call_ctx") is None
        act()


@pytest.mark.parametrize("number", [0, 1, 4])
def test_no_graph_stays_open(number, monkeypatch):
    model = functional()
    explainer = Explainer(model, "conv", steps=1, samples=2).fit([X], progbar=False)
    left, mode = [number], context.Context._mode

    def interrupted(running, wanted):
        found = mode(running, wanted)
        left[0] -= 1
        if left[0] == -1:
            # As an interrupt does between the first line of this context and its `try`.
            found.__enter__()
            raise KeyboardInterrupt
        return found

    with monkeypatch.context() as patched:
        patched.setattr(context.Context, "_mode", interrupted)
        with pytest.raises(KeyboardInterrupt):
            explainer.explain(X[:1], 1, seed=0)
    assert tf.executing_eagerly()
    assert not context.context().context_switches.stack[1:]
    explainer.explain(X[:1], 1, seed=0)
