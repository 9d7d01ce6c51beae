"""Peak memory of the same work that is timed, in a process of its own.

In the process that does the timing, peaks cannot be read off: glibc and TensorFlow keep what was freed
and hand it out again, so that a peak disappears in what is left of an earlier one. Here every block of 32 KiB
or more is given back at once: glibc is told to map each one by itself, and TensorFlow to do without the pool
that oneDNN brings along. All smaller blocks are kept, Python's objects and the smallest tensors among them:
scattered over many pages, they would count for more than they hold, and differently in each process. The
kernel then counts the peak exactly, to a page: its high-water mark is set back before the work and read after
it. Where there is no such mark (not Linux), a thread samples instead.

    python -m benchmarks.memory MODULE FUNCTION [JSON]

calls ``MODULE.FUNCTION(**JSON)``, which returns works by name, and prints the peak of each as JSON.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from time import perf_counter
from typing import Any

import psutil

from benchmarks.harness import ROOT

_STATUS = Path("/proc/self/status")
_RESET = Path("/proc/self/clear_refs")
_RUNS = (2, 8)
"""At least and at most; the least peak counts: whatever else happens in a process only adds to it."""
_SECONDS = 2.0
"""Begin no further run after so long, unless it is one of the least number."""
_ENVIRONMENT = {
    "MALLOC_MMAP_THRESHOLD_": "32768",
    "MALLOC_TRIM_THRESHOLD_": str(2**30),
    "PYTHONMALLOC": "malloc",
    "TF_ENABLE_ONEDNN_OPTS": "0",
}


def peaks(module: str, function: str, **arguments: Any) -> dict[str, float]:
    """Bytes that each work needs at most beyond what is held before it, measured in a new process.

    Args:
        module: name of a module.
        function: name of its function that returns a dict of works by name, callables without arguments.
        **arguments: for the function; as JSON can hold them.
    """
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.memory", module, function, json.dumps(arguments)],
        cwd=ROOT,
        env=os.environ | _ENVIRONMENT,
        stdout=subprocess.PIPE,
        check=True,
        text=True,
    )
    return dict(json.loads(done.stdout.splitlines()[-1]))


def peak(work: Callable[[], object]) -> float:
    """Bytes that `work` needs at most beyond what is held before it."""
    gc.collect()
    return _marked(work) if _RESET.exists() else _sampled(work)


def _least_peak(work: Callable[[], object]) -> float:
    start, least = perf_counter(), _RUNS[0]
    found: list[float] = []
    while len(found) < least or (len(found) < _RUNS[1] and perf_counter() - start < _SECONDS):
        found.append(peak(work))
    return min(found)


def _marked(work: Callable[[], object]) -> float:
    _RESET.write_text("5")
    before = _status("VmRSS")
    work()
    return float(_status("VmHWM") - before)


def _sampled(work: Callable[[], object]) -> float:
    process = psutil.Process()
    before = highest = process.memory_info().rss
    done = threading.Event()

    def watch() -> None:
        nonlocal highest
        while not done.wait(0.001):
            highest = max(highest, process.memory_info().rss)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        work()
    finally:
        done.set()
        watcher.join()
    return float(highest - before)


def _status(name: str) -> int:
    lines = _STATUS.read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:"))


def main() -> None:
    module, function = sys.argv[1:3]
    arguments = json.loads(sys.argv[3]) if len(sys.argv) > 3 else {}
    works = getattr(importlib.import_module(module), function)(**arguments)
    for work in works.values():
        work()
    print(json.dumps({name: _least_peak(work) for name, work in works.items()}))


if __name__ == "__main__":
    main()
