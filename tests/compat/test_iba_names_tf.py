"""The published package IBA for TensorFlow, by its names, in programs of Keras 3."""

from __future__ import annotations

from importlib import import_module
from itertools import islice

import keras
import matplotlib as mpl
import numpy as np
import pytest
import tensorflow as tf
from keras.layers import Activation, Conv2D, Dense, GlobalAveragePooling2D

import iba_tf
from iba_core import WelfordEstimator
from iba_core.errors import InputError, LayerError
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

IMAGES = np.random.default_rng(0).normal(size=(12, 8, 8, 3)).astype(np.float32)
FEW = {"steps": 2, "batch_size": 3}

NAMES = {
    "tensorflow_v1": "IBALayer IBACopy IBACopyInnvestigate TFWelfordEstimator to_saliency_map "
    "get_imagenet_generator model_wo_softmax plot_saliency_map",
    "utils": "WelfordEstimator get_tqdm ifnone to_unit_interval load_monkeys plot_saliency_map",
}


def network(*further, softmax=None):
    x = inputs = keras.Input((8, 8, 3))
    for layer in (Conv2D(4, 3, name="conv"), Activation("relu", name="relu"), *further):
        x = layer(x)
    x = GlobalAveragePooling2D()(x)
    return keras.Model(inputs, Dense(5, activation=softmax, name="logits")(x))


@pytest.mark.parametrize("module", NAMES)
def test_the_published_names_are_in_the_published_modules(module):
    found = import_module(f"iba_tf.compat.iba.{module}")
    assert [name for name in NAMES[module].split() if not hasattr(found, name)] == []


def test_a_program_with_a_layer():
    model = model_wo_softmax(network(IBALayer(name="iba", **FEW), softmax="softmax"))
    iba = model.get_layer(name="iba")
    target = iba.set_classification_loss(model.output)
    for images in np.split(IMAGES, 3):
        iba.fit({model.input: images})
    assert iba._estimator.n_samples() == 12
    iba.collect_all()
    capacity = iba.analyze({model.input: IMAGES[:1], target: np.array([4])})
    assert to_saliency_map(capacity, shape=(8, 8)).shape == (8, 8)
    assert iba._get_session().run([iba._restrict_flow, iba._use_layer_input]) == [False, True]
    with iba.restrict_flow():
        assert iba._get_session().run(iba._restrict_flow)


def test_losses_of_one_image_are_numbers():
    model = network(IBALayer(name="iba", **FEW))
    iba = model.get_layer("iba")
    target = iba.set_classification_loss(model.output)
    iba.fit({model.input: IMAGES})
    iba.collect("loss", "model_loss", "information_loss", "capacity_mean", "alpha")
    iba.analyze({model.input: IMAGES[:1], target: 4})
    report = iba.get_report()
    for entry in ("init", 0, 1, "final"):
        shapes = {name: value.shape for name, value in report[entry].items()}
        assert shapes.pop("alpha") == (1, 6, 6, 4)
        assert set(shapes.values()) == {()}
        assert f"{report[entry]['loss']:.0f}".isdigit()
    iba.analyze({model.input: IMAGES[:2], target: 4})
    assert iba.get_report()[0]["loss"].shape == (2,)


def test_a_copy_by_the_names_of_its_outputs():
    model = network()
    copy = IBACopy(model.get_layer("relu").output, [model.output.name], **FEW)
    copy.fit({model.input: IMAGES})
    target = copy.set_classification_loss()
    assert copy.analyze({model.input: IMAGES[:1]}, {target: np.array([2])}).shape == (6, 6, 4)
    np.testing.assert_allclose(copy.predict({model.input: IMAGES})[0], model.predict(IMAGES), atol=1e-5)
    assert copy._outputs[0].graph is copy._graph
    active = copy._active_neurons.eval(session=copy._session)
    np.testing.assert_array_equal(active[0], copy._estimator.active_neurons())
    with pytest.raises(LayerError, match="no such tensor"):
        IBACopy(model.get_layer("relu").output, ["no such tensor"])


@pytest.fixture
def analyzer():
    made = IBACopyInnvestigate(network(), "index", "relu", **FEW)
    made.fit(IMAGES)
    return made


def test_one_map_has_no_batch_axis(analyzer):
    mpl.use("agg")
    alone = analyzer.analyze(IMAGES[:1], neuron_selection=3, seed=0)
    plot_saliency_map(alone, img=IMAGES[0])
    plot_saliency_map(alone[None], img=IMAGES[0])
    several = analyzer.analyze(IMAGES[:3], neuron_selection=3, seed=0)
    assert several.shape == (3, 8, 8)
    np.testing.assert_allclose(several[0], alone, rtol=1e-3, atol=1e-6)


def test_an_analyzer_is_read_inside_of_a_graph(analyzer, tmp_path):
    analyzer.save_npz(str(tmp_path / "analyzer.npz"))
    with tf.Graph().as_default(), tf.compat.v1.Session():
        loaded = IBACopyInnvestigate.load_npz(str(tmp_path / "analyzer"))
        found = loaded.predict(IMAGES)
    np.testing.assert_allclose(found, analyzer.predict(IMAGES), atol=1e-5)
    assert type(loaded) is IBACopyInnvestigate
    # The library's own class reads the file as its own.
    own = iba_tf.IBACopyInnvestigate.load_npz(str(tmp_path / "analyzer"))
    assert type(own) is iba_tf.IBACopyInnvestigate
    assert own.analyze(IMAGES[:1], 3).shape == (1, 8, 8)


def test_published_statistics_load():
    features = np.maximum(IMAGES, 0)
    state = {
        "m": features.mean(0),
        "s": features.var(0) * 12,
        "n_samples": 12,
        "neuron_nonzero": (features != 0).sum(0),
    }
    plain, of_tensor = WelfordEstimator(), TFWelfordEstimator("feature:0")
    for estimator in (plain, of_tensor):
        estimator.load_state_dict(state)
        np.testing.assert_allclose(estimator.std(), features.std(0, ddof=1), rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(estimator.m, state["m"], rtol=1e-6)
        np.testing.assert_allclose(estimator.s, state["s"], rtol=1e-4, atol=1e-5)


class TestImages:
    @pytest.fixture
    def folder(self, tmp_path):
        for index, name in enumerate(("cat", "dog")):
            (tmp_path / name).mkdir()
            for number in range(2):
                keras.utils.save_img(
                    tmp_path / name / f"{number}.png", np.full((6, 8, 3), 100 * index), scale=False
                )
        return tmp_path

    def test_batches_do_not_end(self, folder):
        batches = get_imagenet_generator(
            str(folder), (4, 4), None, batch_size=4, preprocess_input=lambda x: x
        )
        found = list(islice(batches, 4))
        assert all(images.shape == (4, 4, 4, 3) and targets.shape == (4, 2) for images, targets in found)
        orders = {tuple(targets.argmax(1)) for _, targets in found}
        assert len(orders) > 1
        for images, targets in found:
            np.testing.assert_array_equal(images[:, 0, 0, 0], 100 * targets.argmax(1))

    def test_classes_and_their_mode(self, folder):
        options = {"class_mode": "sparse", "classes": ["dog", "cat"], "preprocess_input": lambda x: x}
        images, targets = next(get_imagenet_generator(folder, (4, 4), (2, 2), **options))
        assert images.shape == (4, 2, 2, 3)
        np.testing.assert_array_equal(images[:, 0, 0, 0], 100 * (1 - targets))
        with pytest.raises(InputError, match="class_mode"):
            get_imagenet_generator(folder, class_mode="input")
        with pytest.raises(InputError, match="path"):
            get_imagenet_generator(folder / "missing")


def test_a_layer_of_keras_3_is_one_of_its_layers():
    assert isinstance(IBALayer(), keras.layers.Layer)
    model = network(IBALayer(name="iba", beta=3))
    again = keras.models.clone_model(model)
    assert type(again.get_layer("iba")) is IBALayer
    assert again.get_layer("iba").get_default()["beta"] == 3
