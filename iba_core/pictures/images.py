"""Read photographs and prepare them for a network; sample photographs that need no download.

Everything runs on Pillow and NumPy. Pictures are RGB Pillow images or uint8 arrays (H, W, 3).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from importlib.util import find_spec
from itertools import islice
from os import PathLike
from pathlib import Path
from typing import Literal, TypeVar

import numpy as np
import numpy.typing as npt
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from iba_core.arguments import (
    given,
    is_whole_number,
    require_bool,
    require_choice,
    require_data_format,
    require_iterable,
    require_number,
    require_numbers,
    require_seed,
    require_sizes,
    require_type,
    require_whole,
)
from iba_core.errors import IBAError, InputError, MissingDependencyError
from iba_core.files import as_path, is_file, shown
from iba_core.framework.arrays import as_array, require_array
from iba_core.framework.layout import DataFormat
from iba_core.framework.namespace import Array, array_namespace

Picture = Image.Image | npt.NDArray[np.uint8]
"""A picture in memory: a Pillow image, or a uint8 array (H, W), (H, W, 1), (H, W, 3) or (H, W, 4)."""

Interpolation = Literal["nearest", "bilinear", "bicubic", "lanczos"]

SUFFIXES = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"})
"""Suffixes, in lower case, of the files that `image_files` finds."""

FORMATS = (
    "AVIF",
    "BMP",
    "DIB",
    "GIF",
    "ICO",
    "JPEG",
    "JPEG2000",
    "PCX",
    "PNG",
    "PPM",
    "QOI",
    "SGI",
    "TGA",
    "TIFF",
    "WEBP",
)
"""Formats of the images that are read, whatever a file is called: those of pixels that Pillow decodes itself.

For others, it starts programs (Ghostscript for PostScript), or opens whatever is inside.
"""

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

    The orientation that the camera recorded (EXIF) is applied. Transparent areas become white, 16 bits per
    channel become 8, and the first of several frames is used.

    Args:
        path: an image file in one of the `FORMATS`.

    Returns:
        An RGB image.

    Raises:
        InputError: the file is missing, not an image of these formats, damaged, or has far more pixels than a
            photograph (`PIL.Image.MAX_IMAGE_PIXELS`).

    Example:
        >>> import tempfile
        >>> path = tempfile.mkdtemp() + "/grey.png"
        >>> Image.new("L", (3, 2), 128).save(path)
        >>> load_image(path).getpixel((0, 0))
        (128, 128, 128)
    """
    return read_image(path, lambda image, kind: _as_rgb(image))


def read_image(
    path: str | PathLike[str], convert: Callable[[Image.Image, str | None], Image.Image]
) -> Image.Image:
    """Read an image file, the right way up, and convert it.

    Args:
        path: an image file in one of the `FORMATS`.
        convert: function of the upright image and the name of the file's format.

    Returns:
        The result of `convert`.

    Raises:
        InputError: see `load_image`.
    """
    kind, upright = _opened(path, _upright)
    try:
        return convert(upright, kind)
    except InputError as error:
        raise InputError(f"{shown(path)}: {error}") from error


def stored_size(path: str | PathLike[str]) -> tuple[tuple[int, int], int]:
    """Read the size of an image as it is stored in its file, and how it has to be turned to be upright.

    The pixels are not read.

    Args:
        path: an image file in one of the `FORMATS`.

    Returns:
        (width, height) in pixels, and the orientation that the camera recorded (EXIF): 1 for upright, to 8.

    Raises:
        InputError: see `load_image`.

    Example:
        >>> import tempfile
        >>> path = tempfile.mkdtemp() + "/grey.png"
        >>> Image.new("L", (3, 2), 128).save(path)
        >>> stored_size(path)
        ((3, 2), 1)
    """

    def read(image: Image.Image) -> tuple[tuple[int, int], int]:
        orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
        return image.size, int(orientation) if orientation in range(2, 9) else 1

    return _opened(path, read)


def _upright(image: Image.Image) -> tuple[str | None, Image.Image]:
    kind, upright = image.format, ImageOps.exif_transpose(image)
    upright.load()
    return kind, upright


def _opened(path: str | PathLike[str], read: Callable[[Image.Image], _T]) -> _T:
    """Open an image file and read from it."""
    path = as_path(path)
    name = shown(path)
    if not is_file(path):
        found = "is no file" if os.path.lexists(path) else "does not exist"
        raise InputError(
            f"{name} {'is a folder' if os.path.isdir(path) else found}; an image file was expected"
        )
    # Which formats there are depends on Pillow's version.
    Image.init()
    formats = [kind for kind in FORMATS if kind in Image.OPEN]
    try:
        with Image.open(path, formats=formats) as image:
            return read(image)
    except UnidentifiedImageError as error:
        raise InputError(f"{name} is not an image; the formats are {', '.join(formats)}") from error
    except Image.DecompressionBombError as error:
        raise InputError(f"{name} has more pixels than a photograph: {error}") from error
    except Exception as error:  # Pillow's decoders raise anything for a damaged file
        raise InputError(f"{name} cannot be read, it may be damaged: {error}") from error


def image_files(folder: str | PathLike[str]) -> list[Path]:
    """List the image files in a folder and its subfolders, sorted by path.

    Image files are recognised by their suffix (`SUFFIXES`, in lower or upper case). Hidden files are left
    out.

    Args:
        folder: the folder.

    Raises:
        InputError: there is no such folder, or it contains no image.
    """
    folder = as_path(folder, "folder")
    if not os.path.isdir(folder):
        found = "is a file" if os.path.lexists(folder) else "does not exist"
        raise InputError(f"{shown(folder)} {found}; a folder was expected")
    files = sorted(
        path
        for path in folder.rglob("*")
        if path.suffix.lower() in SUFFIXES and not path.name.startswith(".") and is_file(path)
    )
    if not files:
        raise InputError(
            f"{shown(folder)} holds no image, not even in a subfolder; image files end in "
            + ", ".join(sorted(SUFFIXES))
        )
    return files


# -- preprocessing ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Preprocessing:
    """The steps from a picture to the input of a network: crop, resize, normalise.

    The largest centred window with the aspect ratio of `size` is shrunk by `crop_fraction` about its centre,
    cut out and resized to `size`. Values 0..255 become ``(value * scale - mean) / std``.

    A model can bring its own preprocessing for the command line, as an attribute ``preprocessing`` with an
    object of this class. An attribute ``class_names``, a sequence of strings, names its outputs.

    Attributes:
        size: (height, width) of the network's input in pixels.
        crop_fraction: part of the largest centred window to keep, in (0, 1]. torchvision's "resize the
            shorter side to 256, crop 224" is 224 / 256 = 0.875.
        channels: 3 for colour, 1 for grey.
        scale: factor on the values 0..255, applied first.
        mean: subtracted after scaling; one number, or one for each channel.
        std: divisor after that; one number, or one for each channel.
        interpolation: how to resize. All methods but ``"nearest"`` average over the pixels where the picture
            shrinks.

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
        channels = require_choice("channels", self.channels, (3, 1))
        plain = {
            "size": require_sizes("size", self.size),
            "crop_fraction": require_number("crop_fraction", self.crop_fraction, above=0, most=1),
            "channels": channels,
            "scale": require_number("scale", self.scale, above=0),
            "mean": require_numbers("mean", self.mean, counts=(1, channels)),
            "std": require_numbers("std", self.std, counts=(1, channels), above=0),
            "interpolation": require_choice("interpolation", self.interpolation, _RESAMPLING),
        }
        for name, value in plain.items():
            object.__setattr__(self, name, value)

    @classmethod
    def preset(cls, name: str, size: tuple[int, int] = (224, 224), channels: int = 3) -> Preprocessing:
        """Return the preprocessing with this name.

        Args:
            name: ``"unit"`` for values in [0, 1]; ``"symmetric"`` for [-1, 1]; ``"raw"`` for 0..255;
                ``"imagenet"`` for torchvision's ImageNet models (the central 0.875 of the picture, mean and
                standard deviation of ImageNet's colours).
            size: (height, width) in pixels.
            channels: 3 for colour, 1 for grey.

        Raises:
            InputError: there is no such preset, or it does not exist for this number of channels.

        Example:
            >>> Preprocessing.preset("symmetric", size=(32, 32)).mean
            (1.0,)
        """
        require_choice("name", name, PRESETS, "preprocessing")
        return replace(PRESETS[name], size=size, channels=channels)

    def __call__(self, image: Picture, data_format: DataFormat = "channels_last") -> npt.NDArray[np.float32]:
        """Convert a picture to the network's input.

        Args:
            image: a Pillow image or a uint8 array.
            data_format: position of the channels in the result.

        Returns:
            float32, (H, W, C) for ``"channels_last"`` or (C, H, W) for ``"channels_first"``, without a batch
            axis.

        Raises:
            InputError: `image` is not a picture, or `data_format` is unknown.
        """
        return self._normalise(self._resize(image, self._centre(image)), data_format)

    def crop(self, image: Picture) -> npt.NDArray[np.uint8]:
        """Return the part of a picture that the network sees, for display.

        Each pixel of a saliency map of the same `size` belongs to one pixel of the result.

        Args:
            image: a Pillow image or a uint8 array.

        Returns:
            uint8, (H, W, 3), grey if `channels` is 1.
        """
        seen = self._resize(image, self._centre(image))
        return np.array(np.broadcast_to(seen, (*self.size, 3)))

    def inverse(self, x: npt.ArrayLike, data_format: DataFormat = "channels_last") -> npt.NDArray[np.uint8]:
        """Convert an input of the network back to a picture, up to rounding.

        Args:
            x: one input of the network, (H, W, C) or (C, H, W), of any height and width.
            data_format: position of its channels.

        Returns:
            uint8, (H, W, 3).

        Raises:
            InputError: `x` is not one image with `channels` channels.

        Example:
            >>> picture = np.full((2, 2, 3), 200, np.uint8)
            >>> preprocessing = Preprocessing.preset("imagenet", size=(2, 2))
            >>> bool((preprocessing.inverse(preprocessing(picture)) == picture).all())
            True
        """
        require_data_format("data_format", data_format)
        array = require_array("x", x).astype(np.float64)
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
        """Convert a random part of a picture to the network's input, mirrored half of the time.

        The part has 0.3 to 1 of the area of the largest window that fits. The window is up to a third wider
        or narrower than `size`.

        Args:
            image: a Pillow image or a uint8 array.
            generator: generator of the random numbers.
            data_format: position of the channels in the result.

        Returns:
            float32, (H, W, C) or (C, H, W), without a batch axis.
        """
        require_type("generator", generator, np.random.Generator, "a numpy.random.Generator")
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
        """Compute the window (left, top, right, bottom) that the network sees, in pixels of the picture."""
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
        """Resize the window `box` of the picture to `size`, uint8, (H, W, channels)."""
        source = _as_pillow(image)
        left, top, right, bottom = box
        # Rounding may move a window as large as the picture slightly beyond its border.
        box = (max(left, 0.0), max(top, 0.0), min(right, source.width), min(bottom, source.height))
        height, width = self.size
        picture = source.resize((width, height), _RESAMPLING[self.interpolation], box=box)
        pixels = np.asarray(picture.convert("L") if self.channels == 1 else picture)
        return pixels.reshape(height, width, self.channels)

    def _normalise(self, pixels: npt.NDArray[np.uint8], data_format: DataFormat) -> npt.NDArray[np.float32]:
        require_data_format("data_format", data_format)
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
"""The named preprocessings; see `Preprocessing.preset`."""


def _as_pillow(image: Picture) -> Image.Image:
    """Convert `image` to an RGB Pillow image."""
    if isinstance(image, Image.Image):
        if 0 in image.size:
            raise InputError(f"image has {image.width} x {image.height} pixels; at least one is needed")
        return _as_rgb(image)
    if not isinstance(image, np.ndarray) or image.dtype != np.uint8:
        raise InputError(f"{given('image', image)} must be a Pillow image or a uint8 array (0..255)")
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
        # Pillow clips 16 bits to 8 instead of scaling them.
        return Image.fromarray((np.asarray(image) // 257).astype(np.uint8)).convert("RGB")
    if image.mode in ("I", "F"):
        raise InputError(
            f"image has Pillow mode {image.mode!r} (32 bits without a fixed range); give 8 or 16 bits"
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
    """Read image files in batches, each batch when it is needed.

    Args:
        files: paths, such as those of `image_files`.
        preprocessing: preprocessing that the network expects.
        batch_size: number of images in a batch. The last batch may have fewer.
        data_format: position of the channels in the result.

    Yields:
        float32, (B, H, W, C) or (B, C, H, W).

    Raises:
        InputError: `batch_size` is below 1, raised at once; or a file cannot be read, raised at its batch.
    """
    require_data_format("data_format", data_format)
    batch_size = require_whole("batch_size", batch_size, 1)
    require_iterable("files", files, "a list of image files, such as that of image_files")
    require_type("preprocessing", preprocessing, Preprocessing, "a Preprocessing")
    return (
        np.stack([preprocessing(load_image(file), data_format) for file in batch])
        for batch in _batched(files, batch_size)
    )


def to_unit_interval(x: Array) -> Array:
    """Scale the values of an array to [0, 1], its minimum to 0 and its maximum to 1.

    Args:
        x: array of any shape and framework, floating point or integer.

    Returns:
        Array of the same shape; zeros if all values of `x` are equal.

    Raises:
        InputError: `x` is empty or has a value that is not finite.

    Example:
        >>> to_unit_interval(np.array([-1, 1, 3]))
        array([0. , 0.5, 1. ])
    """
    if not hasattr(x, "shape") or isinstance(x, np.ndarray):
        x = as_array("x", x)
    xp = array_namespace(x)
    if 0 in x.shape:
        raise InputError(f"x has shape {tuple(x.shape)}; at least one value is needed")
    # True division converts integers to floating point, before a difference can overflow.
    x = x / 1
    low, high = xp.min(x), xp.max(x)
    if not bool(xp.isfinite(low)) or not bool(xp.isfinite(high)):
        raise InputError(f"x has values from {float(low)} to {float(high)}; every value must be finite")
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
"""The photographs of `sample_image`: the package that contains each one, and its path there."""

_DISTRIBUTIONS = {"skimage": "scikit-image", "sklearn": "scikit-learn"}

MONKEYS_URL = "https://farm1.static.flickr.com/95/247213534_e8be5222be.jpg"
_MONKEYS_CLASS = 382


def sample_image(name: str = "cat") -> Image.Image:
    """Load a photograph that comes with scikit-image or scikit-learn, without a download.

    Args:
        name: one of `SAMPLE_IMAGES`.

    Returns:
        An RGB image.

    Raises:
        InputError: there is no such photograph.
        MissingDependencyError: the package that contains it is not installed.

    Example:
        >>> sample_image("coffee").size
        (600, 400)
    """
    require_choice("name", name, SAMPLE_IMAGES, "sample image")
    package, file = SAMPLE_IMAGES[name]
    # Find the folder of the package without importing it, which takes a second.
    spec = find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise MissingDependencyError(
            f"the sample image {name!r} needs {_DISTRIBUTIONS[package]}: pip install 'iba-core[demo]'"
        )
    return load_image(Path(spec.submodule_search_locations[0]) / file)


def sample_crops(
    n: int,
    preprocessing: Preprocessing,
    batch_size: int = 32,
    seed: int = 0,
    data_format: DataFormat = "channels_last",
) -> Iterator[npt.NDArray[np.float32]]:
    """Give random crops of all sample images, to estimate feature statistics on.

    The mean and standard deviation of a network's features depend on the data. Estimate them on your own
    data where you have it. These few photographs are for a first look, for demonstrations and for tests.

    Each crop has 0.3 to 1 of the area of the largest window that fits, is up to a third wider or narrower
    than the network's input, and is mirrored half of the time. The photographs are used in turn.

    Args:
        n: number of crops.
        preprocessing: preprocessing that the network expects.
        batch_size: number of crops in a batch. The last batch may have fewer. The crops do not depend on it.
        seed: seed of the crops. The same seed gives the same crops.
        data_format: position of the channels in the result.

    Yields:
        float32, (B, H, W, C) or (B, C, H, W).

    Raises:
        InputError: `n` or `batch_size` is below 1.
        MissingDependencyError: a package with sample images is not installed.

    Example:
        >>> crops = sample_crops(5, Preprocessing(size=(8, 8)), batch_size=2)
        >>> [batch.shape for batch in crops]
        [(2, 8, 8, 3), (2, 8, 8, 3), (1, 8, 8, 3)]
    """
    require_data_format("data_format", data_format)
    n, batch_size = require_whole("n", n, 1), require_whole("batch_size", batch_size, 1)
    require_type("preprocessing", preprocessing, Preprocessing, "a Preprocessing")
    require_seed("seed", seed, optional=False)
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
    """Load the photograph of two monkeys in the paper's examples, and its ImageNet class.

    It is downloaded once and then kept in the user's cache folder. `sample_image` works without a download.

    Args:
        center_crop: cut out the central square.
        size: side of the result in pixels, or its (width, height); None to keep the size.
        pil: return the whole photograph as a Pillow image, for your own transforms. `center_crop` and `size`
            are then ignored.

    Returns:
        ``(image, 382)``: a uint8 array (H, W, 3) or a Pillow image, and the class of the squirrel monkey.

    Raises:
        MissingDependencyError: pooch, which downloads it, is not installed.
        IBAError: it cannot be downloaded.

    Example:
        >>> try:
        ...     image, target = load_monkeys(size=224)
        ... except IBAError:  # there is no network
        ...     image, target = np.zeros((224, 224, 3), np.uint8), 382
        >>> image.shape, target
        ((224, 224, 3), 382)
    """
    require_bool("center_crop", center_crop)
    require_bool("pil", pil)
    sizes = None if size is None else require_sizes("size", (size, size) if is_whole_number(size) else size)
    try:
        import pooch
    except ImportError as error:
        raise MissingDependencyError(
            "downloading the photograph of the monkeys needs pooch: pip install 'iba-core[demo]'"
        ) from error
    failure = (
        f"the photograph of the monkeys cannot be downloaded from {MONKEYS_URL} (sample_image works without)"
    )
    try:
        # No checksum was published. Only Pillow reads the file, so a wrong one does no harm.
        file = Path(
            pooch.retrieve(MONKEYS_URL, known_hash=None, fname="monkeys.jpg", path=pooch.os_cache("iba-core"))
        )
    except (OSError, ValueError) as error:
        raise IBAError(f"{failure}: {error}") from error
    try:
        image = load_image(file)
    except InputError as error:
        # Delete a wrong file, such as a network's login page, so that the next call downloads it again.
        file.unlink(missing_ok=True)
        raise IBAError(f"{failure}: {error}") from error
    if pil:
        return image, _MONKEYS_CLASS
    if center_crop:
        side = min(image.size)
        left, top = (image.width - side) // 2, (image.height - side) // 2
        image = image.crop((left, top, left + side, top + side))
    if sizes is not None:
        image = image.resize((sizes[0], sizes[1]))
    return np.array(image), _MONKEYS_CLASS


def _batched(items: Iterable[_T], size: int) -> Iterator[list[_T]]:
    iterator = iter(items)
    while batch := list(islice(iterator, size)):
        yield batch
