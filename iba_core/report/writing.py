"""Writing a report."""

from __future__ import annotations

from datetime import datetime
from importlib import resources
from importlib.util import find_spec
from os import PathLike
from pathlib import Path
from typing import Any

import iba_core
from iba_core.arguments import require_bool, require_text
from iba_core.datasets.run import Run
from iba_core.errors import InputError, MissingDependencyError
from iba_core.files import as_path, shown, write_atomically
from iba_core.report.layers import COLOURS, channel_tables
from iba_core.report.rows import MAPS, PICTURES, as_script, collected, setups_of
from iba_core.utils import get_tqdm

FOLDER = "report"
"""The folder of a report in that of its run."""

_PAGE = "index.html"
_COPIED = ("report.css", "report.js")


def write_report(
    run: str | PathLike[str] | Run,
    out: str | PathLike[str] | None = None,
    *,
    title: str | None = None,
    progbar: bool = True,
) -> Path:
    """Write a report of a run: pages that a browser opens from disk, without a server or the network.

    It shows all explanations as a grid to sort and to filter, and each input with its maps beside each other,
    on one scale or each on its own. The folder holds all that it needs, so it can be moved. Images that are
    there from an earlier report are kept.

    Args:
        run: folder that `iba_core.datasets.explain_dataset` or ``iba explain`` has written, or its `Run`.
        out: folder to write to; ``report`` in that of the run if None.
        title: heading; the name of the run's folder if None.
        progbar: show the progress.

    Returns:
        The page to open.

    Raises:
        StateError: there is no run in the folder.
        InputError: an argument is wrong, or the folder cannot be written.
        MissingDependencyError: Jinja2 is not installed.

    Example:
        >>> import tempfile
        >>> from iba_core.datasets import Run
        >>> run = Run(tempfile.mkdtemp())
        >>> run.begin({"id": "1", "started": "2020-01-01", "layer": "conv"})
        >>> write_report(run, progbar=False).name
        'index.html'
    """
    environment = _environment()
    if not isinstance(run, Run):
        run = Run.open(run)
    require_text("title", title, optional=True)
    require_bool("progbar", progbar)
    folder = run.folder / FOLDER if out is None else as_path(out, "out")
    try:
        for part in (MAPS, PICTURES):
            (folder / part).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"out={str(folder)!r} cannot be made a folder: {error.strerror}") from error
    records = get_tqdm()(run, desc="Drawing", total=len(run), unit="map", disable=not progbar)
    rows = collected(records, folder)
    setups = setups_of(run)
    heading = shown(title or run.folder.resolve().name or "run")
    data = {
        "title": heading,
        "inputs": rows.inputs,
        "records": rows.records,
        "setups": {setup["id"]: setup["label"] for setup in setups},
        "colours": COLOURS,
    }
    page = environment.get_template("index.html.j2").render(
        title=heading,
        setups=setups,
        tables=channel_tables(),
        inputs=len(rows.inputs),
        failed=sum(row["error"] is not None for row in rows.records),
        explained=sum(row["error"] is None for row in rows.records),
        version=iba_core.__version__,
        made=datetime.now().astimezone().strftime("%d %B %Y, %H:%M"),
    )
    _write(folder / "data.js", as_script(data))
    for name in _COPIED:
        _write(folder / name, _template(name))
    _write(folder / _PAGE, page)
    return folder / _PAGE


def require_jinja2() -> None:
    """Check that Jinja2 is installed, without importing it.

    Raises:
        MissingDependencyError: it is not.
    """
    if find_spec("jinja2") is None:
        raise MissingDependencyError("a report needs Jinja2: pip install 'iba-core[report]'")


def _environment() -> Any:
    require_jinja2()
    import jinja2

    return jinja2.Environment(
        loader=jinja2.FunctionLoader(_template),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )


def _template(name: str) -> str:
    return (resources.files("iba_core.report") / "templates" / name).read_text(encoding="utf-8")


def _write(path: Path, text: str) -> None:
    with write_atomically(path, "out") as file:
        file.write(text.encode())
