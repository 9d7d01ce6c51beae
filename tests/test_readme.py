"""What the README says works."""

import re
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib import pyplot
from PIL import Image

from iba_core import Attribution
from iba_core.cli.app import app

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```python\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)


def run(code, **names):
    exec(compile(code, "README.md", "exec"), names)
    return names


def test_there_is_code_for_ones_own_data_and_model_and_for_each_framework():
    assert len(BLOCKS) == 5
    for framework, data, demo in (("torch", BLOCKS[0], BLOCKS[3]), ("keras", BLOCKS[1], BLOCKS[4])):
        assert f"iba_{framework.replace('keras', 'tf')}" in demo
        assert framework in data


def photographs():
    """Folders of photographs, and one apart, as a user has them."""
    generator = np.random.default_rng(0)
    for name in ("photographs/cat/1", "photographs/cat/2", "photographs/dog/1", "photographs/dog/2", "photo"):
        path = Path(f"{name}.jpg")
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(generator.integers(0, 255, (224, 224, 3), dtype=np.uint8)).save(path)


def torch_model():
    import torch
    from torch import nn

    def transform(image):
        return torch.from_numpy(np.asarray(image, np.float32) / 255).permute(2, 0, 1)

    layers = nn.Conv2d(3, 4, 9, stride=8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2)
    return {"model": nn.Sequential(*layers).eval(), "transform": transform}


def keras_model():
    import keras
    from keras import layers

    parts = (
        layers.Rescaling(1 / 255),
        layers.Conv2D(4, 9, 8, activation="relu"),
        layers.GlobalAveragePooling2D(),
    )
    return {"model": keras.Sequential([keras.Input((224, 224, 3)), *parts, layers.Dense(2)])}


@pytest.mark.parametrize(("data", "model"), [(BLOCKS[0], torch_model), (BLOCKS[1], keras_model)])
def test_code_for_ones_own_model_runs(data, model, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    mpl.use("agg")
    photographs()
    names = run(BLOCKS[2], **run(data, **model()))
    pyplot.close("all")
    attribution = names["attribution"]
    assert attribution.saliency.shape == (1, 224, 224)
    assert repr(attribution) in capsys.readouterr().out
    assert Attribution.load("map.safetensors").class_names[0] in ("cat", "dog")
    assert Image.open("map.png").width > 300
    lines = [line for line in (data + BLOCKS[2]).splitlines() if line and "import" not in line]
    assert len(lines) <= 10


@pytest.mark.parametrize("code", BLOCKS[3:], ids=["torch", "keras"])
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
