"""The most important comparisons, on one network, in one process.

python -m benchmarks.quick
"""

from __future__ import annotations

from time import perf_counter

from benchmarks import attribution, estimation, scale
from benchmarks.attribution import FIRST
from benchmarks.harness import THREADS, Results, prepare
from benchmarks.methods import OURS, SAMPLES, STEPS, TAIL
from benchmarks.networks import PLACES

ROUNDS = 7
IMAGES = (1, 8, 16)
MINUTES = 5.0


def main() -> None:
    start = perf_counter()
    prepare()
    results = Results("quick", steps=STEPS, samples=SAMPLES, threads=THREADS)
    for title, place in PLACES.items():
        if place.network == PLACES[FIRST].network:
            memory = (OURS, TAIL) if title == FIRST else ()
            attribution.measure(results, [title], ROUNDS, budget=22, memory=memory)
    estimation.measure(results, [FIRST], 3 * ROUNDS, budget=12)
    scale.measure(results, {"images": IMAGES}, 2 * ROUNDS, budget=22)
    results.goal("minutes that all this takes", (perf_counter() - start) / 60, at_most=MINUTES)
    results.write()


if __name__ == "__main__":
    main()
