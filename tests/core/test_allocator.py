"""That freed memory stays with the process when it is asked to, in processes of their own."""

import os
import platform
import subprocess
import sys

import pytest

from iba_core.framework.allocator import _mallopt, keep_freed_memory, memory_kept

# Numpy's arrays are of the C library's memory; each is written into, so that it is there.
PROGRAM = """
import sys
from contextlib import nullcontext
import numpy as np
import psutil
from iba_core.framework.allocator import keep_freed_memory, memory_kept

choice = sys.argv[1]
print(int(keep_freed_memory()) if choice in ("keep", "both") else 0)
process = psutil.Process()
before = process.memory_info().rss

def share():
    arrays = [np.ones(2**20) for _ in range(16)]
    full = process.memory_info().rss
    arrays.clear()
    return (process.memory_info().rss - before) / (full - before)

with memory_kept() if choice in ("context", "both") else nullcontext():
    with memory_kept() if choice == "context" else nullcontext():
        pass
    print(share())
print(share())
"""

only_glibc = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="it is for the C library glibc")


def shares(choice, **environment):
    """Whether it was set for good, and how much of what was freed stays: in the context, and behind it."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, choice],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | environment,
    )
    was_set, *found = map(float, done.stdout.split())
    return bool(was_set), *found


@only_glibc
def test_freed_memory_is_kept_only_where_that_is_asked_for():
    was_set, within, behind = shares("keep")
    assert was_set
    assert min(within, behind) > 0.9
    was_set, within, behind = shares("leave")
    assert not was_set
    assert max(within, behind) < 0.2


@only_glibc
def test_a_context_keeps_it_while_it_lasts():
    was_set, within, behind = shares("context")
    assert not was_set
    assert within > 0.9
    # 64 MiB of 128.
    assert behind < 0.6


@only_glibc
def test_the_user_s_choice_stands():
    _, within, behind = shares("both")
    assert min(within, behind) > 0.9
    _, within, behind = shares("context", MALLOC_TRIM_THRESHOLD_="131072")
    assert max(within, behind) < 0.2


def test_elsewhere_nothing_is_set(monkeypatch):
    _mallopt.cache_clear()
    monkeypatch.setattr("platform.libc_ver", lambda: ("", ""))
    try:
        assert keep_freed_memory() is False
        with memory_kept():
            pass
    finally:
        _mallopt.cache_clear()
