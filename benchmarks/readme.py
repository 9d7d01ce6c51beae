"""Copy the results into README.md and the pages of docs/.

    python -m benchmarks.readme [--check]

The text between ``<!-- bench:NAME -->`` and ``<!-- /bench:NAME -->`` is replaced by the tables of
``results/NAME.json``. ``<!-- bench:NAME:goals -->`` takes only the goals, and ``<!-- bench:NAME:2 -->`` the
first two tables. With ``--check``, the program writes nothing, and fails if a page would change.
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
    """Fill every block of `text` from the results. Blocks without results stay as they are."""

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
    parts = [*tables(content), goals(content) if content["yardsticks"] else "", provenance(content)]
    return "\n\n".join(filter(None, parts))


def pages() -> list[Path]:
    """List the pages that may contain results."""
    return [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def main() -> None:
    old = {page: page.read_text(encoding="utf-8") for page in pages()}
    changed = {page: new for page, text in old.items() if (new := filled(text)) != text}
    names = ", ".join(str(page.relative_to(ROOT)) for page in changed)
    if "--check" in sys.argv and changed:
        sys.exit(f"{names}: differs from benchmarks/results; run `python -m benchmarks.readme`")
    for page, new in changed.items():
        page.write_text(new, encoding="utf-8")
    show(f"changed: {names or 'nothing'}")


if __name__ == "__main__":
    main()
