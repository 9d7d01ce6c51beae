"""Write the tables and plots of results again, from their JSON files.

    python -m benchmarks.report

It writes ``results/<program>.md`` and the plots in ``docs/images`` from every ``results/<program>.json``.
"""

from __future__ import annotations

import importlib
import json
from pathlib import Path

from benchmarks.harness import IMAGES, RESULTS, ROOT, show
from benchmarks.tables import Content, markdown

PLOTS = {
    "attribution": "bench-attribution.svg",
    "scale": "bench-scale.svg",
    "gpu": "bench-gpu.svg",
}
"""Programs whose module has a function ``plot(content, path)``, and the names of their plots."""


def load(path: Path) -> Content:
    """Read a file of results."""
    return dict(json.loads(path.read_text(encoding="utf-8")))


def draw(content: Content, folder: Path = IMAGES) -> Path | None:
    """Draw the plot of a result, if its program has one, and return its path."""
    name = PLOTS.get(content["program"])
    if name is None:
        return None
    import matplotlib as mpl

    mpl.use("agg")
    # Keep text as text, and give the same file for the same numbers.
    mpl.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "benchmarks", "font.size": 10})
    importlib.import_module(f"benchmarks.{content['program']}").plot(content, folder / name)
    return folder / name


def main() -> None:
    for path in sorted(RESULTS.glob("*.json")):
        content = load(path)
        path.with_suffix(".md").write_text(markdown(content), encoding="utf-8")
        written = [path.with_suffix(".md"), draw(content)]
        for file in filter(None, written):
            show(f"written: {file.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
