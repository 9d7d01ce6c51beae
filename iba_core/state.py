"""State files: named arrays and metadata in one safetensors file, which cannot contain code.

Each file holds a checksum of its content, so that damage is noticed.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from io import BytesIO
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors import safe_open
from safetensors.numpy import save

from iba_core.arguments import require_type
from iba_core.errors import IBAError, InputError, StateError
from iba_core.files import as_path, is_file, shown, write_atomically

_KIND = "iba_kind"
_METADATA = "iba_metadata"
_CHECKSUM = "iba_checksum"

_LONGEST_METADATA = 2**24
"""Characters of JSON; Python takes a hundred times as much memory for what they describe."""


def write_state(
    path: str | os.PathLike[str],
    arrays: Mapping[str, npt.ArrayLike],
    kind: str,
    metadata: Mapping[str, Any] | None = None,
) -> None:
    """Write arrays and metadata to a safetensors file, completely or not at all.

    An existing file is replaced in one step, so that there is never half a file, even after a crash.

    Args:
        path: path of the file; its folder must exist.
        arrays: numeric or boolean arrays of any shape, by name.
        kind: kind of content, such as ``"estimator"``; `read_state` needs the same word.
        metadata: anything that JSON can store. Tuples are read back as lists.

    Raises:
        InputError: the dtype of an array or the metadata cannot be stored, or the file cannot be written.

    Example:
        >>> import tempfile
        >>> path = tempfile.mkdtemp() + "/state.safetensors"
        >>> write_state(path, {"mean": np.zeros(2)}, kind="example", metadata={"layer": "fc"})
        >>> read_state(path, kind="example")
        ({'mean': array([0., 0.])}, {'layer': 'fc'})
    """
    require_type("metadata", metadata, Mapping, "a dict", optional=True)
    tensors = {name: _storable(name, value) for name, value in arrays.items()}
    try:
        text = json.dumps(dict(metadata or {}))
    except (TypeError, ValueError, RecursionError) as error:
        raise InputError(f"metadata cannot be stored as JSON: {error}") from error
    if len(text) > _LONGEST_METADATA:
        raise InputError(
            f"metadata takes {len(text)} characters of JSON; at most {_LONGEST_METADATA} are stored"
        )
    facts = {_KIND: kind, _METADATA: text, _CHECKSUM: _checksum(tensors, kind, text)}
    try:
        content = save(tensors, metadata=facts)
    except Exception as error:  # names that are no text, a kind of number that safetensors does not know
        raise InputError(f"the arrays {', '.join(map(repr, tensors))} cannot be stored: {error}") from error
    with write_atomically(path) as file:
        file.write(content)


def read_state(
    path: str | os.PathLike[str], kind: str, required: Iterable[str] = ()
) -> tuple[dict[str, npt.NDArray[Any]], dict[str, Any]]:
    """Read a file that `write_state` has written.

    Files of older versions have no checksum; they are read as well.

    Args:
        path: path of the file.
        kind: kind of content that the file must have.
        required: names of arrays that the file must contain.

    Returns:
        The arrays by name, and the metadata.

    Raises:
        StateError: the file is missing, truncated, damaged, not a safetensors file, of another kind, or lacks
            a required array.

    Example:
        See `write_state`.
    """
    target = as_path(path)
    name = f"path={str(target)!r}"
    if not is_file(target):
        raise StateError(f"{name} is not a file; a file with a saved {kind} is needed")
    try:
        with safe_open(target, framework="numpy") as file:
            header = file.metadata() or {}
            arrays = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a mapping)
    except Exception as error:  # a damaged file may raise anything
        raise StateError(
            f"{name} is truncated or not a safetensors file ({error}); a file with a saved {kind} is needed"
        ) from error
    if header.get(_KIND) != kind:
        found = f"a saved {shown(header[_KIND])}" if _KIND in header else "no state of this library"
        raise StateError(f"{name} holds {found}; a file with a saved {kind} is needed")
    text = header.get(_METADATA, "")
    # A word that this library does not write may be a damaged one.
    damaged = not header.keys() <= {_KIND, _METADATA, _CHECKSUM} or len(text) > _LONGEST_METADATA
    if damaged or (_CHECKSUM in header and header[_CHECKSUM] != _checksum(arrays, kind, text)):
        raise StateError(f"{name} is damaged: its content is not that which was written")
    missing = [key for key in required if key not in arrays]
    if missing:
        raise StateError(f"{name} lacks the array {missing[0]!r} of a saved {kind}")
    try:
        metadata = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise StateError(f"{name} has unreadable metadata ({error})") from error
    if not isinstance(metadata, dict):
        raise StateError(f"{name} has metadata that is not a JSON object")
    return arrays, metadata


def put_together(states: Iterable[Mapping[str, npt.NDArray[Any]]]) -> dict[str, npt.NDArray[Any]]:
    """Arrays of several states under names that tell them apart, for one file.

    Example:
        >>> sorted(put_together([{"mean": np.zeros(2)}, {"mean": np.ones(3)}]))
        ['0.mean', '1.mean']
    """
    return {f"{i}.{name}": array for i, state in enumerate(states) for name, array in state.items()}


def taken_out(arrays: Mapping[str, npt.NDArray[Any]], number: int | str) -> dict[str, npt.NDArray[Any]]:
    """Arrays of one of the states that `put_together` joined, by their own names.

    Example:
        >>> taken_out(put_together([{"mean": np.zeros(2)}, {"mean": np.ones(3)}]), 1)
        {'mean': array([1., 1., 1.])}
    """
    start = f"{number}."
    return {name.removeprefix(start): x for name, x in arrays.items() if name.startswith(start)}


@contextmanager
def interpreting(path: str | os.PathLike[str], kind: str) -> Iterator[None]:
    """Turn every error of a block that makes something of a file's content into a `StateError`.

    Args:
        path: the file, for the message.
        kind: kind of content, for the message.

    Raises:
        StateError: the block raised an error.

    Example:
        >>> with interpreting("a.safetensors", "attribution"):
        ...     {}["layer"]
        Traceback (most recent call last):
        iba_core.errors.StateError: path='a.safetensors' holds no valid attribution: KeyError: 'layer'
    """
    try:
        yield
    except Exception as error:  # what a file says may be anything
        reason = str(error) if isinstance(error, IBAError) else f"{type(error).__name__}: {error}"
        raise StateError(f"path={os.fsdecode(path)!r} holds no valid {kind}: {reason}") from error


def write_npz(
    path: str | os.PathLike[str], arrays: Mapping[str, npt.ArrayLike], argument: str = "path"
) -> None:
    """Write arrays or texts to an ``.npz`` file, completely or not at all.

    Args:
        path: the file.
        arrays: arrays by name, none of them of objects.
        argument: name of the argument, for the message.

    Raises:
        InputError: it cannot be written.

    Example:
        >>> import tempfile
        >>> path = tempfile.mkdtemp() + "/state.npz"
        >>> write_npz(path, {"mean": np.zeros(2)})
        >>> read_npz(path)
        {'mean': array([0., 0.])}
    """
    with write_atomically(path, argument) as file:
        entries: dict[str, Any] = {name: np.asarray(value) for name, value in arrays.items()}
        # The first, so that it is still there where the archive's list of entries has been cut short.
        np.savez(file, **{_CHECKSUM: np.array(_checksum(entries, "", "")), **entries})


def read_npz(path: str | os.PathLike[str], argument: str = "path") -> dict[str, npt.NDArray[Any]]:
    """Read a file that `write_npz` has written. It cannot run code, nor unpack to more than its own size.

    Args:
        path: the file.
        argument: name of the argument, for the message.

    Returns:
        The arrays by name.

    Raises:
        StateError: the file is missing, damaged, compressed, or of another kind.

    Example:
        See `write_npz`.
    """
    target = as_path(path, argument)
    if not is_file(target):
        raise StateError(f"{argument}={str(target)!r} is not a file; an .npz file is needed")
    try:
        with zipfile.ZipFile(target) as archive:
            arrays = {info.filename.removesuffix(".npy"): _npy(archive, info) for info in archive.infolist()}
        # Files of older versions have none.
        written = arrays.pop(_CHECKSUM, None)
        if not arrays or (written is not None and str(written) != _checksum(arrays, "", "")):
            raise StateError("its content is not that which was written")
        return arrays
    except Exception as error:  # a damaged file may raise anything
        raise StateError(f"{argument}={str(target)!r} is damaged or no .npz file: {error}") from error


def _npy(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> npt.NDArray[Any]:
    if info.compress_type != zipfile.ZIP_STORED:
        raise StateError(f"{info.filename!r} is compressed; this library compresses nothing")
    content = archive.read(info)  # checked against the archive's own checksum
    file = BytesIO(content)
    version = np.lib.format.read_magic(file)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, dtype = read(file)
    # NumPy reserves the memory that the header asks for, before it looks at the data.
    if math.prod(shape) * dtype.itemsize != len(content) - file.tell():
        raise StateError(f"{info.filename!r} does not hold the array of shape {shape} that it announces")
    file.seek(0)
    array: npt.NDArray[Any] = np.lib.format.read_array(file, allow_pickle=False)
    return array


def _checksum(arrays: Mapping[str, npt.NDArray[Any]], kind: str, metadata: str) -> str:
    """SHA-256 of everything that a file says."""
    digest = hashlib.sha256(json.dumps([kind, metadata]).encode())
    for name in sorted(arrays):
        array = arrays[name]
        digest.update(json.dumps([name, array.dtype.str, array.shape]).encode())
        digest.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


def _storable(name: str, value: npt.ArrayLike) -> npt.NDArray[Any]:
    array = np.asarray(value, order="C")
    if array.dtype.kind not in "biufc" or array.dtype.itemsize > 8:
        raise InputError(
            f"the array {name!r} has dtype {array.dtype}; real numbers or booleans can be stored"
        )
    return array if array.dtype.isnative else array.astype(array.dtype.newbyteorder("="))
