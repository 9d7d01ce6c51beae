"""Two models of one task beside each other: outputs, features of paired layers, maps, bits, seconds."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from time import perf_counter
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from iba_core.arguments import (
    require_callable,
    require_choice,
    require_number,
    require_seed,
    require_sequence,
    require_text,
)
from iba_core.errors import IBAError, InputError
from iba_core.evaluation.methods import Explains, explained
from iba_core.evaluation.model_comparison import (
    LayerDifference,
    MapDifference,
    ModelComparison,
    OutputDifference,
)
from iba_core.evaluation.pairing import Pairing, pair_layers, turned
from iba_core.evaluation.similarity import agreement
from iba_core.framework.adapter import Inputs, Model, ModelAdapter, find_adapter
from iba_core.framework.comparison import epsilon_of
from iba_core.framework.framework import require_finite
from iba_core.framework.inputs import (
    arrays_of,
    batch_size,
    inputs_of_batch,
    map_arrays,
    require_batches,
    require_inputs,
    take,
)
from iba_core.framework.layout import DataFormat, Layout
from iba_core.framework.namespace import Array
from iba_core.targets import class_probabilities, main_output

Numbers = npt.NDArray[np.float64]

_TOLERANCE_EXPONENT = 0.55
"""Rounding grows on its way through a network, by some hundred times: 1.6e-4 in single precision."""

_SINGLE = 2.0**-23
"""The smallest relative difference of numbers in single precision."""

_MAPS_KEPT = 4
"""Inputs whose maps a comparison keeps to draw them."""


def compare_models(
    first: Model,
    second: Model,
    batches: Iterable[Any],
    *,
    pairs: Pairing | Mapping[str, str] | None = None,
    target: Any = None,
    seed: int = 0,
    tolerance: float | None = None,
    convert: Callable[[Any], Any] | None = None,
    names: Sequence[str] | None = None,
    output: int | str | None = None,
    activation: str | None = None,
) -> ModelComparison:
    """Compare two models of one task, such as a network and its port, or a checkpoint and its quantised form.

    Both get the same inputs. Their outputs and the features of their paired layers are compared, and it is
    told at which layer they begin to differ. Give fitted explainers in place of the models to compare maps,
    bits and survival as well; fit both on the same inputs.

    Args:
        first: a model of any framework, an adapter, or an `Explainer`.
        second: the other one, of the same framework or another.
        batches: inputs as the first model takes them: an iterable of batches, each the inputs or a tuple
            (inputs, ...), or one array as a single batch.
        pairs: which layers belong together: ``"name"``, ``"order"``, ``"shape"``, or a dict from the first
            model's names to the second's. If None, names where they agree, else shapes; see
            `iba_core.evaluation.pairing.pair_layers`.
        target: what both explainers explain; None for the class that the first model predicts.
        seed: seed of the noise, the same for both.
        tolerance: relative difference that rounding may make. If None, it follows from the precision: 1.6e-4
            for float32. Give 2e-3 where a device computes float32 in TF32.
        convert: brings the inputs of the first model to the form that the second takes. If None, only the
            channels move, from where the first model has them to where the second does.
        names: two names to show; None for the frameworks.
        output: name or number of the output, of models that have several; that of the first explainer if
            None.
        activation: function that the outputs end in, ``"softmax"``, ``"sigmoid"`` or ``"other"``, where
            their values do not tell.

    Returns:
        The comparison: a table as text, numbers, and a figure.

    Raises:
        InputError: an argument is wrong, no layers make a pair, or the second model fails on the inputs.
        NotEstimatedError: an explainer has not been fitted.

    Example:
        >>> found = compare_models(explainer, explainer, [x], names=("one", "other"))
        >>> found.agree, found.begins_at, found.layers[0].first, found.layers[0].relative
        (True, None, 'conv', 0.0)
    """
    sides = _Side.of("first", first), _Side.of("second", second)
    require_seed("seed", seed, optional=False)
    if tolerance is not None:
        tolerance = require_number("tolerance", tolerance, above=0, most=1)
    require_callable("convert", convert, optional=True)
    if activation is not None:
        require_choice("activation", activation, ("softmax", "sigmoid", "other"))
    with_maps = all(side.explainer is not None for side in sides)
    if target is not None and not with_maps:
        raise InputError(
            "target is what explainers explain; give two fitted explainers in place of the models"
        )
    if output is None and sides[0].explainer is not None:
        output = getattr(first, "output", None)
    run = _Run(*sides, pairs, convert, output, activation)
    for batch in require_batches("batches", batches):
        inputs = require_inputs("batches", inputs_of_batch(batch), sides[0].adapter.to_inputs)
        for array in arrays_of(inputs):
            require_finite(sides[0].adapter.framework.to_numpy(array), "batches")
        own = run.outputs(inputs)
        run.features()
        if with_maps:
            run.maps(own, target, seed)
    if not run.count:
        raise InputError("batches is empty; give at least one batch of inputs")
    return run.result(_names(names, *sides), tolerance)


class _Side(NamedTuple):
    """One of the two models."""

    adapter: ModelAdapter
    explainer: Explains | None

    @classmethod
    def of(cls, name: str, model: Model) -> _Side:
        own = getattr(model, "adapter", None)
        if isinstance(own, ModelAdapter) and isinstance(model, Explains):
            return cls(own, model)
        return cls(find_adapter(model, argument=name), None)


class _Sums:
    """What adds up over the inputs of the two features of a pair."""

    def __init__(self) -> None:
        self.squares = self.own = 0.0
        self.most = 0.0

    def add(self, ours: Numbers, theirs: Numbers) -> None:
        off = np.abs(theirs - ours)
        same = (ours == theirs) | (np.isnan(ours) & np.isnan(theirs))
        off[same] = 0.0
        self.squares += float(np.sum(np.square(off)))
        self.own += float(np.sum(np.square(ours[np.isfinite(ours)])))
        self.most = max(self.most, float(np.nan_to_num(off, nan=np.inf, posinf=np.inf).max(initial=0.0)))

    @property
    def relative(self) -> float:
        """Root of the summed squares of the differences, as a share of that of the first model's values."""
        if self.squares == 0:
            return 0.0
        share = np.sqrt(self.squares / self.own) if self.own else np.inf
        return float(share) if np.isfinite(share) else float("inf")


class _Run:
    """Both models on the same inputs, batch by batch; only sums stay."""

    def __init__(
        self,
        first: _Side,
        second: _Side,
        pairs: Pairing | Mapping[str, str] | None,
        convert: Callable[[Any], Any] | None,
        output: int | str | None,
        activation: str | None,
    ) -> None:
        self._sides = first, second
        self._wanted, self._convert = pairs, convert
        self._output, self._activation = output, activation
        self._inputs: tuple[Any, Any] | None = None
        self._pairs: list[tuple[str, str]] = []
        self._by = ""
        self._axes: dict[tuple[str, str], tuple[tuple[int, ...], tuple[int, ...]] | None] = {}
        self._sums: dict[tuple[str, str], _Sums] = {}
        self._of_outputs = _OutputSums(activation)
        self._of_maps = _MapParts()
        self._seconds: dict[str, list[float]] = {}
        self._epsilon = 0.0
        self.count = 0

    # -- passes -----------------------------------------------------------------------------------------

    def outputs(self, inputs: Inputs) -> npt.NDArray[Any]:
        """Run both models on a batch; gives the outputs of the first."""
        converted = self._converted(inputs)
        if self._inputs is None:  # the first pass of a model is slower
            self._predict(0, inputs)
            self._predict(1, converted)
        self._inputs = inputs, converted
        found = []
        for index, each in enumerate(self._inputs):
            with self._timed("outputs", index):
                found.append(self._predict(index, each))
        ours, theirs = found
        # Sequences of scores have the classes last in every framework, other outputs where images have them.
        if not (ours.ndim == theirs.ndim == 3 and ours.shape == theirs.shape):
            ours, theirs = (
                _channels_first(each, kind) for each, kind in zip(found, self._formats, strict=True)
            )
        if ours.shape != theirs.shape:
            raise InputError(
                f"the outputs of the two models have shapes {found[0].shape} and {found[1].shape}; models of "
                "one task give the same; choose one of several outputs with output="
            )
        self._of_outputs.add(ours, theirs)
        self.count += batch_size(inputs)
        return found[0]

    def features(self) -> None:
        """Compare the features of the last batch, one input at a time: all layers of many fill the memory."""
        assert self._inputs is not None, "outputs comes first"
        for start in range(batch_size(self._inputs[0])):
            one = [take(each, start, start + 1) for each in self._inputs]
            is_new = not self._pairs
            if is_new:
                self._find_pairs(one)
            found = []
            for index, (side, x) in enumerate(zip(self._sides, one, strict=True)):
                layers = [pair[index] for pair in self._pairs]
                if is_new:  # the first pass may compile
                    side.adapter.features_of(x, layers)
                with self._timed("features", index):
                    arrays = side.adapter.features_of(x, layers)
                    found.append([side.adapter.framework.to_numpy(array) for array in arrays])
                self._epsilon = max(self._epsilon, *map(epsilon_of, _floating(arrays)), 0.0)
            for pair, ours, theirs in zip(self._pairs, *found, strict=True):
                self._compare(pair, ours, theirs, one)

    def maps(self, outputs: npt.NDArray[Any], target: Any, seed: int) -> None:
        """Explain the last batch with both explainers."""
        assert self._inputs is not None, "outputs comes first"
        if target is None:
            if outputs.ndim != 2:
                raise InputError(f"outputs of shape {outputs.shape} are of no classes; give target=")
            target = class_probabilities(outputs, self._activation).argmax(axis=1)
        found = []
        for index, (side, x) in enumerate(zip(self._sides, self._inputs, strict=True)):
            assert side.explainer is not None, "else there are no maps"
            if not self._of_maps.pearson:  # the first explanation compiles the step
                side.explainer.explain(x, target, seed=seed, steps=1)
            with self._timed("explanations", index):
                found.append(explained(side.explainer, x, target, seed))
        self._of_maps.add(*found)

    def result(self, names: tuple[str, str], tolerance: float | None) -> ModelComparison:
        """What has been found."""
        layers = tuple(
            LayerDifference(*pair, relative=sums.relative, largest=sums.most)
            for pair, sums in self._sums.items()
        )
        explainers = [side.explainer for side in self._sides]
        return ModelComparison(
            names=names,
            inputs=self.count,
            outputs=self._of_outputs.result(self.count),
            layers=layers,
            paired_by=self._by,
            tolerance=tolerance or (self._epsilon or _SINGLE) ** _TOLERANCE_EXPONENT,
            maps=self._of_maps.result(tuple(str(getattr(each, "layer", "")) for each in explainers)),
            seconds={
                phase: (both[0] / self.count, both[1] / self.count) for phase, both in self._seconds.items()
            },
        )

    # -- inputs and layouts ---------------------------------------------------------------------------------

    @property
    def _formats(self) -> tuple[DataFormat, DataFormat]:
        return self._sides[0].adapter.data_format, self._sides[1].adapter.data_format

    def _converted(self, inputs: Inputs) -> Inputs:
        """The inputs as tensors of the second model."""
        first, second = (side.adapter for side in self._sides)
        host = map_arrays(first.framework.to_numpy, inputs)
        if self._convert is not None:
            host = self._convert(host)
        elif first.data_format != second.data_format:
            host = map_arrays(lambda x: _moved(x, first.data_format, second.data_format), host)
        return require_inputs("batches", host, second.to_inputs)

    def _predict(self, index: int, inputs: Inputs) -> npt.NDArray[Any]:
        adapter = self._sides[index].adapter
        try:
            outputs = adapter.predict(inputs)
        except IBAError:
            raise
        except Exception as error:  # the layers of a model may raise any exception
            if index == 0:
                raise
            shapes = ", ".join(str(tuple(x.shape)) for x in arrays_of(inputs))
            raise InputError(
                f"the second model fails on inputs of shape {shapes}: {type(error).__name__}: {error}; give "
                "convert=, which brings the first model's inputs to the form that the second takes"
            ) from error
        return adapter.framework.to_numpy(main_output(outputs, self._output))

    def _find_pairs(self, one: Sequence[Inputs]) -> None:
        listed = [side.adapter.layers(x) for side, x in zip(self._sides, one, strict=True)]
        self._pairs, self._by = pair_layers(listed[0], listed[1], self._wanted, self._formats)
        shapes = [{info.name: info.output_shape for info in infos} for infos in listed]
        for pair in list(self._pairs):
            ours, theirs = (shapes[index][pair[index]] for index in (0, 1))
            if ours is None or theirs is None:
                raise InputError(f"the layers {pair[0]!r} and {pair[1]!r} must each have one array as output")
            self._axes[pair] = self._common_axes(pair, ours, theirs, one)
            if self._axes[pair] is None:
                if self._by == "you":
                    raise InputError(
                        f"the layers {pair[0]!r} and {pair[1]!r} have shapes {ours} and {theirs}, which are "
                        "not the same in one layout"
                    )
                self._pairs.remove(pair)
            else:
                self._sums[pair] = _Sums()

    def _common_axes(
        self, pair: tuple[str, str], ours: tuple[int, ...], theirs: tuple[int, ...], one: Sequence[Inputs]
    ) -> tuple[tuple[int, ...], tuple[int, ...]] | None:
        """Permutations of the axes, without that of the batch, that bring two features to one layout.

        Where the formats that the adapters state give equal shapes, and the plain reading does not, those
        are it. Otherwise, the two layers are asked.
        """
        plain = tuple(range(len(ours)))
        formats: Sequence[DataFormat | None] = self._formats
        if not 2 <= len(ours) <= 4 or (formats[0] == formats[1] and ours == theirs):
            return (plain, plain) if ours == theirs else None
        stated = self._formats
        if ours == theirs or turned(ours, stated[0]) != turned(theirs, stated[1]):
            formats = [
                _format_of(side.adapter, name, x)
                for side, name, x in zip(self._sides, pair, one, strict=True)
            ]
        mine, other = formats
        if mine is None or other is None or turned(ours, mine) != turned(theirs, other):
            return None
        return Layout.of(ours, mine).to_channels_first(), Layout.of(theirs, other).to_channels_first()

    def _compare(
        self, pair: tuple[str, str], ours: npt.NDArray[Any], theirs: npt.NDArray[Any], one: Sequence[Inputs]
    ) -> None:
        axes = self._axes[pair]
        assert axes is not None, "such pairs are left out"
        turned_both = [
            x.transpose(0, *(axis + 1 for axis in order)).astype(np.float64)
            for x, order in zip((ours, theirs), axes, strict=True)
        ]
        if turned_both[0].shape != turned_both[1].shape:
            raise InputError(
                f"the layers {pair[0]!r} and {pair[1]!r} have shapes {ours.shape} and {theirs.shape}, which "
                "are not the same in one layout"
            )
        self._sums[pair].add(*turned_both)

    @contextmanager
    def _timed(self, phase: str, index: int) -> Iterator[None]:
        start = perf_counter()
        yield
        self._seconds.setdefault(phase, [0.0, 0.0])[index] += perf_counter() - start


class _OutputSums:
    """What adds up over the outputs."""

    def __init__(self, activation: str | None) -> None:
        self._activation = activation
        self._sums = _Sums()
        self._total = self._values = 0.0
        self._same: list[float] = []
        self._nats: list[float] = []
        self._are_classes = True

    def add(self, ours: npt.NDArray[Any], theirs: npt.NDArray[Any]) -> None:
        """Add outputs of one shape, (B, ...)."""
        a, b = ours.astype(np.float64), theirs.astype(np.float64)
        self._sums.add(a, b)
        self._total += float(np.abs(a - b).sum())
        self._values += a.size
        self._are_classes = self._are_classes and a.ndim == 2
        if not self._are_classes:
            return
        try:
            p, q = (class_probabilities(each, self._activation) for each in (a, b))
        except InputError:
            self._are_classes = False
            return
        self._same += (p.argmax(axis=1) == q.argmax(axis=1)).tolist()
        if np.allclose(p.sum(axis=1), 1) and np.allclose(q.sum(axis=1), 1):
            least = np.finfo(np.float64).tiny
            ratio = np.log(np.maximum(p, least)) - np.log(np.maximum(q, least))
            self._nats += (p * ratio).sum(axis=1).tolist()

    def result(self, inputs: int) -> OutputDifference:
        """What has been found."""
        is_whole = self._are_classes and len(self._same) == inputs
        return OutputDifference(
            relative=self._sums.relative,
            largest=self._sums.most,
            mean=self._total / max(1.0, self._values),
            same_class=float(np.mean(self._same)) if is_whole else None,
            divergence_bits=float(np.mean(self._nats)) / np.log(2)
            if is_whole and len(self._nats) == inputs
            else None,
        )


class _MapParts:
    """What the maps of each batch give."""

    def __init__(self) -> None:
        self.pearson: list[Numbers] = []
        self._spearman: list[Numbers] = []
        self._bits: list[tuple[Numbers | None, Numbers | None]] = []
        self._survival: list[tuple[Numbers | None, Numbers | None]] = []
        self._kept: list[tuple[Numbers, Numbers]] = []

    def add(self, ours: Any, theirs: Any) -> None:
        """Add what both explainers give for a batch, see `iba_core.evaluation.methods.Found`."""
        if ours.maps.shape != theirs.maps.shape:
            raise InputError(
                f"the maps of the two models have shapes {ours.maps.shape} and {theirs.maps.shape}; explain "
                "at layers with as many places"
            )
        self.pearson.append(agreement(ours.maps, theirs.maps))
        self._spearman.append(agreement(ours.maps, theirs.maps, "spearman"))
        self._bits.append((ours.bits, theirs.bits))
        self._survival.append((ours.survival, theirs.survival))
        if not self._kept:
            self._kept.append((ours.maps[:_MAPS_KEPT], theirs.maps[:_MAPS_KEPT]))

    def result(self, layers: tuple[str, ...]) -> MapDifference | None:
        """What has been found; None if nothing was explained."""
        if not self.pearson:
            return None
        return MapDifference(
            layers=(layers[0], layers[1]),
            pearson=np.concatenate(self.pearson),
            spearman=np.concatenate(self._spearman),
            bits=_joined(self._bits),
            survival=_joined(self._survival),
            maps=self._kept[0],
        )


def _joined(parts: Sequence[tuple[Numbers | None, Numbers | None]]) -> tuple[Numbers, Numbers] | None:
    known = [(ours, theirs) for ours, theirs in parts if ours is not None and theirs is not None]
    if len(known) < len(parts):
        return None
    return np.concatenate([ours for ours, _ in known]), np.concatenate([theirs for _, theirs in known])


def _names(names: Sequence[str] | None, first: _Side, second: _Side) -> tuple[str, str]:
    if names is not None:
        require_sequence("names", names, "two names", 2)
        for name in names:
            require_text("names", name, "a list of two names")
        if len(names) != 2 or names[0] == names[1]:
            raise InputError(f"names={list(names)!r} must be two names that differ")
        return names[0], names[1]
    ours, theirs = first.adapter.framework.name, second.adapter.framework.name
    return (ours, theirs) if ours != theirs else ("first", "second")


def _moved(x: npt.NDArray[Any], given: DataFormat, wanted: DataFormat) -> npt.NDArray[Any]:
    """Inputs with the channels in another place; arrays that have no places stay."""
    # Rows of whole numbers are words, not pixels.
    if not 3 <= x.ndim <= 5 or (x.ndim == 3 and not np.issubdtype(x.dtype, np.floating)):
        return x
    order = Layout.of(x.shape[1:], given).to_channels_first()
    back = Layout.of(x.shape[1:], wanted).from_channels_first()
    return np.ascontiguousarray(x.transpose(0, *(order[axis] + 1 for axis in back)))


def _channels_first(x: npt.NDArray[Any], data_format: DataFormat) -> npt.NDArray[Any]:
    if not 3 <= x.ndim <= 5:
        return x
    return x.transpose(0, *(axis + 1 for axis in Layout.of(x.shape[1:], data_format).to_channels_first()))


def _format_of(adapter: ModelAdapter, name: str, one: Inputs) -> DataFormat | None:
    """Where the channels of a layer are, as its split says once its head has run; None where it cannot."""
    try:
        split = adapter.split(name)
        split.features(one)
    except IBAError:
        return None
    return split.data_format


def _floating(arrays: Sequence[Array]) -> list[Array]:
    return [array for array in arrays if "float" in str(array.dtype)]
