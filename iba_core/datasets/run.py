"""The folder of a run: what was explained, with which settings, and what came out.

Everything in it is written whole or not at all. So a run may be killed at any moment, and goes on where it
was. It is read without any framework.

    setups/<id>.json             what the explanations have in common: model, layer, settings, versions
    results/<key>.safetensors    an `Attribution` for each input and target
    pictures/<name>__<target>__<key>.png    each with its map
    inputs/<name>__<content>.png            the part of each picture that the network sees
    journal.jsonl                a line for each result as it is finished
    summary.csv, summary.json    the table of all results, made from the journal
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, BinaryIO, Self

from iba_core.arguments import require_type
from iba_core.attribution import Attribution
from iba_core.datasets.index import Index
from iba_core.errors import InputError, StateError
from iba_core.files import as_path, shown, write_atomically

FORMAT = 1
"""Version of the folder's form."""

SETUPS, RESULTS, PICTURES, INPUTS = "setups", "results", "pictures", "inputs"
JOURNAL, SUMMARIES = "journal.jsonl", ("summary.csv", "summary.json")

_LONGEST = 80
"""Letters of a name that the name of a file takes over."""

_SHORT = 12
"""Digits of a key in the name of a picture."""

_UNSAFE = re.compile(r"[^\w.-]+")


@dataclass(frozen=True)
class Record:
    """One line of a run: an input explained for one target, or why it could not be.

    Attributes:
        key: what the result depends on, hashed: the input's content, the target, the setup.
        name: name of the input.
        path: its file; None for arrays.
        target: the target that was asked for: ``"predicted"``, the index of a class, or a name.
        setup: id of the setup, see `Run.setups`.
        layer: name of the layer.
        class_index: the explained class; None if the target is no class.
        class_name: its name; None if it is not known.
        probability: its probability for the whole input.
        bits: total bits of the map.
        bits_per_pixel: their mean over the map.
        survival: share of the target that is left when only these bits pass; None where there is nothing
            to keep.
        seconds: time of the explanation alone.
        top: the most probable classes, each with index, name or None, and probability.
        picture: the picture with its map, relative to the folder; None if there is none.
        drawn: whether a picture was asked for.
        vmax: value at the top of its colour bar, in bits per pixel; None for the map's own maximum.
        input: the part that the network sees, likewise.
        warnings: what the library warned of.
        error: why there is no result; None if there is one.

    Example:
        >>> record = Record(key="ab", name="cat.jpg", target="predicted", setup="1", layer="conv")
        >>> record.result, record.error
        ('results/ab.safetensors', None)
    """

    key: str
    name: str
    target: str
    setup: str
    layer: str
    path: str | None = None
    class_index: int | None = None
    class_name: str | None = None
    probability: float | None = None
    bits: float | None = None
    bits_per_pixel: float | None = None
    survival: float | None = None
    seconds: float | None = None
    top: tuple[tuple[int, str | None, float], ...] = ()
    picture: str | None = None
    drawn: bool = False
    vmax: float | None = None
    input: str | None = None
    warnings: tuple[str, ...] = ()
    error: str | None = None
    folder: Path = Path()
    """Folder of the run."""

    @property
    def result(self) -> str:
        """The file of the attribution, relative to the folder."""
        return f"{RESULTS}/{self.key}.safetensors"

    @property
    def result_path(self) -> Path:
        """The file of the attribution."""
        return self.folder / self.result

    @property
    def picture_path(self) -> Path | None:
        """The picture with its map; None if there is none."""
        return None if self.picture is None else self.folder / self.picture

    @property
    def input_path(self) -> Path | None:
        """The part of the picture that the network sees; None if there is none."""
        return None if self.input is None else self.folder / self.input

    def attribution(self) -> Attribution:
        """Read the result.

        Raises:
            InputError: there is none, since the input could not be explained.
            StateError: the file is missing or damaged.
        """
        if self.error is not None:
            raise InputError(f"{self.name!r} has no attribution: {self.error}")
        return Attribution.load(self.result_path)

    def to_dict(self) -> dict[str, Any]:
        """The fields as plain Python values, which JSON can store, with `result` in place of `folder`."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        del values["folder"]
        return {**values, "result": None if self.error is not None else self.result}

    @property
    def place(self) -> tuple[str, str, str]:
        """What there is one record of: an input, a target and a setup."""
        return self.path or self.name, self.target, self.setup


class Run:
    """A folder of explanations, see `iba_core.datasets`.

    `explain_dataset` and ``iba explain`` write it. Iterating gives a `Record` for each input and target, in
    the order in which they were explained.

    Args:
        folder: the folder. `begin` makes it if there is none.

    Raises:
        StateError: a setup in it cannot be read.

    Example:
        >>> run = Run("maps")
        >>> len(run), run.setups
        (0, {})
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder: Path = as_path(folder, "folder")
        self.setups: dict[str, dict[str, Any]] = {}
        self.reload()

    @classmethod
    def open(cls, folder: str | os.PathLike[str]) -> Self:
        """Open the folder of a run that exists.

        Args:
            folder: the folder.

        Raises:
            StateError: there is no run in it, or it cannot be read.

        Example:
            >>> Run.open("nowhere")
            Traceback (most recent call last):
            iba_core.errors.StateError: folder='nowhere' holds no run; iba explain and explain_dataset...
        """
        path = as_path(folder, "folder")
        if not (path / SETUPS).is_dir():
            raise StateError(f"folder={str(path)!r} holds no run; iba explain and explain_dataset make one")
        return cls(path)

    def __len__(self) -> int:
        return len(self._lines)

    def __contains__(self, record: object) -> bool:
        return isinstance(record, Record) and self.at(*record.place) == record

    def __iter__(self) -> Iterator[Record]:
        return self._read_all(self._lines)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.folder,)

    def __repr__(self) -> str:
        failed = len(self._failed)
        return f"<Run {shown(self.folder)!r}: {len(self) - failed} explanations, {failed} errors>"

    @property
    def failed(self) -> list[Record]:
        """The records of what could not be explained."""
        return list(self._read_all(self._failed))

    @property
    def settings(self) -> dict[str, Any]:
        """The setup that was used last: model, layer, preprocessing, hyperparameters, seed, versions.

        Raises:
            StateError: the run has none yet.
        """
        if not self.setups:
            raise StateError(f"folder={str(self.folder)!r} holds no setup yet")
        return max(self.setups.values(), key=lambda setup: str(setup["started"]))

    # -- reading ----------------------------------------------------------------------------------------

    def reload(self) -> None:
        """Read again what the folder holds, which another process may write.

        Raises:
            StateError: a setup cannot be read, or was written by a newer version.
        """
        self.setups = {}
        for path in sorted((self.folder / SETUPS).glob("*.json")):
            self.setups[path.stem] = _read_setup(path)
        # Where in the journal the records begin: of places, of keys, and of the places that have failed.
        self._lines, self._lines_by_key, self._failed = Index(), Index(), Index()
        start = 0
        with suppress(FileNotFoundError), self._journal() as journal:
            for line in journal:
                if (record := _record_of(line, self.folder)) is not None:
                    self._keep(record, start)
                start += len(line)

    @contextmanager
    def _journal(self) -> Iterator[BinaryIO]:
        try:
            with open(self.folder / JOURNAL, "rb") as file:
                yield file
        except FileNotFoundError:
            raise
        except OSError as error:
            raise StateError(f"{shown(self.folder / JOURNAL)} cannot be read: {error.strerror}") from error

    def _read_all(self, starts: Iterable[int]) -> Iterator[Record]:
        with suppress(FileNotFoundError), self._journal() as journal:
            for start in starts:
                journal.seek(start)
                if (record := _record_of(journal.readline(), self.folder)) is not None:
                    yield record

    def _read(self, start: int | None) -> Record | None:
        return None if start is None else next(self._read_all([start]), None)

    def _keep(self, record: Record, start: int) -> None:
        self._lines.put(start, *record.place)
        if record.error is None:
            self._lines_by_key.put(start, record.key)
            self._failed.discard(*record.place)
        else:
            self._failed.put(start, *record.place)

    def at(self, place: str, target: str, setup: str) -> Record | None:
        """The record of an input, a target and a setup; None if there is none.

        Args:
            place: path of the input, or its name if it has no path.
            target: label of the target.
            setup: id of the setup.
        """
        return self._read(self._lines.get(place, target, setup))

    def holds(self, key: str) -> bool:
        """Whether a result of this key has been found, under whatever name."""
        return self._lines_by_key.get(key) is not None

    def find(self, wanted: Record) -> Record | None:
        """What has been found for an input, a target and a setup, whether under this name or another.

        Args:
            wanted: its record before it is explained.
        """
        starts = self._lines.get(*wanted.place), self._lines_by_key.get(wanted.key)
        for record in map(self._read, starts):
            if record is not None and record.key == wanted.key and record.error is None:
                there = record.result_path.is_file()
                return (
                    replace(record, name=wanted.name, path=wanted.path, target=wanted.target)
                    if there
                    else None
                )
        return None

    # -- writing ----------------------------------------------------------------------------------------

    def begin(self, setup: Mapping[str, Any]) -> None:
        """Make the folder, and note a setup.

        Args:
            setup: what JSON can store, with ``"id"``, and ``"started"``, a time in ISO 8601.

        Raises:
            InputError: the folder cannot be made, or the file cannot be written.
        """
        require_type("setup", setup, Mapping, "a dict with an id")
        try:
            for part in (SETUPS, RESULTS, PICTURES, INPUTS):
                (self.folder / part).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            reason = f"cannot be made a folder: {error.strerror}"
            raise InputError(f"out={str(self.folder)!r} {reason}") from error
        path = self.folder / SETUPS / f"{setup['id']}.json"
        with write_atomically(path, "out") as file:
            file.write(json.dumps({"format": FORMAT, **setup}, indent=1).encode())
        self.setups[str(setup["id"])] = _read_setup(path)

    def add(self, record: Record) -> None:
        """Note a result, whose files are there, in one line of the journal.

        A process that is killed while it writes leaves a piece of a line, which is not read.

        Raises:
            InputError: the file cannot be written, or the record names files outside of the folder.
        """
        require_type("record", record, Record, "a Record")
        try:
            _require_inside(record)
        except ValueError as error:
            raise InputError(f"record names a file outside of the folder: {shown(error)}") from error
        values = record.to_dict()
        del values["result"]
        line = json.dumps(values).encode() + b"\n"
        path = self.folder / JOURNAL
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o666)
            try:
                size = os.fstat(descriptor).st_size
                if size and os.pread(descriptor, 1, size - 1) != b"\n":
                    line = b"\n" + line
                if os.write(descriptor, line) != len(line):
                    raise OSError(0, "the disk is full")
                end = os.lseek(descriptor, 0, os.SEEK_CUR)
            finally:
                os.close(descriptor)
        except OSError as error:
            raise InputError(f"{shown(path)} cannot be written: {error.strerror}") from error
        self._keep(record, end - len(line.lstrip(b"\n")))

    def write_summary(self) -> None:
        """Write ``summary.csv`` and ``summary.json``: a row for each record.

        Raises:
            InputError: a file cannot be written.
        """
        self.reload()  # another process may have written to the folder
        columns = [name for name in _COLUMNS if name not in ("top", "warnings")]
        paths = [self.folder / name for name in SUMMARIES]
        with write_atomically(paths[0], "folder") as table, write_atomically(paths[1], "folder") as rows:
            text = io.TextIOWrapper(table, "utf-8", newline="")
            writer = csv.DictWriter(text, columns, extrasaction="ignore", lineterminator="\n")
            writer.writeheader()
            rows.write(b"[")
            for number, record in enumerate(self):
                row = record.to_dict()
                writer.writerow({name: _cell(row[name]) for name in columns})
                rows.write((b",\n" if number else b"\n") + json.dumps(row, indent=1).encode())
            rows.write(b"\n]")
            text.detach()


_COLUMNS = [field.name for field in fields(Record) if field.name != "folder"] + ["result"]


def _cell(value: Any) -> Any:
    """A value for the table: text as a terminal shows it, and none that a spreadsheet takes for a formula."""
    if not isinstance(value, str):
        return value
    text = shown(value)
    return f"'{text}" if text.startswith(("=", "+", "-", "@")) else text


def _read_setup(path: Path) -> dict[str, Any]:
    try:
        setup = json.loads(path.read_bytes())
        version = setup["format"]
        if setup["id"] != path.stem or not isinstance(setup["started"], str):
            raise ValueError("it is not that of its name")
    except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
        raise StateError(f"{shown(path)} holds no setup: {type(error).__name__}: {error}") from error
    if version != FORMAT:
        raise StateError(f"{shown(path)} is of format {version!r}; this version reads format {FORMAT}")
    del setup["format"]
    found: dict[str, Any] = setup
    return found


def _record_of(line: bytes, folder: Path) -> Record | None:
    """The record in a line of the journal; None for what is no whole line."""
    try:
        values = json.loads(line)
        record = Record(**{**values, "folder": folder})
        top = tuple((int(index), name, float(share)) for index, name, share in record.top)
        record = replace(record, top=top, warnings=tuple(record.warnings))
        if not all(isinstance(getattr(record, name), str) for name in ("key", "name", "target", "setup")):
            return None
        _require_inside(record)
    except (ValueError, TypeError, KeyError, RecursionError):
        return None
    return record


def _require_inside(record: Record) -> None:
    """Refuse files outside of the folder, which no run writes."""
    for file in (record.picture, record.input, record.result):
        if file is not None and (os.path.isabs(file) or ".." in Path(file).parts):
            raise ValueError(file)


def digest(*parts: Any) -> str:
    """Hash of what JSON can store, 32 hexadecimal digits.

    Example:
        >>> digest("a", 1) == digest("a", 1), digest("a", 1) == digest("a1"), len(digest())
        (True, False, 32)
    """
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]


def file_stem(*parts: str) -> str:
    r"""Start of the name of a file, of parts that may hold anything; the last is kept as it is.

    Example:
        >>> file_stem("animals/cat 1.jpg", "tiger cat", "ab12")
        'animals-cat-1__tiger-cat__ab12'
        >>> file_stem("\udce9" * 300, "x")
        '-__x'
    """
    *names, last = parts
    short = [_UNSAFE.sub("-", os.path.splitext(name)[0] if i == 0 else name) for i, name in enumerate(names)]
    return "__".join([_shortened(name.lstrip(".")) for name in short] + [last[:_SHORT]])


def _shortened(name: str) -> str:
    # File systems count bytes.
    return name.encode(errors="ignore")[:_LONGEST].decode(errors="ignore") or "-"


def settings_dict(settings: Any) -> dict[str, Any]:
    """A dataclass as plain values, as JSON gives them back.

    Example:
        >>> from iba_core.framework.layout import Tokens
        >>> settings_dict(Tokens(prefix=1, grid=(2, 3)))
        {'prefix': 1, 'grid': [2, 3], 'any_length': False}
    """
    found: dict[str, Any] = json.loads(json.dumps(asdict(settings)))
    return found
