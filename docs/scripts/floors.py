"""Draw the floors of the three packages, as import-linter checks them.

python docs/scripts/floors.py        writes docs/images/floors.svg; a test compares the two
"""

from __future__ import annotations

import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PICTURE = ROOT / "docs" / "images" / "floors.svg"

BOX, GAP, TOP = 32, 16, 52
COLUMNS = {  # left edge, width, fill and edge of the boxes
    "iba_torch": (10, 220, "#fbe9e7", "#ff7043"),
    "iba_core": (250, 560, "#ede7f6", "#7e57c2"),
    "iba_tf": (830, 220, "#fff3e0", "#fb8c00"),
}
STYLE = """text { font-family: system-ui, sans-serif; text-anchor: middle; fill: #222; }
.t { font-size: 13px; font-weight: 600; }
.l { font-size: 13px; font-weight: 600; text-anchor: start; }
.a { stroke: #777; stroke-width: 1.5; fill: none; }"""
TIP = (
    '<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" '
    'markerWidth="7" markerHeight="7" orient="auto">'
    '<path d="M0 0 L8 4 L0 8z" fill="#777"/></marker></defs>'
)


def floors() -> dict[str, list[list[str]]]:
    """The modules on each floor of each package, the top floor first."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    contracts = project["tool"]["importlinter"]["contracts"]
    layers = {c["containers"][0]: c["layers"] for c in contracts if c["type"] == "layers"}
    return {
        package: [floor.split(" | ") for floor in layers[package] if floor != "__main__"]
        for package in COLUMNS
    }


def drawing() -> str:
    """The picture as SVG."""
    found = floors()
    height = max(map(len, found.values())) * (BOX + GAP) + TOP + 8
    width = 1060
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img" '
        'aria-label="The floors of the library; imports run downwards only">',
        f"<style>\n{STYLE}\n</style>",
        TIP,
        f'<rect width="{width}" height="{height}" fill="#fff"/>',
    ]
    for package, (left, across, fill, edge) in COLUMNS.items():
        bottom = len(found[package]) * (BOX + GAP) + TOP - 4
        parts += [
            f'<rect x="{left}" y="10" width="{across}" height="{bottom - 10}" rx="8" fill="none" '
            f'stroke="{edge}" stroke-dasharray="5 4"/>',
            f'<text x="{left + 12}" y="32" class="l">{package}</text>',
        ]
        for number, floor in enumerate(found[package]):
            y = TOP + number * (BOX + GAP) - 8
            parts += _floor(floor, left + 14, y, across - 28, fill, edge)
            if number:
                middle = left + across / 2
                arrow = f"M{middle:g} {y - GAP} L{middle:g} {y}"
                parts.append(f'<path d="{arrow}" class="a" marker-end="url(#tip)"/>')
    return "\n".join([*parts, "</svg>\n"])


def _floor(names: list[str], left: float, top: float, across: float, fill: str, edge: str) -> list[str]:
    """The boxes of one floor, beside each other."""
    letters = sum(len(name) + 3 for name in names)
    parts, x = [], left
    for name in names:
        side = (across - 10 * (len(names) - 1)) * (len(name) + 3) / letters
        parts += [
            f'<rect x="{x:g}" y="{top}" width="{side:g}" height="{BOX}" rx="5" '
            f'fill="{fill}" stroke="{edge}"/>',
            f'<text x="{x + side / 2:g}" y="{top + BOX / 2 + 5:g}" class="t">{name}</text>',
        ]
        x += side + 10
    return parts


if __name__ == "__main__":
    PICTURE.write_text(drawing(), encoding="utf-8")
