"""What a comparison of two models gives: numbers, a table, a figure, and the layer at which they part."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from os import PathLike
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from iba_core.arguments import require_number
from iba_core.errors import InputError
from iba_core.files import shown
from iba_core.framework.arrays import as_array
from iba_core.pictures.plotting import caption, require_matplotlib

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Numbers = npt.NDArray[np.float64]

CLEARLY = 10.0
"""How many times the differences before it a layer's must be to say that the models begin to differ there."""

OUTPUT = "the output"
"""Stands for the models' outputs where a layer is named."""


@dataclass(frozen=True)
class OutputDifference:
    """How the outputs of two models differ.

    Attributes:
        relative: root of the summed squares of the differences, as a share of that of the first one's values.
        largest: largest absolute difference.
        mean: mean absolute difference.
        same_class: share of the inputs for which both predict the same class; None if the outputs are of no
            classes.
        divergence_bits: mean Kullback-Leibler divergence of the second's probabilities from the first's, in
            bits; None if the outputs are not one distribution for each input.

    Example:
        >>> compare_models(model, model, [x]).outputs.same_class
        1.0
    """

    relative: float
    largest: float
    mean: float
    same_class: float | None
    divergence_bits: float | None


@dataclass(frozen=True)
class LayerDifference:
    """How the features of two paired layers differ.

    Attributes:
        first: the layer of the first model.
        second: its partner in the second.
        relative: as in `OutputDifference`.
        largest: largest absolute difference.

    Example:
        >>> compare_models(model, model, [x]).layers[0].second
        'conv'
    """

    first: str
    second: str
    relative: float
    largest: float


@dataclass(frozen=True, eq=False)
class MapDifference:
    """How the maps of two explainers differ.

    Attributes:
        layers: the layers that they explain at.
        pearson: (B,), correlation of the two maps of each input.
        spearman: (B,), that of their ranks.
        bits: total bits of both, (B,) each; None if one counts none.
        survival: share of the target that is left when only these bits pass, (B,) each; None if one does
            not tell.
        maps: both maps of the first few inputs, (N, *places), in bits per place.

    Example:
        >>> maps = compare_models(explainer, explainer, [x]).maps
        >>> maps.pearson.round(6), maps.bits[0].shape
        (array([1., 1.]), (2,))
    """

    layers: tuple[str, str]
    pearson: Numbers
    spearman: Numbers
    bits: tuple[Numbers, Numbers] | None
    survival: tuple[Numbers, Numbers] | None
    maps: tuple[Numbers, Numbers]


def where_they_part(
    relative: npt.ArrayLike, tolerance: float, factor: float = CLEARLY
) -> tuple[int | None, list[int]]:
    """Find the first of a sequence of differences that is no rounding and stays.

    Rounding grows from layer to layer, but slowly. A fault is a step: a difference above the tolerance and
    clearly above all before it. It cannot heal, so all that come after it, the outputs last, are above the
    tolerance, too. A difference that later ones do not have is no fault of the computation: the layer means
    something else in the other model, such as features before an activation, or lies on another branch.

    Args:
        relative: relative differences (N,) in the order in which the models compute, the outputs last.
        tolerance: what rounding may do.
        factor: how many times the differences before a step must be.

    Returns:
        Place of the first step, None if there is none; and the places of differences that do not stay.

    Raises:
        InputError: an argument is no number, or no sequence of them.

    Example:
        >>> where_they_part([1e-7, 4e-7, 0.2, 0.3, 0.1], tolerance=1e-4)
        (2, [])
        >>> where_they_part([1e-7, 0.9, 2e-7, 3e-7], tolerance=1e-4)
        (None, [1])
    """
    values = as_array("relative", relative).astype(np.float64)
    if values.ndim != 1 or not len(values):
        raise InputError(f"relative has shape {values.shape}; a sequence of numbers was expected")
    require_number("tolerance", tolerance, above=0)
    require_number("factor", factor, 1)
    over = ~(values <= tolerance)
    calm = np.flatnonzero(~over)
    start = int(calm[-1]) + 1 if len(calm) else 0
    alone = [int(place) for place in np.flatnonzero(over[:start])]
    before = float(values[:start][~over[:start]].max(initial=0.0))
    for place in range(start, len(values)):
        if not values[place] <= factor * before:
            return place, alone
        before = max(before, float(values[place]))
    return None, alone


@dataclass(frozen=True, eq=False, repr=False)
class ModelComparison:
    """Two models beside each other. `compare_models` returns it.

    Attributes:
        names: what the two are called.
        inputs: number of inputs.
        outputs: how their outputs differ.
        layers: how the features of paired layers differ, in the order in which the first model computes them.
        paired_by: what has paired them: ``"name"``, ``"order"``, ``"shape"`` or ``"you"``.
        tolerance: relative difference that rounding may make.
        maps: how the maps differ; None if models were given in place of explainers.
        seconds: for each phase, seconds per input of both models; for ``"statistics"``, which `iba compare`
            adds, seconds in all.

    Example:
        >>> compare_models(model, model, [x], names=("one", "other"))
        <ModelComparison of 'one' and 'other': they agree, outputs within 0 of each other; 5 paired layers>
    """

    names: tuple[str, str]
    inputs: int
    outputs: OutputDifference
    layers: tuple[LayerDifference, ...]
    paired_by: str
    tolerance: float
    maps: MapDifference | None
    seconds: Mapping[str, tuple[float, float]]

    @property
    def agree(self) -> bool:
        """Whether the outputs differ by no more than rounding."""
        return self.outputs.relative <= self.tolerance

    @cached_property
    def _parting(self) -> tuple[int | None, list[int]]:
        values = [*(layer.relative for layer in self.layers), self.outputs.relative]
        return where_they_part(values, self.tolerance)

    @property
    def begins_at(self) -> str | None:
        """The layer of the first model at which they begin to differ, or `OUTPUT`.

        None if they agree, or if the difference grows without a step.
        """
        place = self._parting[0]
        if place is None:
            return None
        return self.layers[place].first if place < len(self.layers) else OUTPUT

    @property
    def differ_alone(self) -> list[str]:
        """Layers whose features differ though later ones agree.

        Such a layer lies on another branch, or gives something else in the second model, such as features
        before an activation or in another order.
        """
        return [self.layers[place].first for place in self._parting[1]]

    @property
    def verdict(self) -> str:
        """In one or two sentences: whether they agree, or where they begin to differ."""
        place, alone = self._parting
        size = f"{self.outputs.relative:.2g}"
        if self.agree:
            text = (
                f"The models agree: the outputs differ by {size} of their size, no more than rounding makes "
                f"({self.tolerance:.2g})."
            )
        elif place is None:
            text = (
                f"The outputs differ by {size} of their size. The difference grows from layer to layer; it "
                "begins at none of them."
            )
        else:
            text = f"The models begin to differ at {self._named(place)}"
            before = [each.relative for i, each in enumerate(self.layers[:place]) if i not in alone]
            if place < len(self.layers):
                text += f", by {self.layers[place].relative:.2g} of the features' size"
            text += f"; before it, by {max(before):.2g} at most." if before else "."
            text += f" The outputs differ by {size} of their size."
        if alone:
            names = ", ".join(map(shown, self.differ_alone[:_SHOWN])) + (
                ", ..." if len(alone) > _SHOWN else ""
            )
            text += (
                " These layers differ though later ones agree, so they lie on another branch or give "
                f"something else in the second model: {names}."
            )
        return text

    def _named(self, place: int) -> str:
        if place == len(self.layers):
            return OUTPUT
        layer = self.layers[place]
        other = "" if layer.first == layer.second else f" ({shown(layer.second)} in the second)"
        return f"{shown(layer.first)}{other}"

    def to_dict(self) -> dict[str, Any]:
        """Everything but the maps as plain numbers and texts, which JSON can store."""
        outputs = {name: _plain(value) for name, value in vars(self.outputs).items()}
        found: dict[str, Any] = {
            "names": list(self.names),
            "inputs": self.inputs,
            "verdict": self.verdict,
            "agree": self.agree,
            "begins_at": self.begins_at,
            "differ_alone": self.differ_alone,
            "tolerance": self.tolerance,
            "paired_by": self.paired_by,
            "outputs": outputs,
            "layers": [{name: _plain(value) for name, value in vars(layer).items()} for layer in self.layers],
            "seconds": {phase: list(both) for phase, both in self.seconds.items()},
        }
        if self.maps is not None:
            found["maps"] = {
                "layers": list(self.maps.layers),
                "pearson": [_plain(value) for value in self.maps.pearson.tolist()],
                "spearman": [_plain(value) for value in self.maps.spearman.tolist()],
                **{
                    name: None
                    if both is None
                    else [[_plain(value) for value in each.tolist()] for each in both]
                    for name, both in (("bits", self.maps.bits), ("survival", self.maps.survival))
                },
            }
        return found

    def to_json(self) -> str:
        """What `to_dict` gives, as JSON."""
        return json.dumps(self.to_dict(), indent=1, allow_nan=False) + "\n"

    def rows(self) -> list[tuple[str, str, str]]:
        """What the table says: rows of a quantity and its value for each model, or for both in the first."""
        outputs, maps = self.outputs, self.maps
        rows = [
            ("outputs, relative difference", f"{outputs.relative:.2g}", ""),
            ("outputs, largest difference", f"{outputs.largest:.3g}", ""),
            ("outputs, mean difference", f"{outputs.mean:.3g}", ""),
        ]
        if outputs.same_class is not None:
            rows.append(("same class", f"{100 * outputs.same_class:.0f} %", ""))
        if outputs.divergence_bits is not None:
            rows.append(("divergence of the probabilities", f"{outputs.divergence_bits:.2g} bits", ""))
        if maps is not None:
            rows.append(("maps, correlation", f"{maps.pearson.mean():.4f}", ""))
            rows.append(("maps, rank correlation", f"{maps.spearman.mean():.4f}", ""))
            if maps.bits is not None:
                ours, theirs = (f"{each.mean():,.0f}" for each in maps.bits)
                rows.append(("bits, mean", ours, theirs))
            if maps.survival is not None:
                ours, theirs = (_percent(each) for each in maps.survival)
                rows.append(("survives, mean", ours, theirs))
        for phase, both in self.seconds.items():
            each = "" if phase == "statistics" else " each"
            rows.append((f"{phase}, seconds{each}", f"{both[0]:.3g}", f"{both[1]:.3g}"))
        return rows

    def shown_layers(self, most: int = 24) -> list[int]:
        """Places of the layers that a short table shows, among them those about the first difference."""
        count = len(self.layers)
        chosen = {round(place) for place in np.linspace(0, count - 1, min(most, count))}
        place = self._parting[0]
        if place is not None:
            chosen |= {each for each in range(place - 2, place + 3) if 0 <= each < count}
        return sorted(chosen)

    def __repr__(self) -> str:
        names = " and ".join(repr(shown(name)) for name in self.names)
        how = f"outputs within {self.outputs.relative:.2g} of each other"
        begin = "differ without a step" if self.begins_at is None else f"differ from {shown(self.begins_at)}"
        what = f"they agree, {how}" if self.agree else f"they {begin} on, {how}"
        return f"<ModelComparison of {names}: {what}; {len(self.layers)} paired layers>"

    def __str__(self) -> str:
        rows = [("", *map(shown, self.names)), *self.rows()]
        widths = [max(len(row[column]) for row in rows) for column in range(3)]
        lines = [
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
            for row in rows
        ]
        width = max((len(self._named(place)) for place in self.shown_layers()), default=0)
        lines += ["", f"{'features at'.ljust(width)}  relative difference"]
        for place in self.shown_layers():
            mark = " <- begins here" if place == self._parting[0] else ""
            lines.append(f"{self._named(place).ljust(width)}  {self.layers[place].relative:.2g}{mark}")
        return "\n".join(
            [*lines, "", f"{self.inputs} inputs; layers paired by {self.paired_by}", self.verdict]
        )

    def plot(
        self, path: str | PathLike[str] | None = None, pictures: Sequence[npt.ArrayLike] | None = None
    ) -> Figure:
        """Draw the differences over the layers, and below them the maps of the first few inputs.

        Args:
            path: file to write, a PNG; None to write none.
            pictures: the first inputs as pictures, to show in grey under their maps.

        Returns:
            The figure.

        Raises:
            MissingDependencyError: matplotlib is not installed.
        """
        require_matplotlib()
        from matplotlib.figure import Figure

        from iba_core.pictures.plotting import channels_last, plot_saliency_map, save_figure

        maps = None if self.maps is None or self.maps.maps[0].ndim != 3 else self.maps.maps
        columns = 1 if maps is None else len(maps[0])
        figure = Figure(figsize=(max(7.5, 2.6 * columns), 3.4 if maps is None else 8.2), layout="constrained")
        grid = figure.add_gridspec(1 if maps is None else 3, columns)
        self._draw_profile(figure.add_subplot(grid[0, :]))
        for column in range(columns if maps is not None else 0):
            assert maps is not None, "else there are no columns"
            assert self.maps is not None, "else there are no columns"
            top = max(float(each[column].max()) for each in maps) or None
            picture = None
            if pictures is not None and column < len(pictures):
                picture = channels_last(pictures[column], maps[0].shape[1:], "pictures")
            for row, (name, each) in enumerate(zip(self.names, maps, strict=True)):
                ax = figure.add_subplot(grid[row + 1, column])
                plot_saliency_map(
                    each[column], picture, ax, vmax=top, colorbar_fontsize=7, colorbar_size="4%"
                )
                bits = "" if self.maps.bits is None else f"\n{self.maps.bits[row][column]:,.0f} bits"
                ax.set_title(caption(f"{name}{bits}"), fontsize=9, parse_math=False)
        if path is not None:
            save_figure(figure, path)
        return figure

    def _draw_profile(self, ax: Axes) -> None:
        values = np.array([*(layer.relative for layer in self.layers), self.outputs.relative])
        # What is equal has no place on a scale of powers.
        least = min(self.tolerance, values[values > 0].min(initial=self.tolerance)) / 3
        heights = np.clip(np.nan_to_num(values, posinf=np.inf), least, 1e3)
        places = np.arange(len(values))
        ax.plot(places, heights, "-o", color="#1b6ca8", markersize=3, linewidth=1)
        ax.axhline(self.tolerance, color="#888888", linestyle="--", linewidth=0.8)
        ax.text(0, self.tolerance * 1.25, "what rounding may make", fontsize=7, color="#555555")
        start = self._parting[0]
        title = "The models agree" if self.agree else "The difference grows without a step"
        if start is not None:
            ax.plot(start, heights[start], "o", color="#c8102e", markersize=7)
            title = f"They begin to differ at {self._named(start)}"
        ax.set_yscale("log")
        ax.set_ylabel("relative difference", fontsize=8)
        ax.set_title(caption(title), fontsize=10, loc="left", parse_math=False)
        names = [*(layer.first for layer in self.layers), OUTPUT]
        ticks = sorted({round(place) for place in np.linspace(0, len(names) - 1, min(_TICKS, len(names)))})
        labels = [caption(names[place]) for place in ticks]
        ax.set_xticks(ticks, labels, rotation=40, ha="right", fontsize=7, parse_math=False)
        ax.tick_params(axis="y", labelsize=7)
        ax.grid(axis="y", alpha=0.3)
        ax.spines[["top", "right"]].set_visible(False)


_SHOWN = 4
_TICKS = 14
"""Names of layers under the figure."""


def _plain(value: Any) -> Any:
    return None if isinstance(value, float) and not np.isfinite(value) else value


def _percent(shares: Numbers) -> str:
    known = shares[np.isfinite(shares)]
    return f"{100 * known.mean():.0f} %" if len(known) else "-"
