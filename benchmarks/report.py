"""Tables and plots of results, from their JSON files alone.

    python -m benchmarks.report

writes ``results/<program>.md`` and the plots in ``docs/images`` anew from every ``results/<program>.json``.
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
    "quality": "bench-quality.svg",
}
"""Programs whose module has a function ``plot(content, path)``, and the name of its picture."""


def load(path: Path) -> Content:
    """The content of a result's file."""
    return dict(json.loads(path.read_text(encoding="utf-8")))


def draw(content: Content, folder: Path = IMAGES) -> Path | None:
    """The picture of a result, if its program draws one."""
    name = PLOTS.get(content["program"])
    if name is None:
        return None
    import matplotlib as mpl

    mpl.use("agg")
    # Texts stay texts, and the same figures give the same file.
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
