"""The guard catches wrong readings of models: each test takes out what makes a reading right.

Without the change, the model is explained. With it, a map would be wrong without a word.
"""

import warnings
from contextlib import contextmanager
from dataclasses import replace

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from iba_core import Explainer, InputError, LayerError
from iba_core.framework.normalization import scale_and_shift
from iba_core.framework.shared import SharedInputs
from iba_tf import GraphModel, IBALayer, TensorFlowAdapter
from iba_tf.graphs import normalization
from iba_tf.graphs.calls import CallGraph
from iba_tf.graphs.split import GraphSplit

REFUSED = "does not repeat the model"
RANDOM = np.random.default_rng(0)


def drawn(*shape):
    return RANDOM.normal(size=shape).astype(np.float32)


def captions():
    """Scores of images and captions."""
    images, texts = keras.Input((6,), name="images"), keras.Input((5,), name="texts")
    scores = keras.ops.matmul(
        layers.Dense(4, name="image")(images), keras.ops.transpose(layers.Dense(4)(texts))
    )
    return keras.Model([images, texts], scores)


def sequences():
    """Steps first: (T, B, C)."""
    x = keras.Input((4, 3))
    steps = layers.Dense(6, name="embed")(keras.ops.transpose(x, (1, 0, 2)))
    last = layers.LSTM(5)(keras.ops.transpose(steps, (1, 0, 2)))
    return keras.Model(x, layers.Dense(4)(last))


def convolutions():
    x = keras.Input((32, 32, 3))
    y = layers.ReLU(name="stem")(layers.Conv2D(4, 3)(x))
    y = layers.BatchNormalization()(layers.Conv2D(4, 3)(y))
    return keras.Model(x, layers.Dense(4)(layers.GlobalAveragePooling2D()(layers.ReLU()(y))))


def residual():
    x = keras.Input((3,))
    skip = layers.Dense(6)(x)
    y = layers.Dense(6, name="layer")(layers.ReLU()(skip))
    return keras.Model(x, layers.Dense(4)(layers.Add()([y, skip])))


def explained(model, layer, inputs, **options):
    """Whether the model is explained; statistics are loaded, so that nothing else looks at it before."""
    settings = {"steps": 1, "samples": 2, "data_format": "channels_last"}
    batch = inputs if isinstance(inputs, np.ndarray) else (inputs,)
    estimator = Explainer(model, layer, **settings).fit([batch], progbar=False).estimator
    adapter = TensorFlowAdapter(model, **options)
    Explainer(adapter, layer, estimator=estimator, **settings).explain(inputs, target=1, seed=0)
    return True


@pytest.fixture(autouse=True)
def weights():
    keras.utils.set_random_seed(0)


def test_captions_are_no_images(monkeypatch):
    model, inputs = captions(), (drawn(5, 6), drawn(5, 5))
    assert explained(model, "image", inputs)
    monkeypatch.setattr(SharedInputs, "mark", lambda self, inputs, predict: inputs)
    with pytest.raises(LayerError, match=REFUSED):
        explained(model, "image", inputs)


def test_steps_are_no_images(monkeypatch):
    model, x = sequences(), drawn(4, 4, 3)
    assert explained(model, "embed", x)
    measure = CallGraph.measure

    def wrong(graph, names, batches):
        """The images are along the first axis of everything, as many as the batch has."""
        return [
            [shape and (len(next(iter(batch.values()))), 4, *shape[2:]) for shape in shapes]
            if "dense" not in names[-1]
            else shapes
            for shapes, batch in zip(measure(graph, names, batches), batches, strict=True)
        ]

    monkeypatch.setattr(CallGraph, "measure", wrong)
    with pytest.raises(LayerError):
        explained(sequences(), "embed", x)


def test_a_wrong_rewrite_is_found(monkeypatch):
    # Large enough for the rewrite to be worth it, also for an image alone.
    model, x = convolutions(), drawn(2, 32, 32, 3)
    assert explained(model, "stem", x)

    def wrong(mean, variance, epsilon, *others):
        return scale_and_shift(mean, 1.1 * variance, epsilon, *others)

    monkeypatch.setattr(normalization, "scale_and_shift", wrong)
    with pytest.raises(LayerError, match=REFUSED):
        explained(model, "stem", x)
    assert explained(GraphModel.from_keras(model), "stem", x, rewrites=False)


@pytest.mark.parametrize("lost", ["carry", "features"])
def test_what_the_head_loses_is_found(monkeypatch, lost):
    model, x = residual(), drawn(3, 3)
    assert explained(model, "layer", x)
    right = GraphSplit.open_head

    @contextmanager
    def wrong(split, inputs):
        with right(split, inputs) as tail:
            if lost == "carry":
                yield replace(tail, carry=tuple(map(tf.zeros_like, tail.carry)))
            else:
                yield replace(tail, features=tf.zeros_like(tail.features))

    monkeypatch.setattr(GraphSplit, "open_head", wrong)
    with pytest.raises(LayerError, match=REFUSED):
        explained(model, "layer", x)


class NormalisesTheBatch(layers.Layer):
    def call(self, x):
        axes = [0, *range(1, len(x.shape) - 1)]
        mean, variance = tf.nn.moments(x, axes, keepdims=True)
        return (x - mean) / tf.sqrt(variance + 0.001)


@pytest.mark.parametrize("before", [False, True], ids=["after the layer", "before the layer"])
def test_images_are_not_mixed(before):
    x = keras.Input((8, 8, 3))
    parts = [layers.Conv2D(4, 3, name="conv"), NormalisesTheBatch(), layers.ReLU(name="layer")]
    y = x
    for part in parts:
        y = part(y)
    model = keras.Model(x, layers.Dense(4)(layers.GlobalAveragePooling2D()(y)))
    images, layer = drawn(4, 8, 8, 3), "layer" if before else "conv"
    explainer = Explainer(model, layer, steps=2, samples=2)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = explainer.fit([images], progbar=False).explain(images[:3], 1, seed=0)
    assert any("depends on the other images" in str(warning.message) for warning in caught)
    for index in range(3):
        alone = explainer.explain(images[index : index + 1], 1, seed=0)
        np.testing.assert_allclose(found.capacity[index], alone.capacity[0], rtol=1e-4, atol=1e-6)


def test_the_guard_costs_one_pass_of_the_model_for_each_shape(monkeypatch):
    runs = []
    right = GraphSplit.own_outputs

    def counted(split, inputs):
        runs.append(len(inputs))
        return right(split, inputs)

    monkeypatch.setattr(GraphSplit, "own_outputs", counted)
    split, images = TensorFlowAdapter(residual()).split("layer"), tf.constant(drawn(4, 3))
    for given in (images, images, images[:2], images):
        with split.head(given):
            pass
    assert runs == [4, 2]


def test_a_single_logit_is_no_classifier_for_the_layers_either():
    x = keras.Input((3,))
    layer, dense = IBALayer(), layers.Dense(6, name="features")
    logit = layers.Dense(1)(layer(dense(x)))
    layer.set_classification_loss(logit)
    layer.fit({x: drawn(4, 3)})
    with pytest.raises(InputError, match="one logit, whose cross-entropy is constant; give set_model_loss"):
        layer.analyze({x: drawn(1, 3)}, target=0)
