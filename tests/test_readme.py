"""What the README says works."""

import re
from pathlib import Path

import matplotlib as mpl
import pytest
from PIL import Image

from iba_core import Attribution
from iba_core.cli.app import app

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```python\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)
TABLE = re.findall(r"^\| `(from IBA[^`]*)` \| `([^`]*)` \|$", TEXT, re.MULTILINE)


def test_there_is_code_for_each_framework():
    assert len(BLOCKS) == 2
    assert "iba_torch" in BLOCKS[0]
    assert "iba_tf" in BLOCKS[1]


@pytest.mark.parametrize("code", BLOCKS, ids=["torch", "keras"])
def test_code_runs(code, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    mpl.use("agg")
    names: dict[str, object] = {}
    exec(compile(code, "README.md", "exec"), names)
    attribution = names["attribution"]
    assert attribution.saliency.shape == (1, 224, 224)
    assert attribution.total_bits[0] > 100
    assert str(attribution.total_bits) in capsys.readouterr().out
    assert Attribution.load("cat.safetensors").classes.tolist() == [282]
    assert Image.open("cat.png").width > 300


def test_moved_names_are_where_the_table_says():
    assert len(TABLE) == 21
    for before, now in TABLE:
        exec(now, {})
        assert before.split()[-1] == now.split()[-1]


def test_commands_exist():
    commands = {command.name or command.callback.__name__ for command in app.registered_commands}
    named = set(re.findall(r"\biba ([a-z]+)(?=[ `])", TEXT))
    assert named
    assert named <= commands
    targets = re.findall(r"`make ([a-z]+)`|\$ make ([a-z]+)", TEXT)
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for pair in targets:
        assert re.search(rf"^{''.join(pair)}:", makefile, re.MULTILINE)


def test_links_and_pictures_are_there():
    for target in re.findall(r"\]\(([^)]+)\)", TEXT):
        if not target.startswith("http"):
            assert (ROOT / target).is_file(), target
    for picture in (ROOT / "docs" / "images").iterdir():
        assert picture.stat().st_size < 400_000


def test_extras_exist():
    import tomllib

    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    named = {extra for group in re.findall(r"'\.\[([a-z,]+)\]'", TEXT) for extra in group.split(",")}
    assert named
    assert named <= set(extras)
