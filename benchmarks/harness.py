"""What the benchmarks share: interleaved timing, ratios, goals, and the file that results go to."""

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

ROOT = Path(__file__).parents[1]
RESULTS = Path(__file__).parent / "results"
IMAGES = ROOT / "docs" / "images"

THREADS = 2
"""Of each framework, so that figures of different machines can be compared."""

PACKAGES = ("torch", "tensorflow", "tensorflow_cpu", "keras", "captum", "transformers", "numpy", "scipy")

Case = Callable[[], object]
"""Something to be timed. If it returns a float, these are the seconds that count; otherwise all do."""


@dataclass(frozen=True)
class Timings:
    """Seconds of cases that ran in turns.

    Attributes:
        seconds: for each case its time in each round.
    """

    seconds: dict[str, list[float]]

    def median(self, case: str) -> float:
        """Median over the rounds."""
        return median(self.seconds[case])

    def ratio(self, case: str, to: str) -> float:
        """How many times as long `case` takes as `to`: the median of the ratios within the rounds.

        What slows the machine for a while slows both cases of a round.
        """
        return median(self._ratios(case, to))

    def spread(self, case: str, to: str | None = None) -> tuple[float, float]:
        """Lower and upper quartile of the seconds of `case`, or of its ratio to another."""
        values = self.seconds[case] if to is None else self._ratios(case, to)
        if len(values) < 2:
            return values[0], values[0]
        low, _, high = quantiles(values, n=4, method="inclusive")
        return low, high

    def _ratios(self, case: str, to: str) -> list[float]:
        return [a / b for a, b in zip(self.seconds[case], self.seconds[to], strict=True)]


def in_turns(names: Sequence[str], number: int) -> list[str]:
    """The order of a round, in which what a case leaves behind falls upon all others alike.

    In a row of rounds as long as the names (twice as long if their number is odd), each has each place, and
    follows each other, equally often: the squares of E. J. Williams, "Experimental designs balanced for the
    estimation of residual effects of treatments", 1949.

    Args:
        names: of the cases.
        number: of the round, from 0.
    """
    count = len(names)
    # 0, 1, -1, 2, -2 and so on: of an even number, each distance between neighbours occurs once.
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
        cases: what to time.
        rounds: how often each runs.
        warmups: run once before, uncounted, so that nothing is compiled or allocated for the first time;
            the cases themselves if None.
        budget: begin no further round after so many seconds.
        least: rounds that take place whatever the budget.
        turn: of `seconds_of`.
    """
    names = list(cases)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for name, case in (cases if warmups is None else warmups).items():
        show(f"    warming {name}")
        case()
    with _nothing_old_collected():
        start = perf_counter()
        for number in range(rounds):
            if budget is not None and number >= least and perf_counter() - start > budget:
                break
            for name in in_turns(names, number):
                seconds[name].append(seconds_of(cases[name], turn))
                show(f"    round {number + 1}: {name} {seconds[name][-1]:.3f} s")
    return Timings(seconds)


@contextmanager
def _nothing_old_collected() -> Iterator[None]:
    """Context in which the garbage collector passes by what is there already.

    It takes half a second to go through all that two frameworks bring along, and may begin at any time.
    """
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def seconds_of(case: Case, turn: float = 0.0) -> float:
    """Seconds of one run of `case`, garbage collected before.

    Args:
        case: what to time.
        turn: run it again and again until it has taken so many seconds in all, and give the mean.
    """
    gc.collect()
    found: list[float] = []
    while not found or sum(found) < turn:
        start = perf_counter()
        counted = case()
        found.append(counted if isinstance(counted, float) else perf_counter() - start)
    return fmean(found)


class Results:
    """All that one program has measured, and under which circumstances.

    Args:
        program: its name, which is the name of the file too.
        settings: whatever a reader has to know to judge the figures.

    Attributes:
        tables: for readers.
        yardsticks: goals.
        data: everything else, such as the single times, as JSON holds it.
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
        """A new, empty table."""
        self.tables.append(Table(title, list(columns), note=note))
        return self.tables[-1]

    def goal(
        self, what: str, measured: float, *, at_most: float | None = None, at_least: float | None = None
    ) -> None:
        """Note a goal; one of the two sides is given."""
        if at_most is not None:
            self.yardsticks.append(Yardstick(what, measured, at_most, "at most"))
        if at_least is not None:
            self.yardsticks.append(Yardstick(what, measured, at_least, "at least"))

    def timings(self, subject: str, timings: Timings) -> None:
        """Keep the single times of a comparison."""
        self.data.setdefault("seconds", {})[subject] = timings.seconds

    def as_json(self) -> dict[str, Any]:
        """Everything, as the file holds it."""
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
        """Write ``<program>.json`` and show its tables."""
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{self.program}.json"
        content = self.as_json()
        path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
        print(markdown(content))
        show(f"written: {path.relative_to(ROOT) if path.is_relative_to(ROOT) else path}")
        return path


def show(line: str) -> None:
    """Progress, on stderr, so that stdout holds nothing but tables."""
    print(line, file=sys.stderr, flush=True)


def use_threads(frameworks: Collection[str] = ("torch", "tensorflow"), threads: int = THREADS) -> None:
    """Give each framework that many threads. To be called before TensorFlow is imported.

    TensorFlow also gets oneDNN's kernels, which it uses by itself on newer processors only: on others they
    take little more than half the time of its own.
    """
    if "torch" in frameworks:
        import torch

        torch.set_num_threads(threads)
    if "tensorflow" in frameworks:
        os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")
        import tensorflow as tf

        tf.config.threading.set_intra_op_parallelism_threads(threads)
        tf.config.threading.set_inter_op_parallelism_threads(threads)


def command() -> str:
    """The command line of this program, as one types it in the repository."""
    module = getattr(sys.modules["__main__"], "__spec__", None)
    name = f"-m {module.name}" if module else Path(sys.argv[0]).name
    return " ".join(["python", name, *sys.argv[1:]])


def machine() -> dict[str, Any]:
    """The machine, as far as it matters to figures; not which one it is."""
    return {
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "system": f"{platform.system()} {platform.machine()}",
    }


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that the figures depend on."""
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
