"""Compare the time of `iba explain` on many photographs with the time of the explanations alone.

python -m benchmarks.dataset [--folder FOLDER] [--count N] [OPTIONS of iba explain]

Without a folder, the photographs are parts of the packaged ones. The command runs twice, with an empty cache
and with the statistics that the first run has kept, each time into an empty folder. Where other programs run,
trust the ratio of processor seconds. Statistics are of one version of the code: do not edit it meanwhile.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from time import perf_counter

import numpy as np

from iba_core.pictures.images import SAMPLE_IMAGES, sample_image

RATIO = 1.25
"""Goal: wall time of the command, at most, relative to the explanations alone."""

START = 5.0
"""Goal: processor seconds, at most, until the second run explains its first photograph."""

PROGRAM = """
import sys, time
from iba_command import main
from iba_core.explainer import Explainer

explain, seconds = Explainer.explain, []

def timed(self, *arguments, **options):
    start = time.process_time()
    found = explain(self, *arguments, **options)
    seconds.append((start, time.process_time() - start))
    return found

Explainer.explain = timed
code = main()
print("MEASURED", seconds[0][0], sum(each for _, each in seconds), time.process_time(), file=sys.stderr)
sys.exit(code)
"""


def write_photographs(folder: Path, count: int, seed: int = 0) -> None:
    """Write square parts of the packaged photographs, in a subfolder for each."""
    generator = np.random.default_rng(seed)
    for index in range(count):
        name = list(SAMPLE_IMAGES)[index % len(SAMPLE_IMAGES)]
        image = sample_image(name)
        side = int(min(image.size) * generator.uniform(0.6, 1))
        left, top = (int(generator.integers(0, size - side + 1)) for size in image.size)
        (folder / name).mkdir(parents=True, exist_ok=True)
        image.crop((left, top, left + side, top + side)).save(folder / name / f"{index:04}.jpg", quality=92)


def measure(folder: Path, out: Path, cache: Path, options: list[str]) -> dict[str, float]:
    """Run the command once, and read how long it and its explanations took."""
    command = [sys.executable, "-c", PROGRAM, "explain", str(folder), "--out", str(out), *options]
    start = perf_counter()
    run = subprocess.run(
        command,
        check=True,
        env={**os.environ, "IBA_CACHE": str(cache)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    wall = perf_counter() - start
    rows = json.loads((out / "summary.json").read_text())
    alone = sum(row["seconds"] for row in rows if row["error"] is None)
    (marked,) = [line for line in run.stderr.splitlines() if line.startswith("MEASURED")]
    before, explaining, processor = map(float, marked.split()[1:])
    return {
        "photographs": len(rows),
        "wall": wall,
        "of explanations": alone,
        "ratio": wall / alone,
        "processor seconds": processor,
        "of them explaining": explaining,
        "their ratio": processor / explaining,
        "before the first": before,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--count", type=int, default=50)
    chosen, options = parser.parse_known_args()
    with tempfile.TemporaryDirectory() as made:
        place = Path(made)
        folder = chosen.folder or place / "photographs"
        if chosen.folder is None:
            write_photographs(folder, chosen.count)
        for number, title in enumerate(("first run", "second run")):
            found = measure(folder, place / f"run{number}", place / "cache", options)
            print(
                f"{title}: " + ", ".join(f"{name} {value:.2f}" for name, value in found.items()), flush=True
            )
        print(f"goals: ratio at most {RATIO}; at most {START} processor seconds before the first, second run")


if __name__ == "__main__":
    main()
