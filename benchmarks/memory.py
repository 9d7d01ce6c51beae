"""Measure the peak memory of cases, in a separate process.

In the process that is timed, peaks cannot be measured: glibc and TensorFlow keep freed memory and use it
again, so a peak can disappear in memory that is left from an earlier one. Here, every block of 32 KiB or more
is returned at once: glibc maps each one separately, and TensorFlow does not use oneDNN, which has a memory
pool. Smaller blocks, such as Python objects and tiny tensors, are kept. They are scattered over many pages,
so returning them would change the count by chance. The kernel then counts the peak exactly, to a page: its
high-water mark is reset before the case and read after it. Without such a mark (not on Linux), a thread
samples the memory instead.

    python -m benchmarks.memory MODULE FUNCTION [JSON]

It calls ``MODULE.FUNCTION(**JSON)``, which returns cases by name, and prints the peak of each as JSON.
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
"""Minimum and maximum number of runs. The smallest peak counts, since other activity only adds to it."""
_SECONDS = 2.0
"""Seconds after which no further run begins, once the minimum number is reached."""
_ENVIRONMENT = {
    "MALLOC_MMAP_THRESHOLD_": "32768",
    "MALLOC_TRIM_THRESHOLD_": str(2**30),
    "PYTHONMALLOC": "malloc",
    "TF_ENABLE_ONEDNN_OPTS": "0",
}


def peaks(module: str, function: str, **arguments: Any) -> dict[str, float]:
    """Measure the peak memory in bytes of several cases in a new process, beyond the memory before each.

    Args:
        module: name of a module.
        function: name of its function that returns the cases by name, callables without arguments.
        **arguments: arguments of the function, in a form that JSON can store.
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
    """Measure the peak memory in bytes of `work`, beyond the memory before it."""
    gc.collect()
    return _marked_peak(work) if _RESET.exists() else sampled_peak(work)


def _least_peak(work: Callable[[], object]) -> float:
    start, least = perf_counter(), _RUNS[0]
    found: list[float] = []
    while len(found) < least or (len(found) < _RUNS[1] and perf_counter() - start < _SECONDS):
        found.append(peak(work))
    return min(found)


def _marked_peak(work: Callable[[], object]) -> float:
    _RESET.write_text("5")
    before = _status("VmRSS")
    work()
    return float(_status("VmHWM") - before)


def sampled_peak(work: Callable[[], object]) -> float:
    """Measure the peak as `peak` does, by sampling in a thread."""
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
