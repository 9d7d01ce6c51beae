"""A sample concept: faces, set into photographs that come with packages."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt
from PIL import Image

from iba_core.arguments import (
    LARGEST_COUNT,
    require_data_format,
    require_seed,
    require_sizes,
    require_type,
)
from iba_core.concepts.data import SegmentationConcept2D, SegmentationData
from iba_core.errors import MissingDependencyError
from iba_core.framework.layout import DataFormat
from iba_core.pictures.images import Preprocessing, sample_image

_BACKGROUNDS = (
    ("bricks", "cat", "coins", "flower", "grass", "motorcycle", "rocket"),
    ("coffee", "gravel"),
    ("china", "moon"),
)
"""Photographs without a face, for training, validation and test."""

_SHARES = (0.6, 0.2, 0.2)
"""Shares of the faces and of the other patches that each part gets."""

_SIDES = (0.25, 0.5)
"""Smallest and largest side of a patch, relative to the picture."""

Pictures = npt.NDArray[np.uint8]


def face_concept(
    preprocessing: Preprocessing,
    data_format: DataFormat,
    sizes: Sequence[int] = (120, 40, 40),
    seed: int = 0,
) -> SegmentationConcept2D:
    """Make segmentation data of faces, set into photographs and textures.

    Each picture shows a face, and another patch that is set in with the same edges, so that edges do not
    reveal the face. The 100 faces and 100 other patches are those of `skimage.data.lfw_subset` (grey, 25 x 25
    pixels). They are enlarged, tinted and mirrored at random. Training, validation and test data share no
    faces, patches or photographs.

    Args:
        preprocessing: preprocessing that the model expects; its crop is not applied.
        data_format: where the model expects the channels.
        sizes: numbers of pictures for training, validation and test.
        seed: seed of the pictures. The same seed gives the same pictures.

    Returns:
        The concept ``"face"``. Its masks are ellipses at the resolution of the images.

    Raises:
        InputError: a size is below 1.
        MissingDependencyError: scikit-image or scikit-learn is not installed.

    Example:
        >>> from iba_core.pictures.images import Preprocessing
        >>> face_concept(Preprocessing(size=(64, 64)), "channels_last", sizes=(4, 1, 1))
        SegmentationConcept2D(name='face', train_data=4, val_data=1, test_data=1, rel_size=(0.375, 0.375))
    """
    require_type("preprocessing", preprocessing, Preprocessing, "a Preprocessing")
    require_data_format("data_format", data_format)
    sizes = require_sizes("sizes", sizes, 3, most=LARGEST_COUNT)
    require_seed("seed", seed, optional=False)
    try:
        from skimage.data import lfw_subset
    except ImportError as error:
        raise MissingDependencyError(
            "the faces come with scikit-image: pip install 'iba-core[demo]'"
        ) from error
    load: Callable[[], npt.NDArray[np.float64]] = lfw_subset
    patches = np.rint(255 * load()).astype(np.uint8)
    bounds = np.cumsum([round(100 * share) for share in _SHARES])[:-1]
    faces, others = np.split(patches[:100], bounds), np.split(patches[100:], bounds)
    plain = replace(preprocessing, crop_fraction=1.0)
    parts = []
    for index, size in enumerate(sizes):
        generator = np.random.Generator(np.random.Philox(key=[seed, index]))
        photographs = [sample_image(name) for name in _BACKGROUNDS[index]]
        made = [
            _picture(
                generator,
                photographs[number % len(photographs)],
                faces[index][number % len(faces[index])],
                others[index][number % len(others[index])],
                preprocessing.size,
            )
            for number in range(size)
        ]
        images = np.stack([plain(picture, data_format) for picture, _ in made])
        parts.append(SegmentationData(images, np.stack([mask for _, mask in made])))
    side = sum(_SIDES) / 2
    training, validation, test = parts
    return SegmentationConcept2D("face", training, validation, test, rel_size=(side, side))


def _picture(
    generator: np.random.Generator,
    photograph: Image.Image,
    face: Pictures,
    other: Pictures,
    size: tuple[int, int],
) -> tuple[Pictures, npt.NDArray[np.float32]]:
    """Make a picture with a face and another patch, uint8, (H, W, 3), and the mask of the face."""
    height, width = size
    window = min(photograph.width, photograph.height) * generator.uniform(0.5, 1)
    left = generator.uniform(0, photograph.width - window)
    top = generator.uniform(0, photograph.height - window)
    background = photograph.resize(
        (width, height), Image.Resampling.BILINEAR, (left, top, left + window, top + window)
    )
    canvas = np.asarray(background, dtype=np.float64)
    mask = np.zeros(size, dtype=np.float32)
    for patch, half, shown in zip((face, other), generator.permutation(2), (1.0, 0.0), strict=True):
        side = int(generator.uniform(*_SIDES) * min(height, width))
        # Put one patch into each half, so that neither hides the other.
        x = int(half * width / 2 + generator.uniform(0, max(width / 2 - side, 0)))
        y = int(generator.uniform(0, height - side))
        x = min(x, width - side)
        turned = patch[:, ::-1] if generator.uniform() < 0.5 else patch
        enlarged = Image.fromarray(turned).resize((side, side), Image.Resampling.BICUBIC)
        pixels = np.asarray(enlarged, dtype=np.float64)
        tint = 1.0 - generator.uniform(0, 0.4) * np.array([0.0, 0.5, 0.8])
        radius = _radius(side)
        opacity = np.clip((1 - radius) * side / 8, 0, 1)[..., None]
        place = (slice(y, y + side), slice(x, x + side))
        canvas[place] = opacity * pixels[..., None] * tint + (1 - opacity) * canvas[place]
        mask[place] = np.where(radius < 1, shown, mask[place])
    return np.rint(canvas).astype(np.uint8), mask


def _radius(side: int) -> npt.NDArray[np.float64]:
    """Compute the distance from the middle of a square, 1 on the border of the ellipse around a face."""
    across = (np.arange(side) + 0.5) / side * 2 - 1
    radius: npt.NDArray[np.float64] = np.hypot(across[None, :] / 0.85, across[:, None])
    return radius
