"""Photographs: reading them, bringing them into the form a network expects, and samples always at hand.

Everything runs on Pillow and NumPy. Pictures are RGB Pillow images or uint8 arrays (H, W, 3).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from importlib.util import find_spec
from itertools import islice
from os import PathLike
from pathlib import Path
from typing import Literal, TypeVar, get_args

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps, UnidentifiedImageError

from iba_core.errors import IBAError, InputError, MissingDependencyError, closest
from iba_core.framework.layout import DataFormat
from iba_core.framework.namespace import Array, array_namespace

Picture = Image.Image | npt.NDArray[np.uint8]
"""A picture in memory: a Pillow image, or a uint8 array (H, W), (H, W, 1), (H, W, 3) or (H, W, 4)."""

Interpolation = Literal["nearest", "bilinear", "bicubic", "lanczos"]

SUFFIXES = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"})
"""Endings, in lower case, of the files that `image_files` takes for images."""

_T = TypeVar("_T")

_Box = tuple[float, float, float, float]

_RESAMPLING: dict[Interpolation, Image.Resampling] = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}


# -- files --------------------------------------------------------------------------------------------


def load_image(path: str | PathLike[str]) -> Image.Image:
    """Read a photograph, the right way up.

    The camera's note on its orientation (EXIF) is followed. What is transparent becomes white; 16 bits
    a pixel become 8; of several frames the first is taken.

    Args:
        path: an image file of any kind that Pillow reads.

    Returns:
        An RGB image.

    Raises:
        InputError: the file is missing, is no image, is truncated, or is too large to be honest.
    """
    return read_image(path, lambda image, kind: _as_rgb(image))


def read_image(
    path: str | PathLike[str], convert: Callable[[Image.Image, str | None], Image.Image]
) -> Image.Image:
    """Read an image file, the right way up, as something else than `load_image` makes of it.

    Args:
        path: an image file of any kind that Pillow reads.
        convert: makes what is wanted of the open image and the name of its format.

    Raises:
        InputError: as of `load_image`.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(
            f"{path} is {'a folder' if path.is_dir() else 'not there'}; an image file was expected"
        )
    try:
        with Image.open(path) as image:
            return convert(ImageOps.exif_transpose(image), image.format)
    except UnidentifiedImageError as error:
        raise InputError(f"{path} is no image that Pillow can read") from error
    except Image.DecompressionBombError as error:
        raise InputError(f"{path} holds more pixels than a photograph has: {error}") from error
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    # Pillow's decoders answer a damaged file with any of these.
    except (OSError, SyntaxError, ValueError, EOFError) as error:
        raise InputError(f"{path} cannot be read, it may be damaged: {error}") from error


def image_files(folder: str | PathLike[str]) -> list[Path]:
    """The image files in a folder and the folders below it, sorted by path.

    Files are told by the end of their name (`SUFFIXES`, in any case); hidden files are left out.

    Raises:
        InputError: there is no such folder, or it holds no image.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(f"{folder} is {'a file' if folder.exists() else 'not there'}; a folder was expected")
    files = sorted(
        path
        for path in folder.rglob("*")
        if path.suffix.lower() in SUFFIXES and not path.name.startswith(".") and path.is_file()
    )
    if not files:
        raise InputError(
            f"{folder} holds no image; looked for {', '.join(sorted(SUFFIXES))}, also further down"
        )
    return files


# -- preprocessing ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Preprocessing:
    """The way from a picture to the array a network was trained on: crop, resize, normalise.

    The largest centred window with the shape of `size` is cut from the picture, shrunk by
    `crop_fraction` about its centre and resized to `size`. Values 0..255 become
    ``(value * scale - mean) / std``.

    A model tells the command line how it wants its pictures by an attribute ``preprocessing`` that
    holds an object of this class (and the names of its outputs by ``class_names``, a sequence of str).

    Attributes:
        size: (height, width) in pixels of what the network sees.
        crop_fraction: part of the largest centred window that is kept, in (0, 1]. torchvision's
            "resize the shorter side to 256, crop 224" is 224 / 256 = 0.875.
        channels: 3 for colour, 1 for grey.
        scale: factor on the values 0..255, applied first.
        mean: subtracted after scaling; one number, or one for each channel.
        std: divided by after that; one number, or one for each channel.
        interpolation: how to resize. All but ``"nearest"`` average over what shrinks away.

    Raises:
        InputError: an attribute is outside its range, or `mean` or `std` does not fit `channels`.

    Example:
        >>> preprocessing = Preprocessing.preset("imagenet")
        >>> preprocessing(sample_image("cat"), "channels_first").shape
        (3, 224, 224)
        >>> preprocessing.crop(sample_image("cat")).shape
        (224, 224, 3)
    """

    size: tuple[int, int] = (224, 224)
    crop_fraction: float = 1.0
    channels: int = 3
    scale: float = 1 / 255
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    interpolation: Interpolation = "bilinear"

    def __post_init__(self) -> None:
        if len(self.size) != 2 or min(self.size) < 1:
            raise InputError(f"size={self.size!r} must be (height, width), both at least 1")
        if not 0 < self.crop_fraction <= 1:
            raise InputError(f"crop_fraction={self.crop_fraction} must be above 0 and at most 1")
        if self.channels not in (1, 3):
            raise InputError(f"channels={self.channels} must be 3 (colour) or 1 (grey)")
        for name, values in (("mean", self.mean), ("std", self.std)):
            if len(values) not in (1, self.channels):
                raise InputError(f"{name}={values!r} must hold 1 number or {self.channels}, one a channel")
        if not all(value > 0 for value in self.std):
            raise InputError(f"std={self.std!r} must be positive")
        if self.interpolation not in _RESAMPLING:
            raise InputError(
                f"interpolation={self.interpolation!r} is unknown; "
                + closest(str(self.interpolation), get_args(Interpolation), n=4)
            )

    @classmethod
    def preset(cls, name: str, size: tuple[int, int] = (224, 224), channels: int = 3) -> Preprocessing:
        """The preprocessing known by a name.

        Args:
            name: ``"unit"`` for values in [0, 1]; ``"symmetric"`` for [-1, 1]; ``"raw"`` for 0..255;
                ``"imagenet"`` for torchvision's ImageNet models (the centre 0.875 of the picture, mean
                and standard deviation of ImageNet's colours).
            size: (height, width) in pixels.
            channels: 3 for colour, 1 for grey.

        Raises:
            InputError: there is no such preset, or it does not exist for that many channels.
        """
        if name not in PRESETS:
            raise InputError(f"there is no preprocessing {name!r}; {closest(name, PRESETS, n=4)}")
        return replace(PRESETS[name], size=size, channels=channels)

    def __call__(self, image: Picture, data_format: DataFormat = "channels_last") -> npt.NDArray[np.float32]:
        """The array the network gets for a picture.

        Args:
            image: a Pillow image or a uint8 array.
            data_format: where the channels go.

        Returns:
            float32, (H, W, C) for ``"channels_last"`` or (C, H, W) for ``"channels_first"``; no batch axis.

        Raises:
            InputError: `image` is not a picture, or `data_format` is unknown.
        """
        return self._normalise(self._resize(image, self._centre(image)), data_format)

    def crop(self, image: Picture) -> npt.NDArray[np.uint8]:
        """What the network sees of a picture, for display: uint8, (H, W, 3), grey if `channels` is 1.

        A saliency map of the same `size` lies on it pixel by pixel.
        """
        seen = self._resize(image, self._centre(image))
        return np.array(np.broadcast_to(seen, (*self.size, 3)))

    def inverse(self, x: npt.ArrayLike, data_format: DataFormat = "channels_last") -> npt.NDArray[np.uint8]:
        """The picture that an array was made from, up to rounding.

        Args:
            x: one image as the network gets it, (H, W, C) or (C, H, W), any height and width.
            data_format: where its channels are.

        Returns:
            uint8, (H, W, 3).

        Raises:
            InputError: `x` is not one image with `channels` channels.
        """
        _require_data_format(data_format)
        array = np.asarray(x, dtype=np.float64)
        axis = 0 if data_format == "channels_first" else -1
        if array.ndim != 3 or array.shape[axis] != self.channels:
            raise InputError(
                f"x has shape {array.shape}; a {data_format} image with {self.channels} channels was expected"
            )
        values = (np.moveaxis(array, axis, -1) * self.std + self.mean) / self.scale
        pixels = np.clip(np.rint(values), 0, 255).astype(np.uint8)
        return np.array(np.broadcast_to(pixels, (*pixels.shape[:2], 3)))

    def random_crop(
        self, image: Picture, generator: np.random.Generator, data_format: DataFormat = "channels_last"
    ) -> npt.NDArray[np.float32]:
        """A random part of a picture as the network gets it, mirrored half of the time.

        Args:
            image: a Pillow image or a uint8 array.
            generator: chooses the part: 0.3 to 1 of the area of the largest window that fits, where
                the window is up to a third wider or narrower than `size`.
            data_format: where the channels go.

        Returns:
            float32, (H, W, C) or (C, H, W); no batch axis.
        """
        width, height = _as_pillow(image).size
        stretch = np.exp(generator.uniform(-1, 1) * np.log(4 / 3))
        aspect = stretch * self.size[1] / self.size[0]
        part = np.sqrt(generator.uniform(0.3, 1))
        window_height = part * min(height, width / aspect)
        window_width = part * min(width, height * aspect)
        left, top = generator.uniform(size=2) * (width - window_width, height - window_height)
        pixels = self._resize(image, (left, top, left + window_width, top + window_height))
        if generator.uniform() < 0.5:
            pixels = pixels[:, ::-1]
        return self._normalise(pixels, data_format)

    def _centre(self, image: Picture) -> _Box:
        """The window (left, top, right, bottom) of the picture that the network sees, in its pixels."""
        width, height = _as_pillow(image).size
        reach = self.crop_fraction * min(height / self.size[0], width / self.size[1])
        half_height, half_width = reach * self.size[0] / 2, reach * self.size[1] / 2
        return (
            width / 2 - half_width,
            height / 2 - half_height,
            width / 2 + half_width,
            height / 2 + half_height,
        )

    def _resize(self, image: Picture, box: _Box) -> npt.NDArray[np.uint8]:
        """The window `box` of the picture at `size`, uint8, (H, W, channels)."""
        source = _as_pillow(image)
        left, top, right, bottom = box
        # Rounding may carry a window as large as the picture a hair's breadth over its border.
        box = (max(left, 0.0), max(top, 0.0), min(right, source.width), min(bottom, source.height))
        height, width = self.size
        picture = source.resize((width, height), _RESAMPLING[self.interpolation], box=box)
        pixels = np.asarray(picture.convert("L") if self.channels == 1 else picture)
        return pixels.reshape(height, width, self.channels)

    def _normalise(self, pixels: npt.NDArray[np.uint8], data_format: DataFormat) -> npt.NDArray[np.float32]:
        _require_data_format(data_format)
        values = (pixels * np.float64(self.scale) - self.mean) / self.std
        if data_format == "channels_first":
            values = np.moveaxis(values, -1, 0)
        return np.ascontiguousarray(values, dtype=np.float32)


PRESETS: dict[str, Preprocessing] = {
    "unit": Preprocessing(),
    "symmetric": Preprocessing(scale=1 / 127.5, mean=(1.0,)),
    "raw": Preprocessing(scale=1.0),
    "imagenet": Preprocessing(crop_fraction=0.875, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)),
}
"""The preprocessings that have a name; see `Preprocessing.preset`."""


def _require_data_format(data_format: str) -> None:
    if data_format not in get_args(DataFormat):
        raise InputError(f"data_format={data_format!r} is neither 'channels_first' nor 'channels_last'")


def _as_pillow(image: Picture) -> Image.Image:
    """`image` as an RGB Pillow image."""
    if isinstance(image, Image.Image):
        return _as_rgb(image)
    if not isinstance(image, np.ndarray) or image.dtype != np.uint8:
        kind = f"an array of {image.dtype}" if isinstance(image, np.ndarray) else type(image).__name__
        raise InputError(f"image is {kind}; a Pillow image or an array of uint8 (0..255) was expected")
    pixels = image[..., 0] if image.ndim == 3 and image.shape[2] == 1 else image
    if 0 in pixels.shape or not (pixels.ndim == 2 or (pixels.ndim == 3 and pixels.shape[2] in (3, 4))):
        raise InputError(
            f"image has shape {image.shape}; (H, W), (H, W, 1), (H, W, 3) or (H, W, 4) was expected"
        )
    return _as_rgb(Image.fromarray(np.ascontiguousarray(pixels)))


def _as_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "RGB":
        return image
    if image.mode.startswith("I;16"):
        # Pillow would clip 16 bits to 8 instead of scaling them.
        return Image.fromarray((np.asarray(image) // 257).astype(np.uint8)).convert("RGB")
    if image.mode in ("I", "F"):
        raise InputError(
            f"image has Pillow mode {image.mode!r} (32 bits, no fixed range); 8 or 16 bits were expected"
        )
    if image.has_transparency_data:
        opaque = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(opaque, image.convert("RGBA")).convert("RGB")
    return image.convert("RGB")


def image_batches(
    files: Iterable[str | PathLike[str]],
    preprocessing: Preprocessing,
    batch_size: int = 32,
    data_format: DataFormat = "channels_last",
) -> Iterator[npt.NDArray[np.float32]]:
    """Read image files as they are needed, a batch at a time.

    Args:
        files: such as `image_files` lists.
        preprocessing: what the network expects.
        batch_size: images in a batch; the last one may hold fewer.
        data_format: where the channels go.

    Yields:
        float32, (B, H, W, C) or (B, C, H, W).

    Raises:
        InputError: `batch_size` is below 1 (at once), or a file cannot be read (as its turn comes).
    """
    _require_data_format(data_format)
    _require_positive("batch_size", batch_size)
    return (
        np.stack([preprocessing(load_image(file), data_format) for file in batch])
        for batch in _batched(files, batch_size)
    )


def to_unit_interval(x: Array) -> Array:
    """Scale the values of an array to [0, 1]: its least becomes 0, its greatest 1.

    Args:
        x: array of any shape and framework, floating point or integer.

    Returns:
        Array of the same shape; all zeros if the values of `x` are all the same.

    Raises:
        InputError: `x` is empty or holds a value that is not finite.
    """
    xp = array_namespace(x)
    if 0 in x.shape:
        raise InputError(f"x has shape {tuple(x.shape)}; at least one value is needed")
    # True division makes integers floating point, before a difference could overflow.
    x = x / 1
    low, high = xp.min(x), xp.max(x)
    if not bool(xp.isfinite(low)) or not bool(xp.isfinite(high)):
        raise InputError(f"x holds values from {float(low)} to {float(high)}; every value must be finite")
    return (x - low) / (high - low) if bool(low < high) else xp.zeros_like(x)


# -- samples ------------------------------------------------------------------------------------------

SAMPLE_IMAGES: dict[str, tuple[str, str]] = {
    "astronaut": ("skimage", "data/astronaut.png"),
    "bricks": ("skimage", "data/brick.png"),
    "camera": ("skimage", "data/camera.png"),
    "cat": ("skimage", "data/chelsea.png"),
    "china": ("sklearn", "datasets/images/china.jpg"),
    "coffee": ("skimage", "data/coffee.png"),
    "coins": ("skimage", "data/coins.png"),
    "flower": ("sklearn", "datasets/images/flower.jpg"),
    "grass": ("skimage", "data/grass.png"),
    "gravel": ("skimage", "data/gravel.png"),
    "moon": ("skimage", "data/moon.png"),
    "motorcycle": ("skimage", "data/motorcycle_left.png"),
    "rocket": ("skimage", "data/rocket.jpg"),
}
"""The photographs that `sample_image` knows: the package each one lies in, and where."""

_DISTRIBUTIONS = {"skimage": "scikit-image", "sklearn": "scikit-learn"}

MONKEYS_URL = "https://farm1.static.flickr.com/95/247213534_e8be5222be.jpg"
_MONKEYS_CLASS = 382


def sample_image(name: str = "cat") -> Image.Image:
    """A photograph that comes with scikit-image or scikit-learn; nothing is fetched.

    Args:
        name: one of `SAMPLE_IMAGES`.

    Returns:
        An RGB image.

    Raises:
        InputError: there is no such photograph.
        MissingDependencyError: the package it lies in is not installed.

    Example:
        >>> sample_image("coffee").size
        (600, 400)
    """
    if name not in SAMPLE_IMAGES:
        raise InputError(f"there is no sample image {name!r}; {closest(name, SAMPLE_IMAGES)}")
    package, file = SAMPLE_IMAGES[name]
    # Its folder is all that is wanted of the package: importing it would take a second.
    spec = find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise MissingDependencyError(
            f"the sample image {name!r} lies in {_DISTRIBUTIONS[package]}: pip install 'iba-core[demo]'"
        )
    return load_image(Path(spec.submodule_search_locations[0]) / file)


def sample_crops(
    n: int,
    preprocessing: Preprocessing,
    batch_size: int = 32,
    seed: int = 0,
    data_format: DataFormat = "channels_last",
) -> Iterator[npt.NDArray[np.float32]]:
    """Random crops of all sample images: a stand-in for a data set, to estimate feature statistics on.

    Mean and standard deviation of a network's features belong to the data it is used on. Where those
    are at hand, use them; these few photographs are for a first look, for demonstrations and for tests.

    Each crop keeps 0.3 to 1 of the area of the largest window that fits, is up to a third wider or
    narrower than the network's input, and is mirrored half of the time. The photographs take turns.

    Args:
        n: number of crops.
        preprocessing: what the network expects.
        batch_size: crops in a batch; the last one may hold fewer. It does not change the crops.
        seed: the same seed gives the same crops.
        data_format: where the channels go.

    Yields:
        float32, (B, H, W, C) or (B, C, H, W).

    Raises:
        InputError: `n` or `batch_size` is below 1.
        MissingDependencyError: a package with sample images is not installed.
    """
    _require_data_format(data_format)
    _require_positive("n", n)
    _require_positive("batch_size", batch_size)
    pictures = [sample_image(name) for name in SAMPLE_IMAGES]
    generator = np.random.Generator(np.random.Philox(seed))
    crops = (
        preprocessing.random_crop(pictures[index % len(pictures)], generator, data_format)
        for index in range(n)
    )
    return (np.stack(batch) for batch in _batched(crops, batch_size))


def load_monkeys(
    center_crop: bool = True, size: int | tuple[int, int] | None = 224, pil: bool = False
) -> tuple[npt.NDArray[np.uint8] | Image.Image, int]:
    """The photograph of two monkeys in the paper's examples, and its ImageNet class.

    It is fetched once and then kept in the user's cache folder. `sample_image` needs no network.

    Args:
        center_crop: cut out the central square.
        size: side of the result in pixels, or its (width, height); None leaves the size as it is.
        pil: return the whole photograph as a Pillow image, for transforms of your own; `center_crop`
            and `size` are not applied then.

    Returns:
        ``(image, 382)``: a uint8 array (H, W, 3), or a Pillow image; 382 is the squirrel monkey.

    Raises:
        MissingDependencyError: pooch, which fetches it, is not installed.
        IBAError: it cannot be fetched.
    """
    try:
        import pooch
    except ImportError as error:
        raise MissingDependencyError(
            "fetching the photograph of the monkeys needs pooch: pip install 'iba-core[demo]'"
        ) from error
    failure = (
        f"the photograph of the monkeys cannot be fetched from {MONKEYS_URL} (sample_image needs no network)"
    )
    try:
        # Its checksum was never published. Only Pillow reads the file, so a wrong one can do no harm.
        file = Path(
            pooch.retrieve(MONKEYS_URL, known_hash=None, fname="monkeys.jpg", path=pooch.os_cache("iba-core"))
        )
    except (OSError, ValueError) as error:
        raise IBAError(f"{failure}: {error}") from error
    try:
        image = load_image(file)
    except InputError as error:
        # Such as a network's login page: kept, it would be taken for the photograph for ever.
        file.unlink(missing_ok=True)
        raise IBAError(f"{failure}: {error}") from error
    if pil:
        return image, _MONKEYS_CLASS
    if center_crop:
        side = min(image.size)
        left, top = (image.width - side) // 2, (image.height - side) // 2
        image = image.crop((left, top, left + side, top + side))
    if size is not None:
        image = image.resize((size, size) if isinstance(size, int) else size)
    return np.array(image), _MONKEYS_CLASS


def _batched(items: Iterable[_T], size: int) -> Iterator[list[_T]]:
    iterator = iter(items)
    while batch := list(islice(iterator, size)):
        yield batch


def _require_positive(argument: str, value: int) -> None:
    if value < 1:
        raise InputError(f"{argument}={value} must be at least 1")
