"""The programs of the site's pages run, its tables are true, and its reference is complete."""

from __future__ import annotations

import importlib
import importlib.util
import re
import tomllib
from collections import OrderedDict
from pathlib import Path
from textwrap import dedent

import matplotlib as mpl
import numpy as np
import pytest
import torch
from matplotlib import pyplot
from torch import nn

from iba_core import Explainer

DOCS = Path(__file__).parents[1] / "docs"
PACKAGES = (
    "iba_core",
    "iba_core.concepts",
    "iba_core.datasets",
    "iba_core.evaluation",
    "iba_torch",
    "iba_torch.concepts",
    "iba_tf",
    "iba_tf.concepts",
)

# Code within a tab is indented.
BLOCK = re.compile(r"^( *)```python\n(.*?)^\1```$", re.MULTILINE | re.DOTALL)

# The other pages are run by tests that also look at what comes out.
FOLDERS = ("coming-from", "how-to")
PAGES = ["pytorch.md", "keras.md", "gallery.md", "what-a-map-does-not-say.md", "evaluation.md"] + [
    f"{folder}/{page.name}" for folder in FOLDERS for page in sorted((DOCS / folder).glob("*.md"))
]


def programs(page: str) -> list[str]:
    text = (DOCS / page).read_text(encoding="utf-8")
    return [dedent(code) for _, code in BLOCK.findall(text)]


@pytest.fixture
def given():
    """What the how-tos take for granted, as `how-to/index.md` says."""
    torch.manual_seed(0)
    layers = OrderedDict(
        features=nn.Sequential(nn.Conv2d(3, 6, 3, stride=2, padding=1), nn.ReLU()),
        pool=nn.AdaptiveAvgPool2d(1),
        flatten=nn.Flatten(),
        logits=nn.Linear(6, 5),
    )
    model = nn.Sequential(layers).eval()
    images, labels = torch.randn(24, 3, 16, 16), torch.randint(5, (24,))
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(images, labels), batch_size=8)
    explainer = Explainer(model, layer="features", steps=3, samples=4).fit(loader, progbar=False)
    return {"model": model, "loader": loader, "x": images[:4].numpy(), "explainer": explainer}


@pytest.mark.parametrize("page", PAGES)
def test_the_programs_of_a_page_run(page, given, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    mpl.use("agg")
    names = dict(given) if page.startswith("how-to/") else {}
    for code in programs(page):
        exec(compile(code, page, "exec"), names)
    pyplot.close("all")


def test_ten_lines_on_the_start_page(given, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    mpl.use("agg")
    (code,) = programs("index.md")
    names = {**given, "picture": np.zeros((16, 16)), "names": list("abcde")}
    exec(compile(code, "index.md", "exec"), names)
    assert names["attribution"].saliency.shape == (4, 16, 16)


def test_the_reference_has_every_public_name():
    text = "".join(page.read_text(encoding="utf-8") for page in (DOCS / "reference").glob("*.md"))
    entries = set(re.findall(r"^::: ([\w.]+)$", text, re.MULTILINE))
    public = {
        f"{package}.{name}" for package in PACKAGES for name in importlib.import_module(package).__all__
    }
    assert public <= entries


def test_what_the_reference_lists_exists():
    for page in (DOCS / "reference").glob("*.md"):
        for entry in re.findall(r"^::: ([\w.]+)$", page.read_text(encoding="utf-8"), re.MULTILINE):
            module, _, name = entry.rpartition(".")
            assert hasattr(importlib.import_module(module), name), entry


@pytest.mark.parametrize("page", [page.name for page in sorted((DOCS / "coming-from").glob("*.md"))])
def test_moved_names_are_where_the_tables_say(page):
    text = (DOCS / "coming-from" / page).read_text(encoding="utf-8")
    rows = re.findall(r"^\| `from [^|]*` \| `from .*\|$", text, re.MULTILINE)
    for row in rows:
        before, *now = re.findall(r"`(from [^`]*)`", row)
        for line in now:
            exec(line, {})
        assert before.split()[-1] == now[0].split()[-1]
    # Other tools get maps from here, and no name moves.
    assert rows or page in ("index.md", "captum-quantus-xplique.md")


def test_the_table_of_iba_is_complete():
    text = (DOCS / "coming-from" / "iba.md").read_text(encoding="utf-8")
    assert len(re.findall(r"^\| `from IBA", text, re.MULTILINE)) == 21


def test_the_page_of_the_architecture_has_the_floors_that_are_checked():
    contracts = tomllib.loads((DOCS.parent / "pyproject.toml").read_text())["tool"]["importlinter"][
        "contracts"
    ]
    (floors,) = (c["layers"] for c in contracts if c["type"] == "layers" and c["containers"] == ["iba_core"])
    text = (DOCS / "architecture.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (`[^|]*`) \|", text, re.MULTILINE)
    assert [set(re.findall(r"`(\w+)`", row)) for row in rows] == [set(floor.split(" | ")) for floor in floors]


def test_the_drawing_has_the_floors_that_are_checked():
    floors = script("floors")
    assert floors.PICTURE.read_text(encoding="utf-8") == floors.drawing()


def script(name):
    """A module of `docs/scripts`, which is no package."""
    spec = importlib.util.spec_from_file_location(name, DOCS / "scripts" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_names_on_pages_link_to_the_reference():
    html = (
        "<h2><code>Explainer</code></h2><p><code>Explainer.fit</code>, <code>x</code>, <code>Split</code></p>"
    )
    linked = script("site_hooks").on_page_content(html)
    assert "<h2><code>Explainer</code></h2>" in linked
    assert 'identifier="iba_core.Explainer.fit"' in linked
    assert 'identifier="iba_core.framework.adapter.Split"' in linked
    assert linked.count("<autoref") == 2


def test_formulas_of_docstrings_become_mathml():
    pytest.importorskip("latex2mathml", reason="builds the site")
    docstring = (
        "Of :math:`a`:\n\n    .. math:: \\bigl(a\n          + b\\bigr),\n\n    Example:\n        >>> 1"
    )
    prepared = script("griffe_docstrings").prepared(docstring)
    assert prepared.count("<math") == 2
    assert "math::" not in prepared
    assert "Examples:" in prepared


def test_the_way_of_a_call_is_counted():
    way = script("way_of_a_call").way("torch")
    assert way.files[0] == "iba_core/explainer.py"
    assert way.changes == len(way.files) - 1


def test_pictures_are_there_and_small():
    for page in DOCS.rglob("*.md"):
        for target in re.findall(r"!\[[^\]]*\]\(([^)]+)\)", page.read_text(encoding="utf-8")):
            assert (page.parent / target).is_file(), target
    for picture in (DOCS / "images").iterdir():
        assert picture.stat().st_size < 400_000
