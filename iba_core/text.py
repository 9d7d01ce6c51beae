"""Texts: show how many bits each token carries, in colour, in a notebook, a web page or the terminal.

A layer of a language model gives a vector for each token. This module takes tokens as strings and bits as
numbers, so it works with every framework and every tokeniser.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from rich.color import Color
from rich.style import Style
from rich.text import Text

from iba_core.arguments import (
    LARGEST_COUNT,
    given,
    require_iterable,
    require_layer,
    require_type,
    require_whole,
)
from iba_core.attribution import Attribution
from iba_core.bottleneck.estimator import STATE, WelfordEstimator
from iba_core.errors import InputError
from iba_core.framework.adapter import Inputs, ModelAdapter
from iba_core.framework.arrays import as_array, require_mask
from iba_core.framework.framework import require_finite
from iba_core.framework.inputs import require_batches, require_inputs
from iba_core.pictures.plotting import plot_words, word_colours

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@dataclass(frozen=True, eq=False)
class TokenBits:
    """The bits that each token of a text carries.

    A notebook displays the object in colour, and so does ``rich.print`` in the terminal.

    Attributes:
        tokens: the N tokens, or words, in order.
        bits: float64 (N,), bits of each token, not negative.

    Raises:
        InputError: the numbers of tokens and bits differ, or a number is not finite.

    Example:
        >>> TokenBits.of_pieces(["a", "kit", "##ten"], [0.5, 2.0, 1.0])
        TokenBits(tokens=('a', 'kitten'), bits=array([0.5, 3. ]))
    """

    tokens: tuple[str, ...]
    bits: npt.NDArray[np.floating]

    def __post_init__(self) -> None:
        object.__setattr__(self, "tokens", _texts("tokens", self.tokens))
        object.__setattr__(self, "bits", _bits(self.bits))
        if self.bits.shape != (len(self.tokens),):
            raise InputError(
                f"bits has shape {self.bits.shape} for {len(self.tokens)} tokens; give one finite number per "
                "token"
            )

    @classmethod
    def of(
        cls,
        attribution: Attribution,
        tokens: Sequence[str],
        shown: npt.ArrayLike | None = None,
        index: int = 0,
        continuation: str = "##",
    ) -> TokenBits:
        """Collect the bits of the words of one explained text.

        Args:
            attribution: result of `Explainer.explain` at a layer with a vector for each token.
            tokens: tokens of the text, one for each vector of the layer.
            shown: (N,), false for tokens to leave out, such as special tokens and padding; None to show all.
            index: index of the text in the batch.
            continuation: mark of a token that continues the word before it, see `of_pieces`.

        Raises:
            InputError: the attribution is not for tokens, or the lengths differ.
        """
        require_type("attribution", attribution, Attribution, "the result of Explainer.explain")
        index = require_whole("index", index, -len(attribution), len(attribution) - 1)
        tokens = _texts("tokens", tokens)
        if attribution.saliency.ndim != 2:
            raise InputError(
                f"the attribution has {attribution.saliency.ndim - 1} spatial axes per input; it must have "
                "one, that of the tokens"
            )
        bits = attribution.saliency[index]
        kept = np.ones(len(bits), bool) if shown is None else require_mask("shown", shown)
        if not len(tokens) == len(bits) == kept.size:
            raise InputError(
                f"there are {len(tokens)} tokens and {kept.size} values of shown; give one each for the "
                f"{len(bits)} explained tokens"
            )
        pieces = [token for token, keep in zip(tokens, kept, strict=True) if keep]
        return cls.of_pieces(pieces, bits[kept], continuation)

    @classmethod
    def of_pieces(cls, pieces: Iterable[str], bits: npt.ArrayLike, continuation: str = "##") -> TokenBits:
        """Join the pieces of a tokeniser into words, and sum the bits of each word.

        Args:
            pieces: N tokens.
            bits: (N,), bits of each token.
            continuation: prefix of a token that continues the word before it, such as BERT's ``"##"``. If
                empty, no tokens are joined.

        Example:
            >>> TokenBits.of_pieces(["kit", "##ten"], [2.0, 1.0]).bits
            array([3.])
        """
        pieces, values = _texts("pieces", pieces), _bits(bits)
        require_type("continuation", continuation, str, "a text")
        if values.shape != (len(pieces),):
            raise InputError(
                f"bits has shape {values.shape} for {len(pieces)} pieces; give one finite number per token"
            )
        words: list[str] = []
        sums: list[float] = []
        for piece, value in zip(pieces, values, strict=True):
            if continuation and words and piece.startswith(continuation):
                words[-1] += piece.removeprefix(continuation)
                sums[-1] += float(value)
            else:
                words.append(piece)
                sums.append(float(value))
        return cls(tuple(words), np.array(sums))

    def top(self, count: int = 3) -> list[tuple[str, float]]:
        """Return the `count` tokens with the most bits, and their bits, in descending order.

        Example:
            >>> TokenBits(("a", "kitten"), np.array([0.5, 3.0])).top(1)
            [('kitten', 3.0)]
        """
        order = np.argsort(-self.bits, kind="stable")[: require_whole("count", count)]
        return [(self.tokens[i], float(self.bits[i])) for i in order]

    def colours(self) -> npt.NDArray[np.uint8]:
        """Return RGB colours, uint8 (N, 3), from white for 0 bits to orange for the most bits in the text."""
        return word_colours(self.bits)

    def plot(self, ax: Axes | None = None, **options: Any) -> Axes:
        """Draw the coloured tokens with their bits.

        Args:
            ax: axes to draw into; None for a new figure.
            **options: see `iba_core.plot_words`.

        Returns:
            The axes.

        Raises:
            MissingDependencyError: matplotlib is not installed.
        """
        return plot_words(self.tokens, self.bits, ax, **options)

    def to_html(self) -> str:
        """Return a paragraph of HTML with coloured tokens, and their bits below them and as tooltips.

        It needs no style sheet and no script. The text of the tokens is escaped.
        """
        spans = "\n".join(
            f'<span title="{bits:.2f} bits" style="display: inline-block; text-align: center; margin: 1px; '
            f'padding: 2px 4px; border-radius: 3px; color: #111; background: rgb({red}, {green}, {blue})">'
            f'{escape(token)}<br><small style="opacity: 0.7">{bits:.0f}</small></span>'
            for token, bits, (red, green, blue) in self._coloured()
        )
        return (
            '<p style="font-family: sans-serif; line-height: 1.3">\n'
            f"{spans}\n<small>{self.bits.sum():.0f} bits</small>\n</p>"
        )

    def to_text(self) -> Text:
        """Return text for a `rich` console: the coloured tokens, followed by the sum of their bits."""
        text = Text()
        for token, _, colour in self._coloured():
            background = Color.from_rgb(*colour)
            text.append(f" {token} ", Style(color="black", bgcolor=background))
        text.append(f"  {self.bits.sum():.0f} bits", Style(dim=True))
        return text

    def _coloured(self) -> Iterable[tuple[str, float, list[int]]]:
        return zip(self.tokens, map(float, self.bits), self.colours().tolist(), strict=True)

    def _repr_html_(self) -> str:
        return self.to_html()

    def __rich__(self) -> Text:
        return self.to_text()


def _texts(name: str, value: Any) -> tuple[str, ...]:
    """Strings as a tuple; one text is not a sequence of them."""
    require_iterable(name, value, "a list of texts")
    texts = tuple(value)
    for text in texts:
        require_type(name, text, str, "a list of texts")
    return texts


def _bits(value: npt.ArrayLike) -> npt.NDArray[np.float64]:
    bits = as_array("bits", value).astype(np.float64)
    require_finite(bits, "bits")
    return bits


def token_statistics(
    adapter: ModelAdapter, layer: Any, batches: Iterable[tuple[Inputs, npt.ArrayLike]], length: int
) -> WelfordEstimator:
    """Estimate the distribution of a layer's features over the tokens of many texts, at all positions.

    `Explainer.fit` estimates one distribution for each place of the feature map. In a text, the position
    means little, and many positions hold padding. So here, every token is a sample of the same distribution.

    Args:
        adapter: adapter of the model, such as `Explainer.adapter`.
        layer: layer, or its name, that gives a vector for each token, (B, N, C).
        batches: pairs of the model's inputs and a mask (B, N), true at the tokens to use.
        length: number of tokens of the texts to explain, including padding.

    Returns:
        An estimator for ``Explainer(..., estimator=...)``, with the same distribution at each of the `length`
        positions, (length, C).

    Raises:
        InputError: the features do not have the shape (B, N, C), the mask does not fit, or the masks are true
            at fewer than two tokens.

    Example:
        >>> import torch
        >>> from iba_core.framework.adapter import find_adapter
        >>> model = torch.nn.Sequential(torch.nn.Embedding(9, 4), torch.nn.Flatten(), torch.nn.Linear(12, 2))
        >>> tokens = torch.tensor([[1, 2, 0], [3, 4, 5]])  # 0 is padding
        >>> statistics = token_statistics(find_adapter(model), "0", [(tokens, tokens != 0)], length=3)
        >>> statistics.mean().shape, statistics.n_samples()
        ((3, 4), 5)
    """
    if not hasattr(adapter, "split") or not hasattr(adapter, "framework"):
        raise InputError(f"{given('adapter', adapter)} must be an adapter, such as Explainer.adapter")
    batches = require_batches("batches", batches)
    length = require_whole("length", length, 1, LARGEST_COUNT)
    require_layer("layer", layer)
    split = adapter.split(layer)
    estimator = WelfordEstimator()
    for batch in batches:
        if not isinstance(batch, (tuple, list)) or len(batch) != 2:
            raise InputError(f"batches holds a {type(batch).__name__}; pairs (inputs, mask) were expected")
        inputs, mask = batch
        features = adapter.framework.to_numpy(
            split.features(require_inputs("batches", inputs, adapter.to_inputs))
        )
        counts = require_mask("batches", mask)
        if features.ndim != 3 or features.shape[:2] != counts.shape:
            raise InputError(
                f"the features of layer {split.layer_name!r} have shape {features.shape} and the mask "
                f"{counts.shape}; they must be (texts, tokens, channels) and (texts, tokens)"
            )
        estimator.fit(features[counts])
    if estimator.n_samples() < 2:
        raise InputError(
            f"the masks of batches are true at {estimator.n_samples()} tokens; give at least 2, better some "
            "hundred"
        )
    count, *arrays = estimator.state_dict().values()
    everywhere = WelfordEstimator()
    repeated = (np.tile(array, (length, 1)) for array in arrays)
    everywhere.load_state_dict(dict(zip(STATE, (count, *repeated), strict=True)))
    return everywhere
