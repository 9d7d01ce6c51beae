"""What a data set is made of: inputs that have a name, read only when their turn comes."""

from __future__ import annotations

import hashlib
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from iba_core.arguments import given, is_iterable
from iba_core.datasets.index import Index
from iba_core.datasets.run import digest, settings_dict
from iba_core.errors import InputError
from iba_core.files import as_path, shown
from iba_core.framework.inputs import arrays_of, map_arrays
from iba_core.framework.layout import DataFormat
from iba_core.framework.namespace import host_array
from iba_core.pictures.images import Preprocessing, image_files, load_image
from iba_core.pictures.plotting import channels_last

Pixels = npt.NDArray[Any]


class Item(ABC):
    """One input of a data set. It can be sent to another process.

    Attributes:
        name: as it can be shown.
        path: its file, as an absolute path; None for arrays.
    """

    name: str
    path: str | None

    @abstractmethod
    def content(self) -> str:
        """Hash of what the item holds, and of how it is prepared.

        Raises:
            InputError: it cannot be read.
        """

    @abstractmethod
    def load(self) -> tuple[Any, Callable[[tuple[int, ...]], Pixels | None]]:
        """The network's input, and what gives the picture that a map of a shape lies over, if there is one.

        Raises:
            InputError: it cannot be read.
        """

    @abstractmethod
    def row(self) -> Any:
        """The network's input, a batch of one. What has no axis of the batch gets one.

        Raises:
            InputError: it cannot be read.
        """


@dataclass(frozen=True)
class ImageItem(Item):
    """An image file.

    Attributes:
        name: name of the file, with that of its folder where it was found in one.
        file: its path, as the user gave it.
        path: its absolute path.
        preprocessing: what the network expects.
        data_format: position of the channels in the network's input.
    """

    name: str
    file: str
    path: str
    preprocessing: Preprocessing
    data_format: DataFormat

    def content(self) -> str:
        """See `Item.content`."""
        try:
            with open(self.file, "rb") as file:
                found = hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as error:
            raise InputError(f"{shown(self.file)} cannot be read: {error.strerror}") from error
        return digest(found, settings_dict(self.preprocessing))

    def load(self) -> tuple[Any, Callable[[tuple[int, ...]], Pixels | None]]:
        """See `Item.load`."""
        image = load_image(self.file)
        crop = self.preprocessing.crop(image)
        x = self.preprocessing(image, self.data_format)[None]
        return x, partial(_if_it_fits, crop)

    def row(self) -> Any:
        """See `Item.row`."""
        return self.load()[0]


@dataclass(frozen=True, eq=False)
class ArrayItem(Item):
    """An input in memory.

    Attributes:
        name: its name.
        x: one input, as `Explainer.explain` takes it, of NumPy arrays.
        path: None.
    """

    name: str
    x: Any
    path: str | None = None

    def content(self) -> str:
        """See `Item.content`."""
        found = hashlib.sha256()
        for array in arrays_of(self.x):
            found.update(f"{array.dtype} {array.shape}".encode())
            found.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
        return found.hexdigest()

    def load(self) -> tuple[Any, Callable[[tuple[int, ...]], Pixels | None]]:
        """See `Item.load`; an array that looks like a picture is one."""
        return self.x, partial(_picture_of, self.x)

    def row(self) -> Any:
        """See `Item.row`."""
        return map_arrays(lambda array: array[None], self.x)


def together(rows: Sequence[Any]) -> Any:
    """One batch of several.

    Args:
        rows: batches of one structure, of NumPy arrays.

    Raises:
        InputError: they differ in structure or shape.

    Example:
        >>> together([(np.zeros((1, 2)), np.zeros((1, 3))), (np.ones((1, 2)), np.ones((1, 3)))])[1]
        array([[0., 0., 0.],
               [1., 1., 1.]])
    """
    try:
        columns = zip(*[list(arrays_of(row)) for row in rows], strict=True)
        joined = iter([np.concatenate(column) for column in columns])
    except ValueError as error:
        raise InputError(f"inputs of different shapes need batch_size=1: {error}") from error
    return map_arrays(lambda _: next(joined), rows[0])


def _if_it_fits(picture: Pixels, shape: tuple[int, ...]) -> Pixels | None:
    return picture if picture.shape[:2] == shape else None


def _picture_of(x: Any, shape: tuple[int, ...]) -> Pixels | None:
    """The input itself, if it is one image of the size of a map, in grey or colour."""
    if not isinstance(x, np.ndarray) or len(shape) != 2:
        return None
    pixels = channels_last(x[0] if x.ndim == 4 and len(x) == 1 else x, shape)
    if pixels.shape[:2] != shape or pixels.shape[2:] not in ((), (1,), (3,)):
        return None
    return pixels if np.isfinite(pixels).all() else None


# -- from what users have ----------------------------------------------------------------------------


def items_of(
    inputs: Any,
    preprocessing: Preprocessing | None,
    data_format: DataFormat,
    besides: str | os.PathLike[str] | None = None,
) -> Iterable[Item]:
    """Make items of what a user gives to `explain_dataset`.

    Args:
        inputs: a folder of image files, or a list of files and folders; a dict of inputs by name; or an
            iterable of pairs (name, input), or of items.
        preprocessing: what the network expects of image files.
        data_format: position of the channels in the network's input.
        besides: a folder whose files are left out, see `find_images`.

    Returns:
        A list for files, else a generator.

    Raises:
        InputError: there are no image files, or `preprocessing` is missing (raised at once); what the
            iterable gives is no pair, or a name comes twice (raised when its turn comes).

    Example:
        >>> [item.name for item in items_of({"a": np.zeros((2, 2, 3))}, None, "channels_last")]
        ['a']
    """
    if isinstance(inputs, (str, bytes, os.PathLike)):
        inputs = [inputs]
    if isinstance(inputs, Mapping):
        inputs = inputs.items()
    if not is_iterable(inputs):
        raise InputError(
            f"{given('inputs', inputs)} must be a folder, a list of image files, a dict of inputs by name, "
            "or pairs (name, input)"
        )
    if isinstance(inputs, (list, tuple)) and inputs and all(map(_is_path, inputs)):
        return image_items(find_images(inputs, besides), preprocessing, data_format)
    return _named(inputs)


def image_items(
    files: Iterable[tuple[str, str]], preprocessing: Preprocessing | None, data_format: DataFormat
) -> list[ImageItem]:
    """Items of image files.

    Args:
        files: names and paths, see `find_images`.
        preprocessing: what the network expects.
        data_format: position of the channels in the network's input.

    Raises:
        InputError: `preprocessing` is missing.
    """
    if preprocessing is None:
        raise InputError("preprocessing=None: image files need a Preprocessing")
    return [ImageItem(name, file, os.path.abspath(file), preprocessing, data_format) for name, file in files]


def find_images(
    paths: Iterable[str | os.PathLike[str]], besides: str | os.PathLike[str] | None = None
) -> list[tuple[str, str]]:
    """Find image files, also in folders and their subfolders. None is opened.

    Args:
        paths: files and folders. A file that comes twice counts once.
        besides: a folder whose files are left out where a folder around it is searched, such as that of the
            results.

    Returns:
        For each file its name, with that of its subfolder, and its path.

    Raises:
        InputError: a file does not exist, or a folder holds no image.
    """
    left_out = None if besides is None else Path(os.path.realpath(besides))
    found: dict[str, tuple[str, str]] = {}
    for path in paths:
        place = as_path(path, "inputs")
        for name, file in _files(place):
            real = Path(os.path.realpath(file))
            if left_out not in real.parents or file == place:
                found.setdefault(str(real), (name, os.fspath(file)))
    if not found:
        raise InputError("inputs holds no image but those of earlier results")
    return list(found.values())


def _files(place: Path) -> list[tuple[str, Path]]:
    if place.is_dir():
        return [(os.fspath(file.relative_to(place)), file) for file in image_files(place)]
    if not os.path.lexists(place):
        raise InputError(f"{shown(place)} does not exist; an image file was expected")
    return [(place.name, place)]


def _is_path(value: Any) -> bool:
    return isinstance(value, (str, bytes, os.PathLike))


def _named(pairs: Iterable[Any]) -> Iterator[Item]:
    seen = Index()
    for pair in pairs:
        if isinstance(pair, Item):
            item = pair
        elif isinstance(pair, (tuple, list)) and len(pair) == 2 and isinstance(pair[0], str):
            item = ArrayItem(pair[0], map_arrays(host_array, pair[1]))
        else:
            raise InputError(f"{given('inputs', pair)} is no pair (name, input)")
        place = item.path or item.name
        if not seen.put(1, place):
            raise InputError(f"inputs has the name {place!r} twice; every input needs its own")
        yield item
