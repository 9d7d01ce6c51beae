"""What a readout has learnt and estimated, in the one form that every framework can read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from os import PathLike
from typing import Any, Self, get_args

import numpy as np
import numpy.typing as npt

from iba_core.arguments import given
from iba_core.bottleneck.estimator import STATE, WelfordEstimator
from iba_core.errors import StateError
from iba_core.framework.layout import DataFormat, Layout, Tokens
from iba_core.readout.formulas import WEIGHTS, readout_sizes
from iba_core.state import interpreting, read_state, write_state

KIND = "readout"
"""Kind of the files."""

GIVEN = ("feature_mean", "feature_std")
SETTINGS = (
    "sigma",
    "min_std",
    "initial_alpha",
    "active_neurons_threshold",
    "relu",
    "robust",
    "corners",
    "alpha_bound",
    "gradients",
)
"""Settings that the maps depend on, by the names that they have as attributes, besides the `Tokens`."""

_FACTS = ("framework", "layer", "readout_layers", "data_formats", "input_shape", "settings")


@dataclass(frozen=True)
class ReadoutState:
    """A trained readout: all arrays on the host, feature maps with channels first.

    Attributes:
        weights: of the network, see `iba_core.readout.formulas.Weights`.
        estimators: states of the estimators, that of the bottleneck first; None where one has seen nothing.
        given: mean and standard deviation of the bottleneck's features where they have been given; or None.
        facts: what JSON can hold: ``framework``, ``layer`` and ``readout_layers`` (names), ``data_formats``
            (in the framework, of the bottleneck first), ``input_shape`` (there) and ``settings``.
    """

    weights: tuple[npt.NDArray[np.floating], ...]
    estimators: tuple[Mapping[str, npt.NDArray[Any]] | None, ...]
    given: tuple[npt.NDArray[np.floating], npt.NDArray[np.floating]] | None
    facts: dict[str, Any]

    def arrays(self) -> dict[str, npt.NDArray[Any]]:
        """All arrays by name: ``network.0.weight``, ``bottleneck.mean``, ``readouts.0.mean``, ..."""
        arrays = {f"network.{name}": array for name, array in zip(WEIGHTS, self.weights, strict=True)}
        for group, estimator in zip(_groups(len(self.estimators) - 1), self.estimators, strict=True):
            if estimator is not None:
                arrays |= {f"{group}.{name}": np.asarray(estimator[name]) for name in STATE}
        if self.given is not None:
            arrays |= dict(zip(GIVEN, self.given, strict=True))
        return arrays

    @classmethod
    def of(cls, arrays: Mapping[str, npt.NDArray[Any]], facts: dict[str, Any]) -> Self:
        """The state that `arrays` and its facts describe.

        Raises:
            StateError: something is missing or does not fit.
        """
        if not isinstance(facts, Mapping):
            raise StateError(f"{given('facts', facts)} must be the entry of that name of a state")
        lacking = [name for name in _FACTS if name not in facts]
        lacking += [f"network.{name}" for name in WEIGHTS if f"network.{name}" not in arrays]
        if lacking:
            raise StateError(f"the state of a readout lacks {', '.join(lacking)}")
        estimators = tuple(
            {name: arrays[f"{group}.{name}"] for name in STATE}
            if all(f"{group}.{name}" in arrays for name in STATE)
            else None
            for group in _groups(len(facts["readout_layers"]))
        )
        mean, std = (arrays.get(name) for name in GIVEN)
        known = None if mean is None or std is None else (mean, std)
        state = cls(tuple(arrays[f"network.{name}"] for name in WEIGHTS), estimators, known, dict(facts))
        state._require_sound()
        own, *others = (shape[0] for shape in state.shapes())
        sizes = readout_sizes(sum(others) + own * bool(state.settings["gradients"]), own)
        if [weight.shape[::-1] for weight in state.weights[::2]] != list(sizes):
            raise StateError(f"the state's network does not fit its layers, which take the channels {sizes}")
        return state

    def _require_sound(self) -> None:
        """Refuse what no readout has learnt or estimated.

        Raises:
            StateError: a value or a fact cannot be.
        """
        for array in (*self.weights, *(self.given or ())):
            if array.dtype.kind != "f" or not np.isfinite(array).all():
                raise StateError("the state of a readout holds a value that is not finite")
        if self.given is not None and (self.given[1] < 0).any():
            raise StateError("the state of a readout holds a negative standard deviation")
        for estimator in self.estimators:
            if estimator is not None:
                WelfordEstimator().load_state_dict(dict(estimator))
        names = [self.facts["framework"], self.facts["layer"], *self.facts["readout_layers"]]
        settings, shape = self.settings, self.facts["input_shape"]
        numbers = [*(settings[name] for name in SETTINGS if settings[name] is not None), *(shape or ())]
        if not all(isinstance(name, str) for name in names) or not all(
            isinstance(number, (int, float)) and np.isfinite(number) for number in numbers
        ):
            raise StateError("the state of a readout has facts that are no names and no numbers")
        if not set(self.facts["data_formats"]) <= set(get_args(DataFormat)):
            raise StateError(f"the state of a readout has data_formats={self.facts['data_formats']!r}")
        if self.tokens is not None:
            self.tokens.places(self.shapes()[0][1])

    def shapes(self) -> list[tuple[int, ...]]:
        """Shapes of the feature maps, channels first, that of the bottleneck first.

        Raises:
            StateError: the distribution of a layer is missing.
        """
        arrays = [None if state is None else np.asarray(state["mean"]) for state in self.estimators]
        arrays[0] = arrays[0] if self.given is None else self.given[0]
        if any(array is None for array in arrays):
            raise StateError("the state of a readout lacks the distribution of a layer's features")
        return [array.shape for array in arrays if array is not None]

    def save(self, path: str | PathLike[str]) -> None:
        """Write it to a safetensors file, whole or not at all.

        Raises:
            InputError: the folder does not exist.
        """
        write_state(path, self.arrays(), KIND, self.facts)

    @classmethod
    def read(cls, path: str | PathLike[str]) -> Self:
        """Read what `save` wrote.

        Raises:
            StateError: the file is missing, truncated, of another kind or incomplete.
        """
        content = read_state(path, KIND)
        with interpreting(path, KIND):
            return cls.of(*content)

    @property
    def settings(self) -> dict[str, Any]:
        """The settings; files from before there were some of them are of readouts without those."""
        older = {"robust": False, "corners": False, "alpha_bound": None, "gradients": False}
        return {**older, **self.facts["settings"]}

    @property
    def tokens(self) -> Tokens | None:
        """How the bottleneck's features are to be read, if they are a sequence of tokens."""
        known = self.facts["settings"].get("tokens")
        return None if known is None else Tokens(known["prefix"], known["grid"] and tuple(known["grid"]))

    def check(self, framework: str, layer: str, readout_layers: Sequence[str]) -> None:
        """Make sure that the state is that of a readout of these layers.

        The frameworks may call the same layer by different names: between them, only the number counts.

        Raises:
            StateError: it is that of others.
        """
        own, theirs = [layer, *readout_layers], [self.facts["layer"], *self.facts["readout_layers"]]
        if self.facts["framework"] == framework or len(own) != len(theirs):
            require_layers(theirs, own)


def require_layers(theirs: Sequence[str], own: Sequence[str]) -> None:
    """Make sure that a state is that of the same layers.

    Args:
        theirs: names of the layers in the state, that of the bottleneck first.
        own: those of the readout.

    Raises:
        StateError: they differ.
    """
    if list(theirs) != list(own):
        raise StateError(
            f"the state is that of a bottleneck at {theirs[0]!r} reading {list(theirs[1:])}, "
            f"not of one at {own[0]!r} reading {list(own[1:])}"
        )


def settings_of(readout: Any) -> dict[str, Any]:
    """The settings of a readout of any framework, as JSON can hold them."""
    tokens = None if readout.tokens is None else asdict(readout.tokens)
    return {name: getattr(readout, name) for name in SETTINGS} | {"tokens": tokens}


def to_channels_first(
    state: Mapping[str, npt.ArrayLike], data_format: DataFormat
) -> dict[str, npt.NDArray[Any]]:
    """State of an estimator, or any feature maps by name, with the channels brought to the front."""
    return _permuted(state, data_format, to_first=True)


def from_channels_first(
    state: Mapping[str, npt.ArrayLike], data_format: DataFormat
) -> dict[str, npt.NDArray[Any]]:
    """What `to_channels_first` was given."""
    return _permuted(state, data_format, to_first=False)


def _permuted(
    state: Mapping[str, npt.ArrayLike], data_format: DataFormat, to_first: bool
) -> dict[str, npt.NDArray[Any]]:
    arrays = {name: np.asarray(value) for name, value in state.items()}
    ndim = max(array.ndim for array in arrays.values())
    layout = Layout.of((1,) * ndim, data_format)
    axes = layout.to_channels_first() if to_first else layout.from_channels_first()
    return {name: array.transpose(axes) if array.ndim else array for name, array in arrays.items()}


def _groups(readouts: int) -> list[str]:
    return ["bottleneck", *(f"readouts.{index}" for index in range(readouts))]
