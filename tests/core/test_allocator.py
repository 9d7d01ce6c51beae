"""That freed memory stays with the process when it is asked to, in processes of their own."""

import platform
import subprocess
import sys

import pytest

from iba_core.allocator import keep_freed_memory

# Numpy's arrays are of the C library's memory; each is written into, so that it is there.
PROGRAM = """
import sys
import numpy as np
import psutil
from iba_core.allocator import keep_freed_memory

print(int(keep_freed_memory()) if sys.argv[1] == "keep" else 0)
process = psutil.Process()
before = process.memory_info().rss
arrays = [np.ones(2**20) for _ in range(16)]
full = process.memory_info().rss
arrays.clear()
print(full - before, process.memory_info().rss - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="it is for the C library glibc")
def test_freed_memory_is_kept_only_where_that_is_asked_for():
    kept = {}
    for choice in ("keep", "leave"):
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM, choice], capture_output=True, text=True, check=True
        )
        was_set, full, left = map(int, done.stdout.split())
        assert was_set == (choice == "keep")
        assert full > 0.9 * 2**27
        kept[choice] = left / full
    assert kept["keep"] > 0.9
    assert kept["leave"] < 0.2


def test_elsewhere_nothing_is_set(monkeypatch):
    monkeypatch.setattr("platform.libc_ver", lambda: ("", ""))
    assert keep_freed_memory() is False
