"""Damaged and hostile model files are one sentence, in little time and memory."""

from __future__ import annotations

import io
import json
import time
import zipfile
import zlib

import h5py
import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers
from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2

from iba_core.errors import IBAError, StateError
from iba_tf import TensorFlowAdapter

NO_MODEL = "is no Keras model that can be loaded safely"


@pytest.fixture(scope="module")
def model():
    keras.utils.set_random_seed(1)
    net = [keras.Input((8, 8, 3)), layers.Conv2D(4, 3, name="conv"), layers.Flatten(), layers.Dense(3)]
    return keras.Sequential(net)


def refused(path, message=NO_MODEL):
    with pytest.raises(StateError, match=message) as caught:
        TensorFlowAdapter.load(str(path))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def small_hdf5():
    content = io.BytesIO()
    with h5py.File(content, "w") as file:
        file.attrs["model_config"] = "{}"
        group = file.create_group("a").create_group("b")
        group.create_dataset("x", data=np.arange(6.0), track_times=False)
    return content.getvalue()


@pytest.mark.parametrize(("place", "value"), [(888, b"\xff" * 8), (928, bytes(8))])
def test_a_damaged_hdf5_does_not_hang(tmp_path, place, value):
    """The HDF5 library itself does not come to an end here: its heap of names points back to itself."""
    content = small_hdf5()
    (tmp_path / "net.h5").write_bytes(content[:place] + value + content[place + len(value) :])
    start = time.perf_counter()
    assert "it is damaged" in refused(tmp_path / "net.h5")
    assert time.perf_counter() - start < 60


@pytest.mark.parametrize("kind", ["in chunks", "compressed", "in one piece"])
def test_hdf5_that_unpacks_to_gigabytes(tmp_path, kind):
    path = tmp_path / "net.h5"
    with h5py.File(path, "w") as file:
        if kind == "in chunks":
            file.create_dataset("x", shape=(2**40,), dtype="f8", chunks=(2**20,))
        elif kind == "compressed":
            file.create_dataset("x", data=np.zeros(2**24), compression="gzip", compression_opts=9)
        else:
            file.create_dataset("x", shape=(2**28,), dtype="f4")
    assert "unpacks to more than any model of its size" in refused(path)


def rewritten(source, path, member, content, compression=zipfile.ZIP_STORED):
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(path, "w", compression) as new:
        for info in old.infolist():
            new.writestr(info.filename, content if info.filename == member else old.read(info))


def test_a_configuration_that_unpacks_to_gigabytes(model, tmp_path):
    model.save(tmp_path / "good.keras")
    bomb = b'{"class_name": "' + b"x" * 2**27 + b'"}'
    rewritten(tmp_path / "good.keras", tmp_path / "bomb.keras", "config.json", bomb, zipfile.ZIP_DEFLATED)
    assert (tmp_path / "bomb.keras").stat().st_size < 2**20
    assert "unpacks to more than any model of its size" in refused(tmp_path / "bomb.keras")


def test_weights_that_unpack_to_gigabytes(model, tmp_path):
    model.save(tmp_path / "good.keras")
    bomb = bytes(2**27)
    rewritten(tmp_path / "good.keras", tmp_path / "b.keras", "model.weights.h5", bomb, zipfile.ZIP_DEFLATED)
    assert "unpacks to more than any model of its size" in refused(tmp_path / "b.keras")


def test_brackets_without_end(model, tmp_path):
    model.save(tmp_path / "good.keras")
    rewritten(tmp_path / "good.keras", tmp_path / "deep.keras", "config.json", b"[" * 10**6)
    refused(tmp_path / "deep.keras")


def test_damaged_weights_are_noticed(model, tmp_path):
    model.save(tmp_path / "good.keras")
    content = bytearray((tmp_path / "good.keras").read_bytes())
    kernel = np.asarray(model.get_weights()[0]).tobytes()
    content[content.index(kernel) + 3] ^= 1
    (tmp_path / "bad.keras").write_bytes(content)
    assert "'model.weights.h5' in it is damaged" in refused(tmp_path / "bad.keras")


def test_compressed_files_are_models_too(model, tmp_path):
    model.save(tmp_path / "good.keras")
    with zipfile.ZipFile(tmp_path / "good.keras") as archive:
        configuration = archive.read("config.json")
    assert len(zlib.compress(configuration)) < len(configuration)
    args = (tmp_path / "packed.keras", "config.json", json.dumps(json.loads(configuration)))
    rewritten(tmp_path / "good.keras", *args, zipfile.ZIP_DEFLATED)
    x = np.ones((1, 8, 8, 3), np.float32)
    np.testing.assert_array_equal(TensorFlowAdapter.load(str(tmp_path / "packed.keras"))(x), model(x))


def test_a_graph_of_unknown_operations(model, tmp_path):
    traced = tf.function(model).get_concrete_function(tf.TensorSpec((None, 8, 8, 3), name="image"))
    frozen = convert_variables_to_constants_v2(traced).graph.as_graph_def()
    content = frozen.SerializeToString()
    assert b"Reshape" in content
    (tmp_path / "frozen.pb").write_bytes(content.replace(b"Reshape", b"Resxape"))
    with pytest.raises(IBAError, match="this TensorFlow knows no operation of type 'Resxape'"):
        TensorFlowAdapter.load(str(tmp_path / "frozen.pb"))


@pytest.mark.parametrize("name", ["net.h5", "net.hdf5"])
def test_sound_hdf5_is_loaded(model, tmp_path, name):
    model.save(tmp_path / name)
    x = np.ones((1, 8, 8, 3), np.float32)
    np.testing.assert_array_equal(TensorFlowAdapter.load(str(tmp_path / name))(x), model(x))
