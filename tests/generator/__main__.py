"""Judge random networks.

python -m tests.generator --seed 123 [--backend tensorflow]    one network: code, layer, differences
python -m tests.generator --seed 123 --count 50                fifty of them, and what failed
python -m tests.generator --soak 5000                          a table of totals, in all processors
"""

from __future__ import annotations

import argparse
import os
import sys

# One processor for each network; TensorFlow greets on stderr otherwise.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

from tests.generator.soak import BACKENDS, Record, judge, soak


def show(record: Record, everything: bool) -> None:
    """Print all findings, or only the failures."""
    for verdict in record.verdicts:
        if everything or verdict.outcome == "failed":
            told = f" (told {verdict.told})" if verdict.told else ""
            error = f" (relative error {verdict.error:.1g})" if verdict.outcome == "right" else ""
            print(f"{record.seed} {verdict.face}: {verdict.outcome}{told}{error} {verdict.text}")
    if record.failed:
        print(f"again: {record.command}")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.generator", description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=0, help="the network, or the first of several")
    parser.add_argument("--backend", choices=BACKENDS, default="torch")
    parser.add_argument("--count", type=int, default=1, help="judge so many networks, one after the other")
    parser.add_argument(
        "--soak", type=int, help="judge so many networks of both frameworks in all processors"
    )
    parser.add_argument("--processes", type=int, default=os.cpu_count(), help="for --soak")
    options = parser.parse_args()
    if options.soak:
        sys.exit(soak(options.soak, options.seed, options.processes))
    failed = 0
    for seed in range(options.seed, options.seed + options.count):
        record = judge(options.backend, seed)
        if options.count == 1:
            print(record.case)
        show(record, everything=options.count == 1)
        failed += record.failed
    sys.exit(bool(failed))


if __name__ == "__main__":
    main()
