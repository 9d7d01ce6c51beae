"""State files keep what they are given, and other files are errors."""

import io
import json
import os
import pickle
import zipfile

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from safetensors import safe_open
from safetensors.numpy import save_file

from iba_core.errors import InputError, StateError
from iba_core.state import read_npz, read_state, write_npz, write_state

DTYPES = ["bool", "int8", "uint8", "int16", "int32", "int64", "float16", "float32", "float64"]

json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**40), 2**40) | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)
arrays = st.sampled_from(DTYPES).flatmap(
    lambda dtype: hnp.arrays(dtype, hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=3))
)


@settings(max_examples=60, deadline=None)
@given(st.dictionaries(st.text(max_size=8), arrays, max_size=3), st.dictionaries(st.text(), json_values))
def test_what_goes_in_comes_out(tmp_path_factory, values, metadata):
    path = tmp_path_factory.mktemp("state") / "file"
    write_state(path, values, "estimator", metadata)
    read, read_metadata = read_state(path, "estimator")
    assert read_metadata == metadata
    assert read.keys() == values.keys()
    for name, value in values.items():
        assert read[name].dtype == value.dtype
        assert read[name].shape == value.shape
        assert read[name].tobytes() == value.tobytes()


def test_any_memory_order_is_stored(tmp_path):
    matrix = np.arange(6.0).reshape(2, 3)
    write_state(tmp_path / "file", {"transposed": matrix.T, "strided": matrix[:, ::2], "list": [1, 2]}, "x")
    read, _ = read_state(tmp_path / "file", "x")
    np.testing.assert_array_equal(read["transposed"], matrix.T)
    np.testing.assert_array_equal(read["strided"], matrix[:, ::2])
    np.testing.assert_array_equal(read["list"], [1, 2])


def test_every_truncation_is_noticed(tmp_path):
    path = tmp_path / "file"
    write_state(path, {"mean": np.arange(4.0)}, "estimator", {"layer": "conv1"})
    content = path.read_bytes()
    for size in range(len(content)):
        path.write_bytes(content[:size])
        with pytest.raises(StateError, match="truncated"):
            read_state(path, "estimator")


class Explosive:
    def __reduce__(self):
        return (pytest.fail, ("the file ran code",))


@pytest.mark.parametrize(
    "content", [b"", b"not a state", pickle.dumps(Explosive()), b"\xff" * 64, b"PK\x03\x04" + b"\0" * 60]
)
def test_other_files_are_refused(tmp_path, content):
    path = tmp_path / "file"
    path.write_bytes(content)
    with pytest.raises(StateError, match=r"file.*truncated or not a safetensors file"):
        read_state(path, "estimator")


def test_a_file_of_another_kind_is_refused(tmp_path):
    write_state(tmp_path / "ours", {"a": [1]}, "attribution")
    with pytest.raises(StateError, match="a saved attribution; a file with a saved estimator"):
        read_state(tmp_path / "ours", "estimator")
    save_file({"a": np.ones(2)}, tmp_path / "foreign")
    with pytest.raises(StateError, match="no state of this library"):
        read_state(tmp_path / "foreign", "estimator")


def test_broken_metadata_is_refused(tmp_path):
    for text in ("{", "[1]", None):
        header = {"iba_kind": "estimator"} | ({} if text is None else {"iba_metadata": text})
        save_file({"a": np.ones(2)}, tmp_path / "file", metadata=header)
        with pytest.raises(StateError, match="metadata"):
            read_state(tmp_path / "file", "estimator")


def test_missing_files_and_arrays_are_named(tmp_path):
    with pytest.raises(StateError, match="absent"):
        read_state(tmp_path / "absent", "estimator")
    with pytest.raises(StateError, match="is not a file"):
        read_state(tmp_path, "estimator")
    write_state(tmp_path / "file", {"mean": [1.0]}, "estimator")
    with pytest.raises(StateError, match="'std'"):
        read_state(tmp_path / "file", "estimator", required=["mean", "std"])


@pytest.mark.parametrize("value", [["word"], np.array([None]), np.array(["2020"], "datetime64[D]")])
def test_what_cannot_be_stored_is_an_error_before_anything_is_written(tmp_path, value):
    with pytest.raises(InputError, match="'a' has dtype"):
        write_state(tmp_path / "file", {"a": value}, "estimator")
    with pytest.raises(InputError, match="JSON"):
        write_state(tmp_path / "file", {}, "estimator", {"a": {1, 2}})
    with pytest.raises(InputError, match="folder does not exist"):
        write_state(tmp_path / "absent" / "file", {}, "estimator")
    assert list(tmp_path.iterdir()) == []


def test_a_crash_while_writing_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "file"
    write_state(path, {"a": [1.0]}, "estimator", {"version": 1})

    def fail(descriptor):
        raise OSError("disk full")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(InputError, match=r"file' cannot be written: disk full"):
        write_state(path, {"a": [2.0]}, "estimator", {"version": 2})
    assert read_state(path, "estimator")[1] == {"version": 1}
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_is_replaced_and_never_overwritten(tmp_path):
    path, reader = tmp_path / "file", tmp_path / "opened before"
    write_state(path, {"a": [1.0]}, "estimator", {"version": 1})
    os.link(path, reader)
    write_state(path, {"a": [2.0]}, "estimator", {"version": 2})
    assert read_state(path, "estimator")[1] == {"version": 2}
    assert read_state(reader, "estimator")[1] == {"version": 1}


def test_the_file_is_a_plain_safetensors_file(tmp_path):
    write_state(tmp_path / "file", {"a": np.float32([1, 2])}, "estimator", {"layer": "conv1"})
    content = (tmp_path / "file").read_bytes()
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    assert header["a"]["dtype"] == "F32"
    assert json.loads(header["__metadata__"]["iba_metadata"]) == {"layer": "conv1"}


# -- damage ------------------------------------------------------------------------------------------


def rewritten(path, arrays=None, **header):
    """Write a file of the same arrays with another header, as no damage but only a program could."""
    with safe_open(path, framework="numpy") as file:
        metadata = {**file.metadata(), **header}
        known = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
    save_file(
        {**known, **(arrays or {})}, path, metadata={k: v for k, v in metadata.items() if v is not None}
    )


def test_every_damaged_byte_is_noticed(tmp_path):
    path = tmp_path / "file"
    write_state(path, {"mean": np.arange(4.0), "m2": np.ones(2)}, "estimator", {"layer": "conv1"})
    content = path.read_bytes()
    expected = read_state(path, "estimator", required=["mean", "m2"])
    for place in range(len(content)):
        for flip in (1, 32, 128):
            path.write_bytes(content[:place] + bytes([content[place] ^ flip]) + content[place + 1 :])
            try:
                arrays, metadata = read_state(path, "estimator", required=["mean", "m2"])
            except StateError:
                continue
            # What is left is white space in the header.
            assert metadata == expected[1]
            for name, array in expected[0].items():
                np.testing.assert_array_equal(arrays[name], array)


def test_files_of_before_there_was_a_checksum_are_read(tmp_path):
    path = tmp_path / "file"
    write_state(path, {"mean": np.arange(4.0)}, "estimator", {"layer": "conv1"})
    rewritten(path, iba_checksum=None)
    arrays, metadata = read_state(path, "estimator")
    np.testing.assert_array_equal(arrays["mean"], np.arange(4.0))
    assert metadata == {"layer": "conv1"}


@pytest.mark.parametrize(
    "change",
    [
        {"arrays": {"mean": np.arange(4.0) + 1e-9}},
        {"arrays": {"mean": np.arange(4.0, dtype=np.float32)}},
        {"arrays": {"mean": np.arange(4.0).reshape(2, 2)}},
        {"arrays": {"more": np.zeros(1)}},
        {"iba_metadata": '{"layer": "conv2"}'},
        {"iba_checksum": ""},
        {"iba_checksum": None, "iba_chacksum": "0"},
    ],
)
def test_other_content_is_noticed(tmp_path, change):
    path = tmp_path / "file"
    write_state(path, {"mean": np.arange(4.0)}, "estimator", {"layer": "conv1"})
    rewritten(path, **change)
    with pytest.raises(StateError, match="is damaged"):
        read_state(path, "estimator")


def test_nested_and_endless_metadata_is_refused(tmp_path):
    path = tmp_path / "file"
    write_state(path, {"mean": [1.0]}, "estimator")
    for text in ("[" * 100_000, '{"a": "' + "x" * 2**24 + '"}'):
        rewritten(path, iba_checksum=None, iba_metadata=text)
        with pytest.raises(StateError, match=r"unreadable metadata|damaged"):
            read_state(path, "estimator")
    with pytest.raises(InputError, match="characters of JSON"):
        write_state(path, {}, "estimator", {"a": "x" * 2**24})


def test_big_endian_arrays_are_stored(tmp_path):
    write_state(tmp_path / "file", {"mean": np.array([1.0, 2.0], ">f8")}, "estimator")
    np.testing.assert_array_equal(read_state(tmp_path / "file", "estimator")[0]["mean"], [1, 2])


@pytest.mark.parametrize("name", ["lone \udce9", 3])
def test_names_that_cannot_be_stored(tmp_path, name):
    with pytest.raises(InputError, match="cannot be stored"):
        write_state(tmp_path / "file", {name: [1.0]}, "estimator")
    assert list(tmp_path.iterdir()) == []


# -- .npz --------------------------------------------------------------------------------------------


def test_npz_comes_back(tmp_path):
    arrays = {"a": np.arange(6.0).reshape(2, 3).T, "b": np.array("text"), "c": np.zeros((0, 2), np.uint8)}
    write_npz(tmp_path / "file.npz", arrays)
    read = read_npz(tmp_path / "file.npz")
    assert read.keys() == arrays.keys()
    for name, array in arrays.items():
        assert read[name].dtype == array.dtype
        np.testing.assert_array_equal(read[name], array)


def test_npz_bombs_are_refused(tmp_path):
    path = tmp_path / "file.npz"
    np.savez_compressed(path, a=np.zeros(10**6))
    with pytest.raises(StateError, match="compressed"):
        read_npz(path)
    for shape in ((10**13,), (2**40, 2**40)):
        header = io.BytesIO()
        np.lib.format.write_array_header_1_0(header, {"descr": "<f8", "fortran_order": False, "shape": shape})
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("a.npy", header.getvalue())
        with pytest.raises(StateError, match="does not hold the array of shape"):
            read_npz(path)


def test_npz_without_objects(tmp_path):
    path = tmp_path / "file.npz"
    np.savez(path, a=np.array([Explosive()], object))
    with pytest.raises(StateError, match=r"damaged or no \.npz file"):
        read_npz(path)
    for content in (b"", b"PK", b"x" * 100):
        path.write_bytes(content)
        with pytest.raises(StateError, match=r"damaged or no \.npz file"):
            read_npz(path)
    with pytest.raises(StateError, match="is not a file"):
        read_npz(tmp_path)


def test_npz_files_with_fewer_or_other_arrays_are_noticed(tmp_path):
    path = tmp_path / "file.npz"
    write_npz(path, {"a": np.arange(3), "b": np.array("text")})
    with np.load(path) as file:
        known = dict(file)
    checksum = {"iba_checksum": known.pop("iba_checksum")}
    for arrays in (checksum, {**checksum, "a": known["a"]}, {**checksum, **known, "a": known["a"] + 1}, {}):
        np.savez(path, **arrays)
        with pytest.raises(StateError, match="its content is not that which was written"):
            read_npz(path)
    np.savez(path, **known)  # as older versions wrote it
    assert read_npz(path).keys() == {"a", "b"}
