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

from iba_core.arguments import require_callable, require_type, require_whole
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


class ImageNetTransform:
    """A transform from a Pillow image to a normalised tensor, as returned by `imagenet_transform`.

    Args:
        resize: length in pixels to which the shorter side is resized.
        crop_size: side of the square that is then cut out of the middle. A black border is added where it is
            larger than the picture.

    Raises:
        InputError: a length is below 1.

    Example:
        >>> ImageNetTransform(8, 4)(Image.new("RGB", (20, 10))).shape
        torch.Size([3, 4, 4])
    """

    def __init__(self, resize: int, crop_size: int) -> None:
        for name, value in (("resize", resize), ("crop_size", crop_size)):
            require_whole(name, value, 1, 2**14)
        self.resize = resize
        self.crop_size = crop_size

    def __call__(self, image: Image.Image) -> torch.Tensor:
        """Convert the image to a tensor (3, crop_size, crop_size), float32."""
        require_type("image", image, Image.Image, "a Pillow image")
        image = image.convert("RGB")
        short, side = min(image.size), self.crop_size
        width, height = (self.resize * size // short for size in image.size)
        image = image.resize((width, height), Image.Resampling.BILINEAR)
        left, top = round((width - side) / 2), round((height - side) / 2)
        # Pillow fills the part of a box outside the picture with black.
        pixels = np.asarray(image.crop((left, top, left + side, top + side)), np.float32) / 255
        normalized = (pixels - _MEAN) / _STD
        return torch.from_numpy(np.ascontiguousarray(normalized.transpose(2, 0, 1)))

    def __repr__(self) -> str:
        return f"{type(self).__name__}(resize={self.resize}, crop_size={self.crop_size})"


def imagenet_transform(resize: int = 256, crop_size: int = 224) -> ImageNetTransform:
    """Return torchvision's usual transform from a picture to the input of an ImageNet network.

    Args:
        resize: length in pixels to which the shorter side is resized.
        crop_size: side of the square that is cut out of the middle.

    Returns:
        A callable that maps a Pillow image to a float32 tensor (3, crop_size, crop_size).

    Example:
        >>> imagenet_transform()(Image.new("RGB", (300, 400))).shape
        torch.Size([3, 224, 224])
    """
    return ImageNetTransform(resize, crop_size)


class ImageFolder(Dataset[tuple[Any, int]]):
    """A data set of pictures in one folder per class, like torchvision's class of this name.

    Args:
        root: folder with a folder for each class.
        transform: function of a Pillow image, applied to each picture; None for the image itself.

    Attributes:
        classes: names of the classes, sorted.
        class_to_idx: index of each class.
        samples: pairs of a file and the index of its class, sorted.
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
        self, root: str | PathLike[str], transform: Callable[[Image.Image], Any] | None = None
    ) -> None:
        self.root: Path = as_path(root, "root")
        require_callable("transform", transform, "a function of a Pillow image", optional=True)
        self.transform = transform
        folders = sorted(entry for entry in self.root.glob("*/") if entry.is_dir())
        if not folders:
            raise InputError(f"{self.root} holds no folders; one folder of images per class was expected")
        self.classes = [folder.name for folder in folders]
        self.class_to_idx = {name: index for index, name in enumerate(self.classes)}
        self.samples = [(file, index) for index, folder in enumerate(folders) for file in image_files(folder)]
        self.targets = [index for _, index in self.samples]

    def __getitem__(self, index: int) -> tuple[Any, int]:
        file, target = self.samples[index]
        image = load_image(file)
        return (image if self.transform is None else self.transform(image)), target

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
