"""The result of an explanation."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from html import escape
from os import PathLike
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import numpy.typing as npt

from iba_core.arguments import require_sequence, require_type, require_whole
from iba_core.bottleneck.saliency import to_bits
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
from iba_core.state import interpreting, read_state, write_state
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
        betas: (B,), the beta of each image. None in files of older versions.
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
            parts.append("survival " + ", ".join(f"{each:.2f} +- {std:.2f}" for each, std in pairs) + more)
        return f"<Attribution: {'; '.join(parts)}>"

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
        return len(self.capacity)

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
        columns: dict[str, npt.NDArray[Any] | None] = {
            "bits": self.total_bits,
            "class": self.classes,
            "probability": self._class_probabilities(),
            "survival": self.survival,
            "survival_std": self.survival_std,
            "beta": self.betas,
        }
        known = {name: values.tolist() for name, values in columns.items() if values is not None}
        if self.class_names is not None:
            known = {"name": list(self.class_names), **known}
        images = [dict(zip(known, row, strict=True)) for row in zip(*known.values(), strict=True)]
        return {"layer": self.layer, "seed": self.seed, "settings": asdict(self.settings), "images": images}

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
        arrays = {name: getattr(self, name) for name in _ARRAYS if getattr(self, name) is not None}
        metadata = {
            "layer": self.layer,
            "data_format": self.data_format,
            "seed": self.seed,
            "activation": self.activation,
            "complete": self.complete,
            "class_names": self.class_names,
            "settings": asdict(self.settings),
        }
        write_state(path, arrays, _KIND, metadata)

    @classmethod
    def load(cls, path: str | PathLike[str]) -> Self:
        """Read a file that `save` wrote.

        Args:
            path: file to read.

        Raises:
            StateError: the file is missing, truncated or of another kind.
        """
        arrays, metadata = read_state(path, _KIND)
        with interpreting(path, _KIND):
            settings = BottleneckSettings(**metadata.pop("settings"))
            values: dict[str, Any] = {**arrays, **metadata, "settings": settings}
            if (names := metadata.get("class_names")) is not None:
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
