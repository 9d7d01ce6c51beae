"""Batches of an ImageNet directory."""

import keras
import numpy as np
import pytest
from PIL import Image

from iba_core.errors import InputError
from iba_tf import get_imagenet_generator


@pytest.fixture
def folder(tmp_path):
    """Three classes with 3, 2 and 2 images: a bright square of the class's colour in a black frame."""
    for label, count in enumerate((3, 2, 2)):
        (tmp_path / f"n{label:08}").mkdir()
        for number in range(count):
            pixels = np.zeros((40, 60, 3), np.uint8)
            pixels[10:30, 15:45, label] = 200
            Image.fromarray(pixels).save(tmp_path / f"n{label:08}" / f"{number}.png")
    return tmp_path


OPTIONS = {"target_size": (32, 32), "crop_size": (16, 16), "batch_size": 3}


def test_every_image_comes_once_with_its_class(folder):
    batches = list(get_imagenet_generator(folder, **OPTIONS, preprocess_input=lambda x: x))
    assert [len(images) for images, _ in batches] == [3, 3, 1]
    images = np.concatenate([images for images, _ in batches])
    targets = np.concatenate([targets for _, targets in batches])
    assert images.shape == (7, 16, 16, 3)
    assert targets.shape == (7, 3)
    np.testing.assert_array_equal(targets.sum(axis=0), [3, 2, 2])
    # The square lies in the middle and fills half of either side, as does the crop.
    expected = 200.0 * targets[:, None, None, :] * np.ones((7, 12, 12, 3))
    np.testing.assert_allclose(images[:, 2:-2, 2:-2], expected, atol=1)


def test_the_seed_is_the_order(folder):
    def order(seed):
        batches = get_imagenet_generator(folder, **OPTIONS, seed=seed, label_mode="int")
        return np.concatenate([targets for _, targets in batches]).tolist()

    assert order(3) == order(3)
    assert len({tuple(order(seed)) for seed in range(6)}) > 1


def test_images_are_prepared_for_resnet50_where_nothing_else_is_said(folder):
    (images, _), *_ = get_imagenet_generator(folder, **OPTIONS, shuffle=False)
    plain, _ = next(get_imagenet_generator(folder, **OPTIONS, shuffle=False, preprocess_input=lambda x: x))
    expected = keras.applications.resnet50.preprocess_input(plain.copy())
    np.testing.assert_allclose(images, expected)
    assert images.dtype == np.float32


def test_wrong_uses(folder):
    with pytest.raises(InputError, match="'/nowhere' is not a directory"):
        get_imagenet_generator("/nowhere")
    with pytest.raises(InputError, match=r"crop_size=\(64, 64\) exceeds target_size=\(32, 32\)"):
        get_imagenet_generator(folder, (32, 32), (64, 64))
    (folder / "empty").mkdir()
    with pytest.raises(InputError, match="cannot be read as images in folders"):
        get_imagenet_generator(folder / "empty")
