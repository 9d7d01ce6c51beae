"""Reports in a real browser, opened from disk. Debian's package is `chromium`."""

import io
import json
import os
import shutil

import numpy as np
import pytest
from PIL import Image

from iba_core.datasets.run import Run
from iba_core.report import write_report
from iba_core.report.layers import COLOURS, OPACITIES
from tests.runs import HOSTILE, add, example_run

pytest.importorskip("jinja2")
playwright = pytest.importorskip("playwright.sync_api")

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
if CHROMIUM is None:
    pytest.skip("no Chromium is installed: apt-get install chromium", allow_module_level=True)

SHOWN = HOSTILE.replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")
"""How the hostile name is shown."""

WIDE = {"width": 1280, "height": 860}


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as started:
        # A container has no namespaces for the sandbox; the pages are our own.
        options = {"executable_path": CHROMIUM, "args": ["--no-sandbox", "--force-color-profile=srgb"]}
        browser = started.chromium.launch(**options)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def example(tmp_path_factory):
    return write_report(example_run(tmp_path_factory.mktemp("pages") / "run"), progbar=False)


@pytest.fixture
def visit(browser):
    """Open a page. The test fails on any error of its script, and on any request to the network."""
    tabs, faults = [], []

    def visit(page, place="", **options):
        tab = browser.new_page(**{"viewport": WIDE, **options})
        tabs.append(tab)
        tab.set_default_timeout(60_000)
        tab.on("pageerror", lambda error: faults.append(str(error)))
        tab.on("console", lambda said: faults.append(said.text) if said.type == "error" else None)
        tab.on("requestfailed", lambda request: faults.append(request.url))
        tab.on(
            "request", lambda request: None if request.url.startswith("file:") else faults.append(request.url)
        )
        tab.goto(page.as_uri() + place)
        tab.wait_for_selector("#status:not(:empty)", state="attached")
        return tab

    yield visit
    for tab in tabs:
        tab.close()
    assert not faults


def names(tab):
    """Names of the inputs of the cards, in the order of the eye."""
    return tab.locator(".card .file").all_inner_texts()


def says(tab, selector, text):
    """Wait until something says a text."""
    playwright.expect(tab.locator(selector)).to_have_text(text, timeout=60_000)


def focuses(tab, name):
    """Wait until the card of an input has the focus."""
    playwright.expect(tab.locator(".card:focus .file")).to_have_text(name, timeout=60_000)


def shows(tab, *expected):
    """Wait until these are the cards."""
    playwright.expect(tab.locator(".card .file")).to_have_text(list(expected), timeout=60_000)


def test_the_grid_shows_each_result(visit, example):
    tab = visit(example)
    assert tab.locator(".card").count() == 6
    assert names(tab)[:3] == ["cats/one.jpg", "cats/one.jpg", "dogs/ten.jpg"]
    assert tab.inner_text("#status").startswith("6 results · median 150 bits")
    first = tab.locator(".card").first.inner_text()
    assert "300 bits" in first
    assert "90 % survives" in first
    for image in tab.locator(".card img").all():
        assert image.evaluate("image => image.decode().then(() => image.naturalWidth)") == 24


def test_hostile_names_stay_text(visit, example):
    tab = visit(example)
    assert SHOWN in names(tab)
    assert tab.title() == "run"
    assert tab.locator("b").count() == 0
    tab.locator(".card", has_text="onerror").click()
    says(tab, "#input-name", SHOWN)
    playwright.expect(tab.locator("#panels h3", has_text="</script><b>bold</b>")).to_have_count(1)
    assert tab.title() != "owned"
    assert tab.locator("b").count() == 0


def test_results_are_filtered_and_sorted(visit, example):
    tab = visit(example)
    tab.fill("#search", "dogs BEAGLE")
    shows(tab, "dogs/ten.jpg", "dogs/two.jpg")
    assert tab.inner_text("#status").startswith("2 of 6 results")
    tab.click("#clear")
    tab.select_option("#sort", "bits")
    tab.click("#direction")
    cats = ["cats/one.jpg"] * 2
    # What has no bits comes last in both directions.
    shows(tab, "dogs/two.jpg", *cats, "dogs/ten.jpg", SHOWN, "broken.jpg")
    tab.click("#direction")
    shows(tab, SHOWN, "dogs/ten.jpg", *cats, "dogs/two.jpg", "broken.jpg")
    tab.select_option("#sort", "seconds")
    tab.fill("#search", "jpg")
    tab.select_option("#sort", "label")
    shows(tab, SHOWN, "broken.jpg", *cats, "dogs/ten.jpg", "dogs/two.jpg")
    for choice, value, expected in (
        ("#state", "failed", ["broken.jpg"]),
        ("#state", "lost", ["dogs/ten.jpg"]),
        ("#state", "warned", ["dogs/ten.jpg"]),
        ("#setup", "second", ["cats/one.jpg"]),
        ("#class", "beagle", ["dogs/ten.jpg", "dogs/two.jpg"]),
    ):
        tab.click("#clear")
        tab.select_option(choice, value)
        shows(tab, *expected)
    tab.click("#clear")
    tab.fill("#bits-least", "100")
    tab.fill("#bits-most", "500")
    shows(tab, "cats/one.jpg", "cats/one.jpg")
    tab.fill("#survival-most", "10")
    playwright.expect(tab.locator("#results")).to_have_text("No result fits these filters.")


def test_an_input_shows_its_layers_beside_each_other(visit, example):
    tab = visit(example)
    tab.locator(".card").first.click()
    playwright.expect(tab.locator("#panels figure")).to_have_count(3)
    assert tab.locator("#panels .kind").all_inner_texts()[1:] == [
        "the predicted class · layer conv",
        "the predicted class · layer deep",
    ]
    tops = [figure.bounding_box()["y"] for figure in tab.locator("#panels figure").all()]
    assert len(set(tops)) == 1
    says(tab, "#input-path", "/photos/cats/one.jpg")
    assert "bits per pixel" in tab.locator(".scale").first.inner_text()
    # The address leads to the same page.
    again = visit(example, tab.url.partition(".html")[2])
    says(again, "#input-name", "cats/one.jpg")
    tab.go_back()
    playwright.expect(tab.locator(".card")).to_have_count(6)


def colour_at(tab, x, y):
    """Colour of a place of the first map's stage, in parts of its side, once it has been drawn."""
    tab.evaluate("new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")
    box = tab.locator("#panels figure:not(.plain) .stage").first.bounding_box()
    shot = np.asarray(Image.open(io.BytesIO(tab.screenshot())).convert("RGB"), float)
    return shot[int(box["y"] + y * box["height"]), int(box["x"] + x * box["width"])]


def test_the_map_has_the_colours_of_its_values(visit, tmp_path):
    run = Run(tmp_path)
    run.begin({"id": "first", "started": "1"})
    half = np.zeros((24, 24))
    half[:, 12:] = 1.0
    half[12:, 12:] = 0.4
    add(run, "a.jpg", half, picture=False)
    add(run, "b.jpg", 4 * half, picture=False)
    tab = visit(write_report(run, progbar=False))
    tab.locator(".card").first.click()
    tab.locator("#panels .map").evaluate("map => map.decode()")
    top, stage = (np.array([int(c[i : i + 2], 16) for i in (1, 3, 5)]) for c in (COLOURS[-1], "#17151c"))
    expected = OPACITIES[-1] * top + (1 - OPACITIES[-1]) * stage
    assert np.abs(colour_at(tab, 0.75, 0.2) - expected).max() < 6
    # 0.4 is the sixth of the sixteen colours, and the third of the six opacities.
    middle = np.array([int(COLOURS[6][i : i + 2], 16) for i in (1, 3, 5)])
    expected = OPACITIES[2] * middle + (1 - OPACITIES[2]) * stage
    assert np.abs(colour_at(tab, 0.75, 0.8) - expected).max() < 8
    # One scale for all: a quarter of the highest value of the run.
    tab.keyboard.press("s")
    assert tab.input_value("#scale") == "shared"
    assert float(tab.input_value("#peak")) == 4
    share = 0.25 * (len(COLOURS) - 1)
    low, high = (np.array([int(COLOURS[n][i : i + 2], 16) for i in (1, 3, 5)]) for n in (3, 4))
    opacity = np.interp(0.25, np.linspace(0, 1, len(OPACITIES)), OPACITIES)
    colour = low + (share - 3) * (high - low)
    assert np.abs(colour_at(tab, 0.75, 0.2) - (opacity * colour + (1 - opacity) * stage)).max() < 8
    # Without the map, the stage alone.
    tab.fill("#strength", "0")
    assert np.abs(colour_at(tab, 0.75, 0.2) - stage).max() < 3
    says(tab, "#strength-says", "picture alone")


def test_the_keyboard_leads_everywhere(visit, example):
    tab = visit(example)
    tab.keyboard.press("ArrowRight")
    focuses(tab, "cats/one.jpg")
    tab.keyboard.press("ArrowRight")
    tab.keyboard.press("ArrowRight")
    focuses(tab, "dogs/ten.jpg")
    assert tab.locator(".card[tabindex='0']").count() == 1
    tab.keyboard.press("End")
    focuses(tab, "broken.jpg")
    tab.keyboard.press("Home")
    tab.keyboard.press("Enter")
    says(tab, "#place", "1 of 5")
    playwright.expect(tab.locator("#input-name")).to_be_focused()
    tab.keyboard.press("ArrowRight")
    says(tab, "#input-name", "dogs/ten.jpg")
    says(tab, ".remark", "it is lost")
    tab.keyboard.press("ArrowLeft")
    playwright.expect(tab.locator("#previous")).to_be_disabled()
    tab.keyboard.press("g")
    assert not tab.is_checked("#grey")
    tab.keyboard.press("]")
    assert tab.input_value("#strength") == "60"
    tab.keyboard.press("?")
    playwright.expect(tab.locator("#keys")).to_be_visible()
    tab.keyboard.press("Escape")
    playwright.expect(tab.locator("#keys")).to_be_hidden()
    tab.keyboard.press("Escape")
    focuses(tab, "cats/one.jpg")
    tab.keyboard.press("/")
    playwright.expect(tab.locator("#search")).to_be_focused()
    tab.click("#show-settings")
    assert "net" in tab.inner_text("#settings")


def test_all_pictures_controls_and_links_have_names(visit, example):
    tab = visit(example)
    tab.locator(".card").first.click()
    says(tab, "#input-name", "cats/one.jpg")
    for image in tab.locator("#panels .photo").all():
        assert "cats/one.jpg" in image.get_attribute("alt")
    unnamed = """[...document.querySelectorAll('input, select, button, a')].filter(node =>
        !(node.getAttribute('aria-label') || node.textContent.trim() || node.labels?.length))"""
    assert tab.evaluate(f"{unnamed}.map(node => node.outerHTML)") == []
    assert tab.locator("img:not([alt])").count() == 0
    assert tab.locator("main:not([hidden])").count() == 1
    labels = [card.get_attribute("aria-label") for card in tab.locator(".card").all()]
    assert labels[0] == "cats/one.jpg: where the network sees tabby, 300 bits, 90 % survives"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_colours_follow_the_system(visit, example, scheme):
    tab = visit(example, color_scheme=scheme)
    stage = tab.evaluate("getComputedStyle(document.body).backgroundColor")
    assert stage == {"light": "rgb(246, 245, 249)", "dark": "rgb(18, 17, 23)"}[scheme]


def test_a_narrow_window_scrolls_down_only(visit, example):
    tab = visit(example, viewport={"width": 360, "height": 700})
    wide = "document.documentElement.scrollWidth <= window.innerWidth"
    assert tab.evaluate(wide)
    assert not tab.is_visible("#sort")
    tab.click("#more")
    assert tab.is_visible("#sort")
    tab.locator(".card").first.click()
    says(tab, "#input-name", "cats/one.jpg")
    assert tab.evaluate(wide)


def test_ten_thousand_results_are_never_all_on_the_page(visit, tmp_path):
    run = Run(tmp_path)
    run.begin({"id": "first", "started": "1"})
    template = add(run, "0", error="none").to_dict()
    del template["result"]
    lines = [
        json.dumps({**template, "key": f"{number}", "name": f"photo-{number}.jpg"})
        for number in range(1, 10_000)
    ]
    with open(tmp_path / "journal.jsonl", "a", encoding="utf-8") as journal:
        journal.write("\n".join(lines) + "\n")
    tab = visit(write_report(tmp_path, progbar=False))
    assert tab.inner_text("#status") == "10,000 results"
    assert 12 <= tab.locator(".card").count() < 120
    tab.evaluate("window.scrollTo(0, document.body.scrollHeight)")
    tab.wait_for_selector("li[aria-posinset='10000'] .card")
    assert names(tab)[-1] == "photo-9999.jpg"
    assert tab.locator(".card").count() < 120
    tab.fill("#search", "photo-777")
    shows(tab, "photo-777.jpg", *(f"photo-777{digit}.jpg" for digit in range(10)))


def test_the_browser_is_where_the_tests_look():
    assert os.access(CHROMIUM, os.X_OK)
