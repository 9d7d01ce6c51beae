"""State files: named arrays and metadata in one safetensors file, which cannot contain code."""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from iba_core.errors import InputError, StateError

_KIND = "iba_kind"
_METADATA = "iba_metadata"


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
        InputError: the dtype of an array or the metadata cannot be stored, or the folder does not exist.

    Example:
        >>> import tempfile
        >>> path = tempfile.mkdtemp() + "/state.safetensors"
        >>> write_state(path, {"mean": np.zeros(2)}, kind="example", metadata={"layer": "fc"})
        >>> read_state(path, kind="example")
        ({'mean': array([0., 0.])}, {'layer': 'fc'})
    """
    target = Path(path)
    tensors = {name: _storable(name, value) for name, value in arrays.items()}
    try:
        text = json.dumps(dict(metadata or {}))
    except (TypeError, ValueError) as error:
        raise InputError(f"metadata cannot be stored as JSON: {error}") from error
    if not target.parent.is_dir():
        raise InputError(f"path={str(target)!r} cannot be written: its folder does not exist")
    content = save(tensors, metadata={_KIND: kind, _METADATA: text})
    # Write to the same folder, since a rename is atomic only within one file system.
    unfinished = target.with_name(f".{target.name}.{uuid.uuid4().hex}")
    try:
        with unfinished.open("xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(target)
    finally:
        unfinished.unlink(missing_ok=True)


def read_state(
    path: str | os.PathLike[str], kind: str, required: Iterable[str] = ()
) -> tuple[dict[str, npt.NDArray[Any]], dict[str, Any]]:
    """Read a file that `write_state` has written.

    Args:
        path: path of the file.
        kind: kind of content that the file must have.
        required: names of arrays that the file must contain.

    Returns:
        The arrays by name, and the metadata.

    Raises:
        StateError: the file is missing, truncated, not a safetensors file, of another kind, or lacks a
            required array.

    Example:
        See `write_state`.
    """
    target = Path(path)
    if not target.is_file():
        raise StateError(f"path={str(target)!r} is not a file; a file with a saved {kind} is needed")
    try:
        with safe_open(target, framework="numpy") as file:
            header = file.metadata() or {}
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
    except (SafetensorError, OSError, TypeError, ValueError) as error:
        raise StateError(
            f"path={str(target)!r} is truncated or not a safetensors file ({error}); "
            f"a file with a saved {kind} is needed"
        ) from error
    if header.get(_KIND) != kind:
        found = f"a saved {header[_KIND]}" if _KIND in header else "no state of this library"
        raise StateError(f"path={str(target)!r} holds {found}; a file with a saved {kind} is needed")
    missing = [name for name in required if name not in arrays]
    if missing:
        raise StateError(f"path={str(target)!r} lacks the array {missing[0]!r} of a saved {kind}")
    try:
        metadata = json.loads(header[_METADATA])
    except (KeyError, ValueError) as error:
        raise StateError(f"path={str(target)!r} has unreadable metadata ({error})") from error
    if not isinstance(metadata, dict):
        raise StateError(f"path={str(target)!r} has metadata that is not a JSON object")
    return arrays, metadata


def _storable(name: str, value: npt.ArrayLike) -> npt.NDArray[Any]:
    array = np.asarray(value, order="C")
    if array.dtype.kind not in "biufc" or array.dtype.itemsize > 8:
        raise InputError(
            f"the array {name!r} has dtype {array.dtype}; real numbers or booleans can be stored"
        )
    return array
