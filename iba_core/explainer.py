"""The class most users need, the same for every framework."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from copy import copy
from dataclasses import asdict, replace
from itertools import chain, count, islice
from os import PathLike
from typing import Any, NamedTuple, Self, get_args

import numpy as np
import numpy.typing as npt

from iba_core.arguments import (
    LARGEST_COUNT,
    LARGEST_NUMBER,
    given,
    is_whole_number,
    require_bool,
    require_choice,
    require_data_format,
    require_layer,
    require_number,
    require_numbers,
    require_seed,
    require_sequence,
    require_text,
    require_type,
    require_whole,
)
from iba_core.attribution import Attribution, CombinedAttribution
from iba_core.bottleneck.chunks import AtLayer, Task, explain_in_chunks
from iba_core.bottleneck.estimator import KIND, Halves, Moments, WelfordEstimator
from iba_core.bottleneck.formulas import Mask
from iba_core.bottleneck.optimization import BottleneckOptimizer, BottleneckResult, PassMask
from iba_core.bottleneck.probe import noise_input, same_summary, summary
from iba_core.bottleneck.saliency import COMBINE_LAYERS, CombineLayers, saliency_maps
from iba_core.bottleneck.settings import BottleneckSettings, preset_settings
from iba_core.bottleneck.shared import require_shareable
from iba_core.bottleneck.statistics import Statistics, samples_of_tokens
from iba_core.bottleneck.survival import LEAST
from iba_core.datasets.items import Item, items_of, together
from iba_core.datasets.loop import explain_dataset
from iba_core.datasets.run import Run
from iba_core.datasets.work import Work
from iba_core.datasets.workers import require_workers, spread
from iba_core.default_layer import choose_layer, choose_layers, nothing_passes_by
from iba_core.errors import IBAError, InputError, NotEstimatedError, StateError
from iba_core.framework.adapter import Activation, Inputs, Model, ModelAdapter, Split, Tail, find_adapter
from iba_core.framework.arrays import require_mask
from iba_core.framework.cache import Cache
from iba_core.framework.framework import require_finite
from iba_core.framework.inputs import (
    InputShape,
    array_of_lists,
    arrays_of,
    batch_size,
    check_shape,
    common_shape,
    inputs_of_batch,
    padding_of,
    require_batches,
    require_inputs,
    samples_of,
    take,
    targets_of_batch,
)
from iba_core.framework.layout import DataFormat, Layout, MapOrder, Tokens
from iba_core.framework.namespace import Array, full_precision
from iba_core.pictures.images import Preprocessing
from iba_core.readout.bottleneck import ReadoutBottleneck
from iba_core.repeats import Repeats, SurvivalCurve
from iba_core.state import interpreting, put_together, read_state, taken_out, write_state
from iba_core.targets import (
    ClassTarget,
    Loss,
    OfOutput,
    Target,
    as_target,
    first_output,
    main_index,
    main_output,
)
from iba_core.utils import get_tqdm
from iba_core.zoo.statistics import PATH, packaged_statistics


class _Options(NamedTuple):
    """Options of one explanation, apart from what is explained."""

    settings: BottleneckSettings
    seed: int | None
    pass_mask: PassMask | None
    max_batch: int | None
    class_names: tuple[str, ...] | None
    progbar: bool = False


class _Known(NamedTuple):
    """What is known of a chunk of images once its head has run."""

    outputs: npt.NDArray[Any]
    """Of the model, without a bottleneck."""
    rows: tuple[npt.NDArray[Any], ...]
    """Data of the target, a row per image."""
    layout: Layout
    order: MapOrder
    activation: str


class _Prepared(NamedTuple):
    """A layer at which inputs are to be explained."""

    split: Split
    inputs: Inputs
    options: _Options
    task: Callable[[Tail, int, int], Task]
    known: list[_Known]
    """Of the chunks whose task has been made."""


_Distribution = tuple[Mapping[str, Any], WelfordEstimator, Halves | None]
"""Facts about a layer, and the statistics of its features and of their halves."""


class Explainer:
    """Says which parts of an input a model needs for its output, and how many bits they carry.

    A bottleneck after one layer replaces as much of the layer's features by noise as the output allows. First
    fit the explainer on inputs like those to explain, so that it knows what the features usually look like.
    Then explain any number of inputs. Threads may share one explainer. A copy or a pickle of it is
    independent.

    Args:
        model: a trained model of any framework that a backend serves. It is not changed.
        layer: the layer that the bottleneck comes after, an object or its name. A list of layers gives one
            map of all of them: each is explained with a bottleneck of its own, see `CombinedAttribution`. If
            None or ``"auto"``, `fit` chooses on its first batch: two layers where the model has them, else
            one, see `iba_core.default_layer.choose_layers`; with `estimator` or `tokens`, one; and with
            `warm_start`, its layer. A layer of the name "auto" is given as a list.
        backend: name of the backend. If None, it follows from the model.
        estimator: statistics of the layer's features, gathered before, in place of `fit`.
        combine: how one map is made of those of several layers, ``"geometric"`` or ``"mean"``; or
            ``"shared"`` for one mask that all layers share, see `CombinedAttribution`.
        tokens: how to read a layer whose features are a sequence of tokens, such as
            ``Tokens(prefix=1, grid=(14, 14))`` for a vision transformer. If neither this nor a layer is
            given, `fit` asks the model. With ``Tokens(any_length=True)``, for words, `smooth_std` is 0
            unless it is given.
        preset: name of a set of hyperparameters: ``"default"``, ``"paper"``, ``"fast"`` or ``"instant"``, see
            `iba_core.bottleneck.settings.PRESETS`. Hyperparameters that are given override it. If None,
            ``"default"`` for one mask, and ``"fast"`` for those of several layers, of which two take less
            time; but where one of a preset's settings is given, such as `steps`, the others are the paper's.
        data_format: where the channels of the layer's features are, ``"channels_first"`` or
            ``"channels_last"``; None to find that out.
        shared: names or positions of the inputs that all images of a batch share, such as the captions that
            each image is compared with; ``()`` for none. If None, it is learnt from the model where an input
            is as long as the batch.
        output: name or number of the output that targets are about, of a model that has several. A callable
            target gets this output alone. If None, see `iba_core.targets.main_output`.
        class_names: names of the model's classes, in their order. Attributions then name what they explain.
        compile: let the framework's compiler make machine code of the steps. That takes seconds to minutes
            for each shape, and is not always faster: measure it on your device.
        warm_start: a trained readout of the same model and layer, an `IBAReadout` of the model's framework.
            Explanations start at the mask that it gives, and take no steps from there unless `steps` or a
            preset is given. See `iba_core.readout.packaged_readout`.
        **settings: hyperparameters, see `BottleneckSettings`.

    Attributes:
        estimator: statistics of the layer's features. Of several layers, each of `parts` has its own.

    Raises:
        InputError: no backend serves the model, or a setting is wrong.
        LayerError: the model has no such layer; the message offers the closest names.

    Example:
        >>> explainer = Explainer(model, layer=layer)
        >>> explainer = explainer.fit(batches, progbar=False)
        >>> explainer.explain(x, target=1, seed=0).saliency.shape
        (2, 8, 8)
    """

    def __init__(
        self,
        model: Model,
        layer: Any = None,
        *,
        backend: str | None = None,
        estimator: WelfordEstimator | None = None,
        combine: CombineLayers = "geometric",
        tokens: Tokens | None = None,
        preset: str | None = None,
        data_format: DataFormat | None = None,
        shared: Sequence[str | int] | None = None,
        output: str | int | None = None,
        class_names: Sequence[str] | None = None,
        compile: bool = False,
        warm_start: ReadoutBottleneck | None = None,
        **settings: Any,
    ) -> None:
        self.adapter: ModelAdapter = find_adapter(model, backend)
        layers = [] if isinstance(layer, str) and layer == AUTO_LAYER else _layers_given(layer)
        self._may_choose_several = estimator is None and tokens is None
        self.combine: CombineLayers = require_choice("combine", combine, COMBINE_LAYERS)
        BottleneckSettings().override(**settings)  # names what is no setting
        require_type("warm_start", warm_start, ReadoutBottleneck, "a trained IBAReadout", optional=True)
        self.warm_start: ReadoutBottleneck | None = warm_start
        if warm_start is not None and not layers:
            layers = [warm_start.layer_name]
        self._given_settings = (preset, settings)
        self.settings: BottleneckSettings = self._settings_of(max(1, len(layers)))
        require_type("estimator", estimator, WelfordEstimator, "a WelfordEstimator", optional=True)
        require_type("tokens", tokens, Tokens, "iba_core.Tokens", optional=True)
        self.estimator: WelfordEstimator = estimator or WelfordEstimator()
        require_data_format("data_format", data_format, optional=True)
        self.data_format = data_format
        self._is_smoothing_given = "smooth_std" in settings
        self.tokens: Tokens | None = None
        self._read_tokens(tokens)
        self.output = output
        if output is not None and not is_whole_number(output, -(2**31)):
            require_text("output", output, "the name or the position of an output")
        if shared is not None:
            self.adapter.shared.give(shared)
        if class_names is not None:
            require_sequence("class_names", class_names, "names")
            for name in class_names:
                require_text("class_names", name, "a list of names")
            class_names = tuple(class_names)
        self.class_names: tuple[str, ...] | None = class_names
        self._jit_compile = require_bool("compile", compile)
        self._estimated_format: DataFormat | None = None
        self._known: tuple[Moments, float, DataFormat, tuple[int, ...], Statistics] | None = None
        self._input_shape: InputShape | None = None
        self._halves: Halves | None = None
        self._takes_noise = False
        self._probe: list[float] | None = None
        self._layer = layers[0] if len(layers) == 1 else None
        # Each loss keeps a compiled step, and each layer that a tail ends at a split.
        self._optimizers: Cache[BottleneckOptimizer] = Cache(size=4)
        self._splits: Cache[Split] = Cache(size=4)
        # Facts about the model: by layers, and by the place of an output after them.
        self._complete: dict[Any, bool | None] = {}
        self._activations: dict[Any, Activation | None] = {}
        self._run = self._compiled_run()
        if self._layer is not None:
            self._split_at(None)
        self._parts: tuple[Explainer, ...] = self._parts_of(layers) if len(layers) > 1 else ()
        if self._parts and warm_start is not None:
            raise InputError("warm_start= is of one layer; name that layer alone")
        if self._parts and estimator is not None:
            raise InputError("estimator= is of one layer; leave it out for several, and call fit or load")
        if combine == "shared":
            require_shareable(self.settings)
            if len(layers) == 1:
                raise InputError(f"combine='shared' is of several layers; layer={layer!r} is one")

    @property
    def layer(self) -> str | None:
        """Name of the layer that the bottleneck comes after, or all names of several. None until chosen."""
        if self._parts:
            return ", ".join(f"{part.layer}" for part in self._parts)
        return None if self._layer is None else self._split_at(None).layer_name

    @property
    def parts(self) -> tuple[Explainer, ...]:
        """An explainer for each of several layers; the explainer itself if it has one layer."""
        return self._parts or (self,)

    def _settings_of(self, layers: int) -> BottleneckSettings:
        """The hyperparameters that were given, completed for so many layers."""
        preset, given = self._given_settings
        masks = 1 if self.combine == "shared" else layers
        values = preset_settings(preset, given, warm_start=self.warm_start is not None, masks=masks)
        return BottleneckSettings(**{**values, **given})

    def _take_layers(self, layers: Sequence[str]) -> None:
        """Take several layers in place of none, with the settings for as many, if nobody changed them."""
        if self.settings == self._settings_of(1):
            self.settings = self._settings_of(len(layers))
        self._parts = self._parts_of(layers)

    def _parts_of(self, layers: Sequence[Any]) -> tuple[Explainer, ...]:
        options = {
            "tokens": self.tokens,
            "data_format": self.data_format,
            "output": self.output,
            "class_names": self.class_names,
            "compile": self._jit_compile,
            **asdict(self.settings),
        }
        parts = tuple([Explainer(self.adapter, layer, **options) for layer in layers])
        names = [part.layer for part in parts]
        for name in names:
            if names.count(name) > 1:
                raise InputError(f"layer={names} holds {name!r} twice; give each layer once")
        return parts

    def __getstate__(self) -> dict[str, Any]:
        # A layer of a copied model is found by its name. Compiled functions are made again.
        layer = None if self._layer is None else self.layer
        return {**vars(self), "_layer": layer, "_run": None, "_complete": {}, "_activations": {}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._run = self._compiled_run()

    # -- the distribution of the features ---------------------------------------------------------

    def fit(
        self,
        batches: Iterable[Any],
        n_samples: int = 5000,
        progbar: bool = True,
        *,
        until: float | None = None,
        target: Any = None,
    ) -> Self:
        """Estimate mean and standard deviation of the layer's features.

        An earlier estimate is replaced. If this one fails, the earlier one stays.

        Args:
            batches: an iterable of batches, each the inputs or a tuple (inputs, ...): a data loader, a
                generator, a list. Inputs are an array with a leading batch axis, or a tuple or dict of
                them. One array is taken as a single batch.
            n_samples: stop after exactly this number; fewer are used where the batches end before.
            progbar: show the progress.
            until: stop earlier, once the bits have settled: when their standard error by the statistics is
                at most this share of them. It is measured as by `bits_error`, with the preset ``"fast"`` on
                the first four inputs, after 64 samples, 128, 256, and so on. None to take all.
            target: what `until` explains of these inputs, as in `explain`.

        Returns:
            The explainer.

        Raises:
            InputError: there are no batches, or fewer than two samples, or values that are not finite.
        """
        n_samples = require_whole("n_samples", n_samples, 2)
        batches = require_batches("batches", batches)
        require_bool("progbar", progbar)
        if until is not None:
            until = require_number("until", until, above=0, below=1)
        whole, found = as_target(target), self._blank_twin()
        seen, check, few, error = 0, _FIRST_CHECK, None, np.inf
        for samples in samples_of(batches, n_samples, progbar):
            inputs = require_inputs("batches", samples, self.adapter.to_inputs)
            found._choose(inputs)
            for part in found.parts:
                part._gather(inputs, seen)
            seen += batch_size(inputs)
            few = take(inputs, 0, min(_FEW, seen)) if few is None else few
            if until is not None and seen >= check:
                error, check = found._error_of_halves(few, whole), 2 * seen
                if error <= until:
                    break
        found._require_two("batches")
        if until is not None and error > until:
            _warn_of_statistics(seen, found._error_of_halves(few, whole), until)
        self._take_over(found)
        return self

    def fit_dataset(
        self,
        inputs: Any,
        n_samples: int = 5000,
        *,
        preprocessing: Preprocessing | None = None,
        batch_size: int = 32,
        jobs: int | None = None,
        ray: str | None = None,
        gpus: float = 0.0,
        progbar: bool = True,
    ) -> Self:
        """Estimate mean and standard deviation of the layer's features, on several processes or machines.

        Workers estimate on parts of the inputs, whose estimates are merged. The result is that of `fit` on
        the same batches up to rounding, and the same for any number of workers.

        Args:
            inputs: as in `map`. Workers read image files themselves. Inputs in memory have no batch axis.
            n_samples: use the first inputs, this number of them; fewer if there are not so many. Shuffle what
                is sorted.
            preprocessing: how the network expects image files.
            batch_size: inputs that pass the network at once.
            jobs: as in `map`.
            ray: as in `map`.
            gpus: as in `map`.
            progbar: show the progress.

        Returns:
            The explainer.

        Raises:
            InputError: there are fewer than two inputs, one cannot be read, or as in `map`.
            MissingDependencyError: with `ray`, Ray is not installed.

        Example:
            >>> named = [(f"{i}", image) for i, image in enumerate(x)]
            >>> explainer.fit_dataset(named, progbar=False).estimator.n_samples()
            2
        """
        n_samples = require_whole("n_samples", n_samples, 2)
        require_type("preprocessing", preprocessing, Preprocessing, "a Preprocessing", optional=True)
        batch_size = require_whole("batch_size", batch_size, 1)
        workers = require_workers(jobs, ray, gpus)
        require_bool("progbar", progbar)
        items = iter(items_of(inputs, preprocessing, self.adapter.data_format))
        found = self._blank_twin()
        size = -(-_LEAST_OF_PART // batch_size) * batch_size
        parts = _parts_of_items(islice(items, n_samples), size, batch_size)
        if (first := next(parts, None)) is not None:
            found._choose(found._inputs_of_items(first.items[:1]))
        work = Work(_gather_part, found)
        tasks = () if first is None else chain([first], parts)
        with (
            closing(spread(work, tasks, workers)) as gathered,
            get_tqdm()(total=n_samples, desc="Estimating", unit="input", disable=not progbar) as bar,
        ):
            for each in _in_order(gathered):
                found._add(each)
                bar.update(each.samples)
        found._require_two("inputs")
        self._take_over(found)
        return self

    def _inputs_of_items(self, items: Sequence[Item]) -> Inputs:
        return require_inputs("inputs", together([item.row() for item in items]), self.adapter.to_inputs)

    def _add(self, gathered: _Gathered) -> None:
        """Merge what a worker has gathered."""
        for part, (halves, shape, takes_noise) in zip(self.parts, gathered.layers, strict=True):
            part._takes_noise = takes_noise
            known_shape = part._input_shape
            part._input_shape = common_shape(known_shape, shape)  # type: ignore[arg-type]  # it may hold None
            if part._halves is None:
                part._halves = halves
            else:
                for known, new in zip(part._halves, halves, strict=True):
                    known.merge(new)

    def _blank_twin(self) -> Explainer:
        """A twin that has seen nothing."""
        twin = self._twin()
        for part in twin.parts:
            part._halves, part._input_shape = None, None
        return twin

    def _require_two(self, argument: str) -> None:
        """Make estimates of what has been gathered, of at least two samples."""
        if (count := self._merge_halves()) < 2:
            raise InputError(
                f"{argument} held {count} samples; at least 2 are needed to estimate the features' "
                "distribution, and about 5000 are advised"
            )

    def _twin(self) -> Explainer:
        """A copy that shares everything, until it takes in something else."""
        twin = copy(self)
        for name in ("_layer", "_run", "_complete", "_activations"):
            setattr(twin, name, getattr(self, name))
        twin._parts = tuple([part._twin() for part in self._parts])
        return twin

    def _take_over(self, other: Explainer) -> None:
        """Take over what a twin knows of the features, at once, so that nobody sees half of it."""
        vars(self).update({name: getattr(other, name) for name in _OF_FEATURES})

    def _gather(self, inputs: Inputs, seen: int) -> None:
        """Take in the features of a batch, half of them for either half of the statistics."""
        split, size, tokens = self._split_at(None), batch_size(inputs), self.tokens
        self._input_shape = common_shape(self._input_shape, tuple(next(arrays_of(inputs)).shape[1:]))
        framework = self.adapter.framework
        first = take(inputs, 0, 1)
        self._takes_noise = hasattr(first, "shape") and framework.to_numpy(first).dtype.kind == "f"
        features = framework.to_numpy(split.features(inputs))
        middle = -(-(seen + size) // 2) - -(-seen // 2)
        for half, (start, stop) in enumerate(((0, middle), (middle, size))):
            if start == stop:
                continue
            rows = features[start:stop]
            if tokens is not None:
                rows = samples_of_tokens(rows, tokens, take(inputs, start, stop))
            if self._halves is None:
                shape = rows.shape[1:]
                self._halves = Halves(WelfordEstimator(*shape), WelfordEstimator(*shape))
            self._halves[half].fit(rows)

    def _choose(self, inputs: Inputs) -> None:
        """Choose a layer for the inputs, or several, if there is none yet."""
        if self._layer is not None or self._parts:
            return
        first = take(inputs, 0, 1)
        several = self._may_choose_several
        choices = choose_layers(self.adapter, first) if several else (choose_layer(self.adapter, first),)
        if len(choices) > 1:
            self._take_layers([choice.layer for choice in choices])
        else:
            self._layer = choices[0].layer
            self._read_tokens(self.tokens or choices[0].tokens)

    def _merge_halves(self) -> int:
        """Make estimates of all that has been gathered, and return the number of samples."""
        for part in self.parts:
            if part._halves is None:
                return 0
            split = part._split_at(None)
            part.estimator = part._halves.merged()
            part._estimated_format = part._format(split)
            part._probe = part._summary(split, part._input_shape) if part._takes_noise else None
        return self.parts[0].estimator.n_samples()

    def bits_error(
        self, x: Inputs, target: Any = None, *, seed: int = 0, **options: Any
    ) -> npt.NDArray[np.floating]:
        """Standard error of the bits that comes from the statistics, as a share of the bits.

        `fit` keeps the statistics of either half of its data. The inputs are explained with one and with the
        other, with the same noise and at a fixed beta: the explainer's own, or 10 where it finds one. Half of
        the difference of their bits estimates the standard error of the bits with all of the data. It is a
        rough estimate for a single input: take the root of the mean square over several. A warning says where
        this is more than 5 %, and how many samples are advised.

        Args:
            x: as in `explain`, some inputs that were not given to `fit`.
            target: as in `explain`.
            seed: of the noise.
            **options: as in `explain`.

        Returns:
            Array (B,), 0.02 for 2 % of the bits.

        Raises:
            NotEstimatedError: the statistics do not come from `fit`, or from fewer than four samples.
            InputError: as in `explain`.

        Example:
            >>> explainer.bits_error(x, 1, preset="fast").shape
            (2,)
        """
        require_seed("seed", seed, optional=False)
        self._require_estimate()
        errors = self._errors(x, target, {"seed": seed, **options})
        samples = self.parts[0].estimator.n_samples()
        _warn_of_statistics(samples, _root_mean_square(errors), _LARGE_ERROR)
        return errors

    def _errors(self, x: Inputs, target: Any, options: dict[str, Any]) -> npt.NDArray[np.floating]:
        if "keep" not in options:
            # A search for beta goes by steps, and would add its own to the difference.
            settings = BottleneckSettings() if self.settings.keep is not None else self.settings
            options = {"beta": settings.beta, **options}
        bits = []
        for number in (0, 1):
            twin = self._twin()
            for part in twin.parts:
                part.estimator = part._known_halves()[number]
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", message=_LOST)
                bits.append(twin.explain(x, target, **options).total_bits)
        total = bits[0] + bits[1]
        return np.asarray(np.abs(bits[0] - bits[1]) / np.where(total > 0, total, 1.0))

    def _known_halves(self) -> Halves:
        halves = self._halves
        few = self.estimator.n_samples() < _LEAST_OF_HALVES
        if halves is None or few or not halves.make_up(self.estimator):
            raise NotEstimatedError(
                "the statistics of the halves of the data are not known, or of fewer than two samples each; "
                "call fit(batches) with at least 4"
            )
        return halves

    def _error_of_halves(self, few: Inputs, target: Target) -> float:
        """Standard error of the bits of a few inputs with what has been gathered, as a share of them."""
        if self._merge_halves() < _LEAST_OF_HALVES:
            return np.inf
        return _root_mean_square(self._errors(few, target, {"seed": 0, "preset": "fast"}))

    def save(self, path: str | PathLike[str], metadata: Mapping[str, Any] | None = None) -> None:
        """Write the estimated distribution, with the layer's name, to a safetensors file.

        Args:
            path: file to write.
            metadata: further facts to keep with it, such as how the inputs were prepared.

        Raises:
            NotEstimatedError: nothing has been estimated.
        """
        self._require_estimate()
        require_type("metadata", metadata, Mapping, "a dict", optional=True)
        states = [part._state() for part in self.parts]
        facts = [part._facts() for part in self.parts]
        if not self._parts:
            write_state(path, states[0], KIND, {**(metadata or {}), **facts[0]})
        else:
            write_state(path, put_together(states), KIND, {**(metadata or {}), "layers": facts})

    def _state(self) -> dict[str, npt.NDArray[Any]]:
        halves = self._halves
        if halves is None or not halves.make_up(self.estimator):
            return self.estimator.state_dict()
        return {**self.estimator.state_dict(), **halves.state_dict()}

    def _facts(self) -> dict[str, Any]:
        """What a file says beside the distribution."""
        split = self._split_at(None)
        return {
            "layer": split.layer_name,
            "data_format": self._estimated_format or self._format(split),
            "input_shape": self._input_shape,
            "input_format": split.input_format,
            "framework": self.adapter.framework.name,
            "tokens": None if self.tokens is None else asdict(self.tokens),
            "probe": self._probe,
        }

    def load(self, path: str | PathLike[str]) -> Self:
        """Take over a distribution that `save` wrote, in this framework or another.

        If the explainer has no layer yet, it takes the one in the file, or all of them.

        Args:
            path: file to read.

        Returns:
            The explainer.

        Raises:
            StateError: the file is missing, truncated, of another kind, or for another layer.
            LayerError: the model has no layer of the name in the file.
        """
        entries = _distributions(path, *read_state(path, KIND))
        found = self._twin()
        if not self._parts and self._layer is None and len(entries) > 1:
            found._take_layers([facts["layer"] for facts, *_ in entries])
        for part in found.parts:
            if not part._take_from(f"{path}", entries):
                warnings.warn(
                    f"the statistics in {path} are of another model: at layer {part.layer!r}, this one "
                    "gives other features for the same test input; fit the explainer again",
                    stacklevel=2,
                )
        self._take_over(found)
        return self

    def load_packaged(self) -> Self:
        """Take over statistics that come with the library, so that bits can be compared from the first map.

        They are of EfficientNet-Lite0 in either framework, estimated on 700 photographs of ImageNet, one of
        each of 700 classes, which the library does not hold. An explainer without a layer takes those that
        `fit` would choose. Prepare inputs by the model's own ``preprocessing``.

        Returns:
            The explainer.

        Raises:
            StateError: there are none of this model, or of its layer. The message says which there are.

        Example:
            >>> from iba_torch.efficientnet_lite import efficientnet_lite0
            >>> explainer = Explainer(efficientnet_lite0()).load_packaged()
            >>> explainer.layer, explainer.parts[0].estimator.n_samples()
            ('blocks.4, blocks.10', 700)
        """
        entries = _distributions(PATH, *packaged_statistics(self.adapter))
        found = self._twin()
        if found.layer is None and found._may_choose_several:
            found._choose(found._test_input(entries[0][0]))
        for part in found.parts:
            if not part._take_from("the packaged file", entries):
                raise StateError(
                    f"the packaged statistics are of another model: at layer {part.layer!r}, this one gives "
                    "other features for the same test input; call fit(batches)"
                )
        self._take_over(found)
        return self

    def _take_from(self, source: str, entries: Sequence[_Distribution]) -> bool:
        """Take over that of several distributions which is of the explainer's layer.

        Args:
            source: where they come from, for the message.
            entries: the distributions.

        Returns:
            Whether the model gives the features of a test input that it gave when they were estimated.
        """
        named = [facts.get("layer") for facts, *_ in entries]
        if self._layer is None:
            if named[0] is None:
                raise StateError(f"{source} names no layer, and neither does the explainer; give layer=")
            self._layer, fitting = named[0], [*entries]
        else:
            fitting = [entry for entry in entries if entry[0].get("layer") in (None, self.layer)]
        if not fitting:
            described = f"the layer {named[0]!r}" if len(named) == 1 else f"the layers {named}"
            raise StateError(f"{source} describes {described}, but the explainer's layer is {self.layer!r}")
        facts, self.estimator, self._halves = fitting[0]
        if self.tokens is None and (saved := facts.get("tokens")) is not None:
            self._read_tokens(Tokens(**saved))
        split = self._split_at(None)
        if (known := facts.get("input_shape")) is not None:
            # A model of the same framework takes them as they were.
            is_own = facts.get("framework") == self.adapter.framework.name
            saved = split.input_format if is_own else facts["input_format"]
            self._input_shape = tuple(known[axis] for axis in _permutation(known, saved, split.input_format))
        self._estimated_format = facts.get("data_format")
        self._probe = facts.get("probe")
        own = self._summary(split, self._input_shape) if self._probe else None
        return not own or not self._probe or same_summary(own, self._probe)

    def _test_input(self, facts: Mapping[str, Any]) -> Inputs:
        """A batch of one input of the shape that statistics were estimated on."""
        known, saved = facts["input_shape"], facts["input_format"]
        wanted = self.adapter.split(facts["layer"]).input_format
        sizes = [known[axis] for axis in _permutation(known, saved, wanted)]
        return self.adapter.to_inputs(noise_input(sizes, Layout.of(sizes, wanted))[None])

    def _summary(self, split: Split, input_shape: InputShape | None) -> list[float] | None:
        """What tells the model from others at the layer; None where a test input cannot be made."""
        if input_shape is None or None in input_shape or not 1 <= len(input_shape) <= 4:
            return None
        sizes = [size or 0 for size in input_shape]
        noise = noise_input(sizes, Layout.of(sizes, split.input_format))
        features = []
        try:
            for _ in range(2):
                inputs = self.adapter.to_inputs(noise[None])
                features.append(self.adapter.framework.to_numpy(split.features(inputs))[0])
        except Exception:  # the layers of a model may raise anything for inputs that are noise
            return None
        layout = Layout.of(features[0].shape, self._format(split), self.tokens)
        # A model that draws random numbers has none.
        return summary(features[0], layout) if np.array_equal(*features) else None

    # -- explaining -------------------------------------------------------------------------------

    def explain(
        self,
        x: Inputs,
        target: Any = None,
        *,
        seed: int | None = None,
        pass_mask: PassMask | None = None,
        max_batch: int | None = None,
        progbar: bool = False,
        preset: str | None = None,
        **settings: Any,
    ) -> Attribution:
        """Explain the model's output for one input or a batch of them.

        Args:
            x: inputs with a leading batch axis, (B, ...). One input without it is taken as a batch of one.
                Arrays of NumPy or of the model's framework.
            target: what to keep of the output: the index of a class, one for all inputs or one
                each; None for the class predicted; a callable that maps the model's output to a score
                per row; a `ConceptEmbedding`, at the model's output or at a layer after the bottleneck (name
                the explainer's layer for that); or a `Target`.
            seed: makes the result reproducible, across frameworks too, and independent of the other
                inputs of the batch.
            pass_mask: True where features pass unchanged and carry no capacity, of the shape of a feature
                map or of a batch of them.
            max_batch: the most feature maps that pass the tail of the model at once, to bound the memory.
                If None, all of the batch; on a processor, those of as many images as its caches hold, see
                `Framework.preferred_batch`. The copies of one image are then never divided.
            progbar: show the progress.
            preset: name of a set of hyperparameters, in place of the explainer's own. At one layer,
                ``"fast"`` takes about half of the default's time, and ``"instant"`` a seventh. A preset holds
                `steps` and the `learning_rate` that fits them, and overrides what the constructor was given.
                If None, a setting of a preset that is given, such as `steps`, changes those of the explainer;
                or the paper's, if the explainer has a preset's own.
            **settings: hyperparameters that override both, see `BottleneckSettings`.

        Returns:
            Saliency in bits per pixel, capacity in nats, and more.

        Raises:
            NotEstimatedError: the distribution of the features has not been estimated.
            InputError: inputs of the wrong shape or not finite, or a target that does not fit.
            OptimizationError: the objective became NaN or infinite.
        """
        chosen = self._chosen(preset, settings)
        self._require_estimate()
        require_seed("seed", seed)
        options = _Options(chosen, seed, pass_mask, max_batch, self.class_names, progbar)
        return self._explain(x, as_target(target), options)

    def explain_seeds(self, x: Inputs, target: Any = None, *, seeds: int = 8, **options: Any) -> Repeats:
        """Explain the same inputs with several seeds, to see how sure the maps and their bits are.

        One is explained after the other, each as `explain` does with that seed. The head of the model, which
        they could share, takes 1 to 2 % of an explanation.

        Args:
            x: as in `explain`.
            target: as in `explain`. If None, the class predicted.
            seeds: number of seeds, at least 2.
            **options: as in `explain`. `seed` is the first seed, 0 unless it is given; each further one is
                higher by 1.

        Returns:
            The explanations, with mean and standard deviation of the maps and bits.

        Raises:
            InputError: as in `explain`.

        Example:
            >>> repeats = explainer.explain_seeds(x, 1, seeds=2)
            >>> [each.seed for each in repeats.attributions]
            [0, 1]
        """
        seeds = require_whole("seeds", seeds, 2, _MOST_SEEDS)
        first = options.pop("seed", None)
        require_seed("seed", first)
        start = first or 0
        found = (self.explain(x, target, seed=seed, **options) for seed in range(start, start + seeds))
        return Repeats(tuple(found))

    def map(self, inputs: Any, out: str | PathLike[str], targets: Any = None, **options: Any) -> Run:
        """Explain a data set into a folder, on one machine or many.

        It is `iba_core.datasets.explain_dataset`, which says more.

        Args:
            inputs: a folder of image files, or a list of files and folders; a dict of inputs by name; or an
                iterable of pairs (name, input).
            out: folder to write to.
            targets: None for the predicted class; the index or the name of a class; a list of these; or a
                dict of any targets by name.
            **options: those of `explain_dataset`, among them ``jobs`` for the number of workers, ``ray`` for
                the address of a cluster, and ``gpus`` for the share of a GPU that each worker gets.

        Returns:
            The run, whose summary has been written.

        Raises:
            NotEstimatedError: the distribution of the features has not been estimated.
            InputError: as in `explain_dataset`.

        Example:
            >>> run = explainer.map({"a": x[0], "b": x[1]}, "mapped", 1, progbar=False)
            >>> [record.name for record in run]
            ['a', 'b']
        """
        return explain_dataset(self, inputs, out, targets, **options)

    def survival_curve(
        self,
        x: Inputs,
        target: Any = None,
        *,
        betas: Sequence[float] = (0.3, 1.0, 3.0, 10.0, 30.0, 100.0),
        **options: Any,
    ) -> SurvivalCurve:
        """Explain the same inputs with several betas: how much survives on how many bits.

        Args:
            x: as in `explain`.
            target: as in `explain`.
            betas: at least one number.
            **options: as in `explain`, but for `beta` and `keep`.

        Returns:
            Bits and survival for each beta and image.

        Raises:
            InputError: as in `explain`.

        Example:
            >>> curve = explainer.survival_curve(x, 1, betas=(1, 10), seed=0)
            >>> curve.bits.shape, curve.survival.shape
            ((2, 2), (2, 2))
        """
        require_sequence("betas", betas, "numbers")
        ordered = sorted(require_numbers("betas", betas, least=0, most=LARGEST_NUMBER))
        if given_too := {"beta", "keep"} & set(options):
            raise InputError(f"{given_too.pop()}= is no argument of survival_curve; give betas=")
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=_LOST)  # to see that is what the curve is for
            found = [self.explain(x, target, beta=beta, **options) for beta in ordered]
        return SurvivalCurve(
            betas=np.asarray(ordered),
            bits=np.stack([each.total_bits for each in found]),
            survival=np.stack([each.survival for each in found if each.survival is not None]),
            survival_std=np.stack([each.survival_std for each in found if each.survival_std is not None]),
        )

    def explain_iter(
        self,
        batches: Iterable[Any],
        target: Any = None,
        *,
        seed: int | None = None,
        pass_mask: PassMask | Callable[[Inputs], PassMask] | None = None,
        max_batch: int | None = None,
        progbar: bool = True,
        preset: str | None = None,
        **settings: Any,
    ) -> Iterator[Attribution]:
        """Explain a data set batch by batch, each when the caller asks for it.

        One batch and its attribution are in memory at a time, unless the caller keeps more.

        Args:
            batches: an iterable of batches as `fit` takes them, each the inputs or a tuple or list (inputs,
                targets, ...): a data loader, a generator, a list. A model with several inputs takes them
                as a tuple or dict within the batch: ((a, b), targets).
            target: one for all batches, as `explain` takes it; targets in the batches are then ignored. If
                None, each batch brings its own, anything that `explain` takes, such as the labels of its
                images. A batch without one is explained for the class predicted. To explain the class
                predicted for a data set with labels, give ``ClassTarget()``.
            seed: as in `explain`. An image gets the same noise in any batch, so the result is that of
                `explain`.
            pass_mask: as in `explain`, for all batches; or a callable that gives it for a batch's inputs,
                for example where the padding of each sentence is.
            max_batch: as in `explain`.
            progbar: show how many batches are done.
            preset: as in `explain`.
            **settings: as in `explain`.

        Returns:
            An iterator of attributions, one for each batch.

        Raises:
            NotEstimatedError: the distribution of the features has not been estimated.
            InputError: a setting is wrong (raised at once); there are no batches, or one does not fit (raised
                when its turn comes).
            OptimizationError: the objective became NaN or infinite.

        Example:
            >>> [len(attribution) for attribution in explainer.explain_iter([x, x[:1]], progbar=False)]
            [2, 1]
        """
        chosen = self._chosen(preset, settings)
        self._require_estimate()
        require_seed("seed", seed)
        require_bool("progbar", progbar)
        batches = require_batches("batches", batches)
        if isinstance(pass_mask, type):
            raise InputError(f"{given('pass_mask', pass_mask)} must be a mask, or a function that gives one")
        whole = None if target is None else as_target(target)

        def attributions() -> Iterator[Attribution]:
            count = 0
            for batch in get_tqdm()(batches, desc="Explaining", unit="batch", disable=not progbar):
                inputs = inputs_of_batch(batch)
                wanted = as_target(targets_of_batch(batch)) if whole is None else whole
                passing = pass_mask(inputs) if callable(pass_mask) else pass_mask
                options = _Options(chosen, seed, passing, max_batch, self.class_names)
                yield self._explain(inputs, wanted, options)
                count += 1
            if not count:
                raise InputError("batches is empty; give at least one batch of inputs")

        return attributions()

    def predict(self, x: Inputs) -> npt.NDArray[Any]:
        """Output (B, ...) of the model for `x`, as it is without a bottleneck.

        Args:
            x: as in `explain`.

        Raises:
            InputError: inputs of the wrong shape or not finite.
        """
        if self._parts:
            return self._parts[0].predict(x)
        split = None if self._layer is None else self._split_at(None)
        outputs = self.adapter.predict(self._checked(x, split))
        return self.adapter.framework.to_numpy(first_output(outputs, self.output))

    def predict_restricted(
        self,
        x: Inputs,
        attribution: Attribution,
        samples: int = 10,
        seed: int | None = None,
        pass_mask: PassMask | None = None,
    ) -> npt.NDArray[Any]:
        """Output of the model when only the information of an attribution passes.

        Args:
            x: the inputs that were explained.
            attribution: what `explain` gave for them.
            samples: noisy copies of each input.
            seed: makes the noise reproducible. It differs from the noise of the optimisation.
            pass_mask: as it was given to `explain`.

        Returns:
            The model's outputs (B, samples, ...).

        Raises:
            NotEstimatedError: the distribution of the features has not been estimated.
            InputError: the inputs are not those of the attribution.
        """
        require_type("attribution", attribution, Attribution, "what explain gave for x")
        samples = require_whole("samples", samples, 1, LARGEST_COUNT)
        require_seed("seed", seed)
        if self._parts or isinstance(attribution, CombinedAttribution):
            raise InputError(
                "attribution must be of one layer, and of the explainer's: call predict_restricted on one of "
                "explainer.parts, with the one of attribution.parts that is of its layer"
            )
        self._require_estimate()
        split, framework = self._split_at(None), self.adapter.framework
        inputs = self._checked(x, split)
        pass_mask = self._passing(inputs, pass_mask)
        if batch_size(inputs) != len(attribution):
            raise InputError(
                f"x holds {batch_size(inputs)} inputs, but the attribution {len(attribution)}; give the same"
            )
        settings = attribution.settings
        with framework.randomness(seed), split.head(inputs) as tail:
            split.require_seeded(seed)
            statistics = self._statistics(split, settings.active_neurons_threshold, inputs)
            optimizer = self._optimizer(first_output, self._layout(split, statistics))
            problem = optimizer.problem(tail, statistics, settings=settings, pass_mask=pass_mask)
            passed = framework.asarray(attribution.mask, like=problem.features)
            (noise,) = optimizer.noise(problem, (samples,), seed, step=settings.steps)
            z = optimizer.restricted(problem, Mask(passed, 1.0 - passed), noise)
            outputs = framework.to_numpy(first_output(tail(z), self.output))
        return outputs.reshape(len(attribution), samples, *outputs.shape[1:])

    # -- helpers ----------------------------------------------------------------------------------

    def _chosen(self, preset: str | None, settings: Mapping[str, Any]) -> BottleneckSettings:
        """See `BottleneckSettings.chosen`. Steps from a readout that stood still are those of `REFINED`."""
        stands_still = self.warm_start is not None and not self.settings.learning_rate
        if stands_still and preset is None and settings.get("steps") is not None:
            settings = {**preset_settings(None, settings, self.settings, warm_start=True), **settings}
        return self.settings.chosen(preset, settings)

    def _explain(self, x: Inputs, whole: Target, options: _Options) -> Attribution:
        if self._parts and options.pass_mask is not None:
            raise InputError("pass_mask= is of the feature map of one layer; leave it out for several layers")
        groups: list[tuple[Explainer, ...]] = [(part,) for part in self.parts]
        if self.combine == "shared":
            require_shareable(options.settings)
            if not self._parts:
                raise InputError(
                    f"combine='shared' is of several layers, and the explainer's is {self.layer!r}; give "
                    "layer= a list"
                )
            groups = [self._parts]
        found: list[Attribution] = []
        for parts in groups:
            found.extend(_explained_at(parts, x, whole, options))
            if isinstance(whole, ClassTarget):
                # The class predicted may differ by rounding.
                whole = replace(whole, classes=found[0].classes)
        result = CombinedAttribution(found, self.combine) if self._parts else found[0]
        _warn_of_lost(result)
        return result

    def _prepared(self, x: Inputs, whole: Target, options: _Options, lead: list[_Known] | None) -> _Prepared:
        """Check what is to be explained, and say how.

        Args:
            x: the inputs.
            whole: the target.
            options: of the explanation.
            lead: what is known at the first layer of a shared mask; None for a layer alone.
        """
        settings, framework, split = options.settings, self.adapter.framework, self._split_at(whole.layer)
        inputs = self._checked(x, split)
        options = options._replace(pass_mask=self._passing(inputs, options.pass_mask))
        images = batch_size(inputs)
        self._require_warm_start(split, whole)
        if settings.precision is not None:  # refused at once, if at all
            framework.reduced_precision(settings.precision, next(arrays_of(inputs)))
        if (whole.layer, self._layer) not in self._complete:
            self._look_around(split, take(inputs, 0, 1), (whole.layer, self._layer))
        known: list[_Known] = []

        def task(tail: Tail, start: int, stop: int) -> Task:
            statistics = self._statistics(split, settings.active_neurons_threshold, inputs)
            layout = self._layout(split, statistics)
            raw = self._run(tail.run, tail.features, tail.carry)
            choose = main_output if whole.needs_main_output else first_output
            # Those of another layer differ by rounding, and so may the class predicted.
            outputs = lead[-1].outputs if lead else framework.to_numpy(choose(raw, self.output))
            order = split.map_order(layout)
            if lead and len(order.axes) == len(lead[-1].order.axes) and order != lead[-1].order:
                raise InputError(
                    f"combine='shared' takes layers whose axes are in the same order, but between them and "
                    f"{split.layer_name!r} the model exchanges or reverses some; choose other layers, or "
                    "combine='mean'"
                )
            # Only numbers from 0 to 1 leave it open what they are.
            is_open = outputs.ndim == 2 and outputs.min() >= 0 and outputs.max() <= 1
            activation = self._activation(tail, raw, whole) if is_open else "other"
            wanted = whole.ending_in(activation)
            loss, rows = wanted.select(start, stop, images).resolve(outputs)
            if self.output is not None:
                loss = OfOutput(loss, self.output)
            # The user's word counts more than what the model tells.
            own = getattr(wanted, "activation", None) or activation
            known.append(_Known(outputs, rows, layout, order, own))
            ordered = layout if tail.axes is None else layout.permuted(tail.axes)
            optimizer = self._optimizer(loss, ordered, settings.precision, whole.log_likelihood)
            like = full_precision(tail.features)
            tensors = tuple([framework.asarray(row, like=like) for row in rows])
            begin = None
            if self.warm_start is not None:
                begin = self.warm_start.start(tail, take(inputs, start, stop), rows[0])
            return Task(optimizer, statistics, tensors, whole=loss(raw, *tensors), start=begin)

        return _Prepared(split, inputs, options, task, known)

    def _require_warm_start(self, split: Split, whole: Target) -> None:
        """Check that the readout to start at, if there is one, is of this layer and of such a target."""
        readout = self.warm_start
        if readout is None:
            return
        if readout.layer_name != split.layer_name:
            raise InputError(
                f"warm_start is a readout of the layer {readout.layer_name!r}, and {split.layer_name!r} is "
                "explained; give one of that layer"
            )
        if not isinstance(whole, ClassTarget):
            raise InputError("warm_start reads the answer for classes; give a class as target, or none")

    def _look_around(self, split: Split, one: Inputs, key: Any) -> None:
        """Find out, once for a layer, whether some information passes it by, and say so."""
        try:
            complete = nothing_passes_by(self.adapter.framework, split, one)
        except IBAError:
            complete = None
        self._complete[key] = complete
        if complete is False:
            warnings.warn(
                f"the model reads some of its input by a way around layer {split.layer_name!r}, such as a "
                "skip connection: the map and its bits are about what passes through that layer alone",
                stacklevel=6,
            )

    def _activation(self, tail: Tail, raw: Any, whole: Target) -> str:
        """The function that the output ends in, which the model is asked once."""
        key = (self._layer, whole.layer)
        if key not in self._activations:
            found, index = tail.activations(), main_index(raw, self.output)
            self._activations[key] = found[index] if index < len(found) else None
        return self._activations[key] or "unknown"

    def _attribution(self, result: BottleneckResult, at: _Prepared, whole: Target) -> Attribution:
        """That of the chunk whose task has been made last."""
        framework, known = self.adapter.framework, at.known[-1]
        split, inputs, options, *_ = at
        capacity = framework.to_numpy(result.capacity)
        map_shape = self._map_shape(inputs, split, known.layout.places(capacity.shape[1:]))
        return Attribution(
            saliency=saliency_maps(capacity, known.layout, map_shape, known.order),
            capacity=capacity,
            mask=framework.to_numpy(result.mask.passed),
            outputs=known.outputs,
            model_losses=result.model_losses,
            informations=result.informations,
            steps_taken=result.steps_taken,
            layer=split.layer_name,
            data_format=self._format(split),
            settings=options.settings,
            classes=known.rows[0] if isinstance(whole, ClassTarget) else None,
            seed=options.seed,
            activation=known.activation,
            class_names=_names_of(known.rows[0], options.class_names)
            if isinstance(whole, ClassTarget)
            else None,
            survival=None if result.shares is None else result.shares.mean(axis=1),
            survival_std=None if result.shares is None else result.shares.std(axis=1),
            betas=options.settings.beta
            * (np.ones(len(capacity)) if result.factors is None else result.factors),
            complete=self._complete[whole.layer, self._layer],
        )

    def _statistics(self, split: Split, threshold: float, inputs: Inputs) -> Statistics:
        """Distribution of the features in the split's data format, which is certain once its head has run."""
        wanted, moments = self._format(split), self.estimator.moments
        shape = self._feature_shape(inputs)
        # Gathered once for all explanations, as long as the estimator sees nothing new.
        known = self._known
        if known is not None and known[0] is moments and known[1:4] == (threshold, wanted, shape):
            return known[4]
        statistics = Statistics.of(self.estimator, threshold)
        if statistics.mean.shape != shape:
            statistics = statistics.repeated(shape[0])
        if self._estimated_format not in (None, wanted):
            axes = _permutation(statistics.mean.shape, self._estimated_format, wanted)
            statistics = statistics.permuted(axes)
        if moments is not None:
            self._known = (moments, threshold, wanted, shape, statistics)
        return statistics

    def _feature_shape(self, inputs: Inputs) -> tuple[int, ...]:
        """Shape of a feature map; of sequences of any length, the inputs have it."""
        shape = self.estimator.shape or ()
        if self.tokens is None or not self.tokens.any_length or len(shape) != 1:
            return shape
        return (int(next(arrays_of(inputs)).shape[1]), *shape)

    def _passing(self, inputs: Inputs, pass_mask: PassMask | None) -> PassMask | None:
        """The user's pass mask, and the padding of sentences, which the model does not read."""
        if self.tokens is None or not self.tokens.any_length:
            return pass_mask
        padding = padding_of(inputs)
        if padding is None or not padding.any():
            return pass_mask
        everywhere = np.repeat(padding[..., None], self._feature_shape(inputs)[-1], axis=2)
        return everywhere if pass_mask is None else everywhere | require_mask("pass_mask", pass_mask)

    def _read_tokens(self, tokens: Tokens | None) -> None:
        """Read the layer's features as tokens, from now on."""
        self.tokens = tokens
        if tokens is not None:
            self.data_format = self.data_format or "channels_last"
            if tokens.any_length and not self._is_smoothing_given:
                # Words beside each other are not alike, as pixels are.
                self.settings = self.settings.override(smooth_std=0.0)

    def _format(self, split: Split) -> DataFormat:
        """Where the channels of the feature map are; those of tokens are always last."""
        return split.data_format if self.tokens is None else "channels_last"

    def _layout(self, split: Split, statistics: Statistics) -> Layout:
        return Layout.of(statistics.mean.shape, self._format(split), self.tokens)

    def _require_estimate(self) -> None:
        for part in self.parts:
            if part._layer is None or part.estimator.n_samples() < 2:
                raise NotEstimatedError(
                    "the distribution of the features is not estimated; call fit(batches), or give estimator="
                )

    def _checked(self, inputs: Inputs, split: Split | None) -> Inputs:
        """Inputs as tensors of the model's device, with a batch axis, checked before any work."""
        inputs = array_of_lists("x", inputs)
        if split is not None and hasattr(inputs, "shape") and self._input_shape is not None:
            if len(inputs.shape) == len(self._input_shape):
                inputs = inputs[None]
            known = self._input_shape
            if self.tokens is not None and self.tokens.any_length:
                known = (None, *known[1:])
            check_shape(tuple(inputs.shape[1:]), known, split.input_format == "channels_first")
        inputs = require_inputs("x", inputs, self.adapter.to_inputs)
        for array in arrays_of(inputs):
            require_finite(self.adapter.framework.to_numpy(array), "x")
        return inputs

    def _split_at(self, end_layer: Any) -> Split:
        """The model split at the explainer's layer, its tail up to `end_layer`."""
        key = (self._layer, end_layer)
        return self._splits.get(
            key, lambda: self.adapter.split(self._layer, end_layer, data_format=self.data_format)
        )

    def _optimizer(
        self, loss: Loss, layout: Layout, precision: str | None = None, log_likelihood: bool = False
    ) -> BottleneckOptimizer:
        """What optimises for a loss, with the step that it has compiled."""

        def make() -> BottleneckOptimizer:
            return BottleneckOptimizer(
                self.adapter.framework,
                loss,
                layout,
                precision=precision,
                log_likelihood=log_likelihood,
                jit_compile=self._jit_compile,
            )

        return self._optimizers.get((loss, layout, precision, log_likelihood), make)

    def _compiled_run(self) -> Callable[..., Any]:
        return self.adapter.framework.compile(_run, jit_compile=self._jit_compile)

    @staticmethod
    def _map_shape(inputs: Inputs, split: Split, places: Sequence[int]) -> tuple[int, ...] | None:
        """Spatial shape of the input, where it has as many spatial axes as the features have places."""
        shape = tuple(next(arrays_of(inputs)).shape[1:])
        if not 1 <= len(shape) <= 4 or not split.input_has_channels:
            return None
        spatial = Layout.of(shape, split.input_format).spatial_shape(shape)
        return spatial if len(spatial) == len(places) else None


def _names_of(classes: npt.NDArray[np.integer], names: tuple[str, ...] | None) -> tuple[str, ...] | None:
    """Names of classes (B,), if the names of all classes are known."""
    if names is None:
        return None
    if (highest := int(classes.max(initial=0))) >= len(names):
        raise InputError(f"class_names has {len(names)} names, none of class {highest}")
    return tuple(names[number] for number in classes.tolist())


_LEAST_OF_PART = 64
"""Samples that a worker estimates on at once, rounded up to whole batches."""


class _Part(NamedTuple):
    """Inputs for a worker to estimate on."""

    number: int
    start: int
    """Inputs before these."""
    items: list[Item]
    batch_size: int


class _Gathered(NamedTuple):
    """What a worker has gathered, for each layer: halves, shape of the inputs, whether these are floats."""

    number: int
    samples: int
    layers: list[tuple[Halves, InputShape, bool]]


def _parts_of_items(items: Iterable[Item], size: int, batch_size: int) -> Iterator[_Part]:
    iterator = iter(items)
    for number in count():
        if not (some := list(islice(iterator, size))):
            return
        yield _Part(number, number * size, some, batch_size)


def _gather_part(explainer: Explainer, part: _Part, _: None) -> _Gathered:
    """Gather the moments of a part of the inputs, in a process of its own or not."""
    found, seen = explainer._blank_twin(), part.start
    for start in range(0, len(part.items), part.batch_size):
        inputs = found._inputs_of_items(part.items[start : start + part.batch_size])
        for each in found.parts:
            each._gather(inputs, seen)
        seen += batch_size(inputs)
    layers = [
        (each._halves, each._input_shape, each._takes_noise)
        for each in found.parts
        if each._halves is not None and each._input_shape is not None
    ]
    return _Gathered(part.number, len(part.items), layers)


def _in_order(gathered: Iterable[_Gathered]) -> Iterator[_Gathered]:
    """By number, so that rounding does not depend on who is first."""
    waiting: dict[int, _Gathered] = {}
    following = 0
    for each in gathered:
        waiting[each.number] = each
        while following in waiting:
            yield waiting.pop(following)
            following += 1


AUTO_LAYER = "auto"
"""What may be given as the layer, as None, for those of `iba_core.default_layer.choose_layers`."""

_MOST_SEEDS = 10**4
"""Most explanations of the same inputs. More are a slip of the pen."""

_OF_FEATURES = (
    "_parts",
    "_layer",
    "estimator",
    "_halves",
    "_input_shape",
    "_estimated_format",
    "_probe",
    "tokens",
    "data_format",
    "settings",
)
"""Attributes of an explainer that `fit` and `load` decide."""

_FIRST_CHECK = 64
"""Samples after which `fit` first looks whether the bits have settled."""

_FEW = 4
"""Inputs that it explains for that."""

_LEAST_OF_HALVES = 4
"""Samples, so that each half has a standard deviation."""

_LARGE_ERROR = 0.05
"""A standard error of the bits, as a share of them, that `Explainer.bits_error` warns of."""

_LOST = ".* maps do not (explain|keep)"


def _root_mean_square(errors: npt.NDArray[np.floating]) -> float:
    return float(np.sqrt(np.mean(np.square(errors))))


def _warn_of_statistics(samples: int, error: float, wanted: float) -> None:
    """Say so where the bits are less certain than wanted. Errors fall with the root of the samples."""
    if error <= wanted:
        return
    more = f"; about {samples * (error / wanted) ** 2:,.0f} are advised" if np.isfinite(error) else ""
    size = f"{100 * error:.0f} %" if np.isfinite(error) else "an unknown share"
    warnings.warn(
        f"with the statistics of {samples:,} samples, the bits have a standard error of {size}, more than "
        f"{100 * wanted:g} %{more}",
        stacklevel=3,
    )


def _warn_of_lost(found: Attribution) -> None:
    """Say so where the target does not survive on the bits of its map, or less of it than was to be kept."""
    survival, keep = found.survival, found.settings.keep
    if survival is None:
        return
    # A share that is just kept may be less by the rounding of float32.
    lost = np.flatnonzero(survival < (LEAST if keep is None else keep - 1e-6))
    if not lost.size:
        return
    worst = int(lost[np.argmin(survival[lost])])
    left = f"when only the bits of image {worst} pass, {100 * survival[worst]:.0f} % of the target is left"
    warnings.warn(
        f"{lost.size} of {len(found)} maps do not explain their target: {left}; give a smaller beta, or "
        "beta='auto'"
        if keep is None
        else f"{lost.size} of {len(found)} maps do not keep {100 * keep:g} % of their target: {left}; "
        "give more steps, or a smaller beta to start at",
        stacklevel=4,
    )


def _explained_at(
    parts: Sequence[Explainer], x: Inputs, whole: Target, options: _Options
) -> list[Attribution]:
    """Explain at one layer, or at several with one mask; an attribution for each."""
    layers: list[_Prepared] = []
    for part in parts:
        layers.append(part._prepared(x, whole, options, layers[0].known if layers else None))
    chunks = explain_in_chunks(
        parts[0].adapter.framework,
        [
            AtLayer(at.split, part._feature_shape(at.inputs), at.task, at.options.pass_mask)
            for part, at in zip(parts, layers, strict=True)
        ],
        layers[0].inputs,
        options.settings,
        seed=options.seed,
        max_batch=options.max_batch,
        progbar=options.progbar,
    )
    found = [
        [
            part._attribution(result, at, whole)
            for part, result, at in zip(parts, chunk.results, layers, strict=True)
        ]
        for chunk in chunks
    ]
    return found[0] if len(found) == 1 else [Attribution.concatenate(own) for own in zip(*found, strict=True)]


def _run(run: Callable[[Array, tuple[Array, ...]], Any], z: Array, carry: tuple[Array, ...]) -> Any:
    return run(z, carry)


def _layers_given(layer: Any) -> list[Any]:
    """The layers that an argument names: none, one, or a list of them."""
    if not isinstance(layer, (list, tuple)):
        require_layer("layer", layer, optional=True)
        return [] if layer is None else [layer]
    require_sequence("layer", layer, "layers")
    for each in layer:
        require_layer("layer", each)
    return list(layer)


def _distributions(
    path: str | PathLike[str], arrays: Mapping[str, npt.NDArray[Any]], metadata: Mapping[str, Any]
) -> list[_Distribution]:
    """The facts and the estimator of each layer in a file that `Explainer.save` wrote."""
    with interpreting(path, KIND):
        of_layers = metadata.get("layers")
        entries = (
            [(metadata, arrays)]
            if of_layers is None
            else [({**metadata, **facts}, taken_out(arrays, i)) for i, facts in enumerate(of_layers)]
        )
        found: list[_Distribution] = []
        for facts, state in entries:
            estimator = WelfordEstimator()
            estimator.load_state_dict({**state})
            _require_facts(facts)
            found.append((facts, estimator, Halves.of_state(state, estimator)))
        if not found:
            raise StateError("it is of no layer")
        if len(found) > 1 and any(facts.get("layer") is None for facts, *_ in found):
            raise StateError("it does not name the layer of each distribution")
    return found


def _require_facts(metadata: Mapping[str, Any]) -> None:
    """Check what `Explainer.save` wrote beside the distribution; older files lack some of it."""
    layer, shape = metadata.get("layer"), metadata.get("input_shape")
    if layer is not None and not isinstance(layer, str):
        raise StateError(f"layer={layer!r} is no name")
    if shape is not None and not (
        isinstance(shape, list) and all(size is None or isinstance(size, int) for size in shape)
    ):
        raise StateError(f"input_shape={shape!r} is no shape")
    formats = [metadata.get("data_format"), *([] if shape is None else [metadata["input_format"]])]
    known = metadata.get("probe")
    if known is not None and not (isinstance(known, list) and all(isinstance(x, float) for x in known)):
        raise StateError(f"probe={known!r} is no list of numbers")
    for data_format in formats:
        if data_format not in (None, *get_args(DataFormat)):
            raise StateError(f"{data_format!r} is neither 'channels_first' nor 'channels_last'")


def _permutation(
    shape: Sequence[int | None], saved: DataFormat | None, wanted: DataFormat
) -> tuple[int, ...]:
    """Axes that turn an array of `shape` from one data format into the other."""
    sizes = [size or 0 for size in shape]
    order = Layout.of(sizes, saved or wanted).to_channels_first()
    return tuple(order[axis] for axis in Layout.of(sizes, wanted).from_channels_first())
