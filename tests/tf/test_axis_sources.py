"""Where rows and columns are after operations, compared with what these do to images of coordinates."""

from __future__ import annotations

import warnings

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers, ops

from iba_core import Explainer, InputError, LayerError, NotEstimatedError
from iba_core.concepts import GradCAM
from iba_core.framework.layout import Layout, MapOrder
from iba_tf import GraphModel, IBACopy, IBACopyInnvestigate, IBALayer, TensorFlowAdapter, to_saliency_map

SHAPE = (12, 8)


def turned(x):
    return tf.transpose(x, (0, 2, 1, 3))


def mean_kernel(size):
    return np.tile(np.eye(2, dtype=np.float32), (size, size, 1, 1)) / size**2


def dense(x):
    return tf.tensordot(x, np.eye(2, dtype=np.float32), 1)


def grouped(x):
    """Into groups of channels and back, as a normalisation of groups does."""
    rows = tf.shape(x)
    return tf.reshape(tf.reshape(x, tf.concat([rows[:3], (2, 1)], 0)) * 2.0, rows)


OPERATIONS = {
    "nothing": lambda x: x,
    "transposed": turned,
    "summed by letters": lambda x: tf.einsum("bhwc->bwhc", x),
    "reversed": lambda x: tf.reverse(turned(x), (2,)),
    "from the end": lambda x: turned(x)[:, ::-1],
    "from the end of the last": lambda x: turned(x)[..., ::-1, :],
    "from the end with a new axis": lambda x: tf.squeeze(turned(x)[:, tf.newaxis, ::-1], 1),
    "one of two": lambda x: tf.stack([turned(x), turned(x)], 1)[:, 0, ::-2],
    "sliced": lambda x: turned(x)[:, 1:, ::2],
    "pooled": lambda x: tf.nn.max_pool2d(turned(x), 2, 2, "SAME"),
    "padded": lambda x: tf.pad(turned(x), ((0, 0), (1, 0), (0, 2), (0, 0)), "SYMMETRIC"),
    "resized": lambda x: tf.image.resize(turned(x), (20, 30)),
    "joined": lambda x: tf.concat([turned(x), turned(x)[:, -1:]], 1),
    "convolved": lambda x: tf.nn.conv2d(turned(x), mean_kernel(3), 1, "VALID"),
    "dilated": lambda x: tf.nn.conv2d(turned(x), mean_kernel(2), 1, "VALID", dilations=2),
    "dense, dense": lambda x: dense(dense(turned(x)) + 1.0),
    "grouped": lambda x: grouped(grouped(turned(x))),
    "tokens and back": lambda x: tf.reshape(
        tf.reshape(turned(x), (-1, SHAPE[0] * SHAPE[1], 2)), (-1, SHAPE[1], SHAPE[0], 2)
    ),
    "depth": lambda x: tf.nn.depth_to_space(tf.nn.space_to_depth(turned(x), 2), 2),
    "a skip around a turned branch": lambda x: x + turned(tf.nn.avg_pool2d(turned(x), 3, 1, "SAME")),
}


def measured(images):
    """The order and direction of axes, from images of their numbers, (a, b, 2)."""
    slopes = np.array(
        [[np.diff(images[..., place], axis=axis).mean() for axis in (0, 1)] for place in (0, 1)]
    )
    axes = np.abs(slopes).argmax(axis=1)
    return tuple(axes.tolist()), tuple(place for place in (0, 1) if slopes[place, axes[place]] < 0)


def order_of(model, x, layer):
    split = TensorFlowAdapter(model).split(layer, data_format="channels_last")
    features = split.features(x)
    return split.map_order(Layout(3, 2)), np.asarray(features[0])


@pytest.mark.parametrize("name", OPERATIONS)
def test_operations(name):
    def run(x):
        return tf.reduce_mean(tf.identity(OPERATIONS[name](x), name="here"), (1, 2))

    model = GraphModel.from_function(run, tf.TensorSpec((None, *SHAPE, 2)))
    coordinates = np.stack(np.meshgrid(*map(np.arange, SHAPE), indexing="ij"), -1).astype(np.float32)
    found, features = order_of(model, coordinates[None], "here")
    assert (found.axes, found.against) == measured(features)


LAYERS = {
    "permuted": layers.Permute((2, 1, 3)),
    "swapped": lambda x: ops.swapaxes(x, 1, 2),
    "flipped": lambda x: ops.flip(x, 1),
    "a quarter": lambda x: ops.rot90(x, 1, (1, 2)),
    "from the end": lambda x: ops.swapaxes(x, 1, 2)[:, :, ::-1],
    "function": layers.Lambda(turned),
    "reshaped": lambda x: layers.Reshape((8, 12, 2))(layers.Reshape((96, 2))(layers.Permute((2, 1, 3))(x))),
    "resized": lambda x: layers.Resizing(6, 5)(layers.Permute((2, 1, 3))(x)),
    "enlarged": lambda x: layers.Cropping2D(1)(layers.UpSampling2D(2)(layers.Permute((2, 1, 3))(x))),
    "nested": keras.Sequential([keras.Input((12, 8, 2)), layers.Permute((2, 1, 3))]),
}


@pytest.mark.parametrize("name", LAYERS)
def test_layers(name):
    inputs = keras.Input((*SHAPE, 2))
    x = layers.Identity(name="here")(LAYERS[name](inputs))
    model = keras.Model(inputs, layers.GlobalAveragePooling2D()(x))
    coordinates = np.stack(np.meshgrid(*map(np.arange, SHAPE), indexing="ij"), -1).astype(np.float32)
    found, features = order_of(model, coordinates[None], "here")
    assert (found.axes, found.against) == measured(features)


def test_axes_that_are_mixed_are_left_alone():
    inputs = keras.Input((6, 6, 2))
    x = layers.Identity(name="here")(inputs + ops.swapaxes(inputs, 1, 2))
    model = keras.Model(inputs, layers.GlobalAveragePooling2D()(x))
    assert order_of(model, np.ones((1, 6, 6, 2), np.float32), "here")[0] == MapOrder((0, 1))


def test_a_recurrent_layer_that_runs_backwards():
    inputs = keras.Input((7, 2))
    x = layers.SimpleRNN(2, return_sequences=True, name="straight")(inputs[:, ::-1])
    x = layers.SimpleRNN(2, return_sequences=True, go_backwards=True, name="backwards")(x)
    model = keras.Model(inputs, layers.Flatten()(x))
    for layer, against in (("straight", (0,)), ("backwards", ())):
        split = TensorFlowAdapter(model).split(layer)
        split.features(np.ones((1, 7, 2), np.float32))
        assert split.map_order(Layout(2, 1)) == MapOrder((0,), against)


def test_the_analyzer_of_innvestigate():
    """It gives the map of `Explainer`, which is tested in both frameworks."""
    keras.utils.set_random_seed(0)
    inputs = keras.Input((9, 12, 3))
    x = layers.Conv2D(4, 3, name="conv")(layers.Permute((2, 1, 3))(inputs))
    model = keras.Model(inputs, layers.Dense(3)(layers.GlobalAveragePooling2D()(layers.ReLU()(x))))
    x = np.random.default_rng(0).normal(size=(6, 9, 12, 3)).astype(np.float32)
    analyzer = IBACopyInnvestigate(model, feature_name="conv")
    analyzer.fit(x)
    found = analyzer.analyze(x[:2], seed=0)
    explainer = Explainer(model, "conv").fit([x], progbar=False)
    right = explainer.explain(x[:2], None, seed=0).saliency
    assert found.shape == right.shape == (2, 9, 12)
    assert all(np.corrcoef(a.ravel(), b.ravel())[0, 1] > 0.99 for a, b in zip(found, right, strict=True))


@pytest.mark.parametrize("made", ["layer", "copy"])
def test_the_capacity_comes_with_its_order(made):
    """The map is that of the same network for images that are turned already."""
    keras.utils.set_random_seed(0)

    def network(shape, turns):
        inputs = keras.Input(shape)
        x = layers.Permute((2, 1, 3))(inputs) if turns else inputs
        x = layers.Conv2D(4, 3, name="conv")(x)
        if made == "layer":
            x = IBALayer(name="iba")(x)
        return keras.Model(inputs, layers.Dense(3)(layers.GlobalAveragePooling2D()(layers.ReLU()(x))))

    turning, plain = network((9, 12, 3), True), network((12, 9, 3), False)
    plain.set_weights(turning.get_weights())
    images = np.random.default_rng(0).normal(size=(6, 9, 12, 3)).astype(np.float32)

    def capacity(model, x):
        iba = model.get_layer("iba") if made == "layer" else IBACopy("conv", None, graph=model)
        with pytest.raises(NotEstimatedError, match="call analyze before"):
            iba.map_order  # noqa: B018  # it raises
        loss = [model.output] if made == "layer" else []
        target = iba.set_classification_loss(*loss)
        del target
        iba.fit(x)
        return iba, iba.analyze(x[:1], target=1, steps=3, batch_size=2, seed=0)

    with pytest.warns(UserWarning, match="give to_saliency_map order=map_order"):
        iba, nats = capacity(turning, images)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        other, right = capacity(plain, np.ascontiguousarray(images.swapaxes(1, 2)))
    np.testing.assert_allclose(nats, right, rtol=1e-4, atol=1e-5)
    assert (iba.map_order, other.map_order) == (MapOrder((1, 0)), MapOrder((0, 1)))
    found = to_saliency_map(nats, (9, 12), order=iba.map_order)
    np.testing.assert_allclose(found, to_saliency_map(right, (12, 9)).T, rtol=1e-4, atol=1e-5)
    with pytest.raises(InputError, match=r"order=.* is not for a map with 2 axes"):
        to_saliency_map(nats, (9, 12), order=MapOrder((0,)))


@pytest.mark.parametrize("made", [lambda model: model, GraphModel.from_keras], ids=["calls", "operations"])
def test_words_that_are_read_from_the_end(made):
    inputs = keras.Input((7,), dtype="int64")
    x = layers.Embedding(5, 2, name="words")(ops.flip(inputs, 1))
    model = made(keras.Model(inputs, layers.Flatten()(layers.Dense(2)(x))))
    split = TensorFlowAdapter(model).split("words")
    split.features(np.zeros((1, 7), np.int64))
    assert split.map_order(Layout(2, 1)) == MapOrder((0,), (0,))


class Inside(layers.Layer):
    """A layer that calls another one, by operations that do not show their axes where sizes are open."""

    def __init__(self, **options):
        super().__init__(**options)
        self.dense = layers.Dense(3)

    def build(self, shape):
        self.dense.build(shape)

    def call(self, x):
        return self.dense(x)


@pytest.mark.parametrize("exchanges", [True, False])
def test_an_exchange_whose_trace_is_lost_is_refused(exchanges):
    inputs = keras.Input((6, 6, 3))
    x = layers.Permute((2, 1, 3))(inputs) if exchanges else inputs
    features = layers.Conv2D(4, 3, padding="same", name="conv")(Inside()(x))
    model = keras.Model(inputs, layers.Dense(2)(layers.GlobalMaxPooling2D()(features)))
    x = np.random.default_rng(0).normal(size=(4, 6, 6, 3)).astype("float32")
    cam = GradCAM(model, ["conv"])
    if exchanges:
        with pytest.raises(LayerError, match="do that in front of the model"):
            cam(x)
    else:
        assert cam(x).shape == (4, 6, 6)
