"""Pictures with masks, in memory and in folders."""

import numpy as np
import pytest
from PIL import Image

from iba_core.concepts import SegmentationConcept2D, SegmentationData, face_concept
from iba_core.concepts.data import resize_map
from iba_core.errors import InputError
from iba_core.pictures.images import Preprocessing

RNG = np.random.default_rng(0)


def test_data_gives_images_and_masks_in_order():
    images, masks = RNG.normal(size=(5, 3, 8, 8)), RNG.uniform(size=(5, 4, 4))
    data = SegmentationData(images, masks)
    assert len(data) == len(list(data)) == 5
    np.testing.assert_array_equal(np.concatenate(list(data.batches(2))), images)
    np.testing.assert_allclose(np.stack([mask for _, mask in data]), masks, rtol=1e-6)


@pytest.mark.parametrize(
    ("images", "masks", "message"),
    [
        (np.zeros((2, 3, 4, 4)), np.zeros((3, 4, 4)), "masks has 3 entries for 2 images"),
        (np.zeros((0, 3, 4, 4)), np.zeros((0, 4, 4)), "images is empty"),
        (np.zeros((2, 3, 4, 4)), np.zeros((2, 1, 4, 4)), r"masks\[0\] has shape \(1, 4, 4\)"),
        (np.zeros((2, 3, 4, 4)), np.full((2, 4, 4), 255), r"masks\[0\] has values from 255 to 255"),
        (np.zeros((2, 3, 4, 4)), np.full((2, 4, 4), np.nan), r"masks\[0\] holds nan"),
    ],
)
def test_broken_data_is_named(images, masks, message):
    with pytest.raises(InputError, match=message):
        SegmentationData(images, masks)


def test_a_shrunken_mask_is_the_share_of_each_cell():
    mask = RNG.integers(0, 2, (12, 20)).astype(np.float32)
    expected = mask.reshape(3, 4, 5, 4).mean(axis=(1, 3))
    np.testing.assert_allclose(resize_map(mask, (3, 5)), expected, atol=1e-6)


def test_an_enlarged_map_is_linear_between_the_centres():
    ramp = np.tile(np.arange(4.0), (2, 1))
    large = resize_map(ramp, (2, 16))
    centres = (np.arange(16) + 0.5) / 4 - 0.5
    np.testing.assert_allclose(large[0], np.clip(centres, 0, 3), atol=1e-6)


def test_one_axis_may_shrink_as_the_other_grows():
    mask = RNG.uniform(size=(8, 4)).astype(np.float32)
    resized = resize_map(mask, (4, 8))
    np.testing.assert_allclose(resized.sum(), resize_map(mask, (4, 4)).sum() * 2, rtol=1e-5)


@pytest.mark.parametrize("rel_size", [(0.0, 0.5), (0.5, 1.1), (0.5,)])
def test_a_relative_size_is_a_share(rel_size):
    with pytest.raises(InputError, match="rel_size"):
        SegmentationConcept2D("c", (np.zeros((1, 3, 4, 4)), np.zeros((1, 4, 4))), rel_size=rel_size)


def write(folder, name, picture):
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(picture).save(path)


@pytest.fixture
def folders(tmp_path):
    """Eight pictures (one in a folder below), whose white square is marked in masks of another kind."""
    for index in range(8):
        picture = np.zeros((40, 60, 3), np.uint8)
        picture[10:30, 5 * index : 5 * index + 20] = 255
        name = f"{'below/' if index == 3 else ''}{index}"
        write(tmp_path / "images", f"{name}.png", picture)
        write(tmp_path / "masks", f"{name}.bmp", picture[..., 0])
    return tmp_path


def test_folders_make_a_concept_whose_masks_follow_the_crop(folders):
    preprocessing = Preprocessing(size=(20, 20), crop_fraction=0.75)
    concept = SegmentationConcept2D.from_folders(
        "square", folders / "images", folders / "masks", preprocessing, "channels_first", seed=3
    )
    assert [len(part) for part in (concept.train_data, concept.val_data, concept.test_data)] == [6, 1, 1]
    seen = set()
    for part in (concept.train_data, concept.val_data, concept.test_data):
        for image, mask in part:
            assert image.shape == (3, 20, 20)
            assert mask.shape == (20, 20)
            # The images are resized smoothly and the masks are not: they agree off the edges.
            assert np.abs(image[0] - mask).mean() < 0.08
            seen.add(image.tobytes())
    assert len(seen) == 8


def test_the_split_follows_from_the_seed(folders):
    def names(seed):
        concept = SegmentationConcept2D.from_folders(
            "s", folders / "images", folders / "masks", Preprocessing(size=(8, 8)), "channels_last", seed=seed
        )
        return [image.tobytes() for image, _ in concept.train_data]

    assert names(0) == names(0)
    assert names(0) != names(1)


def test_a_picture_without_a_mask_is_named(folders):
    (folders / "masks/below/3.bmp").unlink()
    with pytest.raises(InputError, match=r"below/3.png has no mask .*1 of 8"):
        SegmentationConcept2D.from_folders(
            "s", folders / "images", folders / "masks", Preprocessing(), "channels_last"
        )


@pytest.mark.parametrize(("validation", "test"), [(0.5, 0.5), (-0.1, 0.2)])
def test_shares_leave_something_to_learn_from(folders, validation, test):
    with pytest.raises(InputError, match=r"must leave a share|validation=-0.1 must be"):
        SegmentationConcept2D.from_folders(
            "s",
            folders / "images",
            folders / "masks",
            Preprocessing(),
            "channels_last",
            validation=validation,
            test=test,
        )


def test_faces_come_in_either_layout_and_no_part_shares_a_picture():
    pytest.importorskip("skimage")
    preprocessing = Preprocessing(size=(64, 64), mean=(0.5,), std=(0.5,))
    first = face_concept(preprocessing, "channels_first", (3, 2, 2), seed=1)
    last = face_concept(preprocessing, "channels_last", (3, 2, 2), seed=1)
    for part in ("train_data", "val_data", "test_data"):
        a, b = getattr(first, part), getattr(last, part)
        np.testing.assert_array_equal(np.moveaxis(a.images, 1, -1), b.images)
        np.testing.assert_array_equal(a.masks, b.masks)
        shares = a.masks.mean(axis=(1, 2))
        assert shares.min() > 0.02
        assert shares.max() < 0.25
    assert not np.array_equal(first.train_data.images[0], first.val_data.images[0])
    other = face_concept(preprocessing, "channels_first", (3, 2, 2), seed=2)
    assert not np.array_equal(first.train_data.images, other.train_data.images)
