"""Bits of tokens, as words, as HTML and in the terminal."""

from html.parser import HTMLParser
from io import StringIO

import numpy as np
import pytest
from rich.console import Console

from iba_core import Attribution, InputError
from iba_core.framework.adapter import ModelAdapter
from iba_core.text import TokenBits, token_statistics

LN2 = np.log(2)


def attribution(saliency):
    saliency = np.asarray(saliency, float)
    capacity = saliency[..., None] * LN2
    curve = np.zeros((1, len(saliency)))
    return Attribution(
        saliency=saliency,
        capacity=capacity,
        mask=np.zeros_like(capacity),
        outputs=np.zeros((len(saliency), 2)),
        model_losses=curve,
        informations=curve,
        layer="embeddings",
        data_format="channels_last",
    )


def test_pieces_are_joined_and_special_tokens_left_out():
    words = TokenBits.of(
        attribution([[9, 9, 9, 9, 9], [7, 1, 2, 0.5, 7]]),
        ["[CLS]", "kit", "##ten", "naps", "[SEP]"],
        shown=[0, 1, 1, 1, 0],
        index=1,
    )
    assert words.tokens == ("kitten", "naps")
    assert words.bits.tolist() == [3, 0.5]
    assert words.top(1) == [("kitten", 3.0)]


def test_other_tokenisers_mark_other_pieces():
    assert TokenBits.of_pieces(["a", "@@b"], [1, 2], "@@").tokens == ("ab",)
    assert TokenBits.of_pieces(["a", "##b"], [1, 2], "").tokens == ("a", "##b")
    assert TokenBits.of_pieces(["##b"], [1]).tokens == ("##b",), "there is nothing to go on with"


def test_colours_go_from_white_to_the_deepest_at_the_most_bits():
    colours = TokenBits(("a", "b", "c"), np.array([0.0, 2.0, 4.0])).colours()
    assert colours.tolist() == [[255, 255, 255], [248, 182, 158], [240, 110, 60]]
    assert (TokenBits(("a",), np.zeros(1)).colours() == 255).all()
    assert TokenBits((), np.zeros(0)).colours().shape == (0, 3)


class Reader(HTMLParser):
    def __init__(self):
        super().__init__()
        self.spans, self.stack, self.words = [], [], []

    def handle_starttag(self, tag, attrs):
        if tag != "br":
            self.stack.append(tag)
        if tag == "span":
            self.spans.append(dict(attrs))

    def handle_endtag(self, tag):
        assert self.stack.pop() == tag

    def handle_data(self, data):
        if self.stack and self.stack[-1] == "span" and data.strip():
            self.words.append(data)


def test_html():
    words = TokenBits(("a", "<b>&", '"'), np.array([0.0, 2.0, 4.0]))
    reader = Reader()
    reader.feed(words.to_html())
    assert not reader.stack
    assert reader.words == list(words.tokens)
    assert [span["title"] for span in reader.spans] == ["0.00 bits", "2.00 bits", "4.00 bits"]
    assert "rgb(248, 182, 158)" in reader.spans[1]["style"]
    assert "<small>6 bits</small>" in words.to_html()
    assert words._repr_html_() == words.to_html()


def test_terminal():
    words = TokenBits(("a", "[red]b"), np.array([0.0, 4.0]))
    console = Console(file=StringIO(), force_terminal=True, color_system="truecolor", width=60)
    console.print(words)
    printed = console.file.getvalue()
    assert "\x1b[30;48;2;255;255;255m a \x1b[0m" in printed
    assert "\x1b[30;48;2;240;110;60m [red]b \x1b[0m" in printed
    assert words.to_text().plain == " a  [red]b   4 bits"


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: TokenBits(("a",), np.zeros(2)), "2,.* for 1 tokens"),
        (lambda: TokenBits(("a",), np.array([np.nan])), "finite"),
        (lambda: TokenBits.of(attribution(np.zeros((1, 2, 2))), ["a", "b"]), "2 spatial axes"),
        (lambda: TokenBits.of(attribution(np.zeros((1, 2))), ["a"]), "1 tokens and 2 values"),
        (lambda: TokenBits.of(attribution(np.zeros((1, 2))), ["a", "b"], [1]), "2 tokens and 1 values"),
    ],
)
def test_what_does_not_fit_is_an_error(make, match):
    with pytest.raises(InputError, match=match):
        make()


class Features:
    """Stands in for a framework: a layer that gives back what it is given."""

    layer_name = "embeddings"

    def split(self, layer):
        return self

    @property
    def framework(self):
        return self

    def to_inputs(self, inputs):
        return inputs

    to_numpy = features = to_inputs


def test_statistics_count_each_token_once():
    assert {"split", "to_inputs", "framework"} <= {*dir(ModelAdapter), *ModelAdapter.__annotations__}
    generator = np.random.default_rng(0)
    batches = [(generator.normal(size=(3, 5, 4)), generator.uniform(size=(3, 5)) < 0.6) for _ in range(2)]
    tokens = np.concatenate([features[mask] for features, mask in batches])
    estimator = token_statistics(Features(), "embeddings", batches, length=7)
    assert estimator.n_samples() == len(tokens)
    np.testing.assert_allclose(estimator.mean(), np.tile(tokens.mean(axis=0), (7, 1)))
    np.testing.assert_allclose(estimator.std(), np.tile(tokens.std(axis=0, ddof=1), (7, 1)))


@pytest.mark.parametrize(
    ("batches", "match"),
    [
        ([], "0 tokens"),
        ([(np.ones((1, 3, 2)), [[1, 0, 0]])], "1 tokens"),
        ([(np.ones((1, 3, 2)), [[1, 0]])], "mask"),
        ([(np.ones((4, 3)), np.ones((4, 3)))], r"\(texts, tokens, channels\)"),
    ],
)
def test_statistics_of_what_does_not_fit_are_an_error(batches, match):
    with pytest.raises(InputError, match=match):
        token_statistics(Features(), "embeddings", batches, length=3)
