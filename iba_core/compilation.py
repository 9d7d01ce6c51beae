"""When machine code repays the time that its compilation takes."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sized
from statistics import median
from time import perf_counter
from typing import Any, TypeVar

from iba_core.bottleneck.formulas import BottleneckSettings

LEAST_SECONDS = 1200.0
"""Work that must be left for a compiler to be tried: some twenty times what most models take to compile, a
minute, so that little is lost where the machine code turns out slow."""

LEAST_GAIN = 1.1
"""How many times faster the machine code must be."""

MEASURED = 3
"""Batches that are timed first; the first of them still allocates and traces."""

Result = TypeVar("Result")

Work = Callable[..., Result]
"""``work(settings, jit_compile=...)`` explains a batch; uncompiled where that is None."""


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
        forget: called where the compiler's code is not used, to drop it.
    """

    def __init__(self, batches: object, forget: Callable[[], object]) -> None:
        self._left = _length(batches)
        self._forget = forget
        self._usual: object = None
        self._seconds: list[float] = []
        self._repays: bool | None = None

    def run(self, work: Work[Result], settings: BottleneckSettings, key: object) -> Result:
        """Do the work of the next batch, as machine code or not.

        Args:
            work: explains the batch.
            settings: how.
            key: what a compilation depends on, such as shapes; None if it would serve this batch alone.
                Batches of another key than the first one's run uncompiled: they are the few that are left
                over.
        """
        if self._usual is None:
            self._usual = key
        usual = key is not None and key == self._usual
        if usual and self._repays is None and len(self._seconds) == MEASURED:
            long = self._left * median(self._seconds[1:]) >= LEAST_SECONDS
            self._repays = long and self._is_faster(work, brief_settings(settings))
        self._left -= 1
        start = perf_counter()
        result = work(settings, jit_compile=True if usual and self._repays else None)
        if usual and self._repays is None:
            self._seconds.append(perf_counter() - start)
        return result

    def _is_faster(self, work: Work[Any], settings: BottleneckSettings) -> bool:
        """Whether work is done faster as machine code, once that has been made."""
        plain = _seconds(work, settings, None)
        # Nobody has asked for the compiler: that it cannot serve this model is no concern of the caller.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                faster = plain >= LEAST_GAIN * _seconds(work, settings, True)
            except Exception:
                faster = False
        if not faster:
            self._forget()
        return faster


def _seconds(work: Work[Any], settings: BottleneckSettings, jit_compile: bool | None) -> float:
    """Time of a second run, in which everything has been compiled."""
    work(settings, jit_compile=jit_compile)
    start = perf_counter()
    work(settings, jit_compile=jit_compile)
    return perf_counter() - start


def _length(batches: object) -> int:
    """Number of batches; 0 where the data set does not know, as some loaders and all generators do not."""
    try:
        return len(batches) if isinstance(batches, Sized) else 0
    except TypeError:
        return 0
