"""Segmentation data: images with masks that mark a concept."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from os import PathLike
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
from PIL import Image

from iba_core.arguments import (
    given,
    require_data_format,
    require_number,
    require_numbers,
    require_seed,
    require_sequence,
    require_sizes,
    require_text,
    require_type,
    require_whole,
)
from iba_core.concepts.annotations import annotated_pictures
from iba_core.errors import InputError
from iba_core.files import as_path, shown
from iba_core.framework.arrays import as_array, require_array
from iba_core.framework.layout import DataFormat
from iba_core.pictures.images import Preprocessing, image_files, load_image
from iba_core.pictures.masks import mask_picture

FloatArray = npt.NDArray[np.floating]

_T = TypeVar("_T")

Entries = Sequence[Any] | npt.NDArray[Any]
"""A sequence, or an array with a leading axis."""


class SegmentationData:
    """Images and their masks.

    Args:
        images: sequence, or array with a leading axis, of images as the model takes them, (C, H, W) or
            (H, W, C).
        masks: sequence or array of masks (H, W), one for each image, with values from 0 to 1. The concept
            is where the mask is 1. A mask may have another resolution than its image.

    Raises:
        InputError: there is no image, there are more or fewer masks than images, or the first mask is not
            2-D.

    Example:
        >>> data = SegmentationData(np.zeros((5, 3, 8, 8), np.float32), np.zeros((5, 8, 8)))
        >>> image, mask = data[0]
        >>> mask.shape
        (8, 8)
    """

    def __init__(self, images: Entries, masks: Entries) -> None:
        require_sequence("images", images, "images")
        require_sequence("masks", masks, "masks")
        if len(images) != len(masks):
            raise InputError(f"masks has {len(masks)} entries for {len(images)} images; each needs one")
        self.images = images
        self.masks = masks
        self.mask(0)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[npt.NDArray[Any], FloatArray]:
        """Return one image and its mask."""
        return as_array(f"images[{index}]", self.images[self._index(index)]), self.mask(index)

    def __iter__(self) -> Iterator[tuple[npt.NDArray[Any], FloatArray]]:
        return (self[index] for index in range(len(self)))

    def mask(self, index: int) -> FloatArray:
        """Return one mask, float32, (H, W).

        Raises:
            InputError: the mask is not 2-D, or has values outside 0 to 1.
        """
        mask = require_array(
            f"masks[{index}]", self.masks[self._index(index)], ndim=2, least=0, most=1, form="one mask (H, W)"
        )
        return mask.astype(np.float32)

    def _index(self, index: int) -> int:
        return require_whole("index", index, -len(self), len(self) - 1)

    def batches(self, batch_size: int = 32) -> Iterator[npt.NDArray[Any]]:
        """Give the images in order, one batch (B, ...) after the other.

        Raises:
            InputError: `batch_size` is below 1, or the images differ in shape.
        """
        require_whole("batch_size", batch_size, 1)
        return self._batches(batch_size)

    def _batches(self, batch_size: int) -> Iterator[npt.NDArray[Any]]:
        for start in range(0, len(self), batch_size):
            numbers = range(start, min(start + batch_size, len(self)))
            images = [as_array(f"images[{i}]", self.images[i]) for i in numbers]
            if len({image.shape for image in images}) > 1:
                raise InputError(f"images[{start}] and those after it differ in shape; give one size")
            yield np.stack(images)

    def masks_of_shape(self, shape: tuple[int, int]) -> npt.NDArray[np.float32]:
        """Resize all masks to one resolution.

        Args:
            shape: (height, width).

        Returns:
            float32, (N, height, width): the share of each pixel that the concept covers.
        """
        height, width = require_sizes("shape", shape)
        return np.stack([resize_map(self.mask(index), (height, width)) for index in range(len(self))])

    def __repr__(self) -> str:
        return f"SegmentationData({len(self)} images)"


Data = SegmentationData | tuple[Entries, Entries]
"""Segmentation data, or a pair (images, masks)."""


class SegmentationConcept2D:
    """A concept, given by images with masks that mark it.

    Args:
        name: name of the concept.
        train_data: `SegmentationData`, or a pair (images, masks), to learn from.
        val_data: the same kind of data, to stop training early and to choose a layer; None if there is none.
        test_data: the same kind of data, for the final results only; None if there is none.
        rel_size: (height, width) of the concept relative to an image, each above 0 and at most 1. It
            determines the size of the window of a detection model.

    Attributes:
        name: name of the concept.
        train_data: `SegmentationData`.
        val_data: `SegmentationData` or None.
        test_data: `SegmentationData` or None.
        rel_size: (height, width) or None.

    Raises:
        InputError: the data or `rel_size` is wrong.

    Example:
        >>> images, masks = np.zeros((5, 3, 8, 8), np.float32), np.zeros((5, 8, 8))
        >>> SegmentationConcept2D("face", (images, masks), rel_size=(0.25, 0.2))
        SegmentationConcept2D(name='face', train_data=5, val_data=0, test_data=0, rel_size=(0.25, 0.2))
    """

    def __init__(
        self,
        name: str,
        train_data: Data,
        val_data: Data | None = None,
        test_data: Data | None = None,
        rel_size: tuple[float, float] | None = None,
    ) -> None:
        require_text("name", name, "the name of the concept")
        self.name = name
        self.train_data: SegmentationData = _as_data("train_data", train_data)
        self.val_data: SegmentationData | None = None if val_data is None else _as_data("val_data", val_data)
        self.test_data: SegmentationData | None = (
            None if test_data is None else _as_data("test_data", test_data)
        )
        self.rel_size: tuple[float, float] | None = None
        if rel_size is not None:
            height, width = require_numbers("rel_size", rel_size, counts=(2,), above=0, most=1)
            self.rel_size = height, width

    @classmethod
    def from_pictures(
        cls,
        name: str,
        pictures: Entries,
        masks: Entries,
        preprocessing: Preprocessing,
        data_format: DataFormat,
        *,
        negatives: Entries = (),
        validation: float = 0.15,
        test: float = 0.15,
        seed: int = 0,
        rel_size: tuple[float, float] | None = None,
    ) -> SegmentationConcept2D:
        """Make a concept from pictures that are not yet prepared for a model, split at random.

        Args:
            name: name of the concept.
            pictures: Pillow images or uint8 arrays (H, W, 3), or their files.
            masks: one mask for each picture, of the picture's shape: black and white, cut out, or labels 0
                and 1; see `iba_core.pictures.masks.mask_picture`. Masks are cropped and resized with
                their pictures.
            preprocessing: the preprocessing that the model expects, such as its attribute
                ``preprocessing``.
            data_format: where the model expects the channels.
            negatives: pictures that do not show the concept. They need no masks.
            validation: share of the pictures, and of the negatives, that goes into `val_data`.
            test: share of the pictures, and of the negatives, that goes into `test_data`.
            seed: seed of the split. The same seed gives the same split.
            rel_size: see the class.

        Returns:
            A concept that prepares each picture when it is needed.

        Raises:
            InputError: the shares leave nothing to learn from, or there are more or fewer masks than
                pictures.

        Example:
            >>> pictures = np.zeros((4, 9, 9, 3), np.uint8)
            >>> concept = SegmentationConcept2D.from_pictures(
            ...     "dot", pictures, pictures[..., 0], Preprocessing(size=(6, 6)), "channels_first"
            ... )
            >>> image, mask = concept.train_data[0]
            >>> image.shape, mask.shape, len(concept.train_data)
            ((3, 6, 6), (6, 6), 2)
        """
        require_sequence("pictures", pictures, "pictures")
        require_sequence("masks", masks, "masks")
        require_type("preprocessing", preprocessing, Preprocessing, "a Preprocessing")
        require_data_format("data_format", data_format)
        require_seed("seed", seed, optional=False)
        if len(pictures) != len(masks):
            raise InputError(f"masks has {len(masks)} entries for {len(pictures)} pictures; each needs one")
        require_sequence("negatives", negatives, "pictures", least=0)
        parts = _random_parts("pictures", len(pictures), validation, test, seed)
        without = _random_parts("negatives", len(negatives), validation, test, seed)

        def image(index: int) -> npt.NDArray[Any]:
            with_concept = index < len(pictures)
            source = pictures[index] if with_concept else negatives[index - len(pictures)]
            return preprocessing(_picture(source), data_format)

        geometry = replace(preprocessing, interpolation="nearest")

        def mask(index: int) -> npt.NDArray[Any]:
            if index >= len(pictures):
                return np.zeros(preprocessing.size, np.float32)
            return (geometry.crop(mask_picture(masks[index]))[..., 0] > 0).astype(np.float32)

        val, tst, train = (
            SegmentationData(_Prepared(part, image), _Prepared(part, mask)) if part else None
            for part in (
                [*positive.tolist(), *(len(pictures) + negative).tolist()]
                for positive, negative in zip(parts, without, strict=True)
            )
        )
        assert train is not None
        return cls(name, train, val, tst, rel_size)

    @classmethod
    def from_folders(
        cls,
        name: str,
        images: str | PathLike[str],
        masks: str | PathLike[str],
        preprocessing: Preprocessing,
        data_format: DataFormat,
        **options: Any,
    ) -> SegmentationConcept2D:
        """Make a concept from a folder of pictures and a folder of masks.

        Args:
            name: name of the concept.
            images: folder with image files; subfolders are searched as well.
            masks: folder with a mask for each picture, at the same relative path. The file suffix may
                differ. Masks without a picture are ignored. For the forms that a mask may have, see
                `from_pictures`.
            preprocessing: the preprocessing that the model expects.
            data_format: where the model expects the channels.
            **options: `negatives`, `validation`, `test`, `seed` and `rel_size`, see `from_pictures`.

        Raises:
            InputError: a folder is missing or empty, or a picture has no mask.
        """
        images, masks = as_path(images, "images"), as_path(masks, "masks")
        found = {_place(path, masks): path for path in image_files(masks)}
        files = image_files(images)
        missing = [path for path in files if _place(path, images) not in found]
        if missing:
            raise InputError(
                f"{shown(missing[0])} has no mask in {shown(masks)} ({len(missing)} of {len(files)} pictures "
                "have none); a mask must have the relative path and the name of its picture"
            )
        paths = [found[_place(path, images)] for path in files]
        return cls.from_pictures(name, files, paths, preprocessing, data_format, **options)

    @classmethod
    def from_annotations(
        cls,
        name: str,
        images: str | PathLike[str],
        annotations: str | PathLike[str],
        preprocessing: Preprocessing,
        data_format: DataFormat,
        *,
        category: str | int | None = None,
        boxes: bool = False,
        crowds: bool = True,
        limit: int | None = None,
        **options: Any,
    ) -> SegmentationConcept2D:
        """Make a concept from a folder of pictures and the annotations of a data set, COCO or PASCAL VOC.

        The annotated pictures without the concept are negatives, at most as many as there are with it.

        Args:
            name: name of the concept.
            images: folder of the pictures.
            annotations: file or folder; see `annotated_pictures`.
            preprocessing: the preprocessing that the model expects.
            data_format: where the model expects the channels.
            category: name or number of the concept's category; None for `name`.
            boxes: see `annotated_pictures`.
            crowds: see `annotated_pictures`.
            limit: maximum number of pictures with the concept, chosen at random; None for all of them.
            **options: `negatives`, `validation`, `test`, `seed` and `rel_size`, see `from_pictures`. With
                `negatives`, those of the annotated pictures are not used.

        Raises:
            InputError: see `annotated_pictures`.
        """
        if limit is not None:
            require_whole("limit", limit, 1)
        seed = options.get("seed", 0)
        require_seed("seed", seed, optional=False)
        require_text("name", name, "the name of the concept")
        found = annotated_pictures(
            annotations, images, name if category is None else category, boxes=boxes, crowds=crowds
        )
        marked = _chosen([each for each in found if each.mask.marks], limit, seed)
        if not marked:
            raise InputError(f"no picture in {shown(images)} is annotated with the concept")
        others = _chosen([each for each in found if not each.mask.marks], len(marked), seed)
        options = {"negatives": [each.path for each in others]} | options
        pictures, masks = [each.path for each in marked], [each.mask for each in marked]
        return cls.from_pictures(name, pictures, masks, preprocessing, data_format, **options)

    def __repr__(self) -> str:
        sizes = ", ".join(
            f"{part}={0 if (data := getattr(self, part)) is None else len(data)}"
            for part in ("train_data", "val_data", "test_data")
        )
        return f"SegmentationConcept2D(name={self.name!r}, {sizes}, rel_size={self.rel_size})"


@dataclass(frozen=True)
class _Prepared(Sequence[Any]):
    """Entries that are made from their sources, given by their indices, when they are needed."""

    sources: Sequence[int]
    prepare: Callable[[int], npt.NDArray[Any]]

    def __len__(self) -> int:
        return len(self.sources)

    def __getitem__(self, index: Any) -> Any:
        return self.prepare(self.sources[index])


def _chosen(entries: Sequence[_T], most: int | None, seed: int) -> Sequence[_T]:
    """At most `most` of the entries, chosen at random, in their order."""
    if most is None or len(entries) <= most:
        return entries
    order = np.random.Generator(np.random.Philox(seed)).permutation(len(entries))
    return [entries[index] for index in sorted(order[:most])]


def _random_parts(
    what: str, count: int, validation: float, test: float, seed: int
) -> list[npt.NDArray[np.int64]]:
    """Divide `count` indices at random into those for validation, test and training."""
    for name, share in (("validation", validation), ("test", test)):
        require_number(name, share, 0, below=1)
    if validation + test >= 1:
        raise InputError(f"validation={validation} and test={test} must leave a share to learn from")
    # A share above 0 gets at least one picture.
    held_out = [max(round(share * count), 1) if share and count else 0 for share in (validation, test)]
    if sum(held_out) >= count > 0:
        raise InputError(
            f"{count} {what} are too few to hold out {sum(held_out)} of them; give more {what}, or "
            "shares of 0"
        )
    order = np.random.Generator(np.random.Philox(seed)).permutation(count)
    return np.split(order, np.cumsum(held_out))


def resize_map(values: npt.ArrayLike, shape: tuple[int, int]) -> npt.NDArray[np.float32]:
    """Resize a mask or heatmap.

    Along an axis that shrinks, a pixel becomes the mean of the area that it covers. Along an axis that
    grows, values are interpolated linearly between the centres of the pixels.

    Args:
        values: (H, W).
        shape: (height, width).

    Returns:
        float32, of `shape`.

    Example:
        >>> resize_map([[0.0, 1.0, 1.0, 1.0]], (1, 2))
        array([[0.5, 1. ]], dtype=float32)
    """
    image = np.ascontiguousarray(values, dtype=np.float32)
    height, width = shape
    # One axis after the other, since one may shrink and the other grow.
    for size in ((image.shape[1], height), (width, height)):
        shrinks = size[0] * size[1] < image.size
        method = Image.Resampling.BOX if shrinks else Image.Resampling.BILINEAR
        if size != image.shape[::-1]:
            image = np.asarray(Image.fromarray(image).resize(size, method))
    return image


def _as_data(name: str, data: Data) -> SegmentationData:
    if isinstance(data, SegmentationData):
        return data
    if not isinstance(data, (tuple, list)) or len(data) != 2:
        raise InputError(f"{given(name, data)} must be SegmentationData or a pair (images, masks)")
    try:
        return SegmentationData(*data)
    except InputError as error:
        raise InputError(f"{name}: {error}") from error


def _picture(source: Any) -> Any:
    return load_image(source) if isinstance(source, (str, PathLike)) else source


def _place(path: Path, folder: str | PathLike[str]) -> str:
    return str(path.relative_to(folder).with_suffix(""))
