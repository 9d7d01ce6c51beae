"""The programs of docs/concepts-in-pictures.md run, and say what the page says."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
from PIL import Image

PAGE = Path(__file__).parents[2] / "docs" / "concepts-in-pictures.md"


def test_the_page(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    programs = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    assert len(programs) == 2
    names = {}
    for program in programs:
        exec(compile(program, str(PAGE), "exec"), names)

    def share_of_the_cat(saliency):
        return saliency[:, :224].sum() / saliency.sum()

    for maps, cat, coffee in (
        (names["similar"], 0.9, 0.1),
        (names["different"], 0.1, 0.9),
        ({name: bits.saliency[0] for name, bits in names["bits"].items()}, 0.7, 0.3),
    ):
        assert np.sign(share_of_the_cat(maps["cat"]) - cat) == np.sign(cat - 0.5)
        assert np.sign(share_of_the_cat(maps["coffee"]) - coffee) == np.sign(coffee - 0.5)
    # With the rest gone, the picture is more similar to the concept than the whole picture was.
    for bits in names["bits"].values():
        assert bits.model_losses[-1, 0] < bits.model_losses[0, 0]
    assert share_of_the_cat(names["attribution"].saliency[0]) > 0.8
    assert share_of_the_cat(names["where"][0]) > 0.8

    with (
        Image.open("concepts-in-pictures.jpg") as made,
        Image.open(PAGE.parent / "images" / made.filename) as shown,
    ):
        assert abs(made.width - shown.width) < 50
        assert abs(made.height - shown.height) < 50
    assert re.search(
        r"cat: [\d,]+ bits\ncoffee: [\d,]+ bits\n\d+% of [\d,]+ bits lie on the cat", capsys.readouterr().out
    )
