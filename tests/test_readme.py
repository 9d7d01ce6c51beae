"""What the README says works."""

import re
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pytest
from PIL import Image

from iba_core import Attribution
from iba_core.cli.app import app
from tests.backends import smooth_images

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```python\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)


def run(code, **names):
    exec(compile(code, "README.md", "exec"), names)
    return names


def test_there_is_code_for_ones_own_model_and_for_each_framework():
    assert len(BLOCKS) == 3
    assert "iba_torch" in BLOCKS[1]
    assert "iba_tf" in BLOCKS[2]


def test_code_for_ones_own_model_runs(backend, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    mpl.use("agg")
    model, x = backend.small(), backend.images(smooth_images(8))
    height, width = smooth_images(1).shape[1:3]
    names = run(BLOCKS[0], model=model, loader=[x], x=x[:2], picture=np.zeros((height, width)))
    attribution = names["attribution"]
    assert attribution.saliency.shape == (2, height, width)
    assert str(attribution.total_bits) in capsys.readouterr().out
    assert Attribution.load("map.safetensors").classes.tolist() == [2, 2]
    assert Image.open("map.png").width > 300


@pytest.mark.parametrize("code", BLOCKS[1:], ids=["torch", "keras"])
def test_code_for_a_photograph_runs(code, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    mpl.use("agg")
    attribution = run(code)["attribution"]
    assert attribution.saliency.shape == (1, 224, 224)
    assert attribution.total_bits[0] > 100
    assert Image.open("cat.png").width > 300


def test_commands_exist():
    commands = {command.name or command.callback.__name__ for command in app.registered_commands}
    named = set(re.findall(r"\biba ([a-z]+)(?=[ `])", TEXT))
    assert named
    assert named <= commands
    targets = re.findall(r"`make ([a-z-]+)`|\$ make ([a-z-]+)", TEXT)
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
    named = {extra for group in re.findall(r"'\.\[([a-z,-]+)\]'", TEXT) for extra in group.split(",")}
    assert named
    assert named <= set(extras)
