"""Puts faults into scenes, one after the other, and compares the state after it with the one before."""

from __future__ import annotations

import gc
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from tests.backends import Backend
from tests.robustness.faults import (
    FUSE,
    Fault,
    Hang,
    call_interrupted,
    handles_calls,
    lines_of,
    no_hang,
    raised_at_line,
)
from tests.robustness.scenes import Scene, scenes
from tests.robustness.state import differences, model_state, process_state, same

RANDOM_STATES = {"random", "PyTorch's random state", "TensorFlow's random state"}

INTERRUPTS = ("interrupt", "framework", "signal")
"""Kinds of faults by which the user ends a call; the others are errors."""


@dataclass
class Report:
    """What a campaign has found.

    Attributes:
        counts: faults that came, by scene and kind.
        findings: what was not as before, a line each.
    """

    counts: Counter[tuple[str, str]] = field(default_factory=Counter)
    findings: list[str] = field(default_factory=list)

    def total(self, interrupts: bool) -> int:
        """Number of interrupts, or of errors, that came."""
        return sum(count for (_, kind), count in self.counts.items() if (kind in INTERRUPTS) == interrupts)


class Campaign:
    """Faults in one scene.

    Args:
        backend: the framework.
        scene: what they are put into.
        report: gets what is found.
        seed: chooses the moments.
    """

    def __init__(self, backend: Backend, scene: Scene, report: Report, seed: int) -> None:
        self.backend, self.scene, self.report = backend, scene, report
        self._random = np.random.default_rng(seed)
        subject = scene.make()
        # What is made once is made before.
        for _ in range(2):
            scene.act(subject)
            scene.observe(subject)
            subject = scene.make()
        self._subject = subject
        self._before = scene.observe(subject)
        self._moments = self._counted_moments()
        self._accepted = [self._before, self._observed_after(scene.act)]
        if scene.in_parts:
            last = self._moments["backward"] - 1
            with FUSE.armed("backward", last, Fault("the last step")):
                self._accepted.append(self._observed_after(scene.act))
        assert same(self._accepted[1], self._observed_after(scene.act)), f"{scene.name} gives what it likes"
        fresh = scene.make()
        ours = lines_of(lambda: scene.act(fresh))
        fresh = scene.make()
        theirs = lines_of(lambda: scene.act(fresh), handles_calls)
        self._lines = {"line": ours, "interrupt": ours, "framework": theirs}
        self._subject = scene.make()
        start = time.perf_counter()
        scene.act(self._subject)
        self._duration = time.perf_counter() - start
        self._renew()

    def _observed_after(self, act: Any) -> Sequence[Any]:
        subject = self.scene.make()
        with suppress(Exception) if self.scene.in_parts else nullcontext():
            act(subject)
        return self.scene.observe(subject)

    def _counted_moments(self) -> Counter[str]:
        subject = self.scene.make()
        with FUSE.armed("none", 0, Fault()):
            self.scene.act(subject)
        return FUSE.counts.copy()

    def _look(self) -> dict[str, Any]:
        state = process_state(self.backend) | model_state(self.backend, self.scene.model, self.scene.x)
        return {
            name: value for name, value in state.items() if not (self.scene.draws and name in RANDOM_STATES)
        }

    def _renew(self) -> None:
        """Start anew: what is made can hang on the model."""
        self._subject = self.scene.make()
        self._state = self._look()

    def run(self, kind: str, count: int) -> None:
        """Put this many faults of one kind into the scene, each at a moment of its own.

        Args:
            kind: ``"line"``, ``"call"`` and ``"backward"`` for errors; ``"interrupt"`` for those at a line,
                ``"framework"`` for those at a line of the framework that handles calls, and ``"signal"`` for
                real ones, by which users end a call.
            count: number of faults.
        """
        moments = self._chosen(kind, count)
        for moment in moments:
            shown = moment if isinstance(moment, (int, float)) else f"{moment[0]}, time {moment[1]}"
            where = f"{self.scene.name}, {kind} at {shown}"
            try:
                if not self._fault(kind, moment):
                    self._renew()
                    continue
                with no_hang():
                    if not self._compare(where):
                        return
            except Hang as error:
                self.report.findings.append(f"{where}: {error}")
                return

    def _chosen(self, kind: str, count: int) -> Iterator[Any]:
        if kind == "signal":
            yield from (float(t) for t in self._random.uniform(0, self._duration, count))
        elif kind in ("call", "backward"):
            total = self._moments[kind]
            yield from self._random.permutation(np.resize(np.arange(total), count if total else 0)).tolist()
        else:
            lines = self._lines[kind]
            places = [*lines]
            if not places:
                return
            order = [self._random.permutation(len(places)) for _ in range(-(-count // len(places)))]
            for index in np.concatenate(order)[:count]:
                yield places[index], int(self._random.integers(lines[places[index]]))

    def _fault(self, kind: str, moment: Any) -> bool:
        """Act with a fault; return whether it came."""
        error: BaseException = KeyboardInterrupt() if kind in INTERRUPTS else Fault("a fault")
        if kind == "signal":
            came = call_interrupted(lambda: self.scene.act(self._subject), moment)
            self.report.counts[self.scene.name, kind] += came
            return came
        if kind in ("call", "backward"):
            context: Any = FUSE.armed(kind, moment, error)
        else:
            context = raised_at_line(*moment, error)
        caught: BaseException | None = None
        raised: list[Any] = []
        try:
            with context as raised:
                self.scene.act(self._subject)
        except BaseException as found:
            if not raised:
                raise
            caught = found
        if raised:
            self.report.counts[self.scene.name, kind] += 1
            self._check_error(kind, moment, error, caught)
        return bool(raised)

    def _check_error(
        self, kind: str, moment: Any, error: BaseException, caught: BaseException | None
    ) -> None:
        """An error of the user's code passes unchanged; TensorFlow brings it in a class of its own."""
        if kind not in ("call", "backward") or caught is error:
            return
        if caught is None and self.scene.tries_noise:
            return
        if caught is None or self.backend.name == "torch" or "a fault" not in str(caught):
            self.report.findings.append(f"{self.scene.name}, {kind} at {moment}: it became {caught!r}")

    def _compare(self, where: str) -> bool:
        """Compare everything with what was before; return whether the scene can go on."""
        changed = differences(self._state, self._look())
        if changed:
            gc.collect()
            left = differences(self._state, self._look())
            self.report.findings.append(
                f"{where}: changed {changed}" + (f", for good {left}" if left else "")
            )
            if left:
                return False
        try:
            found = self.scene.observe(self._subject)
        except Exception as error:
            self.report.findings.append(f"{where}: then {type(error).__name__}: {error}"[:400])
            self._renew()
            return True
        if not any(same(found, known) for known in self._accepted):
            self.report.findings.append(f"{where}: then {self._difference(found)}")
        if not same(found, self._before):
            self._renew()
        return True

    def _difference(self, found: Sequence[Any]) -> str:
        parts = []
        for index, value in enumerate(found):
            if not same([value], [self._before[index]]):
                after = "as if completed" if same([value], [self._accepted[1][index]]) else repr(value)[:80]
                parts.append(f"{index} {after}")
        return f"differs in {parts} of {len(found)}"


def run_campaign(
    backend: Backend,
    folder: Path,
    kinds: dict[str, float],
    seed: int = 0,
    only: Sequence[str] = (),
    report: Report | None = None,
) -> Iterator[Report]:
    """Faults in all scenes.

    Args:
        backend: the framework.
        folder: for files.
        kinds: number of faults by kind, for a scene with a share of 1.
        seed: chooses the moments.
        only: names of scenes; all by default.
        report: gets what is found; a new one by default.

    Yields:
        The report, after each scene.
    """
    report = Report() if report is None else report
    for number, scene in enumerate(scenes(backend, folder)):
        if only and scene.name not in only:
            continue
        campaign = Campaign(backend, scene, report, seed + number)
        for kind, count in kinds.items():
            happens = kind not in ("call", "backward") or kind in scene.kinds
            if count and happens and not (scene.runs_alone and kind in ("framework", "signal")):
                campaign.run(kind, max(1, round(count * scene.share)))
        yield report
