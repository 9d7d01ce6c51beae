"""The photographs that a command reads, and the files that it writes for them."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from iba_core.errors import InputError
from iba_core.files import require_writable, shown
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

    @property
    def name(self) -> str:
        """Name of the file, as it can be shown."""
        return shown(self.path.name)

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
    files: dict[str, Path] = {}
    for path in paths:
        for file in image_files(path) if os.path.isdir(path) else [path]:
            load_image(file)
            # Count a file once, even if it is given twice.
            files.setdefault(os.path.realpath(file), file)
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
        InputError: the folder cannot be made, a file in it could not be written, or a photograph would be
            overwritten.
    """
    outputs = [photograph.output(folder, suffix) for photograph in photographs for suffix in suffixes]
    taken = {os.path.realpath(output) for output in outputs}
    for photograph in photographs:
        if os.path.realpath(photograph.path) in taken:
            raise InputError(f"out={str(folder)!r} would overwrite the photograph {shown(photograph.path)}")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"out={str(folder)!r} cannot be made a folder: {error.strerror}") from error
    for output in outputs or [folder / "output"]:
        require_writable(output, "out")
