"""The result of one explained picture, as the command line prints it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from importlib.util import find_spec
from math import isnan
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image
from rich.table import Table
from rich.text import Text

from iba_core.attribution import Attribution
from iba_core.cli.console import folded, plain_table
from iba_core.cli.network import Network
from iba_core.errors import MissingDependencyError
from iba_core.explainer import Explainer
from iba_core.pictures.plotting import save_overlay
from iba_core.targets import ClassTarget

_TOP = 3
_MARK = "▸ "
_NAME_WIDTH, _CLASS_WIDTH = 13, 21

LEGEND = (
    f"Bits: information of the picture that keeps the class marked {_MARK.strip()}. "
    "Survives: share of that class's probability that remains when only these bits pass."
)


@dataclass(frozen=True)
class Result:
    """One explained picture.

    Attributes:
        name: name of the picture.
        picture: the part of the picture that the network sees, uint8, (H, W, 3).
        network: the network.
        attribution: attribution of this picture alone.
        probabilities: (K,), probabilities of the classes.
        seconds: time of the explanation.
    """

    name: str
    picture: npt.NDArray[np.uint8]
    network: Network
    attribution: Attribution
    probabilities: npt.NDArray[np.floating]
    seconds: float

    @classmethod
    def of(
        cls,
        name: str,
        image: Image.Image,
        network: Network,
        explainer: Explainer,
        target: ClassTarget | int | None,
        seed: int,
        **settings: Any,
    ) -> Result:
        """Explain a picture.

        Args:
            name: name of the picture.
            image: the picture.
            network: the network.
            explainer: explainer of the network.
            target: the class, or its index; None for the predicted class.
            seed: seed of the noise.
            **settings: see `BottleneckSettings`.
        """
        x = network.inputs(image)
        start = perf_counter()
        attribution = explainer.explain(x, target, seed=seed, **settings)
        seconds = perf_counter() - start
        return cls(
            name=name,
            picture=network.preprocessing.crop(image),
            network=network,
            attribution=attribution,
            probabilities=attribution.probabilities[0],
            seconds=seconds,
        )

    @property
    def target(self) -> int:
        """Index of the explained class."""
        assert self.attribution.classes is not None
        return int(self.attribution.classes[0])

    @property
    def bits(self) -> float:
        """Sum of the bits that pass."""
        return float(self.attribution.total_bits[0])

    @property
    def saliency(self) -> npt.NDArray[np.floating]:
        """Saliency (H, W) in bits per pixel."""
        saliency: npt.NDArray[np.floating] = self.attribution.saliency[0]
        return saliency

    @property
    def bits_per_pixel(self) -> float:
        """Mean of the saliency, in bits per pixel."""
        return self.bits / self.saliency.size

    @property
    def class_name(self) -> str:
        """Name of the explained class."""
        return self.network.class_name(self.target)

    @property
    def probability(self) -> float:
        """Probability of the explained class for the whole picture."""
        return float(self.probabilities[self.target])

    @property
    def survives(self) -> float:
        """Share of the probability that is left when only these bits pass."""
        assert self.attribution.survival is not None
        return float(self.attribution.survival[0])

    @property
    def kept(self) -> float:
        """Probability of the explained class when only these bits pass, mean over the noisy copies."""
        return self.survives * self.probability

    def save_picture(self, path: Path) -> None:
        """Write the picture and its map side by side, as a PNG."""
        kept = percent(self.kept)
        save_overlay(
            path,
            self.picture,
            {f"these bits alone: probability {kept}": self.saliency},
            title=f"{self.class_name} · {self.bits:,.0f} bits",
            subtitle=f"whole picture: probability {percent(self.probability)}",
        )


def require_plotting() -> None:
    """Check that matplotlib is installed, without importing it.

    Raises:
        MissingDependencyError: it is not.
    """
    if find_spec("matplotlib") is None:
        raise MissingDependencyError("drawing the maps needs matplotlib: pip install 'iba-core[plot]'")


def results_table(results: Iterable[Result], title: str | None = None) -> Table:
    """Make a table of explained pictures that fits into 80 columns."""
    table = plain_table(title)
    table.add_column("Photograph", max_width=_NAME_WIDTH)
    table.add_column("Class", max_width=len(_MARK) + _CLASS_WIDTH)
    table.add_column("Prob.", justify="right", no_wrap=True)
    table.add_column("Bits", justify="right", no_wrap=True)
    table.add_column("Bits per\npixel", justify="right", no_wrap=True)
    table.add_column("Survives", justify="right", no_wrap=True)
    table.add_column("Time", justify="right", no_wrap=True)
    for result in results:
        classes, chances = Text(), Text()
        for index in _shown_classes(result):
            marked = index == result.target
            label = folded(result.network.class_label(index), _CLASS_WIDTH).split("\n")
            style = "bold" if marked else ""
            classes.append((_MARK if marked else "  ") + "\n  ".join(label) + "\n", style)
            chances.append(percent(result.probabilities[index], digits=1) + "\n" * len(label), style)
        classes.rstrip()
        chances.rstrip()
        table.add_row(
            folded(result.name, _NAME_WIDTH),
            classes,
            chances,
            f"{result.bits:,.0f}",
            f"{result.bits_per_pixel:.3g}",
            percent(result.survives),
            f"{result.seconds:.1f} s",
        )
    return table


def percent(share: float, digits: int = 0) -> str:
    """Format a share of 1 in percent; a dash for NaN, the share of nothing."""
    return "-" if isnan(share) else f"{100 * share:.{digits}f} %"


def _shown_classes(result: Result) -> list[int]:
    """List the most probable classes, and the explained class if it is not among them."""
    top = [int(index) for index in np.argsort(-result.probabilities, kind="stable")[:_TOP]]
    return top if result.target in top else [*top, result.target]
