"""ImageNet pictures: worked numbers, and the way back."""

import pickle

import numpy as np
import pytest
import torch
from PIL import Image

from iba_core import InputError, sample_image
from iba_torch import get_imagenet_folder, imagenet_transform, tensor_to_np_img


def test_a_picture_of_one_colour():
    picture = Image.new("RGB", (40, 30), (255, 0, 51))
    x = imagenet_transform(16, 8)(picture)
    assert x.shape == (3, 8, 8)
    assert x.dtype == torch.float32
    expected = [(1 - 0.485) / 0.229, (0 - 0.456) / 0.224, (0.2 - 0.406) / 0.225]
    np.testing.assert_allclose(x, np.broadcast_to(np.reshape(expected, (3, 1, 1)), (3, 8, 8)), rtol=1e-5)
    np.testing.assert_allclose(tensor_to_np_img(x)[4, 4], [1, 0, 0.2], atol=1e-6)


@pytest.mark.parametrize(
    ("size", "resized"), [((60, 40), (30, 20)), ((41, 60), (20, 29)), ((20, 20), (20, 20))]
)
def test_the_shorter_side_is_resized_and_the_middle_cut_out(size, resized):
    pixels = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), np.uint8)
    whole = np.asarray(Image.fromarray(pixels).resize(resized, Image.Resampling.BILINEAR))
    left, top = round((resized[0] - 12) / 2), round((resized[1] - 12) / 2)
    found = tensor_to_np_img(imagenet_transform(20, 12)(Image.fromarray(pixels)))
    np.testing.assert_allclose(found * 255, whole[top : top + 12, left : left + 12], atol=1e-3)


def test_a_crop_larger_than_the_picture_has_a_black_border():
    image = tensor_to_np_img(imagenet_transform(4, 6)(Image.new("L", (8, 8), 255)))
    np.testing.assert_allclose(image[1:5, 1:5], 1, atol=1e-6)
    np.testing.assert_allclose(image[0], 0, atol=1e-6)


def test_the_defaults_and_the_way_back():
    picture = sample_image("cat")
    x = imagenet_transform()(picture)
    assert x.shape == (3, 224, 224)
    image = tensor_to_np_img(x.double().requires_grad_())
    assert image.shape == (224, 224, 3)
    assert -1e-6 < image.min() < image.max() < 1 + 1e-6


def test_a_transform_travels_to_worker_processes():
    transform = pickle.loads(pickle.dumps(imagenet_transform(20, 10)))
    assert repr(transform) == "ImageNetTransform(resize=20, crop_size=10)"


@pytest.fixture
def folder(tmp_path):
    for name, colours in (("b_class", ("red", "blue")), ("a_class", ("green",))):
        (tmp_path / name).mkdir()
        for colour in colours:
            Image.new("RGB", (30, 20), colour).save(tmp_path / name / f"{colour}.png")
    (tmp_path / "notes.txt").write_text("no class")
    return tmp_path


def test_a_folder_of_classes(folder):
    data = get_imagenet_folder(folder, image_size=16)
    assert data.classes == ["a_class", "b_class"]
    assert data.class_to_idx == {"a_class": 0, "b_class": 1}
    assert data.targets == [0, 1, 1]
    assert len(data) == 3
    x, target = data[1]
    assert target == 1
    np.testing.assert_allclose(tensor_to_np_img(x)[8, 8], [0, 0, 1], atol=1e-6)
    images, targets = next(iter(torch.utils.data.DataLoader(data, batch_size=3)))
    assert images.shape == (3, 3, 16, 16)
    assert targets.tolist() == [0, 1, 1]


def test_a_folder_with_a_transform_of_ones_own(folder):
    assert get_imagenet_folder(folder, transform=lambda image: image.size)[0] == ((30, 20), 0)
    assert get_imagenet_folder(folder, transform=None)[2][0].getpixel((0, 0)) == (255, 0, 0)


def test_wrong_uses(folder):
    with pytest.raises(InputError, match=r"img_t has shape \(1, 3, 4, 4\)"):
        tensor_to_np_img(torch.zeros(1, 3, 4, 4))
    with pytest.raises(InputError, match="crop_size=0"):
        imagenet_transform(crop_size=0)
    with pytest.raises(InputError, match="transform='other'"):
        get_imagenet_folder(folder, transform="other")
    with pytest.raises(InputError, match="holds no folders"):
        get_imagenet_folder(folder / "missing")
    (folder / "c_class").mkdir()
    with pytest.raises(InputError, match="c_class holds no image"):
        get_imagenet_folder(folder)
