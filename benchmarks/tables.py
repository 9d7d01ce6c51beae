"""Tables of results, and their text as Markdown."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

Content = dict[str, Any]
"""The content of a JSON file of results."""


@dataclass(frozen=True)
class Column:
    """A column of a table.

    Attributes:
        label: heading of the column.
        format: format specification of a number, such as ``".2f"``; empty for text.
        unit: unit that follows each number.
    """

    label: str
    format: str = ""
    unit: str = ""

    def show(self, value: Any) -> str:
        """Format a value; None becomes an empty cell."""
        if value is None:
            return ""
        return f"{value:{self.format}}{self.unit and ' ' + self.unit}" if self.format else str(value)


@dataclass
class Table:
    """A table for readers. The file stores unrounded numbers.

    Attributes:
        title: title of the table.
        columns: columns of the table.
        rows: rows with a value for each column: measured numbers, text, or None for an empty cell.
        note: a sentence below the table.
    """

    title: str
    columns: list[Column]
    rows: list[list[Any]] = field(default_factory=list)
    note: str = ""


@dataclass(frozen=True)
class Yardstick:
    """A goal, and the measured number.

    Attributes:
        what: name of the measured quantity.
        measured: measured number.
        goal: limit.
        sense: whether the limit is an upper or a lower one.
    """

    what: str
    measured: float
    goal: float
    sense: Literal["at most", "at least"]

    @property
    def met(self) -> bool:
        """Whether the goal is met."""
        return self.measured <= self.goal if self.sense == "at most" else self.measured >= self.goal


def markdown(content: Content) -> str:
    """Return a whole result as Markdown: its origin, tables and goals."""
    parts = [provenance(content), *tables(content)]
    if content["yardsticks"]:
        parts.append(goals(content))
    return "\n\n".join(parts) + "\n"


def provenance(content: Content) -> str:
    """Describe the machine, versions and settings of a result in a paragraph."""
    machine, versions = content["machine"], content["versions"]
    packages = ", ".join(f"{name} {version}" for name, version in versions.items())
    settings = [f"{name.replace('_', ' ')} {value}" for name, value in content["settings"].items()]
    return (
        f"`{content['command']}`, {content['seconds'] / 60:.1f} min on {machine['cores']} cores of "
        f"{machine['processor']}, {machine['memory_gib']} GiB, {machine['system']}; "
        f"{', '.join([*settings, packages])}."
    )


def tables(content: Content) -> list[str]:
    """Return each table as Markdown, with its title and note."""
    return [_table(table) for table in content["tables"]]


def goals(content: Content) -> str:
    """Return the goals as a Markdown table."""
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


def _table(table: Content) -> str:
    columns = [Column(**column) for column in table["columns"]]
    rows = [[column.show(value) for column, value in zip(columns, row, strict=True)] for row in table["rows"]]
    grid = _grid([column.label for column in columns], rows, ["r" if c.format else "" for c in columns])
    return "\n\n".join(part for part in (f"**{table['title']}**", grid, table["note"]) if part)


def _grid(labels: list[str], rows: list[list[str]], align: list[str]) -> str:
    rules = ["---:" if side == "r" else "---" for side in align]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (labels, rules, *rows))
