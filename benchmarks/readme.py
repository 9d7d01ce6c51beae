"""The figures in README.md and in the pages of docs/, from the results: no number there is typed.

    python -m benchmarks.readme [--check]

Whatever stands between ``<!-- bench:NAME -->`` and ``<!-- /bench:NAME -->`` is replaced by the tables of
``results/NAME.json``; ``<!-- bench:NAME:goals -->`` takes the goals only, and ``<!-- bench:NAME:2 -->`` the
first two tables. With ``--check`` nothing is written, and the program fails if something would have been.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

from benchmarks.harness import RESULTS, ROOT, show
from benchmarks.report import load
from benchmarks.tables import Content, goals, provenance, tables

_BLOCK = re.compile(
    r"(?P<begin><!-- bench:(?P<name>\w+)(?::(?P<part>\w+))? -->\n).*?(?P<end><!-- /bench:(?P=name) -->)",
    re.DOTALL,
)


def filled(text: str, results: Path = RESULTS) -> str:
    """`text` with every block filled from the results; blocks whose results are missing stay."""

    def fill(match: re.Match[str]) -> str:
        path = results / f"{match['name']}.json"
        if not path.is_file():
            return match[0]
        return f"{match['begin']}{_part(load(path), match['part'])}\n{match['end']}"

    return _BLOCK.sub(fill, text)


def _part(content: Content, part: str | None) -> str:
    if part == "goals":
        return goals(content)
    if part is not None:
        return "\n\n".join([*tables(content)[: int(part)], provenance(content)])
    return "\n\n".join([*tables(content), goals(content), provenance(content)])


def pages() -> list[Path]:
    """The pages that may hold figures."""
    return [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def main() -> None:
    old = {page: page.read_text(encoding="utf-8") for page in pages()}
    changed = {page: new for page, text in old.items() if (new := filled(text)) != text}
    names = ", ".join(str(page.relative_to(ROOT)) for page in changed)
    if "--check" in sys.argv and changed:
        sys.exit(f"{names}: not what benchmarks/results say; run `python -m benchmarks.readme`")
    for page, new in changed.items():
        page.write_text(new, encoding="utf-8")
    show(f"changed: {names or 'nothing'}")


if __name__ == "__main__":
    main()
