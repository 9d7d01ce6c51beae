"""Several explanations of the same inputs: of seeds, of betas, of layers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from iba_core.arguments import require_choice, require_number, require_sequence, require_type, require_whole
from iba_core.attribution import Attribution, require_combinable
from iba_core.bottleneck.saliency import COMBINE, Combine, combined_shares
from iba_core.errors import InputError
from iba_core.pictures.plotting import caption, channels_last, plot_saliency_map, require_matplotlib

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Maps = npt.NDArray[np.floating]


@dataclass(frozen=True, eq=False, repr=False)
class Repeats:
    """Explanations of the same B images with different noise. `Explainer.explain_seeds` returns them.

    Attributes:
        attributions: one for each seed, at least two.

    Example:
        >>> repeats = explainer.explain_seeds(x, 1, seeds=3)
        >>> len(repeats.attributions), repeats.saliency.shape, repeats.total_bits_std.shape
        (3, (2, 8, 8), (2,))
    """

    attributions: tuple[Attribution, ...]

    def __post_init__(self) -> None:
        require_sequence("attributions", self.attributions, "attributions")
        for each in self.attributions:
            require_type("attributions", each, Attribution, "a list of attributions")
        if len(self.attributions) < 2 or len({each.saliency.shape for each in self.attributions}) > 1:
            raise InputError("attributions must be at least two, of the same images")

    def __repr__(self) -> str:
        bits = zip(self.total_bits[:_SHOWN], self.total_bits_std[:_SHOWN], strict=True)
        shown = ", ".join(f"{mean:,.0f} ± {std:,.0f} bits" for mean, std in bits)
        more = ", ..." if len(self.total_bits) > _SHOWN else ""
        return f"<Repeats: {len(self.attributions)} seeds; {shown}{more}>"

    @property
    def saliency(self) -> Maps:
        """Mean of the maps, (B, H, W), in bits per pixel."""
        return np.asarray(self._maps.mean(axis=0))

    @property
    def saliency_std(self) -> Maps:
        """Standard deviation of a single map over the seeds, (B, H, W), in bits per pixel."""
        return np.asarray(self._maps.std(axis=0, ddof=1))

    @property
    def total_bits(self) -> Maps:
        """Mean of the bits of each image, (B,)."""
        return np.asarray(self._bits.mean(axis=0))

    @property
    def total_bits_std(self) -> Maps:
        """Standard deviation of the bits of a single explanation over the seeds, (B,)."""
        return np.asarray(self._bits.std(axis=0, ddof=1))

    def sure(self, factor: float = 2.0) -> Maps:
        """Maps that show the mean only where it is more than `factor` standard errors above 0, (B, H, W).

        Args:
            factor: standard errors of the mean map.
        """
        factor = require_number("factor", factor, 0)
        error = self.saliency_std / np.sqrt(len(self.attributions))
        return np.where(self.saliency > factor * error, self.saliency, 0.0)

    def plot(
        self,
        image: npt.NDArray[Any] | None = None,
        index: int = 0,
        factor: float = 2.0,
        ax: Axes | None = None,
        **options: Any,
    ) -> Axes:
        """Draw where the map of one image is sure.

        Args:
            image: as in `Attribution.plot`.
            index: number of the image in the batch.
            factor: as in `sure`.
            ax: axes to draw into; None for a new figure.
            **options: see `iba_core.plot_saliency_map`.

        Returns:
            The axes.

        Raises:
            InputError: the maps do not have two spatial axes.
        """
        maps = self.sure(factor)
        index = require_whole("index", index, -len(maps), len(maps) - 1)
        if maps.ndim != 3:
            raise InputError(f"only maps with two spatial axes can be drawn; these have {maps.ndim - 1}")
        return plot_saliency_map(maps[index], image, ax, **options)

    @property
    def _maps(self) -> Maps:
        return np.stack([each.saliency for each in self.attributions])

    @property
    def _bits(self) -> Maps:
        return np.stack([each.total_bits for each in self.attributions])


@dataclass(frozen=True, eq=False)
class SurvivalCurve:
    """What survives of the targets of B images, against the bits. `Explainer.survival_curve` returns it.

    Attributes:
        betas: (N,), in ascending order.
        bits: (N, B), bits in total.
        survival: (N, B), see `Attribution.survival`.
        survival_std: (N, B), its standard deviation over noisy copies.

    Example:
        >>> curve = explainer.survival_curve(x, 1, betas=(1, 10), seed=0)
        >>> bool((curve.bits[0] > curve.bits[1]).all())
        True
    """

    betas: Maps
    bits: Maps
    survival: Maps
    survival_std: Maps


def compare(
    attributions: Mapping[str, Attribution], picture: npt.ArrayLike | None = None, index: int = 0
) -> Figure:
    """Draw maps of one image beside each other on one scale: of classes, layers, methods or frameworks.

    One scale lets a map of 15 bits look as weak as it is beside one of 3,000.

    Args:
        attributions: what to draw, by the line above each.
        picture: as in `Attribution.plot`.
        index: number of the image in each batch.

    Returns:
        The figure. ``compare(...).savefig("maps.png")`` writes it.

    Raises:
        InputError: there are no attributions, or their maps do not have two spatial axes of one shape.
        MissingDependencyError: matplotlib is not installed.

    Example:
        >>> classes = {f"class {k}": explainer.explain(x, target=k, seed=0) for k in (0, 1)}
        >>> len(compare(classes).axes)  # two maps, and a colour bar for each
        4
    """
    require_type("attributions", attributions, Mapping, "a dict of attributions by the line above each")
    require_sequence("attributions", list(attributions), "attributions")
    for each in attributions.values():
        require_type("attributions", each, Attribution, "a dict of attributions")
    shapes = {each.saliency.shape[1:] for each in attributions.values()}
    if len(shapes) > 1 or len(shape := shapes.pop()) != 2:
        raise InputError("the maps to compare must have two spatial axes, of one shape")
    require_matplotlib()
    from matplotlib.figure import Figure

    index = require_whole("index", index, 0, min(map(len, attributions.values())) - 1)
    if picture is not None:
        picture = channels_last(picture, shape, "picture")
        if picture.shape[:2] != shape or picture.shape[2:] not in ((), (1,), (3,)):
            raise InputError(f"picture has shape {picture.shape}, which does not fit maps of {shape}")
    top = max(float(each.saliency[index].max()) for each in attributions.values()) or None
    height = 3.0
    width = height * shape[1] / shape[0] + 0.9
    figure = Figure(figsize=(width * len(attributions), height + 0.5), layout="constrained")
    for ax, (line, each) in zip(
        figure.subplots(1, len(attributions), squeeze=False)[0], attributions.items(), strict=True
    ):
        each.plot(picture, index, ax, vmax=top, colorbar_fontsize=8, colorbar_size="4%")
        bits = f"{each.total_bits[index]:,.0f} bits"
        ax.set_title(caption(f"{line}\n{bits}"), fontsize=10, parse_math=False)
    return figure


def combine_maps(attributions: Sequence[Attribution], combine: Combine = "geometric") -> Maps:
    """Make one map for each image of explanations at several layers.

    Each map is first scaled to a sum of 1, so that a layer with more bits does not outweigh the others. Maps
    of the size of the input are needed; smaller ones are resized to the largest.

    Args:
        attributions: of the same images, at different layers of one model. Each stays as it is.
        combine: ``"geometric"`` for the geometric mean, which is high only where all layers agree, or
            ``"mean"``.

    Returns:
        Array (B, *spatial axes) whose maps sum to 1. It is in shares, since bits of two layers do not add up.

    Raises:
        InputError: there are no attributions, or they are of different numbers of images or axes.

    Example:
        >>> shallow = explainer.explain(x, target=1, seed=0)
        >>> deep = explainer.explain(x, target=1, seed=1)
        >>> combine_maps([shallow, deep]).sum(axis=(1, 2)).round(6)
        array([1., 1.])
    """
    require_combinable("attributions", attributions)
    require_choice("combine", combine, COMBINE)
    return combined_shares([each.saliency for each in attributions], combine)


_SHOWN = 4
"""Images that the printed form shows."""
