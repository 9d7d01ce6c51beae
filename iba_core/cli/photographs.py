"""The photographs that a command reads, and the files that it writes for them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from iba_core.errors import InputError
from iba_core.pictures.images import image_files, load_image


@dataclass(frozen=True)
class Photograph:
    """One photograph.

    Attributes:
        path: the file.
        stem: unique start of the names of the files that are written for it.
    """

    path: Path
    stem: str

    def load(self) -> Image.Image:
        """Read the photograph; see `load_image`."""
        return load_image(self.path)

    def output(self, folder: Path, suffix: str) -> Path:
        """Return the path of the file with the ending `suffix` that is written for the photograph."""
        return folder / f"{self.stem}{suffix}"


def find_photographs(paths: Iterable[Path]) -> list[Photograph]:
    """Find photographs in files and folders, and read each once to check it.

    Raises:
        InputError: a file is missing or not an image, or a folder contains no image.
    """
    files: dict[Path, Path] = {}
    for path in paths:
        for file in image_files(path) if path.is_dir() else [path]:
            load_image(file)
            # Count a file once, even if it is given twice.
            files.setdefault(file.resolve(), file)
    taken: set[str] = set()
    photographs = []
    for file in files.values():
        stem, number = f"{file.stem}-iba", 1
        while stem.casefold() in taken:
            number += 1
            stem = f"{file.stem}-{number}-iba"
        taken.add(stem.casefold())
        photographs.append(Photograph(file, stem))
    return photographs


def make_folder(folder: Path, photographs: Sequence[Photograph] = (), suffixes: Iterable[str] = ()) -> None:
    """Make the folder for the output, unless it exists.

    Args:
        folder: folder to write to.
        photographs: photographs that must not be overwritten.
        suffixes: endings of the files to write.

    Raises:
        InputError: the folder cannot be made, or a photograph would be overwritten.
    """
    outputs = {
        photograph.output(folder, suffix).resolve() for photograph in photographs for suffix in suffixes
    }
    for photograph in photographs:
        if photograph.path.resolve() in outputs:
            raise InputError(f"out={str(folder)!r} would overwrite the photograph {photograph.path}")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"out={str(folder)!r} cannot be made a folder: {error.strerror}") from error


def require_writable(option: str, file: Path) -> None:
    """Check that a file can be written.

    Args:
        option: name of the option, for the message.
        file: path of the file.

    Raises:
        InputError: its folder does not exist, or it is a folder.
    """
    if not file.parent.is_dir():
        raise InputError(f"{option}={str(file)!r} cannot be written: its folder does not exist")
    if file.is_dir():
        raise InputError(f"{option}={str(file)!r} is a folder; a file was expected")
