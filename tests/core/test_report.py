"""Reports: what is written, and that names stay names."""

import json
import re
from html.parser import HTMLParser

import matplotlib as mpl
import numpy as np
import pytest
from PIL import Image

from iba_core import InputError, MissingDependencyError, StateError
from iba_core.cli import main
from iba_core.datasets.run import Run
from iba_core.report import write_report
from iba_core.report.layers import COLOURS, channel_tables, read_map, write_map
from iba_core.report.rows import as_script
from tests.runs import HOSTILE, SIDE, add, example_run, spot

pytest.importorskip("jinja2")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    run = example_run(tmp_path_factory.mktemp("runs") / "my & run")
    return write_report(run, progbar=False).parent


def data_of(folder):
    text = (folder / "data.js").read_text("ascii")
    assert text.startswith("window.REPORT=")
    assert text.endswith(";\n")
    return json.loads(text.removeprefix("window.REPORT=").removesuffix(";\n"))


class Page(HTMLParser):
    """Tags, attributes and text of a page."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.texts = [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_data(self, data):
        self.texts.append(data)


def test_the_folder_holds_all_that_it_needs(folder):
    assert sorted(each.name for each in folder.iterdir()) == [
        *("data.js", "index.html", "maps", "pictures", "report.css", "report.js")
    ]
    data = data_of(folder)
    assert [each["name"] for each in data["inputs"]][:3] == ["cats/one.jpg", "dogs/ten.jpg", "dogs/two.jpg"]
    assert [row["input"] for row in data["records"]] == [0, 0, 1, 2, 3, 4]
    for row in data["records"][:5]:
        image = np.asarray(Image.open(folder / row["map"]))
        assert (image.shape, image.max()) == ((SIDE, SIDE), 255)
        picture = data["inputs"][row["input"]]["picture"]
        assert Image.open(folder / picture).size == (SIDE, SIDE)
    assert data["records"][0]["peak"] == pytest.approx(2.0)
    assert data["records"][3]["survival"] is None
    assert data["records"][5]["error"] == "it is no image <i>at all</i>"
    assert data["setups"] == {"first": "conv", "second": "deep"}
    assert len({each["id"] for each in data["inputs"]}) == 5


def test_nothing_comes_from_elsewhere(folder):
    page = Page((folder / "index.html").read_text("utf-8"))
    links = [
        value for _, attributes in page.tags for name, value in attributes.items() if name in ("src", "href")
    ]
    assert sorted(links) == ["#results", "data.js", "report.css", "report.js"]
    assert dict(page.tags)["html"]["lang"] == "en"
    policy = next(a["content"] for _, a in page.tags if a.get("http-equiv") == "Content-Security-Policy")
    assert policy.startswith("default-src 'none'")
    for name in ("report.css", "report.js"):
        text = (folder / name).read_text("utf-8")
        assert not re.search(r"https?:|//cdn|@import|fetch\(|XMLHttpRequest|innerHTML|eval\(", text)


def test_names_are_text_in_the_page_and_in_the_script(tmp_path):
    run = Run(tmp_path / "run")
    run.begin({"id": "x", "started": "1", "layer": HOSTILE, "model": "<b>", "settings": {HOSTILE: [HOSTILE]}})
    add(run, HOSTILE, spot(1, 1), setup="x", class_name=HOSTILE, warnings=(HOSTILE,))
    page = write_report(run, title=HOSTILE, progbar=False)
    html = page.read_text("utf-8")
    found = Page(html)
    assert not [tag for tag, _ in found.tags if tag in ("img", "b")]
    assert [attributes.get("src") for tag, attributes in found.tags if tag == "script"] == [
        "data.js",
        "report.js",
    ]
    assert "62615533" not in "".join(found.texts), "a name has been taken for a template"
    shown = HOSTILE.replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")
    assert found.texts.count(shown) >= 4
    script = (page.parent / "data.js").read_bytes()
    assert script.isascii()
    assert not re.search(rb"[<>&']", script)
    data = data_of(page.parent)
    assert data["inputs"][0]["name"] == data["records"][0]["name"] == data["title"] == shown


def test_letters_that_end_a_script_are_escaped():
    text = as_script({"a": "</script>\u2028\u2029<!--&'\ud800"})
    assert text.isascii()
    assert not set("<>&'") & set(text)
    assert json.loads(text[14:-2]) == {"a": "</script>\u2028\u2029<!--&'\ud800"}


def test_the_page_names_the_settings(folder):
    texts = Page((folder / "index.html").read_text("utf-8")).texts
    assert texts.count("beta") == 2
    assert texts.count("10.0") == 2
    assert "my & run" in texts
    assert any("5 inputs, 5 explanations" in text for text in texts)
    assert "1 failed" in texts


def test_files_of_another_folder_are_left_alone(tmp_path):
    secret = tmp_path / "secret.png"
    Image.new("RGB", (4, 4), "red").save(secret)
    run = Run(tmp_path / "run")
    run.begin({"id": "first", "started": "1"})
    (run.folder / "inputs" / "link.png").symlink_to(secret)
    add(run, "a.jpg", spot(1, 1), picture=False, input="inputs/link.png")
    with pytest.raises(InputError, match="record names a file outside of the folder"):
        add(run, "b.jpg", spot(1, 1), key="../../up")
    folder = write_report(run, progbar=False).parent
    data = data_of(folder)
    assert data["inputs"][0]["picture"] is None
    assert len(data["records"]) == 1
    assert not [each for each in tmp_path.iterdir() if each.name.startswith("up")]


def test_a_damaged_result_is_an_error_of_its_row(tmp_path):
    run = Run(tmp_path)
    run.begin({"id": "first", "started": "1"})
    record = add(run, "a.jpg", spot(1, 1))
    (tmp_path / record.result).write_bytes(b"nothing")
    add(run, "b.jpg", spot(1, 1))
    rows = data_of(write_report(run, progbar=False).parent)["records"]
    assert "safetensors" in rows[0]["error"]
    assert rows[1]["error"] is None


def test_a_second_report_keeps_the_images_and_shows_what_is_new(tmp_path):
    run = example_run(tmp_path)
    folder = write_report(run, progbar=False).parent
    before = {
        file: file.stat().st_mtime_ns for part in ("maps", "pictures") for file in (folder / part).iterdir()
    }
    add(run, "new.jpg", spot(1, 1))
    write_report(tmp_path, progbar=False)
    after = {
        file: file.stat().st_mtime_ns for part in ("maps", "pictures") for file in (folder / part).iterdir()
    }
    assert before.items() < after.items()
    assert len(after) == len(before) + 2
    assert not [file for file in after if file.name.startswith(".")]


@pytest.mark.parametrize(
    ("map_", "size"),
    [
        (np.linspace(0, 3, 7), (7, 1)),
        (spot(2, 2, 3.0), (SIDE, SIDE)),
        (np.stack([spot(1, 1), spot(9, 9, 3.0)]), (SIDE, SIDE)),
    ],
)
def test_maps_of_any_number_of_axes_are_images(tmp_path, map_, size):
    assert write_map(tmp_path / "map.png", map_) == read_map(tmp_path / "map.png") == (3.0, size)
    flat = map_.max(axis=0) if map_.ndim == 3 else np.atleast_2d(map_)
    levels = np.asarray(Image.open(tmp_path / "map.png"), float)
    np.testing.assert_allclose(levels * 3 / 255, flat, atol=3 / 255)


def test_maps_of_nothing_and_other_files_are_read(tmp_path):
    assert write_map(tmp_path / "map.png", np.zeros((2, 2))) == (0.0, (2, 2))
    Image.new("L", (2, 2)).save(tmp_path / "other.png")
    (tmp_path / "none.png").write_bytes(b"\x89PNG")
    assert [read_map(tmp_path / f"{name}.png") for name in ("other", "none", "missing")] == [None] * 3


def test_the_colours_are_those_of_all_other_pictures():
    table = mpl.colormaps["inferno"](np.linspace(0, 1, len(COLOURS)), bytes=True)[:, :3]
    ours = np.array([[int(colour[i : i + 2], 16) for i in (1, 3, 5)] for colour in COLOURS])
    assert np.abs(ours.astype(int) - table).max() <= 2
    assert len(channel_tables()["R"].split()) == len(COLOURS)


def test_what_is_no_run_is_named(tmp_path, monkeypatch):
    with pytest.raises(StateError, match="holds no run"):
        write_report(tmp_path)
    example_run(tmp_path / "run")
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be made a folder"):
        write_report(tmp_path / "run", tmp_path / "file" / "report")
    monkeypatch.setattr("iba_core.report.writing.find_spec", lambda name: None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'iba-core\[report\]'"):
        write_report(tmp_path / "run")


def test_the_command_writes_it_and_says_where(tmp_path, monkeypatch, capfd):
    example_run(tmp_path / "run")
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr("sys.argv", ["iba", "report", str(tmp_path / "run"), "--title", "Cats"])
    assert main() == 0
    out = " ".join(capfd.readouterr().out.split())
    assert "5 explanations, 1 failed" in out
    assert "index.html" in out
    assert "<h1>Cats</h1>" in (tmp_path / "run" / "report" / "index.html").read_text("utf-8")
    monkeypatch.setattr("sys.argv", ["iba", "report", str(tmp_path)])
    assert main() == 2
    assert "holds no run" in capfd.readouterr().err


# -- contrast ---------------------------------------------------------------------------------------


def palettes():
    """The colours of the style sheet, light and dark."""
    from importlib import resources

    text = (resources.files("iba_core.report") / "templates" / "report.css").read_text("utf-8")
    blocks = re.findall(r":root \{(.*?)\}", text, re.DOTALL)
    light, dark = (dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6});", block)) for block in blocks)
    return {"light": light, "dark": {**light, **dark}}


def luminance(colour):
    """Relative luminance, as WCAG 2.2 defines it."""
    channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(a, b):
    """Contrast ratio, as WCAG 2.2 defines it."""
    low, high = sorted((luminance(a), luminance(b)))
    return (high + 0.05) / (low + 0.05)


def test_contrast_is_that_of_the_definition():
    assert contrast("#000000", "#ffffff") == pytest.approx(21)
    assert contrast("#777777", "#ffffff") == pytest.approx(4.48, abs=0.01)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_texts_and_edges_can_be_seen(scheme):
    colours = palettes()[scheme]
    for text in ("text", "muted", "accent", "error", "warning"):
        for under in ("page", "surface"):
            assert contrast(colours[text], colours[under]) >= 4.5, (text, under)
    assert contrast(colours["on-accent"], colours["accent"]) >= 4.5
    assert contrast(colours["on-stage"], colours["stage"]) >= 4.5
    for under in ("page", "surface"):  # edges of controls, and the ring of the focus
        assert contrast(colours["edge"], colours[under]) >= 3
        assert contrast(colours["accent"], colours[under]) >= 3
