"""Whole numbers by texts, on disk."""

from __future__ import annotations

import hashlib
import sqlite3
from collections.abc import Iterator
from typing import Any

from iba_core.errors import InputError

_PAGE = 1000
"""Numbers that are read at once."""


class Index:
    """Whole numbers by texts, in the order in which the texts came first.

    They are in a temporary file that ends with the object, so a million of them need no more memory than a
    thousand. Few of them never leave memory.

    Example:
        >>> index = Index()
        >>> index.put(3, "animals", "cat")
        True
        >>> index.put(4, "animals", "cat"), index.get("animals", "cat"), index.get("cat")
        (False, 4, None)
        >>> list(index), len(index)
        ([4], 1)
    """

    def __init__(self) -> None:
        # Nothing in it outlives the program, so nothing has to be safe from a crash.
        self._table = sqlite3.connect("", isolation_level=None, check_same_thread=False)
        self._do("PRAGMA journal_mode = MEMORY")
        self._do("CREATE TABLE numbers (place INTEGER PRIMARY KEY, text BLOB UNIQUE, number INTEGER)")

    def put(self, number: int, *parts: str) -> bool:
        """Set the number of a text, given in parts.

        Returns:
            Whether the text is new.

        Raises:
            InputError: there is no room in the folder for temporary files.
        """
        text = _short(*parts)
        if self._do("UPDATE numbers SET number = ? WHERE text = ?", number, text).rowcount:
            return False
        self._do("INSERT INTO numbers (text, number) VALUES (?, ?)", text, number)
        return True

    def get(self, *parts: str) -> int | None:
        """The number of a text; None if it has none."""
        found = self._do("SELECT number FROM numbers WHERE text = ?", _short(*parts)).fetchone()
        return None if found is None else int(found[0])

    def discard(self, *parts: str) -> None:
        """Forget a text."""
        self._do("DELETE FROM numbers WHERE text = ?", _short(*parts))

    def __len__(self) -> int:
        return int(self._do("SELECT COUNT(*) FROM numbers").fetchone()[0])

    def __iter__(self) -> Iterator[int]:
        """The numbers of the texts that are there now, also where others come meanwhile."""
        (last,) = self._do("SELECT COALESCE(MAX(place), 0) FROM numbers").fetchone()
        place = 0
        while found := self._do(
            "SELECT place, number FROM numbers WHERE place > ? AND place <= ? ORDER BY place LIMIT ?",
            place,
            last,
            _PAGE,
        ).fetchall():
            place = found[-1][0]
            yield from (number for _, number in found)

    def _do(self, command: str, *values: Any) -> sqlite3.Cursor:
        try:
            return self._table.execute(command, values)
        except sqlite3.OperationalError as error:
            raise InputError(
                f"the index of a run cannot be written to the folder for temporary files: {error}; "
                "SQLITE_TMPDIR names another"
            ) from error


def _short(*parts: str) -> bytes:
    """What stands for texts."""
    return hashlib.blake2b("\0".join(parts).encode(errors="surrogatepass"), digest_size=16).digest()
