"""The photographs that a command is given, and the files that it writes for them."""

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
        stem: what the names of the files written for it begin with, unlike that of any other.
    """

    path: Path
    stem: str

    def load(self) -> Image.Image:
        """Read it; see `load_image`."""
        return load_image(self.path)

    def output(self, folder: Path, suffix: str) -> Path:
        """The file with the ending `suffix` that is written for it."""
        return folder / f"{self.stem}{suffix}"


def find_photographs(paths: Iterable[Path]) -> list[Photograph]:
    """The photographs that are meant, folders being searched, each read once to see that it can be.

    Raises:
        InputError: one is missing or no image, or a folder holds none.
    """
    files: dict[Path, Path] = {}
    for path in paths:
        for file in image_files(path) if path.is_dir() else [path]:
            load_image(file)
            # The same file given twice is one photograph.
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
    """Make the folder for the output, unless it is there.

    Args:
        folder: where the files are to be written.
        photographs: must not be among the files that are to be written.
        suffixes: endings of those files.

    Raises:
        InputError: it cannot be made, or a photograph would be overwritten.
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
