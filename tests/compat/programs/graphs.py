"""A whole program of TensorFlow 1: graphs and sessions, with and without Keras 2.

Run with ``v1`` for all behaviour of TensorFlow 1, or with ``branches`` for graphs whose branches alone are
those of TensorFlow 1. It is a program of its own because the switches are those of a process.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import tensorflow.compat.v1 as tf

if sys.argv[1] == "v1":
    tf.disable_eager_execution()
    tf.disable_v2_behavior()
    tf.disable_v2_tensorshape()
else:
    tf.disable_eager_execution()
    tf.disable_control_flow_v2()

import tf_keras as keras
from tf_keras.api._v1.keras import backend
from tf_keras.layers import (
    Activation,
    BatchNormalization,
    Conv1D,
    Conv2D,
    Dense,
    Dropout,
    Flatten,
    GlobalAveragePooling2D,
)

from iba_tf.compat.iba.tensorflow_v1 import (
    IBACopy,
    IBACopyInnvestigate,
    IBALayer,
    TFWelfordEstimator,
    get_imagenet_generator,
    model_wo_softmax,
    to_saliency_map,
)
from iba_tf.compat.iba.utils import plot_saliency_map

RNG = np.random.default_rng(0)
IMAGES = RNG.normal(size=(12, 8, 8, 3)).astype(np.float32)
FEW = {"steps": 2, "batch_size": 3}


def total(capacity):
    return float(capacity.sum())


def a_graph_of_operations():
    """The layer called on a tensor, the copy of the graph, and the estimator agree."""
    with tf.Graph().as_default(), tf.Session() as session:
        x = tf.placeholder(tf.float32, (None, 8, 8, 3), name="x")
        kernel = tf.get_variable("kernel", (3, 3, 3, 4))
        feature = tf.nn.relu(tf.nn.conv2d(x, kernel, 1, "SAME"), name="feature")
        iba = IBALayer(**FEW)
        logits = tf.matmul(tf.reduce_mean(iba(feature), (1, 2)), tf.get_variable("weights", (4, 5)))
        target = iba.set_classification_loss(logits)
        session.run(tf.global_variables_initializer())
        iba.fit({x: IMAGES})
        found = iba.analyze({x: IMAGES[:1], target: np.array([2])}, seed=0)
        free = session.run(logits, {x: IMAGES[:1]})
        with iba.restrict_flow():
            assert (session.run(logits, {x: IMAGES[:1]}) != free).any()
        assert (session.run(logits, {x: IMAGES[:1]}) == free).all()

        copy = IBACopy("feature:0", [logits.name], **FEW)
        copy.fit_generator({x: images} for images in np.split(IMAGES, 3))
        labels = copy.set_classification_loss()
        copied = copy.analyze({x: IMAGES[:1]}, {labels: np.array([2])}, seed=0)
        np.testing.assert_allclose(copied, found, rtol=1e-3, atol=1e-5)
        np.testing.assert_allclose(copy.predict({x: IMAGES})[0], session.run(logits, {x: IMAGES}), atol=1e-5)

        with copy.copied_session_and_graph_as_default():
            wanted = tf.placeholder(tf.float32, (None, 5), name="wanted")
            loss = tf.reduce_mean((copy.get_copied_outputs()[0] - wanted) ** 2)
        copy.set_model_loss(loss)
        assert total(copy.analyze({x: IMAGES[:1]}, {wanted: np.zeros((1, 5))})) > 0

        estimator = TFWelfordEstimator("feature:0")
        estimator.fit({x: IMAGES})
        assert estimator.n_samples() == 12


def a_graph_with_branches():
    """Branches of TensorFlow 1, one within the other, that read variables in several ways."""
    with tf.Graph().as_default(), tf.Session() as session:
        x = tf.placeholder(tf.float32, (None, 8, 8, 3), name="x")
        flag = tf.placeholder_with_default(True, (), name="flag")
        other = tf.placeholder_with_default(False, (), name="other")

        def variable(name, *shape):
            return tf.get_variable(name, shape, use_resource=True)

        kernel, scale, table = variable("kernel", 3, 3, 3, 4), variable("scale", 4), variable("table", 3, 4)
        feature = tf.nn.relu(tf.nn.conv2d(x, kernel, 1, "SAME"), name="feature")
        y = tf.reduce_mean(feature, (1, 2))

        def rows():
            return y * tf.gather(table, tf.argmax(y[:, :3], axis=1))

        y = tf.cond(flag, lambda: tf.cond(other, lambda: y * scale, rows), lambda: y + scale)
        logits = tf.matmul(y, variable("weights", 4, 5), name="logits")
        session.run(tf.global_variables_initializer())
        copy = IBACopy(feature, [logits], **FEW)
        copy.fit({x: IMAGES})
        target = copy.set_classification_loss()
        for feed in ({}, {other: True}, {flag: False}, {flag: False, other: True}):
            fed = {x: IMAGES, **feed}
            np.testing.assert_allclose(copy.predict(fed)[0], session.run(logits, fed), atol=1e-5)
        assert total(copy.analyze({x: IMAGES[:1]}, {target: np.array([1])})) > 0


def network(*further, softmax=None):
    backend.clear_session()
    model = keras.models.Sequential()
    model.add(Conv2D(4, (3, 3), padding="same", name="conv1", input_shape=(8, 8, 3)))
    model.add(BatchNormalization(name="norm"))
    model.add(Activation("relu", name="relu1"))
    for layer in further:
        model.add(layer)
    model.add(Conv2D(4, (3, 3), name="conv2"))
    model.add(GlobalAveragePooling2D())
    model.add(Dropout(0.5))
    model.add(Dense(5, activation=softmax, name="logits"))
    return model


def a_layer_in_a_model():
    """`model.add`, the session of the backend, reports and restrictions."""
    model = model_wo_softmax(network(IBALayer(name="iba"), softmax="softmax"))
    model.predict(IMAGES)
    iba = model.get_layer(name="iba")
    iba.fit({model.input: IMAGES.astype(np.float64)})
    iba.fit_generator(({model.input: images} for images in np.split(IMAGES, 6)), n_samples=5)
    assert iba._estimator.n_samples() == 17
    iba.set_default(**FEW, beta=1)
    assert iba.get_default()["beta"] == 1
    iba.set_classification_loss(model.output)
    iba.collect_all()
    feed = {model.input: IMAGES[:1], iba.target: np.array([4])}
    capacity = iba.analyze(feed)
    assert to_saliency_map(capacity, shape=(8, 8)).shape == (8, 8)
    report = iba.get_report()
    assert {"alpha", "logits"} <= set(report["init"])
    assert "alpha" in report["final"]
    assert report[0]["loss"].shape == report[1]["capacity_mean"].shape == ()
    assert f"{report[0]['model_loss']:.0f}".isdigit()
    iba.collect("loss")
    iba.analyze(feed, beta=100000)
    assert set(iba.get_report()["init"]) == {"loss"}
    assert iba._get_session().run([iba._restrict_flow, iba._use_layer_input]) == [False, True]
    free = model.predict(IMAGES[:1])
    with iba.restrict_flow():
        assert iba._get_session().run(iba._restrict_flow)
        assert np.abs(model.predict(IMAGES[:1]) - free).mean() > 1e-3
    assert (model.predict(IMAGES[:1]) == free).all()
    again = keras.models.clone_model(model)
    assert again.get_layer("iba").get_default()["beta"] == 1


def a_layer_on_sequences():
    backend.clear_session()
    model = keras.models.Sequential([Conv1D(4, 3, padding="same", input_shape=(6, 3)), IBALayer(**FEW)])
    model.add(Flatten())
    model.add(Dense(5))
    iba, rows = model.layers[1], IMAGES[:, :6, 0]
    iba.fit({model.input: rows})
    target = iba.set_classification_loss(model.output)
    assert iba.analyze({model.input: rows[:1], target: np.array([4])}).shape == (6, 4)


def a_copy_of_a_model():
    """Tensors and names from the model, variables that change, and what the copy is made of."""
    model = network()
    layer = model.get_layer("conv1")
    shape = [int(size) for size in layer.output.shape[1:]]
    mean, std = RNG.uniform(size=(2, *shape))
    copy = IBACopy(
        layer.output,
        [model.output.name],
        feature_mean=mean,
        feature_std=std,
        feature_active=np.ones_like(std),
        **FEW,
    )
    copy.assert_variables_equal()
    np.testing.assert_allclose(copy.predict({model.input: IMAGES})[0], model.predict(IMAGES), atol=1e-5)
    copy.set_classification_loss()
    assert copy.analyze({model.input: IMAGES[:1]}, {copy.target: np.array([3])}).shape == (8, 8, 4)
    assert copy._outputs[0].shape[-1] == 5
    assert copy._active_neurons.eval(session=copy._session).all()
    kernel = backend.get_session().run(layer.kernel)
    backend.get_session().run(tf.assign(layer.kernel, kernel + 1))
    try:
        copy.assert_variables_equal()
    except AssertionError:
        copy.update_variables()
    else:
        raise SystemExit("the change was not seen")
    copy.assert_variables_equal()
    np.testing.assert_allclose(copy.predict({model.input: IMAGES})[0], model.predict(IMAGES), atol=1e-5)


def an_analyzer_and_its_file(folder):
    """A file that is read into another graph, and the lines of the package's start page."""
    model = model_wo_softmax(network(softmax="softmax"))
    before = model.predict(IMAGES[:1])
    layer = model.get_layer(name="conv1")
    analyzer = IBACopyInnvestigate(
        model, neuron_selection_mode="index", feature_name=layer.output.name, **FEW
    )
    assert (model.predict(IMAGES[:1]) == before).all()
    batches = ((IMAGES[start : start + 4], np.zeros(4)) for start in (0, 4, 8))
    analyzer.fit_generator(batches, steps_per_epoch=2)
    saliency = analyzer.analyze(IMAGES[:1], neuron_selection=3)
    assert saliency.shape == (8, 8)
    assert analyzer.analyze(IMAGES[:2], neuron_selection=3).shape == (2, 8, 8)
    plot_saliency_map(saliency, img=IMAGES[0])
    analyzer.save_npz(str(folder / "analyzer.npz"))
    graph = tf.Graph()
    session = tf.Session(graph=graph)
    with session.as_default(), graph.as_default():
        loaded = IBACopyInnvestigate.load_npz(str(folder / "analyzer.npz"))
        found = loaded.predict(IMAGES)
    assert type(loaded) is IBACopyInnvestigate
    np.testing.assert_allclose(found, model.predict(IMAGES), atol=1e-5)
    np.testing.assert_allclose(analyzer.predict(IMAGES), model.predict(IMAGES), atol=1e-5)


def a_folder_of_pictures(folder):
    """Batches of a folder, which have no end."""
    (folder / "pictures" / "cat").mkdir(parents=True)
    for number in range(3):
        keras.utils.save_img(folder / "pictures" / "cat" / f"{number}.png", IMAGES[number])
    batches = get_imagenet_generator(str(folder / "pictures"), (9, 9), (8, 8), batch_size=2)
    model = network()
    analyzer = IBACopyInnvestigate(model, feature_name="conv1", **FEW)
    analyzer.fit_generator(batches, steps_per_epoch=5)
    assert analyzer._estimator.n_samples() == 2 + 1 + 2 + 1 + 2


if __name__ == "__main__":
    a_graph_of_operations()
    a_graph_with_branches()
    a_layer_in_a_model()
    if sys.argv[1] == "v1":
        a_copy_of_a_model()
        a_layer_on_sequences()
        an_analyzer_and_its_file(Path(sys.argv[2]))
        a_folder_of_pictures(Path(sys.argv[2]))
    print("all done")
