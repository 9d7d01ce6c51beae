"""Masks from the annotations of data sets: COCO, and PASCAL VOC with boxes and with labels."""

from __future__ import annotations

import json
import re
from collections import Counter

import numpy as np
import pytest
from PIL import Image, ImageOps

from iba_core import InputError
from iba_core.concepts import SegmentationConcept2D, annotated_pictures
from iba_core.concepts.regions import Box, Polygon, decompressed
from iba_core.pictures.images import Preprocessing
from tests.robustness.damage import damaged_bytes

WIDTH, HEIGHT = 6, 4


@pytest.fixture
def images(tmp_path):
    """A folder with the pictures a.png and b.jpg, and c.png in a folder below."""
    folder = tmp_path / "images"
    (folder / "below").mkdir(parents=True)
    for name in ("a.png", "b.jpg", "below/c.png"):
        Image.new("RGB", (WIDTH, HEIGHT), "grey").save(folder / name)
    return folder


# -- COCO -----------------------------------------------------------------------------------------------


def picture(number, name, **sides):
    return {"id": number, "file_name": name, "width": WIDTH, "height": HEIGHT} | sides


def coco(folder, *annotations, images=None):
    """Write a file of COCO's with these annotations, of the category cat if they do not say."""
    content = {
        "images": images or [picture(1, "a.png"), picture(2, "b.jpg"), picture(3, "below/c.png")],
        "categories": [{"id": 7, "name": "cat"}, {"id": 9, "name": "dog"}],
        "annotations": [
            {"id": i, "image_id": 1, "category_id": 7} | each for i, each in enumerate(annotations)
        ],
    }
    file = folder.parent / "instances.json"
    file.write_text(json.dumps(content), encoding="utf-8")
    return file


def only(annotations, images, category="cat", **options):
    """The mask of the only picture that shows the concept."""
    (found,) = [
        each for each in annotated_pictures(annotations, images, category, **options) if each.mask.marks
    ]
    mask = np.asarray(found.mask)
    assert mask.dtype == bool
    return mask.astype(int)


def test_a_box_marks_its_pixels(images):
    expected = np.zeros((HEIGHT, WIDTH), int)
    expected[1:3, 2:5] = 1
    np.testing.assert_array_equal(only(coco(images, {"bbox": [2, 1, 3, 2]}), images), expected)
    # The centres of these pixels are inside.
    np.testing.assert_array_equal(only(coco(images, {"bbox": [1.6, 0.9, 3.0, 2.2]}), images), expected)


def test_all_annotations_of_a_picture_are_marked_together(images):
    file = coco(
        images,
        {"bbox": [0, 0, 1, 1]},
        {"segmentation": [[3, 0, 5, 0, 5, 2, 3, 2], [0, 3, 1, 3, 1, 4, 0, 4]], "bbox": [0, 0, 6, 4]},
        {"segmentation": {"size": [HEIGHT, WIDTH], "counts": [7, 1, 16]}, "iscrowd": 1},
        {"bbox": [0, 0, 6, 4], "category_id": 9},
    )
    expected = np.zeros((HEIGHT, WIDTH), int)
    expected[0, 0] = expected[3, 0] = expected[3, 1] = 1
    expected[0:2, 3:5] = 1
    np.testing.assert_array_equal(only(file, images), expected)
    for category in ("7", 7):
        np.testing.assert_array_equal(only(file, images, category), expected)
    with pytest.raises(InputError, match=r"'bbox' of the entry with id 2 .* is None"):
        annotated_pictures(file, images, "cat", boxes=True)


def test_boxes_can_be_taken_in_place_of_polygons(images):
    file = coco(images, {"segmentation": [[0, 0, 6, 0, 0, 4]], "bbox": [0, 0, 6, 4]})
    assert only(file, images, boxes=True).all()
    assert not only(file, images).all()


def test_a_polygon_of_two_points_is_no_area_and_the_box_counts(images):
    assert only(coco(images, {"segmentation": [[0, 0, 2, 2]], "bbox": [1, 1, 2, 1]}), images).sum() == 2


def test_pictures_without_the_concept_are_given_too(images):
    found = annotated_pictures(coco(images, {"bbox": [0, 0, 2, 2], "image_id": 3}), images, "cat")
    assert [path.relative_to(images).as_posix() for path, _ in found] == ["a.png", "b.jpg", "below/c.png"]
    assert [mask.marks for _, mask in found] == [False, False, True]
    assert [int(np.asarray(mask).sum()) for _, mask in found] == [0, 0, 4]


def test_pictures_with_a_crowd_can_be_left_out(images):
    crowd = {"segmentation": {"size": [HEIGHT, WIDTH], "counts": [0, 24]}, "iscrowd": 1}
    file = coco(images, crowd, {"bbox": [0, 0, 1, 1], "image_id": 2})
    assert len(annotated_pictures(file, images, "cat")) == 3
    left = annotated_pictures(file, images, "cat", crowds=False)
    assert [path.name for path, _ in left] == ["b.jpg", "c.png"]


def test_pictures_that_are_not_there_are_left_out_with_a_warning(images):
    (images / "b.jpg").unlink()
    file = coco(images, {"bbox": [0, 0, 1, 1]})
    with pytest.warns(UserWarning, match=r"1 of the 3 pictures .* are not in .*images and are left out"):
        assert len(annotated_pictures(file, images, "cat")) == 2
    with pytest.raises(InputError, match="none of the 3 pictures"):
        annotated_pictures(file, images.parent, "cat")


def test_compressed_run_lengths_are_read():
    # 3 = "3"; 40 = 8 + 1 * 32 = "X1"; from the fourth on, the difference to the one before the last.
    assert decompressed("3X14") == [3, 40, 4]
    assert decompressed("3X141") == [3, 40, 4, 41]
    assert decompressed("3X14O") == [3, 40, 4, 39]
    assert decompressed("") == []


def random_polygons(rng, count):
    """Stars and scribbles with corners off the grid of pixels, some of them outside of the picture."""
    for _ in range(count):
        corners = rng.integers(3, 12)
        if rng.random() < 0.5:
            angles = np.sort(rng.uniform(0, 2 * np.pi, corners))
            reach = rng.uniform(5, 40, corners)
            points = rng.uniform(10, 50, 2) + reach[:, None] * np.stack([np.cos(angles), np.sin(angles)], 1)
        else:
            points = rng.uniform(-5, 65, (corners, 2))
        yield points


def test_masks_are_those_of_pycocotools(images):
    reference = pytest.importorskip("pycocotools.mask")
    rng = np.random.default_rng(0)
    height, width = 48, 60
    Image.new("RGB", (width, height)).save(images / "a.png")
    sizes = [picture(1, "a.png", width=width, height=height)]
    for points in random_polygons(rng, 60):
        flat = points.ravel().tolist()
        (encoded,) = reference.frPyObjects([flat], height, width)
        expected = reference.decode(encoded)
        text = encoded["counts"].decode("ascii")
        compressed = {"size": [height, width], "counts": text}
        plain = {"size": [height, width], "counts": decompressed(text)}
        for run_lengths in (compressed, plain) if expected.any() else ():
            mask = only(coco(images, {"segmentation": run_lengths}, images=sizes), images)
            np.testing.assert_array_equal(mask, expected)
        mask = only(coco(images, {"segmentation": [flat]}, images=sizes), images)
        # It samples the edge, so that a pixel at the edge may differ, but none inside or outside.
        edge = np.zeros_like(mask, bool)
        for each in (mask, expected):
            for shift, axis in ((1, 0), (-1, 0), (1, 1), (-1, 1)):
                edge |= np.roll(each, shift, axis) != each
        assert not (mask != expected)[~edge].any()
        assert (mask != expected).mean() < 0.04
        assert abs(float(mask.mean()) - float(expected.mean())) < 0.02


def test_polygons_mark_the_pixels_whose_centres_are_inside():
    path = pytest.importorskip("matplotlib.path")
    rng = np.random.default_rng(1)
    centres = np.stack(np.meshgrid(np.arange(60) + 0.5, np.arange(48) + 0.5), axis=-1).reshape(-1, 2)
    for points in random_polygons(rng, 40):
        if len(points) < 4:  # no crossing, so that inside means the same by every rule
            expected = path.Path([*points, points[0]]).contains_points(centres).reshape(48, 60)
            np.testing.assert_array_equal(Polygon(tuple(map(tuple, points))).draw((48, 60)), expected)
    # A box in a box: its turns enclose the middle twice.
    ring = ((0, 0), (4, 0), (4, 4), (0, 4), (0, 0), (1, 1), (3, 1), (3, 3), (1, 3), (1, 1))
    assert Polygon(ring).draw((4, 4)).sum() == 12


def test_polygons_of_many_corners_need_little_memory():
    angles = np.linspace(0, 2 * np.pi, 200_001)[:-1]
    circle = Polygon(tuple(zip(50 + 40 * np.cos(angles), 50 + 40 * np.sin(angles), strict=True)))
    rows, columns = np.indices((100, 100)) + 0.5
    np.testing.assert_array_equal(circle.draw((100, 100)), np.hypot(rows - 50, columns - 50) < 40)


# -- PASCAL VOC -----------------------------------------------------------------------------------------


def thing(name, *sides, more=""):
    corners = "".join(
        f"<{key}>{side}</{key}>" for key, side in zip(("xmin", "ymin", "xmax", "ymax"), sides, strict=True)
    )
    return f"<object><name>{name}</name><bndbox>{corners}</bndbox>{more}</object>"


def voc(folder, name, *things, size=(WIDTH, HEIGHT), head=""):
    file = folder.parent / "Annotations" / f"{name}.xml"
    file.parent.mkdir(exist_ok=True)
    sides = f"<size><width>{size[0]}</width><height>{size[1]}</height></size>" if size else ""
    file.write_text(f"{head}<annotation>{sides}{''.join(things)}</annotation>", encoding="utf-8")
    return file.parent


@pytest.mark.parametrize("size", [(WIDTH, HEIGHT), (0, 0), None])
def test_boxes_of_voc_begin_at_one(images, size):
    part = thing("head", 6, 4, 6, 4).replace("object>", "part>")
    voc(images, "b", thing("dog", 1, 1, 6, 4), size=size)
    folder = voc(images, "a", thing("cat", 2, 1, 4, 2), thing("cat", 6, 4, 6, 4, more=part), size=size)
    expected = np.zeros((HEIGHT, WIDTH), int)
    expected[0:2, 1:4] = expected[3, 5] = 1
    np.testing.assert_array_equal(only(folder, images), expected)
    assert only(folder, images, "dog").all()
    assert only(folder, images, "head").sum() == 1


def labels(folder, name, values, mode="P"):
    file = folder.parent / "labels" / f"{name}.png"
    file.parent.mkdir(exist_ok=True)
    image = Image.fromarray(np.asarray(values, np.uint8))
    if mode == "P":
        image.putpalette([value for index in range(256) for value in (index, 255 - index, 40)])
    image.save(file)
    return file.parent


@pytest.mark.parametrize("mode", ["P", "L"])
def test_labels_of_voc_are_read_by_name_and_by_number(images, mode):
    values = np.zeros((HEIGHT, WIDTH))
    values[1:3, 1:3], values[1, 3], values[0, 0] = 8, 255, 12
    labels(images, "b", np.zeros((HEIGHT, WIDTH)), mode)
    folder = labels(images, "a", values, mode)
    for category in ("cat", 8, "8"):
        np.testing.assert_array_equal(only(folder, images, category), values == 8)
    assert only(folder, images, "dog").sum() == 1
    assert len(annotated_pictures(folder, images, "cat")) == 2
    with pytest.raises(InputError, match="category=13 is not the label of any pixel"):
        annotated_pictures(folder, images, "horse")
    with pytest.raises(InputError, match=r"'catt' is no label of PASCAL VOC; .*'cat'"):
        annotated_pictures(folder, images, "catt")


# -- pictures that are turned ------------------------------------------------------------------------------


@pytest.mark.parametrize("orientation", [5, 6, 7, 8])
def test_annotations_of_turned_pictures_are_turned_where_their_size_says_so(images, orientation):
    stored = np.zeros((HEIGHT, WIDTH), np.uint8)
    stored[0:2, 0:1] = 200
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(stored).save(images / "a.png", exif=exif)
    with Image.open(images / "a.png") as image:
        upright = np.asarray(ImageOps.exif_transpose(image))
    np.testing.assert_array_equal(only(coco(images, {"bbox": [0, 0, 1, 2]}), images), upright > 0)
    rows, columns = np.nonzero(upright)
    box = [int(columns.min()), int(rows.min()), int(np.ptp(columns)) + 1, int(np.ptp(rows)) + 1]
    turned = [picture(1, "a.png", width=HEIGHT, height=WIDTH)]
    np.testing.assert_array_equal(only(coco(images, {"bbox": box}, images=turned), images), upright > 0)
    unknown = [picture(1, "a.png", width=None)]
    with pytest.raises(InputError, match="nothing tells whether its annotations"):
        only(coco(images, {"bbox": box}, images=unknown), images)


@pytest.mark.parametrize("orientation", [2, 3, 4])
def test_annotations_of_mirrored_pictures_are_refused(images, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.new("L", (WIDTH, HEIGHT)).save(images / "a.png", exif=exif)
    with pytest.raises(InputError, match="stored turned or mirrored"):
        only(coco(images, {"bbox": [0, 0, 1, 1]}), images)


# -- files that are wrong ----------------------------------------------------------------------------------


BOX = {"bbox": [0, 0, 1, 1]}


@pytest.mark.parametrize(
    ("annotation", "message"),
    [
        ({"bbox": [0, 0, 1]}, r"'bbox' of the entry with id 0 in .* is \[0, 0, 1\]; \[x, y, width, height\]"),
        ({"bbox": [0, 0, -1, 1]}, r"\[x, y, width, height\] was expected"),
        ({"bbox": [0, 0, float("nan"), 1]}, "is nan; a coordinate in pixels was expected"),
        ({"bbox": [0, 0, 1e300, 1]}, "is 1e\\+300; a coordinate"),
        ({"bbox": [0, 0, True, 1]}, "is True; a coordinate"),
        ({}, "is None"),
        ({"segmentation": "x"}, "is 'x'; a list of polygons, or run lengths"),
        ({"segmentation": [[0, 0, 1, 1, 2]]}, r"a polygon \[x, y, x, y, ...\]"),
        ({"segmentation": [0, 0, 1, 1, 2, 2]}, r"is 0; a polygon"),
        ({"segmentation": {"size": [4, 6], "counts": [23]}}, "counts 23 pixels; its size is 4 x 6"),
        ({"segmentation": {"size": [4, 6], "counts": [-1, 25]}}, "counts of at least 0"),
        ({"segmentation": {"size": [4, 6], "counts": [2.5, 21.5]}}, "counts of at least 0"),
        (
            {"segmentation": {"size": [6, 4], "counts": [24]}},
            "is for 4 x 6 pixels, but its picture has 6 x 4",
        ),
        ({"segmentation": {"size": [4], "counts": [24]}}, r"size \[height, width\]"),
        ({"segmentation": {"size": [4, 6], "counts": "0\u00e4"}}, "are damaged at 'ä'"),
        ({"segmentation": {"size": [4, 6], "counts": "oooooooooooo"}}, "are damaged at 'o'"),
        ({"segmentation": {"size": [4, 6], "counts": "X"}}, "end within a number"),
        ({"segmentation": {"size": [4, 6]}}, "a list or a text of counts"),
        ({"bbox": [0, 0, 1, 1], "image_id": 4}, "annotations of image_id 4, but no such image"),
        ({"bbox": [0, 0, 1, 1], "image_id": "x"}, "'image_id' of the entry .* is 'x'; a whole number"),
    ],
)
def test_a_wrong_annotation_is_named(images, annotation, message):
    with pytest.raises(InputError, match=message):
        annotated_pictures(coco(images, annotation), images, "cat")


@pytest.mark.parametrize(
    ("replaced", "message"),
    [
        ({"images": [picture(1, "../secret.png")]}, "a path within the folder of the pictures"),
        ({"images": [picture(1, "/etc/passwd")]}, "a path within the folder of the pictures"),
        ({"images": [picture(1, "..\\secret.png")]}, "a path within the folder of the pictures"),
        ({"images": [picture(1, "")]}, "the name of a file"),
        ({"images": [picture(1, "a.png"), picture(2, "a.png")]}, "the picture a.png twice"),
        ({"images": [picture(1, "a.png", width=-3)]}, "is -3; a whole number"),
        ({"images": {}}, "no list 'images'"),
        ({"annotations": [3]}, "no list 'annotations' of objects"),
        (
            {"categories": [{"id": 1, "name": "cat"}, {"id": 2, "name": "cat"}]},
            "2 categories 'cat'; give the id",
        ),
        ({"categories": [{"id": 1, "name": "cart"}]}, "the closest name is 'cart'"),
    ],
)
def test_a_wrong_file_is_named(images, replaced, message):
    file = coco(images, BOX)
    file.write_text(json.dumps(json.loads(file.read_text()) | replaced))
    with pytest.raises(InputError, match=message):
        annotated_pictures(file, images, "cat")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{", "is no JSON file"),
        (b"\xff\xfe\x00", "is no JSON file"),
        (b"[]", "an object with images is needed"),
        (b"[" * 100_000, "nested too deeply"),
        (b'{"images": ' + b"9" * 5000 + b"}", "is no JSON file"),
    ],
)
def test_what_is_no_annotation_is_named(images, content, message):
    file = images.parent / "a.json"
    file.write_bytes(content)
    with pytest.raises(InputError, match=message) as caught:
        annotated_pictures(file, images, "cat")
    assert "\n" not in str(caught.value)


def test_a_picture_of_another_size_is_refused_when_its_mask_is_drawn(images):
    wrong = [picture(1, "a.png", width=600)]
    file = coco(images, BOX, images=wrong)
    (found,) = annotated_pictures(file, images, "cat")
    with pytest.raises(InputError, match=r"a.png has 6 x 4 pixels, but its annotations are for 600 x 4"):
        np.asarray(found.mask)
    with pytest.raises(InputError, match=r"has 6 x 4 pixels"):
        SegmentationConcept2D.from_annotations(
            "cat", images, file, Preprocessing(size=(4, 4)), "channels_last", validation=0, test=0
        )


BOMB = (
    "<!DOCTYPE a ["
    + "".join(f'<!ENTITY x{i + 1} "{f"&x{i};" * 10}">' for i in range(9))
    + '<!ENTITY x0 "aaaaaaaaaa">]>'
)


@pytest.mark.parametrize(
    "head", [BOMB, '<!DOCTYPE a [<!ENTITY x9 SYSTEM "file:///etc/passwd">]>', '<!DOCTYPE a SYSTEM "a.dtd">']
)
def test_entities_are_refused_before_they_are_read(images, head):
    folder = voc(images, "a", thing("&x9;", 1, 1, 2, 2), head=head)
    with pytest.raises(InputError, match=r"a\.xml is refused: it has a document type"):
        annotated_pictures(folder, images, "cat")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("<annotation>", "is no XML file"),
        ("<annotation>&unknown;</annotation>", "is no XML file"),
        ("<?xml version='1.0' encoding='nowhere'?><annotation/>", "is no XML file"),
        ("<html></html>", "is 'html'; 'annotation' was expected"),
        ("<a>" * 200_000, "is no XML file"),
        (f"<annotation>{thing('cat', 1, 1, 'x', 2)}</annotation>", "xmax in .* is 'x'; a coordinate"),
        (f"<annotation>{thing('cat', 1, 1, 'inf', 2)}</annotation>", "xmax in .* is inf; a coordinate"),
        (f"<annotation>{thing('cat', 4, 1, 2, 2)}</annotation>", "a minimum that is at most the maximum"),
        ("<annotation><object><name>cat</name></object></annotation>", "xmin in .* is None"),
        (
            f"<annotation>{thing('cow', 1, 1, 2, 2)}</annotation>",
            "category='cat' is not in .*; there are 'cow'",
        ),
        ("<annotation/>", "there are none"),
    ],
)
def test_wrong_files_of_voc_are_named(images, content, message):
    folder = voc(images, "a")
    (folder / "a.xml").write_text(content, encoding="utf-8")
    with pytest.raises(InputError, match=message) as caught:
        annotated_pictures(folder, images, "cat")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", ["json", "xml", "png"])
def test_damaged_files_are_refused_or_read(images, kind, recwarn):
    values = np.zeros((HEIGHT, WIDTH))
    values[1:3, 1:3] = 8
    file = {
        "json": lambda: coco(
            images,
            BOX | {"segmentation": [[0, 0, 3, 0, 3, 3]]},
            {"segmentation": {"size": [HEIGHT, WIDTH], "counts": "71`0"}, "iscrowd": 1},
        ),
        "xml": lambda: voc(images, "a", thing("cat", 2, 1, 4, 2)) / "a.xml",
        "png": lambda: labels(images, "a", values) / "a.png",
    }[kind]()
    source = file if kind == "json" else file.parent
    whole, outcomes, sentences = file.read_bytes(), Counter(), set()
    for seed in range(200):
        file.write_bytes(damaged_bytes(whole, seed))
        try:
            for _, mask in annotated_pictures(source, images, "cat"):
                assert np.asarray(mask).shape == (HEIGHT, WIDTH)
            outcomes["read"] += 1
        except InputError as error:
            outcomes["refused"] += 1
            sentences.add(str(error))
    assert min(outcomes.values()) > 2
    assert not [each for each in sentences if "\n" in each or len(each) > 600]


def test_deep_files_do_no_harm(images):
    folder = voc(images, "a", "<x>" * 200_000 + "</x>" * 200_000, thing("cat", 1, 1, 1, 1))
    assert only(folder, images).sum() == 1


def test_files_that_are_too_large_are_not_read(images, monkeypatch):
    file = coco(images, BOX)
    with file.open("r+b") as opened:
        opened.truncate((1 << 30) + 1)
    with pytest.raises(InputError, match="is larger than 1024 MiB, too large for annotations"):
        annotated_pictures(file, images, "cat")


def test_pictures_of_labels_are_no_photographs(images):
    folder = labels(images, "a", np.zeros((HEIGHT, WIDTH, 3)), "RGB")
    with pytest.raises(InputError, match=r"a\.png: a picture of labels is needed"):
        annotated_pictures(folder, images, "cat")


# -- concepts ---------------------------------------------------------------------------------------------


def many(tmp_path, count, marked):
    folder = tmp_path / "photos"
    folder.mkdir()
    for index in range(count):
        Image.fromarray(np.full((HEIGHT, WIDTH, 3), index, np.uint8)).save(folder / f"{index:02}.png")
    pictures = [picture(index, f"{index:02}.png") for index in range(count)]
    boxes = [{"bbox": [0, 0, 3, 4], "image_id": index} for index in range(marked)]
    return folder, coco(folder, *boxes, images=pictures)


def numbers(concept):
    """The pictures of each part, those with the concept and those without."""
    found = []
    for part in (concept.train_data, concept.val_data, concept.test_data):
        found.append({True: set(), False: set()})
        for image, mask in part or ():
            found[-1][bool(mask.any())].add(int(image[0, 0, 0]))
    return found


def test_annotations_make_a_concept_with_as_many_pictures_without_it(tmp_path):
    folder, file = many(tmp_path, 20, 6)
    plain = Preprocessing(size=(HEIGHT, WIDTH), scale=1.0)

    def concept(**options):
        return SegmentationConcept2D.from_annotations("cat", folder, file, plain, "channels_last", **options)

    made = concept()
    assert [len(part) for part in (made.train_data, made.val_data, made.test_data)] == [8, 2, 2]
    for part in numbers(made):
        assert len(part[True]) == len(part[False])
        assert max(part[True]) < 6 <= min(part[False])
    assert all(mask[:, :3].all() and not mask[:, 3:].any() for _, mask in made.train_data if mask.any())
    assert numbers(made) == numbers(concept()) != numbers(concept(seed=1))
    assert len(concept(limit=4, validation=0).train_data) == 6
    assert len(concept(negatives=(), test=0).train_data) == 5
    with pytest.raises(InputError, match="limit=0"):
        concept(limit=0)


def test_negatives_are_divided_like_the_pictures():
    pictures, negatives = np.zeros((10, 4, 4, 3), np.uint8), np.ones((20, 4, 4, 3), np.uint8)
    masks = np.ones((10, 4, 4), np.uint8)

    def concept(**options):
        return SegmentationConcept2D.from_pictures(
            "c", pictures, masks, Preprocessing(size=(4, 4), scale=1.0), "channels_last", **options
        )

    made = concept(negatives=negatives, validation=0.2, test=0.1)
    for part, (shown, absent) in zip(
        (made.train_data, made.val_data, made.test_data), ((7, 14), (2, 4), (1, 2)), strict=True
    ):
        found = [(bool(image.any()), bool(mask.any())) for image, mask in part]
        assert found == [(False, True)] * shown + [(True, False)] * absent
    with pytest.raises(InputError, match="1 negatives are too few to hold out 2"):
        concept(negatives=negatives[:1])
    with pytest.raises(InputError, match="negatives"):
        concept(negatives="folder")


def test_boxes_are_clipped_to_the_picture():
    assert Box(-5, -5, 2, 100).draw((3, 4)).sum() == 6
    assert not Box(10, 0, 12, 3).draw((3, 4)).any()


def test_errors_show_names_harmlessly(images):
    file = coco(images, {"bbox": [0, 0, "\x1b[31m"]})
    with pytest.raises(InputError) as caught:
        annotated_pictures(file, images, "cat")
    assert re.search(r"\\x1b", str(caught.value))
    assert "\x1b" not in str(caught.value)
