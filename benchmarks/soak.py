"""Collect the totals of `make soak` into a result that README.md quotes.

    make soak
    python -m benchmarks.soak
    python -m benchmarks.report
    python -m benchmarks.readme

Each suite of the long runs writes flat counts to ``build/soak/<suite>.json``. This program puts them into one
table, and sets the goal that nothing failed.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from benchmarks.harness import ROOT, Results, show
from benchmarks.tables import Column

TOTALS = ROOT / "build" / "soak"
BAD = ("failed", "findings", "raw", "accepted")
"""Words in the name of a count that must be 0."""


def collect(folder: Path = TOTALS) -> Results:
    """A table with a row for each count of each suite."""
    results = Results("soak")
    table = results.table("Long runs", Column("Suite"), Column("Counted"), Column("Number", ","))
    for path in sorted(folder.glob("*.json")):
        suite = path.stem.replace("_", " ")
        for name, number in json.loads(path.read_text(encoding="utf-8")).items():
            counted = name.replace("_", " ")
            table.rows.append([suite, counted, number])
            if set(BAD) & set(counted.split()):
                results.goal(f"{suite}, {counted}", number, at_most=0)
    return results


def main() -> None:
    results = collect()
    if not results.tables[0].rows:
        show(f"there are no totals in {TOTALS.relative_to(ROOT)}; run `make soak` first")
        sys.exit(1)
    results.write()


if __name__ == "__main__":
    main()
