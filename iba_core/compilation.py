"""When machine code repays the time that its compilation takes."""

from __future__ import annotations

from collections.abc import Callable, Sized
from statistics import median
from time import perf_counter
from typing import Any, TypeVar

from iba_core.bottleneck import BottleneckSettings

LEAST_SECONDS = 1200.0
"""Work that must be left for a compiler to be tried: some twenty times what most models take to compile, a
minute, so that little is lost where the machine code turns out slow."""

LEAST_GAIN = 1.1
"""How many times faster the machine code must be."""

MEASURED = 3
"""Batches that are timed first; the first of them still allocates and traces."""

Result = TypeVar("Result")

Work = Callable[..., Result]
"""``work(settings, jit_compile=...)`` explains a batch; by the adapter's own choice where that is None."""


def brief_settings(settings: BottleneckSettings) -> BottleneckSettings:
    """Two steps instead of many, through which a bottleneck has all the shapes that it has in `settings`."""
    return settings.override(
        steps=min(settings.steps, 2), early_steps=min(settings.early_steps, 1), tolerance=0.0
    )


class CompilationTrial:
    """Finds out, while a data set is gone through, whether the rest of it repays compilation.

    The first batches run uncompiled. If what is left would take long, the compiler is tried once on a short
    piece of work of the same shapes, and its code is used from there on if it is the faster one.

    Args:
        batches: the data set. If it does not tell its length, there is no trial.
    """

    def __init__(self, batches: object) -> None:
        self._length = _length(batches)
        self._shapes: object = None
        self._seconds: list[float] = []
        self._count = 0
        self._repays: bool | None = None

    def run(self, work: Work[Result], settings: BottleneckSettings, shapes: object) -> Result:
        """Do the work of the next batch, as machine code or not.

        Args:
            work: explains the batch.
            settings: how.
            shapes: what a compilation depends on. Batches of other shapes than the first one's run
                uncompiled: they are the few that are left over.
        """
        if self._shapes is None:
            self._shapes = shapes
        usual = self._shapes == shapes
        if usual and self._repays is None and self._count == MEASURED:
            left = (self._length - self._count) * median(self._seconds[1:])
            self._repays = left >= LEAST_SECONDS and _is_faster(work, brief_settings(settings))
        start = perf_counter()
        result = work(settings, jit_compile=True if usual and self._repays else None)
        if self._repays is None:
            self._count += 1
            self._seconds.append(perf_counter() - start)
        return result


def _is_faster(work: Work[Any], settings: BottleneckSettings) -> bool:
    """Whether work is done faster as machine code, once that has been made."""
    seconds = []
    for compiled in (False, True):
        work(settings, jit_compile=compiled)
        start = perf_counter()
        work(settings, jit_compile=compiled)
        seconds.append(perf_counter() - start)
    plain, machine = seconds
    return plain >= LEAST_GAIN * machine


def _length(batches: object) -> int:
    """Number of batches; 0 where the data set does not know, as some loaders and all generators do not."""
    try:
        return len(batches) if isinstance(batches, Sized) else 0
    except TypeError:
        return 0
