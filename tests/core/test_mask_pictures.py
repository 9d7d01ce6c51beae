"""Masks in all the ways in which they come mark the same places."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from iba_core import InputError
from iba_core.concepts import SegmentationConcept2D
from iba_core.pictures.images import Preprocessing
from iba_core.pictures.masks import mask_picture

MARKED = np.zeros((6, 9), bool)
MARKED[1:4, 2:7] = True
MARKED[5, 0] = True
PHOTOGRAPH = np.random.default_rng(0).integers(0, 256, (6, 9, 3)).astype(np.uint8)


def white(dtype=np.uint8, most=255):
    return np.where(MARKED, most, 0).astype(dtype)


def palette(colours):
    image = Image.fromarray(MARKED.astype(np.uint8), "P")
    image.putpalette([value for colour in colours for value in colour])
    return image


def cut_out():
    return Image.fromarray(np.dstack([PHOTOGRAPH, white()]))


def opaque_grey():
    return Image.fromarray(np.dstack([white(), white(), white(), np.full_like(white(), 255)]))


def transparent_colour():
    image = palette([(0, 0, 0), (255, 0, 255)])
    image.info["transparency"] = 0
    return image


SOURCES = {
    "black and white": Image.fromarray(white()),
    "one bit": Image.fromarray(MARKED),
    "soft": Image.fromarray(np.where(MARKED, 140, 110).astype(np.uint8)),
    "coloured": Image.fromarray(np.dstack([white(), white(), 0 * white()])),
    "16 bits": Image.fromarray(white(np.uint16, 65535)),
    "8 of 16 bits": Image.fromarray(white(np.uint16)),
    "labels": Image.fromarray(MARKED.astype(np.uint8)),
    "labels of 16 bits": Image.fromarray(MARKED.astype(np.uint16)),
    "coloured labels": palette([(0, 0, 0), (128, 0, 0)]),
    "palette of black and white": palette([(0, 0, 0), (255, 255, 255)]),
    "cut out": cut_out(),
    "opaque": opaque_grey(),
    "transparent colour": transparent_colour(),
    "array": white(),
    "array with channels": np.dstack([white()] * 3),
    "array with a channel": white()[..., None],
    "array of labels": MARKED.astype(np.uint8),
    "array of truths": MARKED,
    "array of a cutout": np.dstack([PHOTOGRAPH, white()]),
}


@pytest.mark.parametrize("name", SOURCES)
def test_every_kind_of_mask_is_understood(name, tmp_path):
    source = SOURCES[name]
    found = mask_picture(source)
    assert found.mode == "L"
    np.testing.assert_array_equal(np.asarray(found), white())
    if isinstance(source, Image.Image):
        for file in ("mask.png", "mask.tif"):
            source.save(tmp_path / file)
            np.testing.assert_array_equal(np.asarray(mask_picture(tmp_path / file)), white())


def test_an_empty_mask_marks_nothing():
    for empty in (np.zeros((4, 4), np.uint8), Image.new("RGBA", (4, 4), "black"), np.zeros((4, 4), bool)):
        assert not np.asarray(mask_picture(empty)).any()


def test_black_of_a_lossy_file_is_black(tmp_path):
    Image.fromarray(np.where(MARKED, 2, 1).astype(np.uint8)).save(tmp_path / "mask.jpg")
    assert not np.asarray(mask_picture(tmp_path / "mask.jpg")).any()


def test_files_are_read_the_right_way_up(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(white()).save(tmp_path / "mask.png", exif=exif)
    np.testing.assert_array_equal(np.asarray(mask_picture(tmp_path / "mask.png")), np.rot90(white(), -1))


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (np.arange(12, dtype=np.uint8).reshape(3, 4), "source has values up to 11, none above 127"),
        (np.zeros((3, 4)), "an array of float64"),
        (np.zeros((3, 4, 2), np.uint8), r"shape \(3, 4, 2\)"),
        (Image.new("F", (3, 4)), "floating-point numbers"),
    ],
)
def test_what_cannot_be_understood_is_named(source, message):
    with pytest.raises(InputError, match=message):
        mask_picture(source)


def test_files_that_cannot_be_understood_are_named(tmp_path):
    Image.fromarray(np.full((3, 4), 7, np.uint8)).save(tmp_path / "seven.png")
    with pytest.raises(
        InputError, match=r"seven\.png: the mask has values up to 7, .* have the value 1 where"
    ):
        mask_picture(tmp_path / "seven.png")
    (tmp_path / "text.png").write_text("no picture")
    with pytest.raises(InputError, match=r"text\.png is not an image"):
        mask_picture(tmp_path / "text.png")


@pytest.mark.parametrize("kind", ["labels", "cut out", "array of truths"])
def test_concepts_take_them(kind):
    pictures = [PHOTOGRAPH] * 3
    concept = SegmentationConcept2D.from_pictures(
        "c", pictures, [SOURCES[kind]] * 3, Preprocessing(size=(6, 6)), "channels_first", validation=0, test=0
    )
    for mask in concept.train_data.masks:
        # The middle of the picture, at half a pixel from its own.
        np.testing.assert_array_equal(mask, MARKED[:, 2:8])
