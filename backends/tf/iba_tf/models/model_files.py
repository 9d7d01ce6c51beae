"""Models in files: Keras files of every age, SavedModel folders, frozen graphs."""

from __future__ import annotations

import json
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import h5py
import keras

from iba_core.errors import IBAError, StateError
from iba_core.files import is_file
from iba_tf.models.graph_model import GraphModel
from iba_tf.models.saved_model import is_saved_model

KERAS = (".keras", ".h5", ".hdf5")
"""Files that Keras writes."""

_HDF5 = (".h5", ".hdf5")

_MOST = 2**26
"""Bytes of a model's configuration, and bytes that a file may unpack to besides four times its own size."""

_SECONDS = 5
"""Computing time for reading an HDF5 file, besides a second for each 100 MB."""

_COMPUTING = (
    "math.",
    "nn.",
    "linalg.",
    "image.",
    "signal.",
    "__operators__.",
    "reshape",
    "transpose",
    "concat",
    "stack",
    "split",
    "cast",
    "expand_dims",
    "squeeze",
    "pad",
    "tile",
    "gather",
    "clip_by_value",
    "zeros_like",
    "ones_like",
    "shape",
    "where",
    "compat.v1.transpose",
    "compat.v1.shape",
)
"""Functions of TensorFlow that a layer of Keras 2 may call by name: none reads or writes anything."""


def load_file(path: Path) -> Any | None:
    """Load the model in a file or folder; None if its name is not that of a TensorFlow or Keras file.

    Raises:
        StateError: it is missing, damaged, or holds code, which is not run.
    """
    if is_saved_model(path):
        return GraphModel.from_saved_model(path)
    if path.suffix in KERAS:
        return _load_keras(path)
    if path.suffix == ".pb":
        if path.name == "saved_model.pb":
            return GraphModel.from_saved_model(path.parent)
        try:
            return GraphModel.from_graph_def(path)
        except IBAError:
            raise
        except Exception as error:  # a damaged file may raise anything
            reason = " ".join(str(error).split())
            raise StateError(f"{str(path)!r} is no graph that can be used: {reason}") from error
    return None


def load_keras(path: Path, library: str) -> Any:
    """Load a model from a ``.keras`` file in such a way that it cannot run code of its own.

    Args:
        path: the file.
        library: ``"keras"`` or ``"tf_keras"``.

    Raises:
        StateError: the library is another one, or the file is of another kind, damaged or not harmless.
    """
    if library not in ("keras", "tf_keras"):
        raise StateError(f"library={library!r} is neither 'keras' nor 'tf_keras'")
    # Keras 2 reads any file that is no archive as HDF5, and has no safe mode for HDF5.
    if path.suffix != ".keras" or not zipfile.is_zipfile(path):
        raise StateError("it is no .keras file")
    _require_sound_archive(path)
    if library == "tf_keras" and not _is_harmless(path):
        raise StateError("it holds code, or names functions that do more than compute")
    package = import_module(library)
    # With the behaviour of TensorFlow 1, Keras 2 does not find its own models by their names.
    kinds = {"Sequential": package.Sequential, "Functional": package.Model, "Model": package.Model}
    known = kinds if library == "tf_keras" else None
    return package.models.load_model(path, custom_objects=known, compile=False, safe_mode=True)


def _load_keras(path: Path) -> Any:
    if not is_file(path):
        raise StateError(f"there is no model file {str(path)!r}")
    try:
        if path.suffix in _HDF5:
            _require_sound_hdf5(path)
        elif zipfile.is_zipfile(path):
            _require_sound_archive(path)
    except Exception as error:  # a damaged file may raise anything
        raise StateError(f"{str(path)!r} is no Keras model that can be loaded safely: {error}") from error
    try:
        return keras.saving.load_model(path, compile=False, safe_mode=True)
    except Exception as error:  # a damaged file may raise anything
        reason = " ".join(str(error).split())
        model = _load_legacy(path)
        if model is None:
            raise StateError(
                f"{str(path)!r} is no Keras model that can be loaded safely: {reason}"
            ) from error
        return model


def _unpacked_limit(size: int) -> int:
    """Bytes that a file of `size` bytes may unpack to. Weights hardly shrink when they are compressed."""
    return 4 * size + _MOST


def _require_sound_archive(path: Path) -> None:
    """Check a ``.keras`` file against its own checksums.

    Raises:
        StateError: it is damaged, or unpacks to much more than its own size.
    """
    with zipfile.ZipFile(path) as archive:
        sizes = {info.filename: info.file_size for info in archive.infolist()}
        texts = (size for name, size in sizes.items() if name.endswith(".json"))
        if sum(sizes.values()) > _unpacked_limit(path.stat().st_size) or any(size > _MOST for size in texts):
            raise StateError("it unpacks to more than any model of its size")
        if (damaged := archive.testzip()) is not None:
            raise StateError(f"{damaged!r} in it is damaged")


def _require_sound_hdf5(path: Path) -> None:
    """Check, by a process of its own, that reading an HDF5 file comes to an end.

    Raises:
        StateError: it does not, or the file unpacks to much more than its own size.
    """
    size = path.stat().st_size
    seconds = _SECONDS + size // 10**8
    program = Path(__file__).with_name("hdf5_reader.py")
    child = [sys.executable, "-P", str(program), str(path), str(seconds), str(_unpacked_limit(size))]
    try:
        # Reading from a slow disk takes no computing time.
        done = subprocess.run(child, capture_output=True, check=False, timeout=60 + 20 * seconds)
    except subprocess.TimeoutExpired as error:
        raise StateError("it is damaged, reading it does not come to an end") from error
    if done.returncode < 0:
        raise StateError("it is damaged, reading it does not come to an end or stops the program")
    if done.returncode:
        reason = done.stderr.decode(errors="replace").strip().rpartition("\n")[2]
        raise StateError(f"it is damaged: {reason}")


def _load_legacy(path: Path) -> Any | None:
    """The model by Keras 2, which knows more old layers; None where that cannot load it, either."""
    if path.suffix not in _HDF5 or find_spec("tf_keras") is None or not _is_harmless(path):
        return None
    import tf_keras

    try:
        return tf_keras.models.load_model(path, compile=False)
    except Exception:  # Keras 3's own reason is given instead
        return None


def _is_harmless(path: Path) -> bool:
    """Whether the model in a file consists of layers and of functions that only compute.

    Keras 2 would run code in an HDF5 file, import modules that the file names, and call any function of
    TensorFlow, including those that write files.
    """
    try:
        configuration = json.loads(_configuration(path))
    except (OSError, KeyError, ValueError, TypeError, zipfile.BadZipFile):
        return False
    return all(map(_computes, _objects(configuration)))


def _configuration(path: Path) -> str | bytes:
    # By the name, as Keras chooses: a file can be read as an archive and as HDF5.
    if path.suffix == ".keras":
        with zipfile.ZipFile(path) as archive:
            return archive.read("config.json")
    with h5py.File(path, "r") as file:
        found: str | bytes = file.attrs["model_config"]
    return found


def _objects(configuration: Any) -> Iterator[dict[str, Any]]:
    if isinstance(configuration, dict):
        yield configuration
    children = configuration.values() if isinstance(configuration, dict) else configuration
    if isinstance(configuration, (dict, list)):
        for child in children:
            yield from _objects(child)


def _computes(configuration: dict[str, Any]) -> bool:
    kind = configuration.get("class_name")
    if "Lambda" in (kind, configuration.get("registered_name")) or "cls_symbol" in configuration:
        return False
    if kind == "function":
        # Keras 2 would take any function for a layer, and call it with arguments of the file.
        return _is_registered(configuration.get("config"))
    module = str(configuration.get("module") or "keras").partition(".")[0]
    if module not in ("keras", "tf_keras"):
        # The module of what is registered is not imported.
        return not str(kind).startswith("__") and _is_registered(configuration.get("registered_name"))
    function = configuration.get("function")
    return function is None or (isinstance(function, str) and function.startswith(_COMPUTING))


def _is_registered(name: Any) -> bool:
    """Whether the running program has registered a class or function of that name with Keras 2."""
    import tf_keras

    return isinstance(name, str) and tf_keras.saving.get_registered_object(name) is not None
