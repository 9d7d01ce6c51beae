"""The results of explained pictures, as the command line prints them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from importlib.util import find_spec
from math import nan
from typing import Self

from rich.table import Table
from rich.text import Text

from iba_core.cli.console import folded, plain_table
from iba_core.datasets import Record
from iba_core.datasets.explaining import percent
from iba_core.errors import MissingDependencyError
from iba_core.files import shown

_MARK = "▸ "
_NAME_WIDTH, _CLASS_WIDTH = 13, 21

LEGEND = (
    f"Bits: information of the picture that keeps the class marked {_MARK.strip()}. "
    "Survives: share of that class's probability that remains when only these bits pass."
)


@dataclass(frozen=True)
class Row:
    """One explained picture.

    Attributes:
        name: name of the picture.
        target: index of the explained class.
        classes: the most probable classes and the explained one: index, label, probability.
        bits: sum of the bits that pass.
        bits_per_pixel: their mean.
        survives: share of the probability that is left when only these bits pass; NaN of nothing.
        seconds: time of the explanation.
    """

    name: str
    target: int
    classes: tuple[tuple[int, str, float], ...]
    bits: float
    bits_per_pixel: float
    survives: float
    seconds: float

    @classmethod
    def of(cls, record: Record) -> Self:
        """The row of a picture that has been explained for a class."""
        assert record.class_index is not None
        return cls(
            name=shown(record.name),
            target=record.class_index,
            classes=tuple((index, label(index, name), share) for index, name, share in record.top),
            bits=record.bits or 0.0,
            bits_per_pixel=record.bits_per_pixel or 0.0,
            survives=nan if record.survival is None else record.survival,
            seconds=record.seconds or 0.0,
        )


def label(index: int, name: str | None) -> str:
    """Index and name of a class, as a table shows them.

    Example:
        >>> label(3, "crane"), label(3, None)
        ('3 crane', 'class 3')
    """
    return f"class {index}" if name is None else f"{index} {shown(name)}"


def require_plotting() -> None:
    """Check that matplotlib is installed, without importing it.

    Raises:
        MissingDependencyError: it is not.
    """
    if find_spec("matplotlib") is None:
        raise MissingDependencyError("drawing the maps needs matplotlib: pip install 'iba-core[plot]'")


def results_table(rows: Iterable[Row], title: str | None = None) -> Table:
    """Make a table of explained pictures that fits into 80 columns."""
    table = plain_table(title)
    table.add_column("Photograph", max_width=_NAME_WIDTH)
    table.add_column("Class", max_width=len(_MARK) + _CLASS_WIDTH)
    table.add_column("Prob.", justify="right", no_wrap=True)
    table.add_column("Bits", justify="right", no_wrap=True)
    table.add_column("Bits per\npixel", justify="right", no_wrap=True)
    table.add_column("Survives", justify="right", no_wrap=True)
    table.add_column("Time", justify="right", no_wrap=True)
    for row in rows:
        classes, chances = Text(), Text()
        for index, name, probability in row.classes:
            marked = index == row.target
            lines = folded(name, _CLASS_WIDTH).split("\n")
            style = "bold" if marked else ""
            classes.append((_MARK if marked else "  ") + "\n  ".join(lines) + "\n", style)
            chances.append(percent(probability, digits=1) + "\n" * len(lines), style)
        classes.rstrip()
        chances.rstrip()
        table.add_row(
            folded(row.name, _NAME_WIDTH),
            classes,
            chances,
            f"{row.bits:,.0f}",
            f"{row.bits_per_pixel:.3g}",
            percent(row.survives),
            f"{row.seconds:.1f} s",
        )
    return table
