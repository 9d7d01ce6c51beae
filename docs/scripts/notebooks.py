"""Run the notebooks and keep what they show: ``python docs/scripts/notebooks.py [NAME...]``.

A notebook is JSON, and its cells are Python, so this needs no Jupyter. What the last line of a cell gives is
shown as Jupyter would: a figure as a picture, an object with ``_repr_html_`` as HTML, another as text.
"""

from __future__ import annotations

import ast
import base64
import json
import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import redirect_stdout
from io import BytesIO, StringIO
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parents[1] / "notebooks"
INCHES = 5.5
"""Width of the pictures that are kept, at most."""


def code_of(cell: dict[str, Any]) -> str:
    """The text of a cell."""
    return "".join(cell["source"])


def run(path: Path) -> dict[str, Any]:
    """Run the cells of a notebook in one namespace.

    Returns:
        The notebook with the outputs of this run.
    """
    import matplotlib as mpl

    mpl.use("agg")
    notebook: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    names: dict[str, Any] = {"__name__": "__main__"}
    number = 0
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            number += 1
            cell["execution_count"] = number
            cell["outputs"] = list(outputs(code_of(cell), names, f"{path.name}[{number}]", number))
    return notebook


def outputs(code: str, names: dict[str, Any], where: str, number: int) -> Iterator[dict[str, Any]]:
    """Run a cell, and give what it shows."""
    tree = ast.parse(code, where)
    last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
    said, value = StringIO(), None
    with redirect_stdout(said):
        exec(compile(tree, where, "exec"), names)
        if isinstance(last, ast.Expr) and not code.rstrip().endswith(";"):
            value = eval(compile(ast.Expression(last.value), where, "eval"), names)
    if said.getvalue():
        yield {"output_type": "stream", "name": "stdout", "text": said.getvalue().splitlines(keepends=True)}
    if value is not None:
        yield {
            "output_type": "execute_result",
            "execution_count": number,
            "metadata": {},
            "data": shown(value),
        }


def shown(value: Any) -> dict[str, Any]:
    """A value as Jupyter shows it."""
    from matplotlib import pyplot
    from matplotlib.figure import Figure

    figure = value if isinstance(value, Figure) else getattr(value, "figure", None)
    if isinstance(figure, Figure):
        content = BytesIO()
        dpi = min(80, 80 * INCHES * 1.6 / figure.get_figwidth())
        figure.savefig(content, format="png", dpi=dpi, bbox_inches="tight")
        pyplot.close(figure)
        return {"image/png": base64.b64encode(content.getvalue()).decode(), "text/plain": ["a figure"]}
    plain = {"text/plain": [repr(value)]}
    html = value._repr_html_() if hasattr(value, "_repr_html_") else None
    return plain if html is None else {"text/html": html.splitlines(keepends=True), **plain}


def main(names: list[str]) -> None:
    """Run notebooks, all if none is named, and write their outputs into them."""
    for path in sorted(FOLDER.glob("*.ipynb")):
        if not names or path.stem in names:
            here = Path.cwd()
            with tempfile.TemporaryDirectory() as folder:
                os.chdir(folder)
                notebook = run(path)
                os.chdir(here)
            path.write_text(json.dumps(notebook, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
            print(path.name, f"{path.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main(sys.argv[1:])
