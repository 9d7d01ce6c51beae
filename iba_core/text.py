"""Texts: how many bits each token carries, coloured, for a notebook, a web page or the terminal.

A layer of a language model gives a vector for each token. What follows from its capacity is the same for
every framework and every tokeniser: it takes strings and numbers.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import numpy as np
import numpy.typing as npt
from rich.color import Color
from rich.style import Style
from rich.text import Text

from iba_core.attribution import Attribution
from iba_core.bottleneck.estimator import STATE, WelfordEstimator
from iba_core.errors import InputError
from iba_core.framework.adapter import Inputs, ModelAdapter

_FULL = np.array([240, 110, 60])
"""Colour, in RGB, of the token with the most bits; a token of none is white."""


@dataclass(frozen=True, eq=False)
class TokenBits:
    """The bits that each token of a text carries.

    It shows itself in a notebook, and with ``rich.print`` in the terminal.

    Attributes:
        tokens: the tokens, or words, in order.
        bits: (N,), one number for each, not negative.

    Raises:
        InputError: there is not one finite number for each token.

    Example:
        >>> TokenBits.of_pieces(["a", "kit", "##ten"], [0.5, 2.0, 1.0])
        TokenBits(tokens=('a', 'kitten'), bits=array([0.5, 3. ]))
    """

    tokens: tuple[str, ...]
    bits: npt.NDArray[np.floating]

    def __post_init__(self) -> None:
        object.__setattr__(self, "tokens", tuple(self.tokens))
        object.__setattr__(self, "bits", np.asarray(self.bits, dtype=np.float64))
        if self.bits.shape != (len(self.tokens),) or not np.isfinite(self.bits).all():
            raise InputError(
                f"bits of shape {self.bits.shape} for {len(self.tokens)} tokens; give one finite number each"
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
        """Bits of the words of one text that was explained.

        Args:
            attribution: what `Explainer.explain` gave, at a layer with a vector for each token.
            tokens: the text's tokens, as many as the layer has vectors.
            shown: (N,), false for tokens that are to be left out, such as special ones and padding; all
                are shown if None.
            index: which text of the batch.
            continuation: mark of a token that goes on with the word before, as of `of_pieces`.

        Raises:
            InputError: the attribution is not of tokens, or the lengths differ.
        """
        if attribution.saliency.ndim != 2:
            raise InputError(
                f"the attribution has {attribution.saliency.ndim - 1} spatial axes for an input; of tokens "
                "there is one"
            )
        bits = attribution.saliency[index]
        kept = np.ones(len(bits), bool) if shown is None else np.asarray(shown).astype(bool)
        if not len(tokens) == len(bits) == kept.size:
            raise InputError(
                f"{len(tokens)} tokens and {kept.size} values of shown for the {len(bits)} tokens explained"
            )
        pieces = [token for token, keep in zip(tokens, kept, strict=True) if keep]
        return cls.of_pieces(pieces, bits[kept], continuation)

    @classmethod
    def of_pieces(cls, pieces: Iterable[str], bits: npt.ArrayLike, continuation: str = "##") -> TokenBits:
        """Bits of words, from those of the pieces into which a tokeniser broke them.

        Args:
            pieces: tokens.
            bits: (N,), one number for each.
            continuation: what a piece begins with that goes on with the word before, such as BERT's
                ``"##"``. If empty, every piece stays by itself.
        """
        words: list[str] = []
        sums: list[float] = []
        for piece, value in zip(pieces, np.asarray(bits, dtype=np.float64), strict=True):
            if continuation and words and piece.startswith(continuation):
                words[-1] += piece.removeprefix(continuation)
                sums[-1] += float(value)
            else:
                words.append(piece)
                sums.append(float(value))
        return cls(tuple(words), np.array(sums))

    def top(self, count: int = 3) -> list[tuple[str, float]]:
        """The `count` tokens with the most bits, most first."""
        order = np.argsort(-self.bits, kind="stable")[:count]
        return [(self.tokens[i], float(self.bits[i])) for i in order]

    def colours(self) -> npt.NDArray[np.uint8]:
        """(N, 3), RGB: from white for no bits to orange for the most that a token of this text has."""
        peak = self.bits.max(initial=0.0)
        shares = np.clip(self.bits / peak if peak else self.bits, 0, 1)
        colours: npt.NDArray[np.uint8] = np.round(255 + shares[:, None] * (_FULL - 255)).astype(np.uint8)
        return colours

    def to_html(self) -> str:
        """A paragraph of HTML, the tokens coloured, with their bits beneath and as tooltips.

        It needs no style sheet and no script, and what tokens hold is escaped.
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
        """Text for a `rich` console, the tokens coloured and the bits of all behind them."""
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


def token_statistics(
    adapter: ModelAdapter, layer: Any, batches: Iterable[tuple[Inputs, npt.ArrayLike]], length: int
) -> WelfordEstimator:
    """Distribution of a layer's features over the tokens of many texts, wherever in a text they stand.

    `Explainer.fit` keeps a distribution for each place of the feature map. In a text, a place means
    little, and at many there is padding: so every token counts here as one sample of one distribution.

    Args:
        adapter: the model's framework, such as `Explainer.adapter`.
        layer: a layer, or its name, with a vector for each token, (B, N, C).
        batches: pairs of the model's inputs and a mask (B, N), true at the tokens that count.
        length: the number of tokens of the texts to be explained, padding included.

    Returns:
        An estimator for ``Explainer(..., estimator=...)``, with the same distribution at each of the
        `length` places, (length, C).

    Raises:
        InputError: the features are not of the shape (B, N, C), the mask does not fit, or fewer than two
            tokens count.
    """
    cut = adapter.cut(layer)
    estimator = WelfordEstimator()
    for inputs, mask in batches:
        features = adapter.to_numpy(cut.features(adapter.to_inputs(inputs)))
        counts = np.asarray(mask).astype(bool)
        if features.ndim != 3 or features.shape[:2] != counts.shape:
            raise InputError(
                f"the features of layer {cut.layer_name!r} have shape {features.shape} and the mask "
                f"{counts.shape}; (texts, tokens, channels) and (texts, tokens) were expected"
            )
        estimator.fit(features[counts])
    if estimator.n_samples() < 2:
        raise InputError(
            f"batches held {estimator.n_samples()} tokens that count; at least 2 are needed, and some "
            "hundred are advised"
        )
    count, *arrays = estimator.state_dict().values()
    spread = WelfordEstimator()
    repeated = (np.tile(array, (length, 1)) for array in arrays)
    spread.load_state_dict(dict(zip(STATE, (count, *repeated), strict=True)))
    return spread
