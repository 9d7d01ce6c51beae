"""Masks from the files of annotated data sets: COCO, and PASCAL VOC with boxes or with labelled pixels."""

from __future__ import annotations

import json
import math
import os
import warnings
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple, NoReturn
from xml.etree.ElementTree import Element, ParseError, TreeBuilder, XMLParser

import numpy as np
import numpy.typing as npt
from PIL import ExifTags, Image, ImageOps

from iba_core.arguments import given, is_whole_number, require_bool
from iba_core.concepts.regions import (
    FARTHEST,
    Box,
    Labels,
    Mask,
    Polygon,
    Region,
    RunLengths,
    decompressed,
    labelled,
    union,
)
from iba_core.errors import InputError, closest
from iba_core.files import as_path, is_file, shown
from iba_core.pictures.images import image_files, stored_size

_LARGEST_JSON, _LARGEST_XML = 1 << 30, 1 << 24
"""Most bytes of a file of annotations, for a whole data set and for one picture."""

_VOC_NAMES = (
    *("background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow"),
    *("diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train"),
    "tvmonitor",
)
"""Names of the labels in the pictures of PASCAL VOC."""


# -- results ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class AnnotatedMask:
    """The mask of a picture, drawn from its annotations when it is needed.

    ``np.asarray(mask)`` is the mask: booleans (H, W), of the picture's size, the right way up.

    Attributes:
        path: the picture.
        regions: what is annotated as the concept. Their union is the mask.
        size: (width, height) of the picture according to its annotations; None if they do not say.

    Raises:
        InputError: the picture cannot be read or has another size than its annotations say (raised when the
            mask is drawn).

    Example:
        >>> import tempfile
        >>> from iba_core.concepts.regions import Box
        >>> path = Path(tempfile.mkdtemp()) / "a.png"
        >>> Image.new("RGB", (4, 2)).save(path)
        >>> mask = AnnotatedMask(path, (Box(1, 0, 3, 1),))
        >>> mask.marks, np.asarray(mask, dtype=int).tolist()
        (True, [[0, 1, 1, 0], [0, 0, 0, 0]])
    """

    path: Path
    regions: tuple[Region, ...]
    size: tuple[int, int] | None = None

    @property
    def marks(self) -> bool:
        """Whether the concept is annotated at all."""
        return bool(self.regions)

    def __array__(self, dtype: npt.DTypeLike | None = None, copy: bool | None = None) -> npt.NDArray[Any]:
        """Draw the mask."""
        return self._drawn().astype(bool if dtype is None else dtype)

    def _drawn(self) -> Mask:
        stored, orientation = stored_size(self.path)
        upright = stored[::-1] if orientation > 4 else stored
        size = self.size
        if size is None and orientation == 1:
            size = stored
        if size not in (None, stored, upright):
            raise InputError(
                f"{shown(self.path)} has {upright[0]} x {upright[1]} pixels, but its annotations are for "
                f"{size[0]} x {size[1]}"
            )
        if orientation > 1 and (size is None or stored == upright):
            raise InputError(
                f"{shown(self.path)} is stored turned or mirrored, and nothing tells whether its annotations "
                "are for the picture as it is stored; save it the right way up"
            )
        assert size is not None
        try:
            mask = union(self.regions, size[::-1])
        except InputError as error:
            raise InputError(f"the annotations of {shown(self.path)} do not fit: {error}") from error
        return mask if size == upright else _turned(mask, orientation)


def _turned(mask: Mask, orientation: int) -> Mask:
    image = Image.fromarray(mask)
    image.getexif()[ExifTags.Base.Orientation] = orientation
    return np.asarray(ImageOps.exif_transpose(image))


class AnnotatedPicture(NamedTuple):
    """A picture and the mask of a concept in it.

    Attributes:
        path: the picture's file.
        mask: its mask, drawn when it is needed. ``mask.marks`` says whether the concept is annotated.

    Example:
        >>> picture = AnnotatedPicture(Path("a.png"), AnnotatedMask(Path("a.png"), ()))
        >>> picture.mask.marks
        False
    """

    path: Path
    mask: AnnotatedMask


def annotated_pictures(
    annotations: str | PathLike[str],
    images: str | PathLike[str],
    category: str | int,
    *,
    boxes: bool = False,
    crowds: bool = True,
) -> list[AnnotatedPicture]:
    """Read the masks of a concept from the annotations of a data set.

    Args:
        annotations: one of

            - a ``.json`` file in COCO's format: its `segmentation`, polygons or run lengths, or else its
              `bbox`;
            - a folder of ``.xml`` files in PASCAL VOC's format, one for each picture: the boxes of its
              objects and of their parts;
            - a folder of pictures of labels, such as VOC's ``SegmentationClass``: one number for each
              pixel. What is labelled 255 (uncertain) is not marked.
        images: folder of the pictures. COCO's file names are relative to it. Files of VOC have the name of
            their picture, with another ending.
        category: name of the concept's category, or its number: its id in COCO, its label in a picture of
            labels. There, a name is one of the 20 of PASCAL VOC. In COCO, a text of digits is an id if
            nothing has this name.
        boxes: take COCO's boxes even where there is a segmentation.
        crowds: mark groups of many objects, too (``iscrowd`` in COCO). False leaves out the pictures that
            have one of this category, since the places in it are unknown.

    Returns:
        The pictures with annotations, in the order of their paths, also those without the concept, whose
        masks mark nothing. Pictures that the annotations name but the folder does not hold are left out,
        with a warning.

    Raises:
        InputError: a file is missing, damaged or too large, or says something else than the format allows;
            there is no such category; no picture is left; or an XML file has a document type, which can
            define entities.

    Example:
        >>> import json, tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> Image.new("RGB", (4, 2)).save(folder / "a.png")
        >>> content = {
        ...     "images": [{"id": 7, "file_name": "a.png", "width": 4, "height": 2}],
        ...     "categories": [{"id": 1, "name": "cat"}],
        ...     "annotations": [{"id": 1, "image_id": 7, "category_id": 1, "bbox": [1, 0, 2, 1]}],
        ... }
        >>> _ = (folder / "all.json").write_text(json.dumps(content))
        >>> for path, mask in annotated_pictures(folder / "all.json", folder, "cat"):
        ...     print(path.name, np.asarray(mask, dtype=int).tolist())
        a.png [[0, 1, 1, 0], [0, 0, 0, 0]]
    """
    annotations, images = as_path(annotations, "annotations"), as_path(images, "images")
    require_bool("boxes", boxes)
    require_bool("crowds", crowds)
    if not (isinstance(category, str) and category) and not is_whole_number(category):
        raise InputError(f"{given('category', category)} must be the name of a category, or its number")
    if not images.is_dir():
        raise InputError(f"images={str(images)!r} is not a folder")
    if annotations.is_dir():
        files = sorted(path for path in annotations.rglob("*") if path.suffix.lower() == ".xml")
        found = _voc_boxes(files, annotations, images, category) if files else None
        pictures = _voc_labels(annotations, images, category) if found is None else found
    elif is_file(annotations):
        pictures = _coco(annotations, images, category, boxes, crowds)
    else:
        raise InputError(f"annotations={str(annotations)!r} is neither a .json file nor a folder")
    return _of_existing(pictures, annotations, images)


def is_annotation(path: Path) -> bool:
    """Whether this is a file of COCO's or a folder with files of PASCAL VOC's, as far as its name tells."""
    if path.is_dir():
        return any(file.suffix.lower() == ".xml" for file in path.rglob("*"))
    return path.suffix.lower() == ".json"


def _of_existing(
    pictures: Sequence[AnnotatedPicture], annotations: Path, images: Path
) -> list[AnnotatedPicture]:
    paths = [picture.path for picture in pictures]
    if len(set(paths)) < len(paths):
        twice = Counter(paths).most_common(1)[0][0]
        raise InputError(f"{shown(annotations)} is about the picture {shown(twice.name)} twice")
    found = sorted((picture for picture in pictures if is_file(picture.path)), key=lambda each: each.path)
    if not found:
        raise InputError(
            f"none of the {len(pictures)} pictures that {shown(annotations)} is about is in {shown(images)}"
        )
    if len(found) < len(pictures):
        warnings.warn(
            f"{len(pictures) - len(found)} of the {len(pictures)} pictures that {shown(annotations)} is "
            f"about are not in {shown(images)} and are left out",
            stacklevel=3,
        )
    return found


# -- values of files ------------------------------------------------------------------------------------


def _fail(where: str, value: object, wanted: str) -> NoReturn:
    raise InputError(f"{where} is {_short(repr(value))}; {wanted} was expected")


def _short(text: str) -> str:
    """A text from a file, as it can be shown in one line."""
    harmless = shown(text)
    return harmless if len(harmless) < 60 else harmless[:57] + "..."


def _number(where: str, value: Any) -> float:
    if isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) <= FARTHEST:
        return float(value)
    _fail(where, value, "a coordinate in pixels")


def _numbers(where: str, value: Any, wanted: str) -> list[float]:
    if not isinstance(value, list):
        _fail(where, value, wanted)
    return [_number(where, entry) for entry in value]


def _whole(where: str, value: Any, least: int = 0) -> int:
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= 1 << 53:
        _fail(where, value, "a whole number")
    return value


def _content(path: Path, largest: int) -> bytes:
    try:
        if os.stat(path).st_size > largest:
            raise InputError(f"{shown(path)} is larger than {largest >> 20} MiB, too large for annotations")
        return path.read_bytes()
    except OSError as error:
        raise InputError(f"{shown(path)} cannot be read: {error.strerror or error}") from error


# -- COCO -----------------------------------------------------------------------------------------------


def _coco(file: Path, images: Path, category: str | int, boxes: bool, crowds: bool) -> list[AnnotatedPicture]:
    content = _parsed(file)
    wanted = _category(file, content, category)
    of_image = defaultdict[int, list[dict[str, Any]]](list)
    for annotation in _entries(file, content, "annotations"):
        if annotation.get("category_id") == wanted:
            where = _place(file, annotation, "image_id")
            of_image[_whole(where, annotation.get("image_id"))].append(annotation)
    pictures = []
    for image in _entries(file, content, "images"):
        found = of_image.pop(_whole(_place(file, image, "id"), image.get("id")), [])
        if not crowds and any(annotation.get("iscrowd") for annotation in found):
            continue
        path, size = _picture(file, images, image), _size(file, image)
        regions = [region for each in found for region in _coco_regions(file, each, size, boxes)]
        pictures.append(AnnotatedPicture(path, AnnotatedMask(path, tuple(regions), size)))
    if of_image:
        missing = next(iter(of_image))
        raise InputError(f"{shown(file)} has annotations of image_id {missing}, but no such image")
    return pictures


def _parsed(file: Path) -> dict[str, Any]:
    data = _content(file, _LARGEST_JSON)
    try:
        content = json.loads(data)
    except RecursionError as error:
        raise InputError(f"{shown(file)} is nested too deeply for annotations of COCO") from error
    except ValueError as error:
        raise InputError(f"{shown(file)} is no JSON file: {error}") from error
    if not isinstance(content, dict):
        raise InputError(f"{shown(file)} holds no annotations of COCO; an object with images is needed")
    return content


def _entries(file: Path, content: dict[str, Any], key: str) -> list[dict[str, Any]]:
    entries = content.get(key)
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise InputError(f"{shown(file)} has no list {key!r} of objects, which COCO's files have")
    return entries


def _place(file: Path, entry: dict[str, Any], key: str) -> str:
    """Say where in a file a value stands."""
    return f"{key!r} of the entry with id {shown(repr(entry.get('id')))[:30]} in {shown(file)}"


def _category(file: Path, content: dict[str, Any], category: str | int) -> int:
    known = [
        (_whole(_place(file, entry, "id"), entry.get("id")), entry.get("name"))
        for entry in _entries(file, content, "categories")
    ]
    numbers = [number for number, name in known if name == category]
    if not numbers and (is_whole_number(category) or str(category).isdecimal()):
        numbers = [number for number, _ in known if number == int(category)]
    if not numbers:
        names = closest(str(category), [_short(name) for _, name in known if isinstance(name, str)])
        raise InputError(f"{given('category', category)} is not in {shown(file)}; {names}")
    if len(numbers) > 1:
        raise InputError(f"{shown(file)} has {len(numbers)} categories {category!r}; give the id of one")
    return numbers[0]


def _picture(file: Path, images: Path, image: dict[str, Any]) -> Path:
    name = image.get("file_name")
    if not isinstance(name, str) or not name or "\0" in name:
        _fail(_place(file, image, "file_name"), name, "the name of a file")
    place = PurePosixPath(name.replace("\\", "/"))
    if place.is_absolute() or ".." in place.parts:
        _fail(_place(file, image, "file_name"), name, "a path within the folder of the pictures")
    return images / place


def _size(file: Path, image: dict[str, Any]) -> tuple[int, int] | None:
    if not image.get("width") or not image.get("height"):
        return None
    width, height = (_whole(_place(file, image, key), image[key], 1) for key in ("width", "height"))
    return width, height


def _coco_regions(
    file: Path, annotation: dict[str, Any], size: tuple[int, int] | None, boxes: bool
) -> list[Region]:
    segmentation = None if boxes else annotation.get("segmentation")
    where = _place(file, annotation, "segmentation")
    if isinstance(segmentation, dict):
        return [_run_lengths(where, segmentation, size)]
    if segmentation is not None and not isinstance(segmentation, list):
        _fail(where, segmentation, "a list of polygons, or run lengths")
    polygons = [_polygon(where, each) for each in segmentation or ()]
    # Some files hold polygons of two points beside a box.
    regions: list[Region] = [polygon for polygon in polygons if len(polygon.points) > 2]
    return regions or [_coco_box(file, annotation)]


def _coco_box(file: Path, annotation: dict[str, Any]) -> Box:
    where, value = _place(file, annotation, "bbox"), annotation.get("bbox")
    numbers = _numbers(where, value, "[x, y, width, height]")
    if len(numbers) != 4 or min(numbers[2:]) < 0:
        _fail(where, value, "[x, y, width, height]")
    left, top, width, height = numbers
    return Box(left, top, left + width, top + height)


def _polygon(where: str, value: Any) -> Polygon:
    numbers = _numbers(where, value, "a polygon [x, y, x, y, ...]")
    if len(numbers) % 2:
        _fail(where, value, "a polygon [x, y, x, y, ...]")
    return Polygon(tuple(zip(numbers[::2], numbers[1::2], strict=True)))


def _run_lengths(where: str, value: dict[str, Any], size: tuple[int, int] | None) -> RunLengths:
    sides, counts = value.get("size"), value.get("counts")
    if not isinstance(sides, list) or len(sides) != 2:
        _fail(where, value, "run lengths with a size [height, width]")
    height, width = (_whole(where, side, 1) for side in sides)
    if size not in (None, (width, height)):
        raise InputError(
            f"{where} is for {width} x {height} pixels, but its picture has {size[0]} x {size[1]}"
        )
    if isinstance(counts, str):
        try:
            counts = decompressed(counts)
        except InputError as error:
            raise InputError(f"{where} cannot be read: {error}") from error
    if not isinstance(counts, list):
        _fail(where, counts, "a list or a text of counts")
    if any(not isinstance(count, int) or isinstance(count, bool) or count < 0 for count in counts):
        _fail(where, counts, "counts of at least 0")
    if sum(counts) != height * width:
        raise InputError(f"{where} counts {sum(counts)} pixels; its size is {height} x {width}")
    return RunLengths(tuple(counts), (height, width))


# -- PASCAL VOC ---------------------------------------------------------------------------------------


class _NoDocumentType(TreeBuilder):
    """Builds a tree, but from no document with a type of its own, which could define entities."""

    def doctype(self, name: str, pubid: str | None, system: str | None) -> None:
        """Refuse it, before anything in it is read."""
        raise InputError("it has a document type, which annotations do not need")


def _xml(file: Path) -> Element:
    data = _content(file, _LARGEST_XML)
    parser = XMLParser(target=_NoDocumentType())
    try:
        parser.feed(data)
        tree = parser.close()
    except InputError as error:
        raise InputError(f"{shown(file)} is refused: {error}") from error
    except (ParseError, ValueError, LookupError) as error:  # a LookupError for an unknown encoding
        raise InputError(f"{shown(file)} is no XML file: {error}") from error
    if tree.tag != "annotation":
        _fail(f"the outermost element of {shown(file)}", tree.tag, "'annotation'")
    return tree


def _with_pictures(files: Sequence[Path], folder: Path, images: Path) -> Iterator[tuple[Path, Path]]:
    """Pair each file with the picture of the same relative path, but for the ending."""
    known = {path.relative_to(images).with_suffix(""): path for path in image_files(images)}
    for file in files:
        name = file.relative_to(folder).with_suffix("")
        yield file, known.get(name, images / name)


def _voc_boxes(
    files: Sequence[Path], folder: Path, images: Path, category: str | int
) -> list[AnnotatedPicture]:
    if not isinstance(category, str):
        raise InputError(f"{given('category', category)} must be a name; VOC's boxes have no numbers")
    names: set[str] = set()
    pictures = []
    for file, picture in _with_pictures(files, folder, images):
        tree = _xml(file)
        regions: list[Region] = []
        for thing in (*tree.findall("object"), *tree.findall("object/part")):
            name = (thing.findtext("name") or "").strip()
            names.add(name)
            if name == category:
                regions.append(_voc_box(file, thing))
        pictures.append(
            AnnotatedPicture(picture, AnnotatedMask(picture, tuple(regions), _voc_size(file, tree)))
        )
    if category not in names:
        found = closest(category, sorted(map(_short, names)))
        raise InputError(f"{given('category', category)} is not in {shown(folder)}; {found}")
    return pictures


def _voc_number(file: Path, element: Element, path: str) -> float:
    text = element.findtext(path)
    where = f"{path.rpartition('/')[2]} in {shown(file)}"
    try:
        value = float(text or "")
    except ValueError:
        _fail(where, text, "a coordinate in pixels")
    return _number(where, value)


def _voc_box(file: Path, thing: Element) -> Box:
    sides = [_voc_number(file, thing, f"bndbox/{side}") for side in ("xmin", "ymin", "xmax", "ymax")]
    left, top, right, bottom = sides
    if right < left or bottom < top:
        _fail(f"bndbox in {shown(file)}", sides, "a minimum that is at most the maximum")
    # The first pixel has the number 1, and the last one belongs to the box.
    return Box(left - 1, top - 1, right, bottom)


def _voc_size(file: Path, tree: Element) -> tuple[int, int] | None:
    if tree.find("size") is None:
        return None
    sides = [_voc_number(file, tree, f"size/{side}") for side in ("width", "height")]
    # Some programs write 0 for a size that they do not know.
    return None if 0 in sides else (math.floor(sides[0]), math.floor(sides[1]))


def _voc_labels(folder: Path, images: Path, category: str | int) -> list[AnnotatedPicture]:
    if isinstance(category, str) and category.isdecimal():
        category = int(category)
    if isinstance(category, str):
        if category not in _VOC_NAMES:
            raise InputError(
                f"{given('category', category)} is no label of PASCAL VOC; "
                f"{closest(category, _VOC_NAMES)}, or give the number of the label"
            )
        category = _VOC_NAMES.index(category)
    pictures = []
    for file, picture in _with_pictures(image_files(folder), folder, images):
        mask = labelled(file, category)
        regions = (Labels(file, category),) if mask.any() else ()
        pictures.append(AnnotatedPicture(picture, AnnotatedMask(picture, regions, mask.shape[::-1])))
    if not any(picture.mask.marks for picture in pictures):
        raise InputError(f"category={category} is not the label of any pixel in {shown(folder)}")
    return pictures
