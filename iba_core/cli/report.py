"""``iba report``: a run as pages for a browser."""

from __future__ import annotations

import webbrowser
from pathlib import Path

from iba_core.cli.console import console, notes, print_blocks
from iba_core.datasets.run import Run
from iba_core.files import shown
from iba_core.report import write_report


def report_run(folder: Path, *, out: Path | None, title: str | None, show: bool) -> None:
    """Write the report of a run and say where it is. The options are in `iba_core.cli.app`."""
    terminal = console(stderr=True)
    run = Run.open(folder)
    page = write_report(run, out, title=title, progbar=terminal.is_terminal)
    explained, failed = len(run) - len(run.failed), len(run.failed)
    results = f"{explained:,} explanation{'' if explained == 1 else 's'}" + (
        f", {failed:,} failed" if failed else ""
    )
    print_blocks(notes([("Run", results), ("Report", shown(page))], console().width))
    if show:
        webbrowser.open(page.resolve().as_uri())
