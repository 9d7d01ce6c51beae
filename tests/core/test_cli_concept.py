"""``iba concept`` on a tiny network."""

import json
import re
import sys

import numpy as np
import pytest
from PIL import Image

from iba_core.cli import main
from iba_core.concepts import ConceptEmbedding

pytest.importorskip("torch")
pytest.importorskip("matplotlib")

MODULE = """
import torch
from torch import nn

from iba_core.pictures.images import Preprocessing


def net():
    torch.manual_seed(3)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.AvgPool2d(2), nn.Conv2d(8, 4, 3), nn.Flatten(),
        nn.Linear(4 * 14 * 14, 5),
    )
    model.preprocessing = Preprocessing(size=(32, 32))
    return model
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with a network, pictures with a red square, and masks of the squares."""
    rng = np.random.default_rng(0)
    (tmp_path / "concept_nets.py").write_text(MODULE, encoding="utf-8")
    for name in ("pictures", "masks"):
        (tmp_path / name).mkdir()
    for index in range(24):
        picture = rng.integers(60, 180, (32, 32, 3), dtype=np.uint8)
        y, x = rng.integers(0, 20, 2)
        picture[y : y + 12, x : x + 12] = (230, 30, 30)
        mask = np.zeros((32, 32), np.uint8)
        mask[y : y + 12, x : x + 12] = 255
        Image.fromarray(picture).save(tmp_path / "pictures" / f"{index}.png")
        Image.fromarray(mask).save(tmp_path / "masks" / f"{index}.png")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    yield tmp_path
    sys.modules.pop("concept_nets", None)


def iba(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["iba", *map(str, arguments)])
    return main()


def fits_into_80_columns(text):
    return "…" not in text and max(map(len, text.splitlines())) <= 80


def train(monkeypatch, *options):
    fixed = ("concept", "train", "pictures", "masks", "--model", "concept_nets:net", "--epochs", 40)
    return iba(monkeypatch, *fixed, *options)


def test_a_concept_is_learnt_and_found(folder, monkeypatch, capsys):
    layers = ("--layer", "1", "--layer", "2", "--folds", 1)
    code = train(monkeypatch, "--out", "square.safetensors", *layers, "--plot", "compared.png")
    shown = capsys.readouterr().out
    assert code == 0
    assert "Concept: square" in shown
    assert "16 for training, 4 for validation, 4 for the test" in shown
    assert "same mask" in shown
    assert fits_into_80_columns(shown)
    assert (folder / "compared.png").read_bytes().startswith(b"\x89PNG")
    embedding = ConceptEmbedding.load("square.safetensors")
    assert embedding.concept_name == "square"
    assert embedding.layer_id in ("1", "2")
    assert f"{embedding.layer_id}, by validation" in shown
    assert "one was learnt" in shown

    code = iba(
        monkeypatch,
        *("concept", "locate", "square.safetensors", "pictures/3.png", "--model", "concept_nets:net"),
        *("--out", "found"),
    )
    shown = capsys.readouterr().out
    assert code == 0
    assert "3.png" in shown
    assert fits_into_80_columns(shown)
    assert (folder / "found" / "3-iba-concept.png").read_bytes().startswith(b"\x89PNG")
    # The square covers 14 % of the picture.
    (row,) = [line for line in shown.splitlines() if line.startswith("3.png")]
    assert 8 < float(row.split()[-2]) < 22


def test_without_a_layer_those_of_the_whole_depth_are_compared(folder, monkeypatch, capsys):
    assert train(monkeypatch, "--out", "square.safetensors") == 0
    shown = capsys.readouterr().out
    assert re.findall(r"^(\d) (?:\*)? +\d+ x", shown, re.MULTILINE) == ["2", "3"]
    assert "20 for training, 0 for validation, 4 for the test" in shown
    assert "the mean of 5 learnt ones" in shown


def annotate(folder):
    """Write the squares of half the pictures as annotations of COCO and of VOC, the others without any."""
    (folder / "xml").mkdir()
    images, boxes = [], []
    for index in range(24):
        mask = np.asarray(Image.open(folder / "masks" / f"{index}.png")) > 0
        (top, left), size = np.argwhere(mask)[0].tolist(), 12
        images.append({"id": index, "file_name": f"{index}.png", "width": 32, "height": 32})
        thing = ""
        if index < 16:
            boxes.append({"id": index, "image_id": index, "category_id": 3, "bbox": [left, top, size, size]})
            sides = {"xmin": left + 1, "ymin": top + 1, "xmax": left + size, "ymax": top + size}
            corners = "".join(f"<{key}>{value}</{key}>" for key, value in sides.items())
            thing = f"<object><name>square</name><bndbox>{corners}</bndbox></object>"
        else:  # a picture without the square
            picture = np.array(Image.open(folder / "pictures" / f"{index}.png"))
            picture[mask] = (40, 40, 160)
            Image.fromarray(picture).save(folder / "pictures" / f"{index}.png")
        (folder / "xml" / f"{index}.xml").write_text(f"<annotation>{thing}</annotation>")
    content = {"images": images, "annotations": boxes, "categories": [{"id": 3, "name": "square"}]}
    (folder / "all.json").write_text(json.dumps(content))


def test_annotations_of_both_kinds_give_one_concept(folder, monkeypatch, capsys):
    annotate(folder)
    planes = []
    for masks, options in (
        ("all.json", ("--category", 3)),
        ("xml", ("--category", "square")),
    ):
        fixed = ("concept", "train", "pictures", masks, "--model", "concept_nets:net", "--epochs", 40)
        assert iba(monkeypatch, *fixed, "--layer", "2", "--out", "red.safetensors", *options) == 0
        shown = capsys.readouterr().out
        assert "20 for training, 0 for validation, 4 for the test" in shown
        assert re.search(r"Without it +2 is above 50 % somewhere in \d of 1 pictures without", shown)
        assert "False alarms  share of the pictures" in shown
        assert fits_into_80_columns(shown)
        planes.append(ConceptEmbedding.load("red.safetensors").normal_vec)
    np.testing.assert_array_equal(*planes)


def test_a_folder_of_negatives_is_learnt_from(folder, monkeypatch, capsys):
    (folder / "negatives").mkdir()
    for index in range(6):
        noise = np.random.default_rng(index).integers(60, 180, (32, 32, 3), dtype=np.uint8)
        Image.fromarray(noise).save(folder / "negatives" / f"{index}.png")
    fixed = ("--out", "red.safetensors", "--layer", "2")
    assert train(monkeypatch, *fixed) == 0
    assert "no picture without the concept was held out" in " ".join(capsys.readouterr().out.split())
    assert train(monkeypatch, *fixed, "--negatives", "negatives") == 0
    shown = capsys.readouterr().out
    assert "25 for training, 0 for validation, 5 for the test" in shown
    assert "0 of 1 pictures without the" in shown


def test_options_of_annotations_are_for_annotations(folder, monkeypatch, capsys):
    for option in (("--boxes",), ("--limit", 3)):
        assert train(monkeypatch, "--out", "a.safetensors", *option) == 2
        assert f"{option[0][2:]} is for annotations; masks holds masks" in capsys.readouterr().err
    assert train(monkeypatch, "--out", "a.safetensors", "--category", "cat", "--negatives", "nowhere") == 2
    assert "nowhere does not exist; a folder was expected" in capsys.readouterr().err


def test_folds_need_no_validation_pictures(folder, monkeypatch, capsys):
    options = ("--out", "square.safetensors", "--layer", "2", "--folds", 2, "--ensemble", 2, "--name", "red")
    assert train(monkeypatch, *options) == 0
    shown = capsys.readouterr().out
    assert "20 for training, 0 for validation, 4 for the test" in shown
    assert "±" in shown
    assert re.search(r"the mean of 4 learnt ones; IoU of the mean,\s+test: 0\.\d{3}", shown)
    assert ConceptEmbedding.load("square.safetensors").concept_name == "red"


def test_one_seed_gives_one_concept(folder, monkeypatch):
    planes = []
    for seed in (1, 1, 2):
        assert train(monkeypatch, "--out", "a.safetensors", "--layer", "2", "--seed", seed) == 0
        planes.append(ConceptEmbedding.load("a.safetensors").normal_vec)
    np.testing.assert_array_equal(planes[0], planes[1])
    assert not np.array_equal(planes[0], planes[2])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--out", "no/where.safetensors"), "its folder does not exist"),
        (("--out", "pictures"), "is a folder; a file was expected"),
        (("--out", "a.safetensors", "--plot", "no/where.png"), "plot="),
        (("--out", "a.safetensors", "--layer", "nowhere"), "no layer 'nowhere'"),
        (("--out", "a.safetensors", "--layer", "4"), "two spatial axes"),
        (("--out", "a.safetensors", "--layer", "2", "--folds", "0"), "folds=0"),
    ],
)
def test_a_wrong_option_is_one_line(folder, monkeypatch, capsys, options, message):
    assert train(monkeypatch, *options) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("iba: error:")
    assert message in error
    assert not (folder / "a.safetensors").exists()


def locate(monkeypatch, *options):
    fixed = ("concept", "locate", "red.safetensors", "--model", "concept_nets:net", "--out", "found")
    return iba(monkeypatch, *fixed, *options)


def test_bits_say_what_is_needed_to_see_the_concept(folder, monkeypatch, capsys):
    train(monkeypatch, "--out", "red.safetensors", "--layer", "2")
    grey = Image.new("RGB", (32, 32), (90, 90, 90))
    grey.save(folder / "grey.png")
    capsys.readouterr()
    monkeypatch.setenv("IBA_CACHE", "")
    monkeypatch.setattr("iba_core.cli.statistics.CROPS", 8)
    assert locate(monkeypatch, "pictures/3.png", "grey.png", "--bits") == 0
    shown = capsys.readouterr().out
    assert fits_into_80_columns(shown)
    assert re.search(r"information at layer [012] that the network needs", shown)
    lines = shown.splitlines()
    seen, absent = (
        next(line.split() for line in lines if line.startswith(name)) for name in ("3.png", "grey")
    )
    assert absent[-2:] == ["-", "-"]
    assert float(seen[-3].replace(",", "")) > 0
    widths = [Image.open(folder / "found" / f"{name}-iba-concept.png").width for name in ("3", "grey")]
    assert widths[0] > 1.3 * widths[1]
    # At the layer of the concept itself, and with statistics of one's own.
    estimate = ("estimate", "concept_nets:net", "pictures", "--layer", "2", "--out", "stats.safetensors")
    assert iba(monkeypatch, *estimate) == 0
    own = ("pictures/3.png", "--bits", "--layer", "2", "--stats", "stats.safetensors", "--beta", "1")
    assert locate(monkeypatch, *own) == 0
    assert "information at layer 2 that the network needs" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--layer", "2"), "layer='2' is for --bits"),
        (("--beta", "1"), "beta='1.0' is for --bits"),
        (("--bits", "--layer", "3"), "layer '2' gives no batch of tensors after layer '3'"),
        (("--bits", "--beta", "-1"), "beta=-1"),
        (("--bits", "--stats", "nowhere"), "nowhere"),
    ],
)
def test_options_of_bits_are_checked(folder, monkeypatch, capsys, options, message):
    ConceptEmbedding(np.ones(8), bias=0.0, layer_id="2").save("red.safetensors")
    assert locate(monkeypatch, "pictures/3.png", *options) == 2
    assert message in capsys.readouterr().err


def test_a_file_that_is_no_concept_is_named(folder, monkeypatch, capsys):
    (folder / "broken.safetensors").write_bytes(b"no concept")
    code = iba(monkeypatch, "concept", "locate", "broken.safetensors", "pictures/3.png")
    assert code == 2
    assert "concept embedding is needed" in capsys.readouterr().err


def test_a_network_without_the_layer_is_named(folder, monkeypatch, capsys):
    ConceptEmbedding(np.ones(8), bias=0.0, layer_id="elsewhere").save("c.safetensors")
    fixed = ("concept", "locate", "c.safetensors", "pictures/3.png", "--model", "concept_nets:net")
    assert iba(monkeypatch, *fixed) == 2
    assert "no layer 'elsewhere'" in capsys.readouterr().err
    ConceptEmbedding(np.ones(8), bias=0.0).save("c.safetensors")
    assert iba(monkeypatch, *fixed) == 2
    assert "layer is missing" in capsys.readouterr().err
