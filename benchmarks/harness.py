"""The common parts of the benchmarks: interleaved timing, ratios, goals, and files of results."""

from __future__ import annotations

import gc
import json
import os
import platform
import sys
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from statistics import fmean, median, quantiles
from time import perf_counter
from typing import Any

import psutil

from benchmarks.tables import Column, Table, Yardstick, markdown
from iba_core.framework.allocator import keep_freed_memory

ROOT = Path(__file__).parents[1]
RESULTS = Path(__file__).parent / "results"
IMAGES = ROOT / "docs" / "images"

THREADS = 2
"""Number of threads of each framework, so that results of different machines can be compared."""

PACKAGES = ("torch", "tensorflow", "tensorflow_cpu", "keras", "captum", "transformers", "numpy", "scipy")

Case = Callable[[], object]
"""Work to be timed. If it returns a float, that is its time in seconds; otherwise its whole run is timed."""


@dataclass(frozen=True)
class Timings:
    """Times of cases that ran in turns.

    Attributes:
        seconds: the time of each case in each round.
    """

    seconds: dict[str, list[float]]

    def median(self, case: str) -> float:
        """Return the median over the rounds."""
        return median(self.seconds[case])

    def ratio(self, case: str, to: str) -> float:
        """Return the time of `case` as a multiple of that of `to`, the median of the ratios within rounds.

        If the machine is slow for a while, both cases of a round are slow.
        """
        return median(self._ratios(case, to))

    def quartiles(self, case: str, to: str | None = None) -> tuple[float, float]:
        """Return the lower and upper quartile of the seconds of `case`, or of its ratio to another case."""
        values = self.seconds[case] if to is None else self._ratios(case, to)
        if len(values) < 2:
            return values[0], values[0]
        low, _, high = quantiles(values, n=4, method="inclusive")
        return low, high

    def _ratios(self, case: str, to: str) -> list[float]:
        return [a / b for a, b in zip(self.seconds[case], self.seconds[to], strict=True)]


def in_turns(names: Sequence[str], number: int) -> list[str]:
    """Choose the order of the cases in a round, so that their effects on each other are balanced.

    In a sequence of as many rounds as cases (twice as many if their number is odd), each case has each place,
    and follows each other case, equally often. These are the squares of E. J. Williams, "Experimental designs
    balanced for the estimation of residual effects of treatments", 1949.

    Args:
        names: names of the cases.
        number: number of the round, from 0.

    Returns:
        The names in the order of the round.
    """
    count = len(names)
    # 0, 1, -1, 2, -2 and so on: in an even number, each distance between neighbours occurs once.
    steps = [(place + 1) // 2 if place % 2 else -(place // 2) for place in range(count)]
    row = number // 2 if count % 2 else number
    order = [names[(row + step) % count] for step in steps]
    return order[::-1] if count % 2 and number % 2 else order


def interleaved(
    cases: Mapping[str, Case],
    rounds: int = 5,
    *,
    warmups: Mapping[str, Case] | None = None,
    budget: float | None = None,
    least: int = 3,
    turn: float = 0.0,
) -> Timings:
    """Time the cases in turns, in the order of `in_turns`.

    Args:
        cases: cases to time, by name.
        rounds: maximum number of rounds.
        warmups: cases to run once before, without timing, so that compilation and first allocations do not
            count; None for the cases themselves.
        budget: seconds after which no further round begins; None for no limit.
        least: minimum number of rounds, independent of the budget.
        turn: see `seconds_of`.
    """
    names = list(cases)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for name, case in (cases if warmups is None else warmups).items():
        show(f"    warming {name}")
        case()
    with _older_objects_frozen():
        start = perf_counter()
        for number in range(rounds):
            if budget is not None and number >= least and perf_counter() - start > budget:
                break
            for name in in_turns(names, number):
                seconds[name].append(seconds_of(cases[name], turn))
                show(f"    round {number + 1}: {name} {seconds[name][-1]:.3f} s")
    return Timings(seconds)


@contextmanager
def _older_objects_frozen() -> Iterator[None]:
    """Exclude all existing objects from garbage collection.

    A collection of all objects of two frameworks takes half a second, and may begin at any time.
    """
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def seconds_of(case: Case, turn: float = 0.0) -> float:
    """Time one run of `case`, after a garbage collection.

    Args:
        case: case to time.
        turn: seconds to fill: the case is repeated until its runs have taken that long in total.

    Returns:
        The mean over the runs, in seconds.
    """
    gc.collect()
    found: list[float] = []
    while not found or sum(found) < turn:
        start = perf_counter()
        counted = case()
        found.append(counted if isinstance(counted, float) else perf_counter() - start)
    return fmean(found)


class Results:
    """The results of one program, with the machine, versions and settings.

    Args:
        program: name of the program, which is also the name of the file.
        settings: settings that a reader needs to know.

    Attributes:
        tables: tables for readers.
        yardsticks: goals.
        data: further data, such as single times, in a form that JSON can store.
    """

    def __init__(self, program: str, **settings: Any) -> None:
        self.program = program
        self.settings = settings
        self.tables: list[Table] = []
        self.yardsticks: list[Yardstick] = []
        self.data: dict[str, Any] = {}
        self._load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
        self._start = perf_counter()

    def table(self, title: str, *columns: Column, note: str = "") -> Table:
        """Add an empty table."""
        self.tables.append(Table(title, list(columns), note=note))
        return self.tables[-1]

    def goal(
        self, what: str, measured: float, *, at_most: float | None = None, at_least: float | None = None
    ) -> None:
        """Add a goal, with one of the two limits."""
        if at_most is not None:
            self.yardsticks.append(Yardstick(what, measured, at_most, "at most"))
        if at_least is not None:
            self.yardsticks.append(Yardstick(what, measured, at_least, "at least"))

    def timings(self, subject: str, timings: Timings) -> None:
        """Add the single times of a comparison."""
        self.data.setdefault("seconds", {})[subject] = timings.seconds

    def as_json(self) -> dict[str, Any]:
        """Return the content of the file."""
        return {
            "program": self.program,
            "command": command(),
            "machine": machine(),
            "versions": versions(),
            "load_before": self._load,
            "seconds": perf_counter() - self._start,
            "settings": self.settings,
            "tables": [asdict(table) for table in self.tables],
            "yardsticks": [asdict(goal) | {"met": goal.met} for goal in self.yardsticks],
            "data": self.data,
        }

    def write(self, folder: Path = RESULTS) -> Path:
        """Write ``<program>.json`` and print its tables."""
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{self.program}.json"
        content = self.as_json()
        path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
        print(markdown(content))
        show(f"written: {path.relative_to(ROOT) if path.is_relative_to(ROOT) else path}")
        return path


def show(line: str) -> None:
    """Print progress to stderr, so that stdout contains only tables."""
    print(line, file=sys.stderr, flush=True)


def use_threads(frameworks: Collection[str] = ("torch", "tensorflow"), threads: int = THREADS) -> None:
    """Set the number of threads of each framework. Call it before TensorFlow is imported.

    It also enables oneDNN's kernels in TensorFlow, whose default is to use them on newer processors only. On
    older ones they take little more than half the time of TensorFlow's own kernels.
    """
    if "torch" in frameworks:
        import torch

        torch.set_num_threads(threads)
    if "tensorflow" in frameworks:
        os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")
        import tensorflow as tf

        tf.config.threading.set_intra_op_parallelism_threads(threads)
        tf.config.threading.set_inter_op_parallelism_threads(threads)


def prepare(threads: int = THREADS) -> None:
    """Prepare a process for timing: set the threads, and let the C library keep freed memory.

    This applies to all compared methods. Without it, times depend on whether the C library happens to keep
    freed memory.
    """
    use_threads(threads=threads)
    keep_freed_memory()


def command() -> str:
    """Return the command line of this program, as typed in the repository's folder.

    Of a file or folder elsewhere, only the name is kept: where it lies on this machine says nothing.
    """
    module = getattr(sys.modules["__main__"], "__spec__", None)
    name = f"-m {module.name}" if module else Path(sys.argv[0]).name
    arguments = (Path(each).name if Path(each).is_absolute() else each for each in sys.argv[1:])
    return " ".join(["python", name, *arguments])


def machine() -> dict[str, Any]:
    """Describe the properties of the machine that affect results."""
    return {
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "system": f"{platform.system()} {platform.machine()}",
    }


def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that affect results."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.machine())
