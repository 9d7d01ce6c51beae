"""Tables and plots of results, from their JSON files alone.

    python -m benchmarks.report

writes ``results/<program>.md`` and the plots in ``docs/images`` anew from every ``results/<program>.json``.
"""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

from benchmarks.harness import IMAGES, RESULTS, ROOT, Column, show

Content = dict[str, Any]
"""What a result's JSON file holds."""

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


def markdown(content: Content) -> str:
    """All of a result: how it came about, its tables, its goals."""
    parts = [provenance(content), *tables(content)]
    if content["yardsticks"]:
        parts.append(goals(content))
    return "\n\n".join(parts) + "\n"


def provenance(content: Content) -> str:
    """A paragraph that says on which machine and with what the figures were made."""
    machine, versions = content["machine"], content["versions"]
    packages = ", ".join(f"{name} {version}" for name, version in versions.items())
    settings = [f"{name.replace('_', ' ')} {value}" for name, value in content["settings"].items()]
    return (
        f"`{content['command']}`, {content['seconds'] / 60:.1f} min on {machine['cores']} cores of "
        f"{machine['processor']}, {machine['memory_gib']} GiB, {machine['system']}; "
        f"{', '.join([*settings, packages])}."
    )


def tables(content: Content) -> list[str]:
    """Each table as Markdown, with its title and its note."""
    return [_table(table) for table in content["tables"]]


def goals(content: Content) -> str:
    """The goals as a Markdown table."""
    rows = [
        [
            goal["what"],
            f"{goal['measured']:.3g}",
            f"{goal['sense']} {goal['goal']:g}",
            "yes" if goal["met"] else "**no**",
        ]
        for goal in content["yardsticks"]
    ]
    return "**Goals**\n\n" + _grid(["", "Measured", "Goal", "Met"], rows, ["", "r", "r", ""])


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


def _table(table: Content) -> str:
    columns = [Column(**column) for column in table["columns"]]
    rows = [[column.show(value) for column, value in zip(columns, row, strict=True)] for row in table["rows"]]
    grid = _grid([column.label for column in columns], rows, ["r" if c.format else "" for c in columns])
    return "\n\n".join(part for part in (f"**{table['title']}**", grid, table["note"]) if part)


def _grid(labels: list[str], rows: list[list[str]], align: list[str]) -> str:
    rules = ["---:" if side == "r" else "---" for side in align]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (labels, rules, *rows))


def main() -> None:
    for path in sorted(RESULTS.glob("*.json")):
        content = load(path)
        path.with_suffix(".md").write_text(markdown(content), encoding="utf-8")
        written = [path.with_suffix(".md"), draw(content)]
        for file in filter(None, written):
            show(f"written: {file.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
