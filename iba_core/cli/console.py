"""What the command line prints: consoles, progress, text that breaks between words."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import numpy as np
from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

_T = TypeVar("_T")

# Where a name may go on in the next line: behind what joins its parts.
_PART = re.compile(r"[^\s/\\._\-]*[\s/\\._\-]*")


def console(*, stderr: bool = False) -> Console:
    """Console for results, or with `stderr` for what accompanies the work on them."""
    return Console(stderr=stderr, highlight=False)


def plain_table(title: str | None = None) -> Table:
    """A table with a rule under its head and no other lines."""
    return Table(
        title=title,
        title_justify="left",
        title_style="bold",
        box=box.SIMPLE_HEAD,
        show_edge=False,
        pad_edge=False,
        padding=(0, 1, 0, 0),
        header_style="bold",
    )


def folded(text: str, width: int) -> str:
    """`text` in lines of at most `width` characters, broken between words or behind ``/ . _ -``.

    Only a part that is wider than a line by itself is broken elsewhere.
    """
    lines = [""]
    for part in _PART.findall(text):
        if len(lines[-1]) + len(part.rstrip()) > width:
            lines.append("")
        lines[-1] += part
        while len(lines[-1].rstrip()) > width:
            lines[-1:] = [lines[-1][:width], lines[-1][width:]]
    return "\n".join(line.rstrip() for line in lines if line.strip())


def notes(entries: Iterable[tuple[str, str]], width: int) -> Table:
    """Names and what there is to say about them, side by side.

    Args:
        entries: pairs (name, text); a line break in a text starts a line.
        width: characters that a line may have in all.
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
    """`text` in lines of at most `width` characters, broken between words where that is possible."""
    return Text(_wrapped(text, width))


def _wrapped(text: str, width: int) -> str:
    """Break between words, and inside of words, such as paths, only where they fit no line."""
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
    """Context that hands `items` on while a bar on stderr shows how many are done; the bar does not stay.

    Args:
        items: arrays count as many as they have rows, everything else counts as one.
        description: what is being done.
        total: number there will be in all.
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
