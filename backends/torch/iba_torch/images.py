"""ImageNet pictures for PyTorch, prepared as by torchvision, with Pillow and torch alone."""

from __future__ import annotations

from collections.abc import Callable
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch.utils.data import Dataset

from iba_core.arguments import (
    require_bool,
    require_callable,
    require_sizes,
    require_type,
    require_whole,
)
from iba_core.errors import InputError
from iba_core.files import as_path
from iba_core.pictures.images import image_files, load_image

_MEAN = np.array([0.485, 0.456, 0.406], np.float32)
_STD = np.array([0.229, 0.224, 0.225], np.float32)


def tensor_to_np_img(img_t: torch.Tensor) -> npt.NDArray[np.floating]:
    """Convert a tensor from `imagenet_transform` back to a picture.

    Args:
        img_t: one image, (C, H, W) with 3 normalised channels.

    Returns:
        Array (H, W, C), in [0, 1] up to rounding.

    Raises:
        InputError: `img_t` is not one image with 3 channels.

    Example:
        >>> tensor_to_np_img(torch.zeros(3, 1, 1)).round(3)
        array([[[0.485, 0.456, 0.406]]], dtype=float32)
    """
    require_type("img_t", img_t, torch.Tensor, "a tensor")
    if img_t.is_complex() or not bool(torch.isfinite(img_t).all()):
        raise InputError("img_t holds values that are not finite real numbers")
    if 0 in img_t.shape or img_t.ndim != 3 or img_t.shape[0] != 3:
        raise InputError(f"img_t has shape {tuple(img_t.shape)}; one image (3, height, width) was expected")
    image = img_t.detach().cpu().float().permute(1, 2, 0).numpy()
    picture: npt.NDArray[np.floating] = image * _STD + _MEAN
    return picture


Size = int | tuple[int, int]
"""A length in pixels, or (height, width)."""


class ImageNetTransform:
    """A transform from a Pillow image to a normalised tensor, as returned by `imagenet_transform`.

    Args:
        resize: length in pixels to which the shorter side is resized, or (height, width) of the whole.
        crop_size: side of the square that is then cut out of the middle, or its (height, width). A black
            border is added where it is larger than the picture.
        crop_first: cut out first, then resize.

    Raises:
        InputError: a length is below 1.

    Example:
        >>> ImageNetTransform(8, 4)(Image.new("RGB", (20, 10))).shape
        torch.Size([3, 4, 4])
        >>> ImageNetTransform(8, (4, 6), crop_first=True)(Image.new("RGB", (20, 10))).shape
        torch.Size([3, 8, 12])
    """

    def __init__(self, resize: Size, crop_size: Size, *, crop_first: bool = False) -> None:
        require_bool("crop_first", crop_first)
        self.resize = _size("resize", resize)
        self.crop_size = _size("crop_size", crop_size)
        self.crop_first = crop_first

    def __call__(self, image: Image.Image) -> torch.Tensor:
        """Convert the image to a tensor (3, height, width), float32."""
        require_type("image", image, Image.Image, "a Pillow image")
        image = image.convert("RGB")
        steps = (self._cropped, self._resized) if self.crop_first else (self._resized, self._cropped)
        for step in steps:
            image = step(image)
        normalized = (np.asarray(image, np.float32) / 255 - _MEAN) / _STD
        return torch.from_numpy(np.ascontiguousarray(normalized.transpose(2, 0, 1)))

    def _resized(self, image: Image.Image) -> Image.Image:
        if isinstance(self.resize, int):
            short = min(image.size)
            width, height = (self.resize * size // short for size in image.size)
        else:
            height, width = self.resize
        return image.resize((width, height), Image.Resampling.BILINEAR)

    def _cropped(self, image: Image.Image) -> Image.Image:
        size = self.crop_size
        height, width = (size, size) if isinstance(size, int) else size
        left, top = _start(image.width, width), _start(image.height, height)
        # Pillow fills the part of a box outside the picture with black.
        return image.crop((left, top, left + width, top + height))

    def __repr__(self) -> str:
        order = ", crop_first=True" if self.crop_first else ""
        return f"{type(self).__name__}(resize={self.resize}, crop_size={self.crop_size}{order})"


def _size(name: str, value: Any) -> Size:
    if isinstance(value, (tuple, list, np.ndarray)):
        height, width = require_sizes(name, value)
        return height, width
    return require_whole(name, value, 1, 2**14)


def _start(size: int, wanted: int) -> int:
    """Where the middle of an axis starts. As in torchvision, a border's odd pixel comes last."""
    return -((wanted - size) // 2) if size < wanted else round((size - wanted) / 2)


def imagenet_transform(resize: Size = 256, crop_size: Size = 224) -> ImageNetTransform:
    """Return torchvision's usual transform from a picture to the input of an ImageNet network.

    Args:
        resize: length in pixels to which the shorter side is resized, or (height, width) of the whole.
        crop_size: side of the square that is cut out of the middle, or its (height, width).

    Returns:
        A callable that maps a Pillow image to a float32 tensor (3, height, width).

    Example:
        >>> imagenet_transform()(Image.new("RGB", (300, 400))).shape
        torch.Size([3, 224, 224])
    """
    return ImageNetTransform(resize, crop_size)


class ImageFolder(Dataset[tuple[Any, Any]]):
    """A data set of pictures in one folder per class, like torchvision's class of this name.

    Args:
        root: folder with a folder for each class.
        transform: function of a Pillow image, applied to each picture; None for the image itself.
        target_transform: function of the index of a class, applied to each; None for the index itself.
        loader: function that reads the picture in a file; `iba_core.load_image` by default.

    Attributes:
        classes: names of the classes, sorted.
        class_to_idx: index of each class.
        samples: pairs of a file's path and the index of its class, sorted; also called ``imgs``.
        targets: indices of the classes of all samples.

    Raises:
        InputError: there is no such folder, it contains no folders, or one of them contains no image.

    Example:
        >>> import tempfile
        >>> root = Path(tempfile.mkdtemp())
        >>> for name in ("cat", "dog"):
        ...     (root / name).mkdir()
        ...     Image.new("RGB", (4, 4)).save(root / name / "1.png")
        >>> folder = ImageFolder(root)
        >>> folder.classes, folder.targets
        (['cat', 'dog'], [0, 1])
    """

    def __init__(
        self,
        root: str | PathLike[str],
        transform: Callable[[Any], Any] | None = None,
        target_transform: Callable[[int], Any] | None = None,
        loader: Callable[[str], Any] = load_image,
    ) -> None:
        folder: Path = as_path(root, "root")
        require_callable("transform", transform, "a function of a Pillow image", optional=True)
        require_callable("target_transform", target_transform, "a function of an index", optional=True)
        require_callable("loader", loader, "a function of a path")
        self.root = str(folder)
        self.transform = transform
        self.target_transform = target_transform
        self.loader = loader
        folders = sorted(entry for entry in folder.glob("*/") if entry.is_dir())
        if not folders:
            raise InputError(f"{folder} holds no folders; one folder of images per class was expected")
        self.classes = [entry.name for entry in folders]
        self.class_to_idx = {name: index for index, name in enumerate(self.classes)}
        self.samples = [(str(file), index) for index, of in enumerate(folders) for file in image_files(of)]
        self.targets = [index for _, index in self.samples]

    @property
    def imgs(self) -> list[tuple[str, int]]:
        """See `samples`."""
        return self.samples

    def __getitem__(self, index: int) -> tuple[Any, Any]:
        file, target = self.samples[index]
        image = self.loader(file)
        return (
            image if self.transform is None else self.transform(image),
            target if self.target_transform is None else self.target_transform(target),
        )

    def __len__(self) -> int:
        return len(self.samples)


def get_imagenet_folder(
    path: str | PathLike[str],
    image_size: int = 224,
    transform: Callable[[Image.Image], Any] | str | None = "default",
) -> ImageFolder:
    """Open a folder of pictures, in one folder per class, as a data set for an ImageNet network.

    Args:
        path: the folder, such as the folder ``validation`` of ImageNet.
        image_size: side in pixels of the square that the network sees.
        transform: function from a Pillow image to a tensor; ``"default"`` for `imagenet_transform`, which
            resizes the shorter side to 256 / 224 of `image_size`.

    Returns:
        A data set of pairs (image, index of its class).

    Raises:
        InputError: see `ImageFolder`, or the transform is an unknown name.

    Example:
        >>> import tempfile
        >>> root = Path(tempfile.mkdtemp())
        >>> (root / "cat").mkdir()
        >>> Image.new("RGB", (300, 400)).save(root / "cat" / "1.png")
        >>> image, target = get_imagenet_folder(root)[0]
        >>> image.shape, target
        (torch.Size([3, 224, 224]), 0)
    """
    require_whole("image_size", image_size, 1, 2**13)
    if isinstance(transform, str):
        if transform != "default":
            raise InputError(f"transform={transform!r} is neither 'default' nor a callable")
        transform = imagenet_transform(round(image_size * 256 / 224), image_size)
    return ImageFolder(path, transform)
