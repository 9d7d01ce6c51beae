"""Collect the totals of `make soak` into a result that README.md quotes.

    make soak
    python -m benchmarks.soak
    python -m benchmarks.report
    python -m benchmarks.readme

Each suite of the long runs writes flat counts to ``build/soak/<suite>.json``. This program puts them into two
tables, a short one for README.md and one with a row for each count, and sets the goal that nothing failed.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from benchmarks.harness import ROOT, Results, show
from benchmarks.tables import Column

TOTALS = ROOT / "build" / "soak"
BAD = ("failed", "findings", "raw", "accepted", "left", "differing", "endless", "without")
"""Words in the name of a count that must be 0."""


def collect(folder: Path = TOTALS) -> Results:
    """Tables with a row for each suite, and for each count of each suite."""
    results = Results("soak")
    short = results.table("Long runs", Column("Suite"), Column("Counted"), Column("Failed", ","))
    table = results.table("Every count", Column("Suite"), Column("Counted"), Column("Number", ","))
    for path in sorted(folder.glob("*.json")):
        suite, failed, parts = path.stem.replace("_", " "), 0, []
        for name, number in json.loads(path.read_text(encoding="utf-8")).items():
            counted = name.replace("_", " ")
            table.rows.append([suite, counted, number])
            if set(BAD) & set(counted.split()):
                results.goal(f"{suite}, {counted}", number, at_most=0)
                failed += number
            else:
                parts.append(f"{number:,} {counted}")
        short.rows.append([suite, "; ".join(parts), failed])
    return results


def main() -> None:
    results = collect()
    if not results.tables[0].rows:
        show(f"there are no totals in {TOTALS.relative_to(ROOT)}; run `make soak` first")
        sys.exit(1)
    results.write()


if __name__ == "__main__":
    main()
