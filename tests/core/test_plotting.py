import errno
import os
import subprocess
import sys

import matplotlib
import numpy as np
import pytest
from matplotlib import pyplot
from matplotlib.figure import Figure
from PIL import Image
from scipy import ndimage

from iba_core.errors import InputError, MissingDependencyError
from iba_core.pictures.plotting import (
    caption,
    plot_saliency_map,
    plot_signal_map,
    plot_volume_map,
    plot_words,
    save_overlay,
)


@pytest.fixture
def saliency():
    """(30, 40), from 0 in one corner to 2 bits per pixel in the other."""
    return np.linspace(0, 2, 30 * 40).reshape(30, 40)


@pytest.fixture
def picture():
    return np.random.default_rng(0).integers(0, 256, (30, 40, 3), np.uint8)


@pytest.fixture
def ax():
    """An axis of a figure that pyplot knows nothing of."""
    return Figure().add_subplot()


@pytest.fixture(autouse=True)
def closing_figures():
    """Pyplot's figures, drawn without a display and closed in the end."""
    backend = matplotlib.get_backend()
    pyplot.switch_backend("agg")
    yield
    pyplot.close("all")
    pyplot.switch_backend(backend)


def colorbar(ax):
    """The axis that is not `ax`."""
    (bar,) = [other for other in ax.figure.axes if other is not ax]
    return bar


def test_the_map_alone(ax, saliency):
    assert plot_saliency_map(saliency, ax=ax) is ax
    (drawn,) = ax.images
    np.testing.assert_array_equal(drawn.get_array(), saliency)
    assert np.all(drawn.get_alpha() == 1)
    assert drawn.get_clim() == (0, 2)


def test_the_picture_is_grey_and_the_map_more_opaque_where_it_is_greater(ax, saliency, picture):
    plot_saliency_map(saliency, picture, ax=ax, min_alpha=0.1, max_alpha=0.9)
    beneath, above = ax.images
    assert beneath.get_array().shape == (30, 40)
    np.testing.assert_allclose(beneath.get_array(), picture @ [0.299, 0.587, 0.114] / 255)
    assert beneath.get_cmap().name == "gray"
    assert beneath.get_clim() == (0, 1)
    np.testing.assert_allclose(above.get_alpha(), 0.1 + 0.8 * saliency / 2)


def test_lightness_grows_evenly_with_the_value(ax, saliency):
    plot_saliency_map(saliency, ax=ax)
    colours = ax.images[0].get_cmap()(np.linspace(0, 1, 256))[:, :3]
    linear = np.where(colours <= 0.04045, colours / 12.92, ((colours + 0.055) / 1.055) ** 2.4)
    luminance = linear @ [0.2126, 0.7152, 0.0722]
    lightness = np.where(luminance > 216 / 24389, 116 * np.cbrt(luminance) - 16, luminance * 24389 / 27)
    assert (np.diff(lightness) > 0).all()
    np.testing.assert_allclose(lightness, np.linspace(lightness[0], lightness[-1], 256), atol=6)


def test_the_colour_bar_has_the_scale_and_the_label(ax, saliency):
    plot_saliency_map(saliency, ax=ax, vmax=4, colorbar_label="bits", colorbar_fontsize=9)
    bar = colorbar(ax)
    assert bar.get_ylim() == (0, 4)
    assert bar.get_ylabel() == "bits"
    assert bar.yaxis.label.get_fontsize() == 9
    assert ax.images[0].get_clim() == (0, 4)


def test_the_defaults_are_the_references(ax, saliency):
    plot_saliency_map(saliency, ax=ax)
    bar = colorbar(ax)
    assert bar.get_ylabel() == "Bits / Pixel"
    assert bar.yaxis.label.get_fontsize() == 14


@pytest.mark.parametrize("figsize", [(6, 4), (12, 9)])
def test_the_colour_bar_has_a_fixed_width(saliency, figsize):
    figure = Figure(figsize=figsize)
    ax = plot_saliency_map(saliency, ax=figure.add_subplot(), colorbar_size=0.5, colorbar_pad=0.25)
    figure.draw_without_rendering()
    window = colorbar(ax).get_window_extent().transformed(figure.dpi_scale_trans.inverted())
    beside = ax.get_window_extent().transformed(figure.dpi_scale_trans.inverted())
    assert window.width == pytest.approx(0.5)
    assert window.x0 - beside.x1 == pytest.approx(0.25)
    assert window.height == pytest.approx(beside.height)


def test_sizes_of_axes_grid1_are_welcome(ax, saliency):
    plot_saliency_map(saliency, ax=ax, colorbar_size="10%", colorbar_pad="5%")
    ax.figure.draw_without_rendering()
    assert colorbar(ax).get_window_extent().width == pytest.approx(0.1 * ax.get_window_extent().width)


def test_the_colour_bar_shows_the_colours_over_a_middle_grey(ax, saliency):
    grey = np.full((30, 40), 0.5)
    plot_saliency_map(saliency, grey, ax=ax)
    above = ax.images[1]
    colours, opacity = above.get_cmap()(1.0)[:3], above.get_alpha()[-1, -1]
    expected = opacity * np.array(colours) + (1 - opacity) * 0.5
    top = colorbar(ax).collections[-1].get_cmap()(1.0)[:3]
    np.testing.assert_allclose(top, expected, atol=1e-6)


@pytest.mark.parametrize(
    ("convert", "expected"),
    [
        (lambda p: p, None),
        (lambda p: p / 255, None),
        (lambda p: (p / 255).astype(np.float32), None),
        # As preprocessing leaves it: scaled back from wherever it lies.
        (lambda p: (p / 255.0 - 0.5) / 0.2, None),
    ],
)
def test_pictures_of_every_kind_look_the_same(ax, saliency, picture, convert, expected):
    picture[0, 0], picture[-1, -1] = 0, 255
    plot_saliency_map(saliency, convert(picture), ax=ax)
    np.testing.assert_allclose(ax.images[0].get_array(), picture @ [0.299, 0.587, 0.114] / 255, atol=1e-6)


@pytest.mark.parametrize("axes", [(), (1,)])
def test_grey_pictures(ax, saliency, picture, axes):
    plot_saliency_map(saliency, picture[..., 0].reshape(30, 40, *axes), ax=ax)
    np.testing.assert_allclose(ax.images[0].get_array(), picture[..., 0] / 255)


def test_a_map_of_zeros_has_a_scale(ax):
    plot_saliency_map(np.zeros((4, 4)), np.zeros((4, 4)), ax=ax)
    ax.figure.draw_without_rendering()
    assert colorbar(ax).get_ylim() == (0, 1)
    assert np.all(ax.images[1].get_alpha() == 0.2)


def test_a_new_figure_is_pyplots_and_the_map_its_current_axis(saliency):
    ax = plot_saliency_map(saliency)
    assert pyplot.gcf() is ax.figure
    assert pyplot.gca() is ax


def test_pyplots_state_stays_as_it_was(saliency):
    figure, (left, right) = pyplot.subplots(1, 2)
    pyplot.sca(left)
    other = pyplot.figure()
    before = dict(matplotlib.rcParams)
    plot_saliency_map(saliency, ax=right)
    assert pyplot.gcf() is other
    assert figure.gca() is left
    assert pyplot.get_fignums() == [figure.number, other.number]
    assert dict(matplotlib.rcParams) == before


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"saliency_map": np.zeros((2, 4, 4))}, r"saliency_map has shape \(2, 4, 4\)"),
        ({"saliency_map": np.zeros((0, 4))}, r"saliency_map has shape \(0, 4\)"),
        ({"saliency_map": np.array([[1, np.nan]])}, "saliency_map holds nan"),
        ({"img": np.zeros((5, 4))}, r"img has shape \(5, 4\), but the saliency map \(4, 4\)"),
        ({"img": np.zeros((3, 4, 4))}, r"img has shape \(3, 4, 4\); \(H, W\)"),
        ({"min_alpha": 0.8}, "min_alpha=0.8 is greater than max_alpha=0.7"),
        ({"max_alpha": 1.2}, "max_alpha=1.2"),
        ({"vmax": 0}, "vmax=0 must be a finite number, above 0"),
        ({"vmax": float("nan")}, "vmax=nan must be a finite number, above 0"),
    ],
)
def test_nonsense_is_refused_before_anything_is_drawn(ax, options, message):
    with pytest.raises(InputError, match=message):
        plot_saliency_map(**{"saliency_map": np.ones((4, 4)), "ax": ax} | options)
    assert ax.figure.axes == [ax]
    assert not ax.images


def test_without_matplotlib(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    message = r"plotting needs matplotlib: pip install 'iba-core\[plot\]'"
    with pytest.raises(MissingDependencyError, match=message):
        plot_saliency_map(np.ones((4, 4)))
    with pytest.raises(MissingDependencyError, match=message):
        save_overlay(tmp_path / "a.png", np.zeros((4, 4)), {"": np.ones((4, 4))})


# -- save_overlay -------------------------------------------------------------------------------------


def test_save_overlay_shows_picture_and_maps(tmp_path):
    """Each panel is found in the file by the colour it must have."""
    picture = np.full((64, 64, 3), (0, 0, 200), np.uint8)
    none, most = np.zeros((64, 64)), np.full((64, 64), 3.0)
    save_overlay(tmp_path / "a.png", picture, {"none": none, "most": most}, title="title", subtitle="blue")
    with Image.open(tmp_path / "a.png") as image:
        assert image.format == "PNG"
        pixels = np.asarray(image.convert("RGB")).reshape(-1, 3).astype(int)
    luma = 0.114 * 200
    inferno = matplotlib.colormaps["inferno"]
    panels = [
        [0, 0, 200],
        0.8 * luma + 0.2 * 255 * np.array(inferno(0.0)[:3]),
        0.3 * luma + 0.7 * 255 * np.array(inferno(1.0)[:3]),
    ]
    sizes = [np.sum(np.abs(pixels - colour).max(axis=1) <= 3) for colour in panels]
    # 3.2 inches at 150 pixels an inch
    np.testing.assert_allclose(sizes, 480**2, rtol=0.03)


@pytest.mark.parametrize("shape", [(20, 90), (90, 20)])
def test_panels_have_the_pictures_shape(tmp_path, shape):
    save_overlay(tmp_path / "a.png", np.zeros((*shape, 3), np.uint8), {"": np.ones(shape)})
    with Image.open(tmp_path / "a.png") as image:
        black = (np.asarray(image.convert("RGB")) == 0).all(axis=2)
    # The picture is the first of the black boxes.
    boxes = ndimage.find_objects(ndimage.label(black)[0])
    rows, columns = min(boxes, key=lambda box: box[1].start)
    height, width = rows.stop - rows.start, columns.stop - columns.start
    assert max(height, width) == pytest.approx(480, abs=2)
    assert height / width == pytest.approx(shape[0] / shape[1], rel=0.03)


def test_long_titles_are_not_cut_off(tmp_path):
    maps = {"": np.ones((90, 20))}
    sizes = []
    for title in ("short", "a title that is a good deal longer than the pictures are wide " * 2):
        save_overlay(tmp_path / "a.png", np.zeros((90, 20)), maps, title=title)
        with Image.open(tmp_path / "a.png") as image:
            sizes.append(image.width)
            assert (np.asarray(image.convert("L"))[:, -10:] == 255).all()
    assert sizes[1] > sizes[0] + 300


def test_save_overlay_refuses_nonsense(tmp_path):
    path = tmp_path / "a.png"
    with pytest.raises(InputError, match=r"maps={} must be a dict"):
        save_overlay(path, np.zeros((4, 4)), {})
    with pytest.raises(InputError, match=r"maps\['PyTorch'\] has shape \(4,\)"):
        save_overlay(path, np.zeros((4, 4)), {"PyTorch": np.zeros(4)})
    with pytest.raises(InputError, match=r"picture has shape \(5, 4\), but the saliency map \(4, 4\)"):
        save_overlay(path, np.zeros((5, 4)), {"": np.zeros((4, 4))})
    assert not path.exists()


def test_save_overlay_needs_neither_pyplot_nor_a_display(tmp_path):
    code = """
import sys
import numpy as np
import iba_core.pictures.plotting
assert "matplotlib" not in sys.modules
iba_core.pictures.plotting.save_overlay(sys.argv[1], np.zeros((8, 8)), {"": np.ones((8, 8))})
print("matplotlib.pyplot" in sys.modules)
"""
    command = [sys.executable, "-c", code, str(tmp_path / "a.png")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


@pytest.mark.parametrize(
    "name", ["$x_{$", r"a\frac$b$", "\x1b[31m", os.fsdecode(b"caf\xe9"), "two\nlines", "a" * 500]
)
def test_any_name_is_drawn(tmp_path, saliency, picture, name):
    save_overlay(tmp_path / "map.png", picture, {name: saliency}, title=name, subtitle=name)
    assert Image.open(tmp_path / "map.png").width > 100


def test_dollar_signs_are_no_formulas():
    assert caption("5 $ and 6 $\x07\nmore") == "5 $ and 6 $\\x07\nmore"


def test_a_figure_is_written_whole_or_not_at_all(tmp_path, saliency, picture, monkeypatch):
    path = tmp_path / "map.png"
    path.write_bytes(b"old")

    def full(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(InputError, match=r"map\.png' cannot be written: No space left on device"):
        save_overlay(path, picture, {"": saliency})
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["map.png"]
    with pytest.raises(InputError, match="its folder does not exist"):
        save_overlay(tmp_path / "none" / "map.png", picture, {"": saliency})


def test_signals_are_drawn_over_time(tmp_path):
    bits, signal = np.arange(5.0), np.random.default_rng(0).normal(size=(2, 5))
    for given in (signal[0], signal, signal.T):
        ax = plot_signal_map(bits, given)
        assert [bar.get_height() for bar in ax.patches] == bits.tolist()
        beside = ax.figure.axes[-1]
        assert len(beside.lines) == given.size // 5
        np.testing.assert_array_equal(beside.lines[0].get_ydata(), signal[0])
    with pytest.raises(InputError, match=r"signal has shape \(4,\)"):
        plot_signal_map(bits, np.zeros(4))


# -- volumes and words --------------------------------------------------------------------------------


@pytest.fixture
def volume(closing_figures):
    """(4, 5, 6) bits, the most at (2, 3, 1)."""
    bits = np.random.default_rng(0).random((4, 5, 6))
    bits[2, 3, 1] = 3.0
    return bits


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_slice_of_a_volume_goes_through_the_most_bits(volume, axis):
    scan = np.random.default_rng(1).normal(size=volume.shape)
    for given in (None, scan, scan[None], scan[..., None]):
        ax = plot_volume_map(volume, given, axis=axis)
        drawn = ax.get_images()[-1].get_array()
        np.testing.assert_array_equal(drawn, volume.take((2, 3, 1)[axis], axis=axis))
        assert len(ax.get_images()) == (1 if given is None else 2)
    # Every slice has the scale of the whole.
    first = plot_volume_map(volume, axis=axis, position=0).get_images()[0]
    assert first.get_clim() == (0.0, 3.0)
    np.testing.assert_array_equal(first.get_array(), volume.take(0, axis=axis))


def test_a_projection_shows_the_maximum(volume):
    drawn = plot_volume_map(volume, view="max", axis=2).get_images()[0].get_array()
    np.testing.assert_array_equal(drawn, volume.max(axis=2))


def test_what_is_no_volume_is_refused(volume):
    with pytest.raises(InputError, match=r"one map \(D, H, W\)"):
        plot_volume_map(volume[0])
    with pytest.raises(InputError, match=r"volume has shape \(4, 5, 5\)"):
        plot_volume_map(volume, np.zeros((4, 5, 5)))
    with pytest.raises(InputError, match="position"):
        plot_volume_map(volume, position=4)


def test_words_are_coloured_by_their_bits(closing_figures):
    words, bits = ["a", "kitten", "sleeps", "$x$"], [0.0, 3.0, 1.5, 0.3]
    ax = plot_words(words, bits, columns=12)
    drawn = ax.texts[::2]
    assert [text.get_text() for text in drawn] == words
    faces = [np.round(255 * np.array(text.get_bbox_patch().get_facecolor()[:3])) for text in drawn]
    assert faces[0].tolist() == [255, 255, 255]
    assert faces[1].tolist() == [240, 110, 60]
    np.testing.assert_allclose(faces[2], [248, 182, 158], atol=1)
    rows = [text.get_position()[1] for text in drawn]
    assert rows == [0, 0, 1, 1]  # no line is longer than 12 letters
    ax.figure.canvas.draw()


def test_a_long_word_stays_within_its_line(closing_figures):
    ax = plot_words(["antidisestablishmentarianism", "is", "long"], [1, 0, 0], columns=40)
    ax.figure.canvas.draw()
    boxes = [text.get_window_extent() for text in ax.texts[::2]]
    assert boxes[0].x1 <= boxes[1].x0
    assert boxes[-1].x1 <= ax.figure.bbox.x1


def test_as_many_bits_as_words():
    with pytest.raises(InputError, match="there are 2 words and 3 bits"):
        plot_words(["a", "b"], [1.0, 2.0, 3.0])
