"""Freed memory stays with the process when the user asks for it; in processes of their own."""

import platform
import subprocess
import sys

import pytest

from iba_core.framework import allocator

# NumPy's arrays are in the C library's memory. Each is written into, so that it is there.
PROGRAM = """
import sys
import numpy as np
import psutil
from iba_core.framework.allocator import keep_freed_memory

print(int(keep_freed_memory()) if sys.argv[1] == "keep" else 0)
process = psutil.Process()
before = process.memory_info().rss
arrays = [np.ones(2**20) for _ in range(16)]
full = process.memory_info().rss
arrays.clear()
print((process.memory_info().rss - before) / (full - before))
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="it is for the C library glibc")
@pytest.mark.parametrize(
    ("choice", "is_set", "least", "most"), [("keep", 1, 0.9, 1.1), ("leave", 0, -1, 0.2)]
)
def test_freed_memory_is_kept_only_where_the_user_asks_for_it(choice, is_set, least, most):
    program = [sys.executable, "-c", PROGRAM, choice]
    done = subprocess.run(program, capture_output=True, text=True, check=True)
    was_set, share = map(float, done.stdout.split())
    assert was_set == is_set
    assert least < share < most


def test_elsewhere_nothing_is_set(monkeypatch):
    monkeypatch.setattr(allocator, "platform", platform_of("musl"))
    allocator.c_library_setting.cache_clear()
    try:
        assert allocator.keep_freed_memory() is False
    finally:
        allocator.c_library_setting.cache_clear()


def platform_of(library):
    class Platform:
        libc_ver = staticmethod(lambda: (library, ""))

    return Platform
