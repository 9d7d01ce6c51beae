import os
import subprocess
import sys
import tracemalloc
from importlib.machinery import ModuleSpec

import numpy as np
import PIL
import pooch
import pytest
from PIL import Image

from iba_core.errors import IBAError, InputError, MissingDependencyError
from iba_core.pictures import images
from iba_core.pictures.images import (
    PRESETS,
    SAMPLE_IMAGES,
    Preprocessing,
    image_batches,
    image_files,
    load_image,
    load_monkeys,
    sample_crops,
    sample_image,
    to_unit_interval,
)


def gradient(height, width):
    """A picture whose red grows to the right and whose green grows downwards."""
    y, x = np.mgrid[:height, :width]
    picture = np.zeros((height, width, 3), np.uint8)
    picture[..., 0], picture[..., 1] = 255 * x // (width - 1), 255 * y // (height - 1)
    return picture


# -- load_image ---------------------------------------------------------------------------------------


def test_load_image_reads_what_was_written(tmp_path):
    Image.fromarray(gradient(20, 30)).save(tmp_path / "a.png")
    image = load_image(str(tmp_path / "a.png"))
    assert image.mode == "RGB"
    np.testing.assert_array_equal(np.asarray(image), gradient(20, 30))


@pytest.mark.parametrize(
    ("orientation", "undo"),
    [
        (1, lambda a: a),
        (3, lambda a: np.rot90(a, 2)),
        (6, lambda a: np.rot90(a, -1)),
        (8, np.rot90),
    ],
)
def test_load_image_follows_the_camera(tmp_path, orientation, undo):
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(gradient(20, 30)).save(tmp_path / "a.png", exif=exif)
    np.testing.assert_array_equal(np.asarray(load_image(tmp_path / "a.png")), undo(gradient(20, 30)))


@pytest.mark.parametrize("mode", ["L", "LA", "RGBA", "P", "CMYK", "1", "YCbCr"])
def test_load_image_makes_every_mode_rgb(tmp_path, mode):
    if mode == "YCbCr" and int(PIL.__version__.partition(".")[0]) < 13:
        pytest.skip("older versions of Pillow cannot read the TIFF files of this mode that they write")
    suffix = "tif" if mode in ("CMYK", "YCbCr") else "png"
    Image.fromarray(gradient(8, 8)).convert(mode).save(tmp_path / f"a.{suffix}")
    assert load_image(tmp_path / f"a.{suffix}").mode == "RGB"


def test_load_image_makes_transparent_areas_white(tmp_path):
    rgba = np.zeros((4, 4, 4), np.uint8)
    rgba[0, 0] = (10, 20, 30, 255)
    Image.fromarray(rgba).save(tmp_path / "a.png")
    pixels = np.asarray(load_image(tmp_path / "a.png"))
    assert pixels[0, 0].tolist() == [10, 20, 30]
    assert (pixels[1:] == 255).all()


def test_load_image_scales_16_bits_to_8(tmp_path):
    values = np.array([[0, 257 * 3], [257 * 128, 65535]], np.uint16)
    Image.fromarray(values).save(tmp_path / "a.png")
    assert np.asarray(load_image(tmp_path / "a.png"))[..., 1].tolist() == [[0, 3], [128, 255]]


def test_load_image_refuses_what_has_no_fixed_range(tmp_path):
    Image.fromarray(np.ones((4, 4), np.float32)).save(tmp_path / "a.tif")
    with pytest.raises(InputError, match=r"a\.tif: .*mode 'F'"):
        load_image(tmp_path / "a.tif")


def test_load_image_says_what_is_wrong(tmp_path):
    with pytest.raises(InputError, match=r"none\.png does not exist"):
        load_image(tmp_path / "none.png")
    with pytest.raises(InputError, match="is a folder; an image file"):
        load_image(tmp_path)
    (tmp_path / "text.jpg").write_text("not a photograph")
    with pytest.raises(InputError, match=r"text\.jpg is not an image"):
        load_image(tmp_path / "text.jpg")
    (tmp_path / "empty.png").touch()
    with pytest.raises(InputError, match=r"empty\.png is not an image"):
        load_image(tmp_path / "empty.png")


@pytest.mark.parametrize("suffix", ["png", "jpg", "gif", "tif", "bmp"])
def test_load_image_notices_a_truncated_file(tmp_path, suffix):
    path = tmp_path / f"a.{suffix}"
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    Image.fromarray(noise).save(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(InputError, match=rf"a\.{suffix} (cannot be read, it may be damaged|is not an image)"):
        load_image(path)


POSTSCRIPT = (
    b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\n"
    b"(out) (w) file closefile showpage\n%%EOF\n"
)


@pytest.mark.parametrize("name", ["photo.jpg", "photo.eps", "photo.png"])
def test_load_image_starts_no_program(tmp_path, monkeypatch, name):
    def start(*arguments, **options):
        raise AssertionError(f"{arguments} was started")

    monkeypatch.setattr(subprocess, "Popen", start)
    (tmp_path / name).write_bytes(POSTSCRIPT)
    with pytest.raises(InputError, match=rf"{name} is not an image; the formats are .*, JPEG, "):
        load_image(tmp_path / name)


@pytest.mark.parametrize(
    "kind", ["BMP", "GIF", "ICO", "JPEG", "PCX", "PNG", "PPM", "SGI", "TGA", "TIFF", "WEBP"]
)
def test_load_image_goes_by_the_content(tmp_path, kind):
    Image.new("RGB", (32, 32), (200, 100, 50)).save(tmp_path / "photo.dat", kind)
    pixels = np.asarray(load_image(tmp_path / "photo.dat"))
    np.testing.assert_allclose(pixels[16, 16], [200, 100, 50], atol=60 if kind == "GIF" else 4)


def test_load_image_reads_regular_files_only(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    for path in (tmp_path / "pipe.png", "/dev/zero"):
        with pytest.raises(InputError, match="is no file; an image file was expected"):
            load_image(path)
    with pytest.raises(InputError, match="does not exist"):
        load_image(tmp_path / ("x" * 300))
    with pytest.raises(InputError, match="path=None is not the name of a file"):
        load_image(None)


def test_load_image_shows_names_harmlessly(tmp_path):
    path = os.fsencode(tmp_path) + b"/caf\xe9\x1b[31m\n.png"
    with pytest.raises(InputError, match=r"caf\\udce9\\x1b\[31m\\n\.png does not exist"):
        load_image(path)
    with open(path, "wb") as file:
        Image.new("RGB", (2, 2), "red").save(file, "PNG")
    assert load_image(path).getpixel((0, 0)) == (255, 0, 0)


def test_load_image_refuses_a_bomb(tmp_path, monkeypatch):
    Image.fromarray(gradient(20, 30)).save(tmp_path / "a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(InputError, match="more pixels than a photograph"):
        load_image(tmp_path / "a.png")


# -- image_files, image_batches -----------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path):
    """Five photographs in two folders, among other things."""
    root = tmp_path / "photographs"
    (root / "sub" / "deeper").mkdir(parents=True)
    for i, name in enumerate(["b.png", "a.JPG", "sub/d.jpeg", "sub/deeper/c.bmp", "z.tiff"]):
        Image.new("RGB", (40, 30), (i, 0, 0)).save(root / name)
    (root / "notes.txt").write_text("no picture")
    (root / ".hidden.png").write_text("no picture either")
    (root / "folder.png").mkdir()
    return root


def test_image_files_are_found_and_sorted(folder):
    found = [path.relative_to(folder).as_posix() for path in image_files(folder)]
    assert found == ["a.JPG", "b.png", "sub/d.jpeg", "sub/deeper/c.bmp", "z.tiff"]


def test_image_files_says_what_is_wrong(folder, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="empty holds no image"):
        image_files(tmp_path / "empty")
    with pytest.raises(InputError, match="nowhere does not exist"):
        image_files(tmp_path / "nowhere")
    with pytest.raises(InputError, match=r"b\.png is a file; a folder was expected"):
        image_files(folder / "b.png")


def test_image_batches_read_files_in_order(folder):
    preprocessing = Preprocessing.preset("raw", size=(3, 4))
    batches = list(image_batches(image_files(folder), preprocessing, batch_size=2))
    assert [batch.shape for batch in batches] == [(2, 3, 4, 3), (2, 3, 4, 3), (1, 3, 4, 3)]
    reds = np.concatenate(batches)[:, 0, 0, 0]
    # JPEG rounds; the others are exact.
    np.testing.assert_allclose(reds, [1, 0, 2, 3, 4], atol=1)


def test_image_batches_are_lazy_and_name_the_bad_file(folder):
    (folder / "y.png").write_text("broken")
    batches = image_batches(image_files(folder), PRESETS["unit"], batch_size=4, data_format="channels_first")
    assert next(batches).shape == (4, 3, 224, 224)
    with pytest.raises(InputError, match=r"y\.png is not an image"):
        next(batches)
    with pytest.raises(InputError, match="batch_size=0"):
        image_batches([], PRESETS["unit"], batch_size=0)


# -- Preprocessing ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "black", "white"),
    [
        ("unit", [0.0] * 3, [1.0] * 3),
        ("symmetric", [-1.0] * 3, [1.0] * 3),
        ("raw", [0.0] * 3, [255.0] * 3),
        (
            "imagenet",
            [-0.485 / 0.229, -0.456 / 0.224, -0.406 / 0.225],
            [0.515 / 0.229, 0.544 / 0.224, 0.594 / 0.225],
        ),
    ],
)
def test_presets_have_the_known_ranges(name, black, white):
    preprocessing = Preprocessing.preset(name, size=(2, 2))
    for level, expected in ((0, black), (255, white)):
        x = preprocessing(np.full((5, 5, 3), level, np.uint8))
        assert x.dtype == np.float32
        np.testing.assert_allclose(x, np.broadcast_to(expected, (2, 2, 3)), rtol=1e-6, atol=1e-6)


def test_data_formats_hold_the_same_numbers():
    preprocessing = Preprocessing.preset("imagenet", size=(32, 48))
    last, first = preprocessing(gradient(60, 70)), preprocessing(gradient(60, 70), "channels_first")
    assert last.shape == (32, 48, 3)
    assert first.shape == (3, 32, 48)
    assert first.flags.c_contiguous
    np.testing.assert_array_equal(first, last.transpose(2, 0, 1))


def test_a_picture_of_the_right_size_is_left_alone():
    picture = gradient(24, 36)
    for interpolation in ("nearest", "bilinear", "bicubic", "lanczos"):
        preprocessing = Preprocessing(size=(24, 36), interpolation=interpolation)
        np.testing.assert_array_equal(preprocessing.crop(picture), picture)


@pytest.mark.parametrize(
    ("height", "width", "rows", "columns"),
    [
        (40, 100, slice(0, 40), slice(30, 70)),
        (100, 40, slice(30, 70), slice(0, 40)),
        (40, 40, slice(0, 40), slice(0, 40)),
    ],
)
def test_the_largest_centred_window_is_seen(height, width, rows, columns):
    picture = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    np.testing.assert_array_equal(Preprocessing(size=(40, 40)).crop(picture), picture[rows, columns])


def test_crop_fraction_keeps_the_centre():
    picture = np.random.default_rng(0).integers(0, 256, (256, 400, 3), np.uint8)
    seen = Preprocessing.preset("imagenet").crop(picture)
    np.testing.assert_array_equal(seen, picture[16:240, 88:312])


def test_resizing_averages_over_what_shrinks_away():
    checkerboard = (255 * (np.indices((64, 64)).sum(0) % 2)).astype(np.uint8)
    x = Preprocessing(size=(8, 8), channels=1)(checkerboard)
    np.testing.assert_allclose(x, 0.5, atol=0.02)


@pytest.mark.parametrize("shape", [(1, 1), (1, 5000), (3000, 2), (7, 7)])
@pytest.mark.parametrize("size", [(224, 224), (31, 97), (1, 1)])
def test_every_shape_of_picture_fits(shape, size):
    # 1 / 3 and 1 / 7 do not end in binary: the window's border must not leave the picture.
    assert Preprocessing(size=size)(np.zeros((*shape, 3), np.uint8)).shape == (*size, 3)


def test_pillow_and_arrays_give_the_same():
    preprocessing = Preprocessing.preset("unit", size=(20, 20))
    picture = gradient(33, 44)
    expected = preprocessing(picture)
    np.testing.assert_array_equal(preprocessing(Image.fromarray(picture)), expected)
    np.testing.assert_array_equal(preprocessing(picture[::-1][::-1]), expected)
    opaque = np.dstack([picture, np.full((33, 44), 255, np.uint8)])
    np.testing.assert_array_equal(preprocessing(opaque), expected)


def test_grey_networks_see_grey():
    preprocessing = Preprocessing.preset("unit", size=(16, 16), channels=1)
    picture = gradient(16, 16)
    x = preprocessing(picture, "channels_first")
    assert x.shape == (1, 16, 16)
    # ITU-R 601: how bright red, green and blue look.
    expected = picture @ np.array([0.299, 0.587, 0.114]) / 255
    np.testing.assert_allclose(x[0], expected, atol=1 / 255)
    seen = preprocessing.crop(picture)
    assert seen.shape == (16, 16, 3)
    np.testing.assert_array_equal(seen[..., 0], seen[..., 2])
    for grey in (picture[..., 0], picture[..., :1]):
        assert preprocessing(grey).shape == (16, 16, 1)


@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.parametrize("data_format", ["channels_first", "channels_last"])
def test_inverse_gives_the_picture_back(name, data_format):
    preprocessing = Preprocessing.preset(name, size=(40, 50))
    picture = sample_image("astronaut")
    restored = preprocessing.inverse(preprocessing(picture, data_format), data_format)
    assert restored.dtype == np.uint8
    np.testing.assert_array_equal(restored, preprocessing.crop(picture))


def test_inverse_of_grey_and_of_wrong_shapes():
    preprocessing = Preprocessing.preset("symmetric", size=(8, 8), channels=1)
    restored = preprocessing.inverse(preprocessing(gradient(8, 8)))
    np.testing.assert_array_equal(restored, preprocessing.crop(gradient(8, 8)))
    with pytest.raises(InputError, match=r"x has shape \(8, 8, 3\).*1 channels"):
        preprocessing.inverse(np.zeros((8, 8, 3)))
    with pytest.raises(InputError, match=r"x has shape \(2, 8, 8, 1\)"):
        preprocessing.inverse(np.zeros((2, 8, 8, 1)))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": (0, 5)}, r"size=\(0, 5\)"),
        ({"size": (5,)}, r"size=\(5,\)"),
        ({"crop_fraction": 0}, "crop_fraction=0"),
        ({"crop_fraction": 1.5}, "crop_fraction=1.5"),
        ({"channels": 2}, "channels=2"),
        ({"mean": (0.1, 0.2)}, r"mean=\(0.1, 0.2\) must be a sequence of 1 or 3 finite numbers"),
        ({"std": (1.0, 1.0, 0.0)}, "std=.*above 0"),
        ({"interpolation": "cubic"}, "interpolation='cubic' is none of .*'bicubic'"),
    ],
)
def test_preprocessing_refuses_nonsense(options, message):
    with pytest.raises(InputError, match=message):
        Preprocessing(**options)


def test_preset_offers_the_closest_name():
    with pytest.raises(
        InputError, match="name='imagnet' is no preprocessing; the closest name is 'imagenet'"
    ):
        Preprocessing.preset("imagnet")
    with pytest.raises(InputError, match=r"mean=.* 1 finite numbers"):
        Preprocessing.preset("imagenet", channels=1)


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (np.zeros((4, 4, 3)), "image is a float64 array"),
        (np.zeros((4, 4, 2), np.uint8), r"image has shape \(4, 4, 2\)"),
        (np.zeros((1, 4, 4, 3), np.uint8), r"image has shape \(1, 4, 4, 3\)"),
        (np.zeros((0, 4, 3), np.uint8), r"image has shape \(0, 4, 3\)"),
        ("cat.png", "image='cat.png' must be"),
    ],
)
def test_preprocessing_refuses_what_is_no_picture(image, message):
    with pytest.raises(InputError, match=message):
        Preprocessing()(image)


def test_unknown_data_format():
    for call in (
        lambda: Preprocessing()(gradient(4, 4), "NCHW"),
        lambda: Preprocessing().inverse(np.zeros((4, 4, 3)), "NCHW"),
        lambda: sample_crops(1, Preprocessing(), data_format="NCHW"),
    ):
        with pytest.raises(InputError, match="data_format='NCHW'"):
            call()


# -- samples ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SAMPLE_IMAGES)
def test_sample_images_are_photographs(name):
    image = sample_image(name)
    assert image.mode == "RGB"
    assert min(image.size) >= 200
    assert np.asarray(image).std() > 10


def test_sample_image_offers_the_closest_name():
    with pytest.raises(InputError, match=r"name='cofee' is no sample image; the closest names? .*'coffee'"):
        sample_image("cofee")


def test_sample_image_says_what_to_install(monkeypatch):
    monkeypatch.setattr(images, "find_spec", lambda package: None)
    with pytest.raises(MissingDependencyError, match=r"scikit-learn: pip install 'iba-core\[demo\]'"):
        sample_image("china")


def test_sample_image_of_a_version_without_it(monkeypatch, tmp_path):
    spec = ModuleSpec("skimage", None, is_package=True)
    spec.submodule_search_locations.append(str(tmp_path))
    monkeypatch.setattr(images, "find_spec", lambda package: spec)
    with pytest.raises(InputError, match=r"chelsea\.png does not exist"):
        sample_image("cat")


def test_sample_crops_follow_the_seed():
    preprocessing = Preprocessing.preset("unit", size=(32, 32))
    whole = np.concatenate(list(sample_crops(20, preprocessing, batch_size=7, seed=1)))
    assert whole.shape == (20, 32, 32, 3)
    assert whole.dtype == np.float32
    again = np.concatenate(list(sample_crops(20, preprocessing, batch_size=20, seed=1)))
    np.testing.assert_array_equal(whole, again)
    first = next(sample_crops(3, preprocessing, seed=1, data_format="channels_first"))
    np.testing.assert_array_equal(first, whole[:3].transpose(0, 3, 1, 2))
    assert not np.array_equal(whole, np.concatenate(list(sample_crops(20, preprocessing, seed=2))))


def test_sample_crops_vary_and_mirror():
    n = len(SAMPLE_IMAGES)
    preprocessing = Preprocessing.preset("unit", size=(24, 24))
    crops = np.concatenate(list(sample_crops(2 * n, preprocessing)))
    assert len(np.unique(crops.reshape(2 * n, -1), axis=0)) == 2 * n


def test_random_crops_keep_to_their_bounds():
    """Red and green grow linearly over the picture, so their ranges measure each window."""
    preprocessing = Preprocessing.preset("unit", size=(60, 40))
    generator = np.random.Generator(np.random.Philox(0))
    picture = gradient(300, 500)
    crops = np.stack([preprocessing.random_crop(picture, generator) for _ in range(300)])
    slope = crops[:, :, -1, 0].mean(1) - crops[:, :, 0, 0].mean(1)
    width = 500 * np.abs(slope) * 40 / 39
    height = 300 * (crops[:, -1, :, 1].mean(1) - crops[:, 0, :, 1].mean(1)) * 60 / 59
    aspect = (width / height) / (40 / 60)
    assert 0.72 < aspect.min() < 0.8 < 1.25 < aspect.max() < 1.37
    # The windows are all higher than wide in a picture wider than high: the height bounds them.
    area = (height / 300) ** 2
    assert 0.28 < area.min() < 0.35 < 0.95 < area.max() < 1.02
    assert 0.4 < np.mean(slope < 0) < 0.6
    assert np.ptp(crops[..., 0].mean((1, 2))) > 0.4


def test_sample_crops_are_lazy():
    preprocessing = Preprocessing.preset("unit")
    batches = sample_crops(10**6, preprocessing, batch_size=4)
    tracemalloc.start()
    try:
        assert next(batches).shape == (4, 224, 224, 3)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 100e6


def test_sample_crops_check_their_arguments_at_once():
    with pytest.raises(InputError, match="n=0"):
        sample_crops(0, Preprocessing())
    with pytest.raises(InputError, match="batch_size=-1"):
        sample_crops(3, Preprocessing(), batch_size=-1)


# -- load_monkeys -------------------------------------------------------------------------------------


@pytest.fixture
def monkeys(monkeypatch, tmp_path):
    """A file that pooch pretends to have fetched."""
    picture = np.random.default_rng(0).integers(0, 256, (300, 500, 3), np.uint8)
    path = tmp_path / "monkeys.png"
    Image.fromarray(picture).save(path)
    monkeypatch.setattr(pooch, "retrieve", lambda url, **options: str(path))
    return path, picture


def test_load_monkeys(monkeys):
    _, picture = monkeys
    array, target = load_monkeys()
    assert target == 382
    assert array.shape == (224, 224, 3)
    assert array.dtype == np.uint8
    square, _ = load_monkeys(size=None)
    np.testing.assert_array_equal(square, picture[:, 100:400])
    assert load_monkeys(center_crop=False, size=(50, 30))[0].shape == (30, 50, 3)
    image, target = load_monkeys(pil=True)
    assert isinstance(image, Image.Image)
    assert target == 382
    np.testing.assert_array_equal(np.asarray(image), picture)


def test_load_monkeys_offline(monkeypatch):
    def no_network(url, **options):
        raise OSError("no route to host")

    monkeypatch.setattr(pooch, "retrieve", no_network)
    with pytest.raises(IBAError, match=r"cannot be downloaded from https://.*: no route to host"):
        load_monkeys()


def test_load_monkeys_keeps_no_login_page(monkeys):
    path, _ = monkeys
    path.write_text("<html>Please log in</html>")
    with pytest.raises(IBAError, match="is not an image"):
        load_monkeys()
    assert not path.exists()


def test_load_monkeys_without_pooch(monkeypatch):
    monkeypatch.setitem(sys.modules, "pooch", None)
    with pytest.raises(MissingDependencyError, match=r"pooch: pip install 'iba-core\[demo\]'"):
        load_monkeys()


# -- to_unit_interval ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "x",
    [
        np.array([2.0, 4.0, 3.0]),
        np.array([2, 4, 3]),
        np.array([-128, 126, -1], np.int8),
        np.array([10, 250, 130], np.uint8),
    ],
)
def test_to_unit_interval(x):
    np.testing.assert_allclose(to_unit_interval(x), [0, 1, 0.5])


def test_to_unit_interval_keeps_framework_and_dtype():
    torch = pytest.importorskip("torch")
    y = to_unit_interval(torch.tensor([[1.0, 3.0], [2.0, 1.5]]))
    assert y.dtype == torch.float32
    assert y.tolist() == [[0.0, 1.0], [0.5, 0.25]]
    assert to_unit_interval(np.array([1, 2], np.float32)).dtype == np.float32


def test_to_unit_interval_of_a_constant_is_zero():
    y = to_unit_interval(np.full((3, 2), 7))
    np.testing.assert_array_equal(y, np.zeros((3, 2)))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_to_unit_interval_refuses_what_has_no_range(bad):
    with pytest.raises(InputError, match="must be finite"):
        to_unit_interval(np.array([0.0, bad]))
    with pytest.raises(InputError, match=r"x has shape \(0,\)"):
        to_unit_interval(np.array([]))


def test_no_framework_is_loaded():
    # In a fresh interpreter: this one has imported torch for the tests above.
    code = """
import sys
import iba_core.pictures.images
import iba_core.zoo.efficientnet_lite
iba_core.pictures.images.sample_image("cat")
print({"torch", "tensorflow", "keras", "skimage"} & set(sys.modules))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
