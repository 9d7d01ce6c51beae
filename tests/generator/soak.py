"""Thousands of random networks before the judge, in several processes."""

from __future__ import annotations

import sys
import traceback
from collections import Counter
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing import get_context

from iba_core import get_tqdm
from tests.generator.judge import Judge, Verdict, reason
from tests.robustness.totals import write_totals

BACKENDS = {"torch": 0.9, "tensorflow": 0.1}
"""The backends, and their share of the networks. TensorFlow traces tails, which takes ten times as long."""

AT_MOST = {"torch": None, "tensorflow": 4}
"""How many of the classes explain a network."""

AT_ONCE = 40
"""How many networks a process judges before another takes its place."""

ORDINARY = {"in place"}
"""Quirks that do not make a network unusual: much of what is published writes in place."""


@dataclass(frozen=True)
class Record:
    """What was found for a network."""

    backend: str
    seed: int
    case: str
    ordinary: bool
    verdicts: tuple[Verdict, ...]

    @property
    def failed(self) -> bool:
        return any(verdict.outcome == "failed" for verdict in self.verdicts)

    @property
    def command(self) -> str:
        return f"python -m tests.generator --seed {self.seed} --backend {self.backend}"


def judge(backend: str, seed: int) -> Record:
    """Draw a network and judge what the library says of it."""
    if backend == "torch":
        from tests.generator.torch_bench import TorchBench as Bench
    else:
        from tests.generator.keras_bench import KerasBench as Bench
    try:
        bench = Bench.draw(seed)
        verdicts = tuple(Judge(bench, AT_MOST[backend]).run())
    except Exception:
        text = traceback.format_exc()
        return Record(backend, seed, text, True, (Verdict("the judge itself", "failed", text),))
    ordinary = bench.case.quirks <= ORDINARY
    return Record(backend, seed, str(bench.case), ordinary, verdicts)


def _judge_all(backend: str, seeds: Iterable[int]) -> list[Record]:
    if backend == "torch":
        import torch

        torch.set_num_threads(1)
    return [judge(backend, seed) for seed in seeds]


def _in_a_process(backend: str, seeds: range) -> list[Record]:
    """Judge some networks in a process of their own: what TensorFlow has traced stays in its memory."""
    try:
        with ProcessPoolExecutor(1, get_context("spawn")) as pool:
            return pool.submit(_judge_all, backend, seeds).result()
    except BrokenProcessPool as error:
        verdict = Verdict("the process", "failed", f"one of {len(seeds)} networks ended it: {error}")
        return [Record(backend, seeds[0], "", True, (verdict,))]


def failure(record: Record) -> str:
    """How to see a failure again, and what it was."""
    first = next(verdict for verdict in record.verdicts if verdict.outcome == "failed")
    return f"{record.command}\n    {first.face}: {first.text.splitlines()[-1]}"


def totals(records: Iterable[Record]) -> dict[str, int]:
    """Flat counts, for the README."""
    counts: Counter[str] = Counter()
    for record in records:
        counts["networks"] += 1
        counts[f"networks_{record.backend}"] += 1
        counts["networks_ordinary"] += record.ordinary
        for verdict in record.verdicts:
            counts["explanations"] += 1
            counts[verdict.outcome] += 1
            counts["told"] += verdict.outcome == "right" and bool(verdict.told)
            if record.ordinary:
                counts["explanations_ordinary"] += 1
                counts["refused_ordinary"] += verdict.outcome == "refused"
    for name in ("right", "refused", "failed", "told", "refused_ordinary"):
        counts.setdefault(name, 0)
    return dict(counts)


def soak(count: int, start: int, processes: int) -> int:
    """Judge many networks, print totals and what failed, and write `build/soak/generator.json`.

    The file has the totals of what has been judged so far, in case the run is ended.

    Returns:
        The number of networks for which something failed, at most 100.
    """
    places = []
    for backend, share in BACKENDS.items():
        seeds = range(start, start + round(count * share))
        places += [
            (first / len(seeds), backend, seeds[first : first + AT_ONCE])
            for first in range(0, len(seeds), AT_ONCE)
        ]
    # Backends take turns, so that a part of the run has the same shares.
    jobs = [job for _, *job in sorted(places, key=lambda place: place[0])]
    records: list[Record] = []
    with ThreadPoolExecutor(processes) as pool, get_tqdm()(total=count, unit="network") as bar:
        for future in as_completed([pool.submit(_in_a_process, *job) for job in jobs]):
            found = future.result()
            records += found
            bar.update(len(found))
            write_totals("generator", totals(records))
            for record in found:
                if record.failed:
                    bar.write(failure(record))
    failed = [record for record in records if record.failed]
    print(table(records))
    for record in sorted(failed, key=lambda record: (record.backend, record.seed)):
        print(failure(record))
    print(f"written: {write_totals('generator', totals(records))}", file=sys.stderr)
    return min(len(failed), 100)


def table(records: list[Record]) -> str:
    """The totals as text: by class, and refusals by reason."""
    by_face: dict[tuple[str, str], Counter[str]] = {}
    reasons: Counter[tuple[str, bool]] = Counter()
    for record in records:
        for verdict in record.verdicts:
            row = by_face.setdefault((record.backend, verdict.face), Counter())
            row[verdict.outcome] += 1
            row["told"] += bool(verdict.told)
            if verdict.outcome == "refused":
                reasons[reason(verdict.text), record.ordinary] += 1
    lines = [f"{'':50}{'right':>8}{'(told)':>8}{'refused':>9}{'failed':>8}"]
    for (backend, face), row in sorted(by_face.items()):
        lines.append(
            f"{backend + ', ' + face:50}{row['right']:8}{row['told']:8}{row['refused']:9}{row['failed']:8}"
        )
    found = totals(records)
    lines.append(f"{'all':50}{found['right']:8}{found['told']:8}{found['refused']:9}{found['failed']:8}")
    share = found["refused_ordinary"] / max(1, found.get("explanations_ordinary", 0))
    lines += [
        "",
        f"{found['networks']} networks. Of {found['networks_ordinary']} ordinary ones, {share:.2%} of the "
        "explanations were refused.",
        "",
        "Refused, by reason (ordinary networks: o)",
    ]
    lines += [f"{n:7} {'o' if usual else ' '} {text}" for (text, usual), n in reasons.most_common()]
    return "\n".join(lines)
