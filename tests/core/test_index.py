"""Numbers by texts that are kept on disk."""

import sqlite3
import tracemalloc

import numpy as np
import pytest

from iba_core import InputError
from iba_core.datasets.index import Index


def _of_memory(records):
    """Bytes that Python holds after noting so many records, beyond those of before."""
    tracemalloc.start()
    try:
        index = Index()
        for number in range(records):
            index.put(number, f"input{number}", "predicted", "setup")
        kept = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    assert len(index) == records
    return kept


def test_the_memory_of_an_index_does_not_grow():
    assert _of_memory(10_000) < _of_memory(100) + 20_000


def test_an_index_is_a_dict_of_numbers_by_texts():
    generator = np.random.default_rng(0)
    index, known = Index(), {}
    for number in range(5_000):
        parts = tuple(f"{each}" for each in generator.integers(0, 40, 2))
        if generator.random() < 0.2:
            index.discard(*parts)
            known.pop(parts, None)
        else:
            assert index.put(number, *parts) == (parts not in known)
            known[parts] = number
    assert list(index) == list(known.values())
    assert all(index.get(*parts) == number for parts, number in known.items())


def test_an_index_gives_what_was_there_when_it_was_asked():
    index = Index()
    for number in range(2_500):
        index.put(number, f"{number}")
    found = []
    for number in index:
        index.put(number + 10_000, f"new{number}")
        found.append(number)
    assert found == list(range(2_500))


def test_a_full_folder_for_temporary_files_is_one_sentence(monkeypatch):
    connect = sqlite3.connect

    def limited(*arguments, **options):
        table = connect(*arguments, **options)
        table.execute("PRAGMA max_page_count = 4")  # as if the disk were full
        return table

    monkeypatch.setattr(sqlite3, "connect", limited)
    index = Index()

    def fill():
        for number in range(10_000):
            index.put(number, f"{number}")

    with pytest.raises(InputError, match="folder for temporary files: database or disk is full"):
        fill()
