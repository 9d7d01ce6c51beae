"""Keras models of every shape of graph, small enough to split everywhere."""

from __future__ import annotations

from types import SimpleNamespace

import keras
import numpy as np
import pytest
from keras import layers


def plain():
    return keras.Sequential(
        [
            keras.Input((8, 8, 3)),
            layers.Conv2D(4, 3, padding="same", name="conv1"),
            layers.BatchNormalization(name="norm"),
            layers.ReLU(name="relu"),
            layers.Dropout(0.5, name="dropout"),
            layers.Conv2D(6, 3, strides=2, name="conv2"),
            layers.GlobalAveragePooling2D(name="pool"),
            layers.Dense(5, name="logits"),
        ]
    )


def residual():
    x = inputs = keras.Input((8, 8, 3))
    x = skip = layers.Conv2D(4, 3, padding="same", name="stem")(x)
    x = layers.ReLU(name="relu1")(x)
    x = layers.Conv2D(4, 3, padding="same", name="conv")(x)
    x = layers.Add(name="add")([skip, x])
    x = layers.ReLU(name="relu2")(x)
    x = layers.Flatten(name="flatten")(x)
    return keras.Model(inputs, layers.Dense(5, name="logits")(x))


def unet():
    inputs = keras.Input((8, 8, 3))
    down1 = layers.Conv2D(4, 3, padding="same", activation="relu", name="down1")(inputs)
    down2 = layers.Conv2D(6, 3, padding="same", activation="relu", name="down2")(
        layers.MaxPooling2D(name="pool1")(down1)
    )
    bottom = layers.Conv2D(8, 3, padding="same", activation="relu", name="bottom")(
        layers.MaxPooling2D(name="pool2")(down2)
    )
    up2 = layers.Concatenate(name="join2")([layers.UpSampling2D(name="up2")(bottom), down2])
    up1 = layers.Concatenate(name="join1")([layers.UpSampling2D(name="up1")(up2), down1])
    return keras.Model(inputs, layers.Conv2D(2, 1, name="classes")(up1))


def nested():
    x = image = keras.Input((8, 8, 3), name="inner")
    x = layers.Conv2D(4, 3, padding="same", name="conv1")(x)
    skip = x
    x = layers.ReLU(name="relu")(x)
    x = layers.Conv2D(4, 3, padding="same", name="conv2")(x)
    x = layers.Add(name="add")([x, skip])
    backbone = keras.Model(image, x, name="backbone")
    head = keras.Sequential(
        [layers.GlobalAveragePooling2D(name="pool"), layers.Dense(5, name="logits")], name="head"
    )
    inputs = keras.Input((8, 8, 3))
    scaled = layers.Rescaling(0.5, name="rescale")(inputs)
    features = backbone(scaled)
    outer_skip = layers.Conv2D(4, 1, name="side")(scaled)
    return keras.Model(inputs, head(layers.Add(name="outer_add")([features, outer_skip])))


def siamese():
    x = image = keras.Input((6, 6, 2))
    x = layers.Conv2D(4, 3, activation="relu", name="conv")(x)
    tower = keras.Model(image, layers.Flatten(name="flatten")(x), name="tower")
    left, right = keras.Input((6, 6, 2), name="left"), keras.Input((6, 6, 2), name="right")
    shared = layers.Dense(5, name="shared")
    difference = layers.Subtract(name="difference")([tower(left), tower(right)])
    outputs = shared(layers.Reshape((8, 8), name="reshape")(difference))
    return keras.Model([left, right], layers.Dense(3, name="logits")(layers.Flatten(name="flat")(outputs)))


def two_ends():
    image, table = keras.Input((6, 6, 2), name="image"), keras.Input((3,), name="table")
    x = layers.Conv2D(4, 3, activation="relu", name="conv")(image)
    x = layers.GlobalAveragePooling2D(name="pool")(x)
    joined = layers.Concatenate(name="join")([x, layers.Dense(4, name="embed")(table)])
    return keras.Model(
        {"image": image, "table": table},
        {"classes": layers.Dense(5, name="classes")(joined), "score": layers.Dense(1, name="score")(table)},
    )


@keras.saving.register_keras_serializable("iba_tests")
class Halves(layers.Layer):
    """A custom layer whose output is a tuple."""

    def call(self, x):
        size = x.shape[-1] // 2
        return x[..., :size], x[..., size:]


def tuples():
    inputs = keras.Input((6, 6, 2))
    first, second = Halves(name="halves")(layers.Conv2D(8, 3, name="conv")(inputs))
    x = layers.Multiply(name="gate")([first, keras.ops.sigmoid(second)])
    return keras.Model(inputs, layers.Dense(3, name="logits")(layers.Flatten(name="flatten")(x)))


def recurrent():
    tokens = keras.Input((7,), dtype="int32")
    x = layers.Embedding(20, 6, mask_zero=True, name="embedding")(tokens)
    x = layers.SpatialDropout1D(0.5, name="dropout")(x)
    sequence, state, _ = layers.LSTM(5, return_sequences=True, return_state=True, name="lstm")(x)
    pooled = layers.GlobalAveragePooling1D(name="pool")(sequence)
    return keras.Model(
        tokens, layers.Dense(3, name="logits")(layers.Concatenate(name="join")([pooled, state]))
    )


def positions():
    """A position code that is the same for all images reaches the tail around every split."""
    inputs = keras.Input((4, 3))
    x = layers.Dense(6, name="tokens")(inputs)
    code = keras.ops.mean(keras.ops.ones_like(inputs), axis=(0, 2), keepdims=True) * 0.3
    x = layers.LayerNormalization(name="norm")(x)
    x = layers.MultiHeadAttention(2, 3, name="attention")(x + code, x)
    return keras.Model(inputs, layers.Dense(3, name="logits")(layers.Flatten(name="flatten")(x * code)))


MODELS = [plain, residual, unet, nested, siamese, two_ends, tuples, recurrent, positions]


def sample_inputs(model, batch=2, seed=0):
    """Random inputs for a model; token sequences end in padding."""
    rng = np.random.default_rng(seed)
    drawn = {}
    for tensor in model.inputs:
        shape = (batch, *tensor.shape[1:])
        if tensor.dtype == "int32":
            tokens = rng.integers(1, 20, shape)
            tokens[:, -2:] = 0
            drawn[tensor.name] = tokens
        else:
            drawn[tensor.name] = rng.normal(size=shape).astype(np.float32)
    if isinstance(model.inputs, list) and len(model.inputs) == 1:
        return drawn[model.inputs[0].name]
    return drawn


def randomize(model, seed=0):
    """Weights that make every part of the model matter, the moving averages included."""
    rng = np.random.default_rng(seed)
    for weight in model.weights:
        scale = rng.normal(0, 0.5, weight.shape)
        weight.assign(np.abs(scale) + 0.5 if "variance" in weight.path else scale)
    return model


@pytest.fixture
def models():
    """The functions that build the models, by name, and what gives them weights and inputs."""
    builders = {build.__name__: build for build in MODELS}
    return SimpleNamespace(**builders, randomize=randomize, sample_inputs=sample_inputs)


@pytest.fixture(params=MODELS, ids=lambda build: build.__name__)
def model(request) -> keras.Model:
    return randomize(request.param())


@pytest.fixture
def inputs(model):
    return sample_inputs(model)
