"""The result of an explanation."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from html import escape
from os import PathLike
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import numpy.typing as npt

from iba_core.arguments import require_choice, require_sequence, require_type, require_whole
from iba_core.bottleneck.saliency import COMBINE_LAYERS, CombineLayers, combined_shares, to_bits
from iba_core.bottleneck.settings import BottleneckSettings
from iba_core.errors import InputError, MissingDependencyError, StateError
from iba_core.files import shown
from iba_core.framework.layout import DataFormat, Layout
from iba_core.pictures.plotting import (
    channels_last,
    maps_as_html,
    plot_saliency_map,
    plot_signal_map,
    plot_volume_map,
    plot_words,
)
from iba_core.state import interpreting, put_together, read_state, taken_out, write_state
from iba_core.targets import class_probabilities

if TYPE_CHECKING:
    import pandas
    from matplotlib.axes import Axes

_KIND = "attribution"


@dataclass(frozen=True, eq=False, repr=False)
class Attribution:
    """How many bits of each part of B images a model needs. `Explainer.explain` returns it.

    Attributes:
        saliency: (B, H, W), or as many spatial axes as the feature map has, in bits per pixel. The sum of
            an image's map equals its total bits, without those of prefix tokens, which are not on the map.
        capacity: (B, *feature map), in nats, in the model's own data format.
        mask: lambda, (B, *feature map) in (0, 1): the share of each feature that passes. It has no meaning
            where the bottleneck does not act, in inactive neurons and where a `pass_mask` is set.
        outputs: the model's outputs for the unrestricted images, or the outputs of the layer that the target
            is about.
        classes: (B,), the explained classes; None if the target is not a class.
        model_losses: (steps, B), the model's loss before each step.
        informations: (steps, B), the weighted information before each step, in nats.
        layer: name of the layer that the bottleneck comes after.
        data_format: where the channels of `capacity` and `mask` are.
        settings: the hyperparameters.
        seed: seed of the noise; None if it had none.
        steps_taken: (B,), optimiser steps until the map had converged; all steps unless `settings` have a
            tolerance. None in files of older versions.
        activation: the function that the outputs end in, ``"softmax"``, ``"sigmoid"``, ``"other"``, or
            ``"unknown"``; ``"sigmoid_logits"`` where the target applies a sigmoid. None in files of older
            versions.
        class_names: (B,), the names of the explained classes; None if they are not known.
        survival: (B,), share of the target that is left when only these bits pass, mean over noisy copies. It
            is a share of the class's probability, or of a score above the score when nothing passes. NaN
            where there is nothing to keep. None in files of older versions.
        survival_std: (B,), its standard deviation over the noisy copies.
        betas: (B,), the beta of each image, with ``beta="auto"`` that of its last step. None in files of
            older versions.
        complete: whether the model reads its input through the layer alone. If not, as for a layer beside a
            skip connection, the map and its bits are about one of several ways. None if that is not known.

    Example:
        >>> attribution = explainer.explain(x, target=1, seed=0)
        >>> bool(np.allclose(attribution.saliency.sum(axis=(1, 2)), attribution.total_bits))
        True
    """

    saliency: npt.NDArray[np.floating]
    capacity: npt.NDArray[np.floating]
    mask: npt.NDArray[np.floating]
    outputs: npt.NDArray[Any]
    model_losses: npt.NDArray[np.floating]
    informations: npt.NDArray[np.floating]
    layer: str
    data_format: DataFormat
    settings: BottleneckSettings = field(default_factory=BottleneckSettings)
    classes: npt.NDArray[np.integer] | None = None
    seed: int | None = None
    steps_taken: npt.NDArray[np.integer] | None = None
    activation: str | None = None
    complete: bool | None = None
    survival: npt.NDArray[np.floating] | None = None
    survival_std: npt.NDArray[np.floating] | None = None
    betas: npt.NDArray[np.floating] | None = None
    class_names: tuple[str, ...] | None = None

    def __repr__(self) -> str:
        bits = ", ".join(f"{each:,.0f}" for each in self.total_bits[:_SHOWN])
        parts = [f"{len(self)} image{'' if len(self) == 1 else 's'} at layer {self.layer!r}"]
        more = ", ..." if len(self) > _SHOWN else ""
        if self.class_names is not None:
            parts.append(", ".join(map(shown, self.class_names[:_SHOWN])) + more)
        parts.append(f"bits {bits}{more}")
        if self.survival is not None and self.survival_std is not None:
            pairs = zip(self.survival[:_SHOWN], self.survival_std[:_SHOWN], strict=True)
            parts.append("survival " + ", ".join(f"{each:.2f} ± {std:.2f}" for each, std in pairs) + more)
        return f"<{type(self).__name__}: {'; '.join(parts)}>"

    def _repr_html_(self) -> str:
        """What a notebook shows: a table with a row for each image, and the maps if matplotlib is there."""
        rows = self.to_dict()["images"][:_ROWS]
        heads = list(rows[0]) if rows else []
        body = "".join(
            f"<tr>{''.join(f'<td>{_cell(row[head])}</td>' for head in heads)}</tr>" for row in rows
        )
        more = "" if len(self) <= _ROWS else f"<p>and {len(self) - _ROWS} more</p>"
        images = f"{len(self)} image{'' if len(self) == 1 else 's'}"
        return (
            f"<p>{images} at layer <code>{escape(self.layer)}</code></p>"
            f"<table><tr>{''.join(f'<th>{head}</th>' for head in heads)}</tr>{body}</table>{more}"
            + maps_as_html(self.saliency[:_SHOWN])
        )

    def __len__(self) -> int:
        """Number of images."""
        return len(self.saliency)

    def __getitem__(self, index: int | slice) -> Self:
        """The attribution of one image, or of several.

        Args:
            index: number of an image, or a slice of them.

        Raises:
            IndexError: there is no such image.
            InputError: `index` is neither a whole number nor a slice.

        Example:
            >>> attribution = explainer.explain(x, target=1, seed=0)
            >>> len(attribution[-1]), len(attribution[:2])
            (1, 2)
        """
        if not isinstance(index, slice):
            index = require_whole("index", index, -sys.maxsize)
            if not -len(self) <= index < len(self):
                raise IndexError(f"index={index} of {len(self)} images")
            index = slice(index % len(self), index % len(self) + 1)
        chosen: dict[str, Any] = {
            name: array[:, index] if name in _PER_STEP else array[index]
            for name in _ARRAYS
            if (array := getattr(self, name)) is not None
        }
        names = None if self.class_names is None else self.class_names[index]
        return replace(self, **chosen, class_names=names)

    def __iter__(self) -> Iterator[Self]:
        """The attribution of each image in turn."""
        return (self[index] for index in range(len(self)))

    def to_dict(self) -> dict[str, Any]:
        """The numbers of each image as plain Python values, which JSON can store.

        `to_dataframe` makes a table of them.

        Returns:
            A dict with `layer`, `seed`, `settings`, and under ``"images"`` a dict for each image: its bits,
            its class and the class's probability, survival and beta, as far as they are known.

        Example:
            >>> first = explainer.explain(x, target=1, seed=0).to_dict()["images"][0]
            >>> list(first)
            ['bits', 'class', 'probability', 'survival', 'survival_std', 'beta']
        """
        columns = self._columns().items()
        known = {name: values.tolist() for name, values in columns if values is not None}
        if self.class_names is not None:
            known = {"name": list(self.class_names), **known}
        images = [dict(zip(known, row, strict=True)) for row in zip(*known.values(), strict=True)]
        return {"layer": self.layer, "seed": self.seed, "settings": asdict(self.settings), "images": images}

    def _columns(self) -> dict[str, npt.NDArray[Any] | None]:
        """Numbers of the images, (B,) each, by name; None for those that are not known."""
        return {
            "bits": self.total_bits,
            "class": self.classes,
            "probability": self._class_probabilities(),
            "survival": self.survival,
            "survival_std": self.survival_std,
            "beta": self.betas,
        }

    def _class_probabilities(self) -> npt.NDArray[np.floating] | None:
        if self.classes is None or self.outputs.ndim != 2:
            return None
        return np.asarray(self.probabilities[np.arange(len(self)), self.classes])

    @property
    def total_bits(self) -> npt.NDArray[np.floating]:
        """Bits that pass the bottleneck, in total for each image, (B,)."""
        return to_bits(self.capacity.reshape(len(self), -1).sum(axis=1))

    @property
    def probabilities(self) -> npt.NDArray[np.floating]:
        """Probabilities of the classes for the unrestricted images, (B, K).

        Those of a single sigmoid are of two classes, absent and present.

        Raises:
            InputError: the outputs are not those of a classifier.
        """
        if self.outputs.ndim != 2:
            raise InputError(f"outputs of shape {self.outputs.shape} are not those of a classifier")
        return class_probabilities(self.outputs, self.activation)

    @property
    def layout(self) -> Layout:
        """Meaning of the axes of one image's capacity."""
        return Layout.of(self.capacity.shape[1:], self.data_format)

    def capacity_channels_first(self) -> npt.NDArray[np.floating]:
        """Capacity with channels first, (B, C, ...), in nats. It lets you compare frameworks."""
        axes = self.layout.to_channels_first()
        return self.capacity.transpose(0, *(axis + 1 for axis in axes))

    def to_dataframe(self) -> pandas.DataFrame:
        """The numbers of each image as a table of pandas, a row for each, see `to_dict`.

        Raises:
            MissingDependencyError: pandas is not installed.

        Example:
            >>> table = explainer.explain(x, target=1, seed=0).to_dataframe()
            >>> list(table.columns)[:2], len(table)
            (['bits', 'class'], 2)
        """
        try:
            import pandas
        except ImportError as error:
            raise MissingDependencyError("to_dataframe needs pandas: pip install pandas") from error
        return pandas.DataFrame(self.to_dict()["images"])

    def plot(
        self,
        image: npt.ArrayLike | Sequence[str] | None = None,
        index: int = 0,
        ax: Axes | None = None,
        **options: Any,
    ) -> Axes:
        """Draw the saliency map of one image, signal, volume or text.

        Args:
            image: what was explained, to show with the map: a picture, (H, W), (H, W, 3) or (3, H, W); a
                signal, (T,), (T, C) or (C, T); a volume, (D, H, W) or (1, D, H, W); or the words of a text,
                one for each token on the map.
            index: number of the image in the batch.
            ax: axes to draw into; None for a new figure.
            **options: see `iba_core.plot_saliency_map`, `iba_core.plot_signal_map` for signals,
                `iba_core.plot_volume_map` for volumes or `iba_core.plot_words` for words.

        Returns:
            The axes.

        Raises:
            InputError: the map has no place, or `image` does not fit it.
        """
        index = require_whole("index", index, -len(self), len(self) - 1)
        if self.saliency.ndim == 1:
            raise InputError(
                f"the features of layer {self.layer!r} have no places, so there is no map to draw; "
                "total_bits has the bits of each input"
            )
        bits = self.saliency[index]
        if isinstance(image, (list, tuple)) and image and isinstance(image[0], str):
            if bits.ndim != 1:
                raise InputError("image holds words, but the map is not that of a text")
            return plot_words(image, bits, ax, **options)
        if bits.ndim == 1:
            return plot_signal_map(bits, image, ax, **options)
        if bits.ndim == 3:
            return plot_volume_map(bits, image, ax, **options)
        if image is not None:
            image = channels_last(image, bits.shape)
        return plot_saliency_map(bits, image, ax, **options)

    def save(self, path: str | PathLike[str]) -> None:
        """Write everything to a safetensors file.

        Args:
            path: file to write.
        """
        write_state(path, self._stored_arrays(), _KIND, self._stored_facts())

    def _stored_arrays(self) -> dict[str, npt.NDArray[Any]]:
        return {name: getattr(self, name) for name in _ARRAYS if getattr(self, name) is not None}

    def _stored_facts(self) -> dict[str, Any]:
        return {
            "layer": self.layer,
            "data_format": self.data_format,
            "seed": self.seed,
            "activation": self.activation,
            "complete": self.complete,
            "class_names": self.class_names,
            "settings": asdict(self.settings),
        }

    @classmethod
    def load(cls, path: str | PathLike[str]) -> Attribution:
        """Read a file that `save` wrote.

        Args:
            path: file to read.

        Returns:
            The attribution; a `CombinedAttribution` if it is of several layers.

        Raises:
            StateError: the file is missing, truncated or of another kind.
        """
        arrays, facts = read_state(path, _KIND)
        with interpreting(path, _KIND):
            if "parts" not in facts:
                return Attribution._of_stored(arrays, facts)
            parts = [
                Attribution._of_stored(taken_out(arrays, number), each)
                for number, each in enumerate(facts["parts"])
            ]
            return CombinedAttribution(parts, facts["combine"])

    @classmethod
    def _of_stored(cls, arrays: Mapping[str, npt.NDArray[Any]], facts: Mapping[str, Any]) -> Self:
        values: dict[str, Any] = {**arrays, **facts, "settings": BottleneckSettings(**facts["settings"])}
        if (names := facts.get("class_names")) is not None:
            values["class_names"] = tuple(names)
        attribution = cls(**values)
        attribution._require_sound()
        return attribution

    def _require_sound(self) -> None:
        """Refuse what no explanation gives.

        Raises:
            StateError: an array has a shape that does not fit, or values that cannot be.
        """
        images = len(self)
        for name in _ARRAYS:
            array = getattr(self, name)
            if array is None and name in _MISSING:
                continue
            if array.ndim == 0 or array.shape[int(name in _PER_STEP)] != images:
                raise StateError(f"{name} has shape {array.shape}, which does not fit {images} images")
            # The outputs are the model's own: of any dtype, and perhaps minus infinity.
            if name == "outputs":
                continue
            if array.dtype.kind not in ("iu" if name in _WHOLE else "f"):
                raise StateError(f"{name} has dtype {array.dtype}")
            if not np.isfinite(array).all() and not (name in _SURVIVAL and not np.isinf(array).any()):
                raise StateError(f"{name} holds a value that is not finite")
        if self.mask.shape != self.capacity.shape:
            raise StateError(f"mask has shape {self.mask.shape} and capacity {self.capacity.shape}")
        for name, least, most in (("mask", 0, 1), ("capacity", 0, np.inf), ("saliency", 0, np.inf)):
            array = getattr(self, name)
            # All three are so up to rounding.
            if array.size and (array.min() < least - _ROUNDING or array.max() > most + _ROUNDING):
                raise StateError(f"{name} has values from {array.min():g} to {array.max():g}")
        kinds: dict[str, type | tuple[type, ...]] = {
            "layer": str,
            "seed": (int, type(None)),
            "activation": (str, type(None)),
            "complete": (bool, type(None)),
        }
        for name, kind in kinds.items():
            if not isinstance(getattr(self, name), kind):
                raise StateError(f"{name}={getattr(self, name)!r} cannot be")
        names = self.class_names
        if names is not None and (len(names) != images or not all(isinstance(each, str) for each in names)):
            raise StateError(f"class_names={names!r} are no names of {images} classes")
        Layout.of(self.capacity.shape[1:], self.data_format)

    @classmethod
    def concatenate(cls, parts: Sequence[Self]) -> Self:
        """Join attributions that agree in everything but the images.

        Args:
            parts: at least one attribution.

        Raises:
            InputError: `parts` is empty, or holds something else.
        """
        require_sequence("parts", parts, "attributions")
        for part in parts:
            require_type("parts", part, Attribution, "a list of attributions")
        joined: dict[str, Any] = {
            name: np.concatenate([getattr(part, name) for part in parts], axis=int(name in _PER_STEP))
            for name in _ARRAYS
            if getattr(parts[0], name) is not None
        }
        names = [part.class_names for part in parts if part.class_names is not None]
        joined["class_names"] = sum(names, ()) if len(names) == len(parts) else None
        return replace(parts[0], **joined)


class CombinedAttribution(Attribution):
    """Explanations of the same B images at several layers, and one map of them.

    `Explainer.explain` returns it where the explainer has several layers. Each layer has a bottleneck of its
    own, and its bits bound what the target needs there; bits of two layers do not add up. So the map is that
    of the places on which the layers agree, with the mean of their bits in total, and all that is of one
    layer alone stays in `parts`: capacity, mask, and the curves of the steps.

    Args:
        parts: attributions of the same images and target, at least one, each at a layer of its own.
        combine: ``"geometric"`` for the geometric mean of the maps, each scaled to the same sum, which is
            high only where all layers agree; or their ``"mean"``. ``"shared"`` says that the layers were
            explained with one mask. The same mask lets other bits pass at each layer, since their features
            differ, so the map is the mean there.

    Attributes:
        parts: the attributions, in the order of the layers.
        combine: as given.
        saliency: (B, *places), in bits per pixel. The sum of a map is the mean of the layers' sums.
        survival: (B,), the least over the layers. Each is measured with the bits of its layer alone.
        survival_std: (B,), that of the same layer.
        betas: (B,), if all layers have the same beta; otherwise None.
        layer: the names of all layers, joined by commas.
        complete: whether each layer alone is all that the output depends on.

    Raises:
        InputError: the parts are not of the same images and classes, or have maps of different numbers of
            axes.

    Example:
        >>> shallow, deep = (explainer.explain(x, target=1, seed=seed) for seed in (0, 1))
        >>> combined = CombinedAttribution([shallow, deep])
        >>> bool(np.allclose(combined.total_bits, (shallow.total_bits + deep.total_bits) / 2))
        True
    """

    parts: tuple[Attribution, ...]
    combine: CombineLayers

    def __init__(self, parts: Sequence[Attribution], combine: CombineLayers = "geometric") -> None:
        require_combinable("parts", parts)
        require_choice("combine", combine, COMBINE_LAYERS)
        first = parts[0]
        if any(not _equal(first.classes, part.classes) for part in parts):
            raise InputError("parts must be of the same classes")
        shares = combined_shares(
            [part.saliency for part in parts], "mean" if combine == "shared" else combine
        )
        on_maps = [part.saliency.reshape(len(first), -1).sum(axis=1, dtype=np.float64) for part in parts]
        bits = np.mean(on_maps, axis=0).reshape(-1, *(1,) * (shares.ndim - 1))
        survival, survival_std = _least_survival(parts)
        betas = first.betas
        complete = {part.complete for part in parts}
        vars(self).update(
            parts=tuple(parts),
            combine=combine,
            saliency=np.asarray(shares * bits, dtype=first.saliency.dtype),
            outputs=first.outputs,
            classes=first.classes,
            layer=", ".join(part.layer for part in parts),
            data_format=first.data_format,
            settings=first.settings,
            seed=first.seed,
            activation=first.activation,
            class_names=first.class_names,
            complete=False if False in complete else None if None in complete else True,
            survival=survival,
            survival_std=survival_std,
            betas=betas if all(_equal(betas, part.betas) for part in parts) else None,
        )

    def __getattr__(self, name: str) -> Any:
        if name in _OF_ONE_LAYER:
            raise AttributeError(
                f"{name} is of one layer, and this attribution of {self.layer}: take it from one of its parts"
            )
        raise AttributeError(f"{type(self).__name__!r} has no attribute {name!r}")

    def __repr__(self) -> str:
        return f"{super().__repr__()[:-1]}; {_COMBINED[self.combine]}>"

    def __getitem__(self, index: int | slice) -> Self:
        """As `Attribution.__getitem__`."""
        return type(self)([part[index] for part in self.parts], self.combine)

    @property
    def total_bits(self) -> npt.NDArray[np.floating]:
        """Mean over the layers of the bits that pass their bottlenecks, (B,)."""
        return np.asarray(np.mean([part.total_bits for part in self.parts], axis=0))

    def _columns(self) -> dict[str, npt.NDArray[Any] | None]:
        of_layers = {
            f"{name} at {part.layer}": values
            for part in self.parts
            for name, values in (("bits", part.total_bits), ("survival", part.survival))
        }
        return {**super()._columns(), **of_layers}

    def _stored_arrays(self) -> dict[str, npt.NDArray[Any]]:
        return put_together([part._stored_arrays() for part in self.parts])

    def _stored_facts(self) -> dict[str, Any]:
        return {"combine": self.combine, "parts": [part._stored_facts() for part in self.parts]}

    @classmethod
    def concatenate(cls, parts: Sequence[Self]) -> Self:
        """Join attributions that agree in everything but the images.

        Args:
            parts: at least one attribution of several layers, all of the same.

        Raises:
            InputError: `parts` is empty, or holds something else.
        """
        require_sequence("parts", parts, "attributions")
        for each in parts:
            require_type("parts", each, CombinedAttribution, "a list of attributions of several layers")
        if len({(each.layer, each.combine) for each in parts}) > 1:
            raise InputError("parts must be of the same layers, combined in the same way")
        of_layers = zip(*(each.parts for each in parts), strict=True)
        return cls([Attribution.concatenate(layer) for layer in of_layers], parts[0].combine)


def require_combinable(name: str, attributions: Any) -> None:
    """Check attributions that are to make one map.

    Args:
        name: name of the argument.
        attributions: the argument.

    Raises:
        InputError: they are no list of attributions, or of different numbers of images or axes.
    """
    require_sequence(name, attributions, "attributions")
    for each in attributions:
        require_type(name, each, Attribution, "a list of attributions")
    if len({(len(each), each.saliency.ndim) for each in attributions}) > 1:
        raise InputError(f"{name} must be of the same images, with maps of as many axes")


def _least_survival(
    parts: Sequence[Attribution],
) -> tuple[npt.NDArray[np.floating] | None, npt.NDArray[np.floating] | None]:
    """The least survival of each image over the layers, with its spread, (B,) each; None if unknown."""
    known = [part.survival for part in parts if part.survival is not None]
    spreads = [part.survival_std for part in parts if part.survival_std is not None]
    if len(known) < len(parts) or len(spreads) < len(parts):
        return None, None
    # NaN, where there is nothing to keep, is so at every layer, up to rounding.
    worst = np.argmin(np.nan_to_num(known, nan=np.inf), axis=0)[None]
    survival, spread = (np.take_along_axis(np.stack(each), worst, axis=0)[0] for each in (known, spreads))
    return survival, spread


def _equal(a: npt.NDArray[Any] | None, b: npt.NDArray[Any] | None) -> bool:
    return a is b or (a is not None and b is not None and np.array_equal(a, b))


_COMBINED = {
    "geometric": "geometric mean of the maps",
    "mean": "mean of the maps",
    "shared": "mean of the maps with one mask",
}

_OF_ONE_LAYER = ("capacity", "mask", "model_losses", "informations", "steps_taken")
"""Attributes that an attribution of several layers lacks."""

_ARRAYS = (
    "saliency",
    "capacity",
    "mask",
    "outputs",
    "classes",
    "model_losses",
    "informations",
    "steps_taken",
    "survival",
    "survival_std",
    "betas",
)
_PER_STEP = ("model_losses", "informations")
_WHOLE = ("classes", "steps_taken")
_SURVIVAL = ("survival", "survival_std")
_MISSING = (*_WHOLE, *_SURVIVAL, "betas")
_ROUNDING = 1e-3
_SHOWN = 4
"""Images that the printed form shows."""

_ROWS = 20
"""Rows of the table that a notebook shows."""


def _cell(value: float | str) -> str:
    if isinstance(value, str):
        return escape(shown(value))
    return f"{value:,.3g}" if isinstance(value, float) and abs(value) < 1000 else f"{value:,.0f}"
