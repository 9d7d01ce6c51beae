"""Output of the command line: consoles, progress bars, tables, wrapped text."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import numpy as np
from rich import box
from rich.console import Console, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from iba_core.files import shown

_T = TypeVar("_T")

# A name may be broken after the characters that join its parts.
_PART = re.compile(r"[^\s/\\._\-]*[\s/\\._\-]*")


def console(*, stderr: bool = False) -> Console:
    """Make a console for results on stdout, or with `stderr` for progress on stderr."""
    # What is printed are names, in which "[bold]" and ":smile:" mean nothing.
    return Console(stderr=stderr, highlight=False, markup=False, emoji=False)


def plain_table(title: str | None = None) -> Table:
    """Make a table with a line under its header and no other lines."""
    return Table(
        title=None if title is None else shown(title),
        title_justify="left",
        title_style="bold",
        box=box.SIMPLE_HEAD,
        show_edge=False,
        pad_edge=False,
        padding=(0, 1, 0, 0),
        header_style="bold",
    )


def folded(text: str, width: int) -> str:
    r"""Break `text` into lines of at most `width` characters, between words or after ``/ . _ -``.

    Only a part that is longer than a line is broken elsewhere. What a terminal would not show as itself is
    escaped, see `iba_core.files.shown`.

    Example:
        >>> folded("blocks.10.expand", 10)
        'blocks.10.\nexpand'
    """
    lines = [""]
    for part in _PART.findall(shown(text)):
        if len(lines[-1]) + len(part.rstrip()) > width:
            lines.append("")
        lines[-1] += part
        while len(lines[-1].rstrip()) > width:
            lines[-1:] = [lines[-1][:width], lines[-1][width:]]
    return "\n".join(line.rstrip() for line in lines if line.strip())


def notes(entries: Iterable[tuple[str, str]], width: int) -> Table:
    """Make a table of names and notes, side by side.

    Args:
        entries: pairs (name, note). A line break in a note starts a new line.
        width: maximum number of characters in a line.
    """
    entries = list(entries)
    names = max(len(name) for name, _ in entries)
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(style="bold", no_wrap=True)
    table.add_column(no_wrap=True)
    for name, text in entries:
        lines = (_wrapped(line, width - names - 2) for line in text.splitlines())
        table.add_row(name, Text("\n".join(lines)))
    return table


def paragraph(text: str, width: int) -> Text:
    """Break `text` into lines of at most `width` characters, between words where possible."""
    return Text(_wrapped(text, width))


def print_blocks(*blocks: RenderableType) -> None:
    """Print blocks to stdout, with an empty line before each."""
    terminal = console()
    for block in blocks:
        terminal.print()
        terminal.print(block)


def _wrapped(text: str, width: int) -> str:
    """Break between words, and inside a word, such as a path, only if it is longer than a line."""
    lines = [""]
    for word in text.split(" "):
        if lines[-1] and len(lines[-1]) + 1 + len(word) > width:
            lines.append("")
        first, *rest = folded(word, width).split("\n")
        lines[-1] += (" " if lines[-1] else "") + first
        lines.extend(rest)
    return "\n".join(lines)


@contextmanager
def tracked(items: Iterable[_T], description: str, total: int) -> Iterator[Iterator[_T]]:
    """Give `items` while a progress bar on stderr counts them. The bar disappears at the end.

    Args:
        items: items to count: an array counts as its number of rows, any other object as one.
        description: text beside the bar.
        total: number of all items.
    """
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    terminal = console(stderr=True)
    with Progress(*columns, console=terminal, transient=True, disable=not terminal.is_terminal) as progress:
        task = progress.add_task(description, total=total)

        def counted() -> Iterator[_T]:
            for item in items:
                yield item
                progress.advance(task, len(item) if isinstance(item, np.ndarray) else 1)

        yield counted()
