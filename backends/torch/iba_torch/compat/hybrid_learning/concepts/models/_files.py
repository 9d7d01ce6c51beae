"""Files of embeddings in the published formats."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from iba_core.arguments import given
from iba_core.errors import InputError, StateError
from iba_core.files import is_file, write_atomically
from iba_core.framework.namespace import host_array

_PLAIN = (str, bool, int, float, type(None))

_ARRAYS: list[Any] = [
    np.ndarray,
    np.dtype,
    *(type(np.dtype(code)) for code in "?bBhHiIlLqQefd"),
    *(
        (maker, f"{module}.multiarray.{name}")
        for maker, name in (
            (np.zeros(1).__reduce__()[0], "_reconstruct"),
            (np.float64().__reduce__()[0], "scalar"),
        )
        for module in ("numpy.core", "numpy._core")
    ),
]
"""All that a file needs to hold arrays of numbers, by the names of both generations of NumPy."""


def write_npz(path: Path, arrays: dict[str, Any]) -> None:
    """Write an ``.npz`` file with nothing but the given entries."""
    with write_atomically(path, "filepath") as file:
        np.savez(file, **arrays)


def write_pt(path: Path, settings: dict[str, Any]) -> None:
    """Write the settings of an embedding, as far as they are numbers, texts or arrays, to a ``.pt`` file."""
    plain = {name: _plain(value) for name, value in settings.items() if _is_plain(value)}
    with write_atomically(path, "filepath") as file:
        torch.save(plain, file)


def read_pt(path: Path) -> dict[str, Any]:
    """Read the settings of an embedding from a ``.pt`` file, which can only hold numbers, texts and arrays.

    Raises:
        StateError: the file is missing, damaged, or holds something else.
    """
    if not is_file(path):
        raise StateError(
            f"filepath={str(path)!r} is not a file; a file with a saved concept embedding is needed"
        )
    try:
        # PyTorch 2.4 has no such list; there, only files with tensors can be read.
        allowing: Any = getattr(torch.serialization, "safe_globals", nullcontext)
        with allowing(_ARRAYS):
            settings = torch.load(path, map_location="cpu", weights_only=True)
        return {str(name): _arrays(value) for name, value in dict(settings).items()}
    except Exception as error:  # a damaged file may raise anything
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise StateError(
            f"filepath={str(path)!r} is damaged or holds more than numbers, texts and arrays ({reason})"
        ) from error


def _is_plain(value: Any) -> bool:
    if isinstance(value, dict):
        return all(_is_plain(part) for part in value.values())
    if isinstance(value, (tuple, list)):
        return all(_is_plain(part) for part in value)
    return isinstance(value, (*_PLAIN, np.ndarray, np.generic, Tensor))


def _plain(value: Any) -> Any:
    """Turn arrays into tensors, which every `torch.load` reads."""
    if isinstance(value, dict):
        return {name: _plain(part) for name, part in value.items()}
    if isinstance(value, (tuple, list)):
        return type(value)(_plain(part) for part in value)
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray):
        if value.dtype.kind not in "biuf":
            raise InputError(f"{given('state_dict', value)} must hold real numbers")
        return torch.from_numpy(np.array(value))
    return value


def _arrays(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _arrays(part) for name, part in value.items()}
    return host_array(value) if isinstance(value, Tensor) else value
