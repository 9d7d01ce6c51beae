"""The command line on every kind of file that TensorFlow and Keras write."""

from __future__ import annotations

import sys

import h5py
import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers
from PIL import Image
from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2

from iba_core.cli import main, statistics
from iba_core.datasets import Run
from iba_core.errors import StateError
from iba_tf import GraphModel, TensorFlowAdapter

FAST = ("--steps", 2, "--samples", 2)


@pytest.fixture(scope="module")
def model():
    keras.utils.set_random_seed(1)
    return keras.Sequential(
        [
            keras.Input((32, 32, 3)),
            layers.Conv2D(6, 3, padding="same", activation="relu", name="first"),
            layers.MaxPooling2D(name="half"),
            layers.Conv2D(8, 3, padding="same", activation="relu", name="second"),
            layers.Flatten(name="flat"),
            layers.Dense(5, name="logits"),
        ],
        name="net",
    )


@pytest.fixture(scope="module")
def folder(model, tmp_path_factory):
    """A photograph, and the network in every format."""
    folder = tmp_path_factory.mktemp("models")
    model.save(folder / "net.keras")
    model.save(folder / "net.h5")
    model.save(folder / "net.hdf5")
    model.export(folder / "saved", verbose=False)
    concrete = tf.function(lambda image: model(image, training=False)).get_concrete_function(
        tf.TensorSpec((None, 32, 32, 3), name="image")
    )
    frozen = convert_variables_to_constants_v2(concrete).graph.as_graph_def()
    (folder / "frozen.pb").write_bytes(frozen.SerializeToString())
    pixels = np.random.default_rng(0).integers(0, 256, (5, 6, 3), dtype=np.uint8)
    Image.fromarray(pixels).resize((60, 48)).save(folder / "photo.png")
    (folder / "data").mkdir()
    for index in range(4):
        pixels = np.random.default_rng(index).integers(0, 256, (40, 40, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / "data" / f"{index}.png")
    return folder


@pytest.fixture
def iba(folder, monkeypatch, capfd):
    """Run the command line in the folder; gives exit code, stdout and stderr."""
    monkeypatch.chdir(folder)
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setattr(statistics, "CROPS", 16)

    def run(*arguments):
        capfd.readouterr()
        monkeypatch.setattr(sys, "argv", ["iba", *map(str, arguments)])
        return main(), *capfd.readouterr()

    return run


LAYERS = {
    "net.keras": "second",
    "net.h5": "second",
    "net.hdf5": "second",
    "saved": "net_1/second_1/Relu",
    "saved/saved_model.pb": "net_1/second_1/Relu",
    "frozen.pb": "net_1/second_1/Relu",
}


@pytest.mark.parametrize("source", LAYERS)
def test_the_model_in_a_file_is_the_one_that_was_saved(source, folder, model):
    x = np.random.default_rng(0).normal(size=(2, 32, 32, 3)).astype(np.float32)
    adapter = TensorFlowAdapter(TensorFlowAdapter.load(str(folder / source)))
    np.testing.assert_allclose(adapter.predict(x), model(x), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("source", ["net.h5", "saved", "frozen.pb"])
def test_layers_are_listed(iba, source):
    code, out, err = iba("layers", source)
    assert (code, err) == (0, "")
    lines = {" ".join(line.split()) for line in out.splitlines()}
    kind = "Conv2D" if source == "net.h5" else "Relu"
    assert any(line.endswith(f"{LAYERS[source]} {kind} 16 x 16 x 8") for line in lines)
    assert "32 x 32 pixels" in out  # the size is the model's own


def test_all_files_give_the_same_map(iba, tmp_path):
    """The statistics are estimated by one, and taken by the next where the layer has its name."""
    maps = []
    for source in ("net.keras", "net.h5", "saved", "frozen.pb"):
        out = tmp_path / source
        code, printed, err = iba(
            "explain", "photo.png", "--model", source, "--layer", LAYERS[source], *FAST, "--out", out
        )
        assert (code, err) == (0, "")
        assert "TensorFlow" in printed
        (record,) = Run.open(out)
        maps.append(record.attribution().capacity)
    for found in maps[1:]:
        np.testing.assert_allclose(found, maps[0], rtol=1e-4, atol=1e-5)


def test_statistics_of_a_folder_are_estimated(iba, tmp_path):
    path = tmp_path / "stats.safetensors"
    code, out, _ = iba("estimate", "saved", "data", "--layer", "net_1/second_1/Relu", "--out", path)
    assert code == 0
    assert "all 4 in data" in out
    code, out, _ = iba(
        "explain", "photo.png", "--model", "frozen.pb", "--stats", path, *FAST, "--out", tmp_path
    )
    assert code == 0
    assert "net_1/second_1/Relu" in out


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("bad.h5", b"no file of Keras", r"'bad\.h5' is no Keras model that can be loaded safely"),
        ("bad.pb", b"no graph", r"'bad\.pb' is no frozen graph of TensorFlow"),
        ("bad/saved_model.pb", b"no model", r"the SavedModel in 'bad' is damaged"),
    ],
)
def test_a_damaged_file_is_one_line(iba, folder, name, content, message):
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_bytes(content)
    code, out, err = iba("layers", name)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert message.replace("\\", "") in err
    assert iba("layers", "missing.pb")[2] == "iba: error: there is no model file 'missing.pb'\n"


class TestOldFiles:
    def test_files_of_keras_2_are_loaded(self, tmp_path):
        tf_keras = pytest.importorskip("tf_keras")
        inputs = tf_keras.Input((8, 8, 3))
        x = tf_keras.layers.Conv2D(4, 3, name="conv")(inputs)
        x = tf.reduce_mean(tf.nn.relu(x), axis=(1, 2))  # layers that Keras 3 does not know
        model = tf_keras.Model(inputs, tf_keras.layers.Dense(2, name="logits")(x))
        model.save(tmp_path / "old.h5")
        loaded = TensorFlowAdapter.load(str(tmp_path / "old.h5"))
        assert isinstance(loaded, tf_keras.Model)
        x = np.random.default_rng(0).normal(size=(2, 8, 8, 3)).astype(np.float32)
        np.testing.assert_allclose(GraphModel.of(loaded).predict(x), model(x), rtol=1e-5)

    @pytest.mark.parametrize("code", ["lambda", "function"])
    def test_code_in_an_old_file_is_not_run(self, tmp_path, code):
        tf_keras = pytest.importorskip("tf_keras")
        inputs = tf_keras.Input((3,))
        written = str(tmp_path / "written.npy")
        if code == "lambda":
            x = tf_keras.layers.Lambda(lambda x: x + len(np.save(written, 1) or ""))(inputs)
        else:
            x = tf.math.negative(inputs)
        tf_keras.Model(inputs, x).save(tmp_path / "old.h5")
        with h5py.File(tmp_path / "old.h5", "r+") as file:
            file.attrs["model_config"] = file.attrs["model_config"].replace("math.negative", "io.read_file")
        (tmp_path / "written.npy").unlink(missing_ok=True)
        with pytest.raises(StateError, match=r"old\.h5' is no Keras model that can be loaded safely"):
            TensorFlowAdapter.load(str(tmp_path / "old.h5"))
        assert not (tmp_path / "written.npy").exists()
