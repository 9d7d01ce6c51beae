"""The class most users need, the same for every framework."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
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
    require_numbers,
    require_seed,
    require_sequence,
    require_text,
    require_type,
    require_whole,
)
from iba_core.attribution import Attribution, CombinedAttribution
from iba_core.bottleneck.chunks import Task, explain_in_chunks
from iba_core.bottleneck.estimator import KIND, Moments, WelfordEstimator
from iba_core.bottleneck.formulas import Mask
from iba_core.bottleneck.optimization import BottleneckOptimizer, BottleneckResult, PassMask
from iba_core.bottleneck.saliency import COMBINE, Combine, saliency_maps
from iba_core.bottleneck.settings import BottleneckSettings, preset_settings
from iba_core.bottleneck.statistics import Statistics
from iba_core.bottleneck.survival import LEAST
from iba_core.default_layer import default_layer, nothing_passes_by
from iba_core.errors import IBAError, InputError, NotEstimatedError, StateError
from iba_core.framework.adapter import Activation, Inputs, Model, ModelAdapter, Split, Tail, find_adapter
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
    require_batches,
    require_inputs,
    samples_of,
    take,
    targets_of_batch,
)
from iba_core.framework.layout import DataFormat, Layout, Tokens
from iba_core.framework.namespace import Array, full_precision
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


class _Options(NamedTuple):
    """Options of one explanation, apart from what is explained."""

    settings: BottleneckSettings
    seed: int | None
    pass_mask: PassMask | None
    max_batch: int | None
    progbar: bool = False


class _Known(NamedTuple):
    """What is known of a chunk of images once its head has run."""

    outputs: npt.NDArray[Any]
    """Of the model, without a bottleneck."""
    rows: tuple[npt.NDArray[Any], ...]
    """Data of the target, a row per image."""
    layout: Layout
    activation: str


_Distribution = tuple[Mapping[str, Any], WelfordEstimator]
"""Facts about a layer, and the statistics of its features."""


class Explainer:
    """Says which parts of an input a model needs for its output, and how many bits they carry.

    A bottleneck after one layer replaces as much of the layer's features by noise as the output allows. First
    fit the explainer on inputs like those to explain, so that it knows what the features usually look like.
    Then explain any number of inputs. Threads may share one explainer. A copy or a pickle of it is
    independent.

    Args:
        model: a trained model of any framework that a backend serves. It is not changed.
        layer: the layer that the bottleneck comes after, an object or its name. If None, `fit` chooses one
            on its first batch, see `iba_core.default_layer`. A list of layers gives one map of all of them:
            each is explained with a bottleneck of its own, see `CombinedAttribution`.
        backend: name of the backend. If None, it follows from the model.
        estimator: statistics of the layer's features, gathered before, in place of `fit`.
        combine: how one map is made of those of several layers, ``"mean"`` or ``"geometric"``.
        tokens: how to read a layer whose features are a sequence of tokens, such as
            ``Tokens(prefix=1, grid=(14, 14))`` for a vision transformer.
        preset: name of a set of hyperparameters: ``"default"`` and ``"paper"`` (the paper's), ``"fast"``, or
            ``"guarded"``, whose loss does not jump on the way, see `iba_core.bottleneck.settings.PRESETS`.
            Hyperparameters that are given override it.
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
        combine: Combine = "mean",
        tokens: Tokens | None = None,
        preset: str | None = None,
        data_format: DataFormat | None = None,
        shared: Sequence[str | int] | None = None,
        output: str | int | None = None,
        class_names: Sequence[str] | None = None,
        compile: bool = False,
        **settings: Any,
    ) -> None:
        self.adapter: ModelAdapter = find_adapter(model, backend)
        layers = _layers_given(layer)
        self.combine: Combine = require_choice("combine", combine, COMBINE)
        BottleneckSettings().override(**settings)  # names what is no setting
        self.settings: BottleneckSettings = BottleneckSettings(**{**preset_settings(preset), **settings})
        require_type("estimator", estimator, WelfordEstimator, "a WelfordEstimator", optional=True)
        require_type("tokens", tokens, Tokens, "iba_core.Tokens", optional=True)
        self.estimator: WelfordEstimator = estimator or WelfordEstimator()
        self.tokens = tokens
        require_data_format("data_format", data_format, optional=True)
        self.data_format = data_format or (None if tokens is None else "channels_last")
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
        self._known: tuple[Moments, float, DataFormat, Statistics] | None = None
        self._input_shape: InputShape | None = None
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
        if self._parts and estimator is not None:
            raise InputError("estimator= is of one layer; leave it out for several, and call fit or load")

    @property
    def layer(self) -> str | None:
        """Name of the layer that the bottleneck comes after; of several, all names; None until chosen."""
        if self._parts:
            return ", ".join(f"{part.layer}" for part in self._parts)
        return None if self._layer is None else self._split_at(None).layer_name

    @property
    def parts(self) -> tuple[Explainer, ...]:
        """An explainer for each of several layers; the explainer itself if it has one layer."""
        return self._parts or (self,)

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
        layer = None if self._parts else self.layer
        return {**vars(self), "_layer": layer, "_run": None, "_complete": {}, "_activations": {}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._run = self._compiled_run()

    # -- the distribution of the features ---------------------------------------------------------

    def fit(self, batches: Iterable[Any], n_samples: int = 5000, progbar: bool = True) -> Self:
        """Estimate mean and standard deviation of the layer's features.

        An earlier estimate is replaced. If this one fails, the earlier one stays.

        Args:
            batches: an iterable of batches, each the inputs or a tuple (inputs, ...): a data loader, a
                generator, a list. Inputs are an array with a leading batch axis, or a tuple or dict of
                them. One array is taken as a single batch.
            n_samples: stop after exactly this number; fewer are used where the batches end before.
            progbar: show the progress.

        Returns:
            The explainer.

        Raises:
            InputError: there are no batches, or fewer than two samples, or values that are not finite.
        """
        n_samples = require_whole("n_samples", n_samples, 2)
        batches = require_batches("batches", batches)
        require_bool("progbar", progbar)
        parts, framework = self.parts, self.adapter.framework
        estimators = [WelfordEstimator() for _ in parts]
        layers = [part._layer for part in parts]
        splits = [] if layers == [None] else [part._split_at(None) for part in parts]
        input_shape: InputShape | None = None
        for samples in samples_of(batches, n_samples, progbar):
            inputs = require_inputs("batches", samples, self.adapter.to_inputs)
            if not splits:
                layers = [default_layer(self.adapter, take(inputs, 0, 1))]
                splits = [self.adapter.split(layers[0], data_format=self.data_format)]
            input_shape = common_shape(input_shape, tuple(next(arrays_of(inputs)).shape[1:]))
            for estimator, split in zip(estimators, splits, strict=True):
                estimator.fit(framework.to_numpy(split.features(inputs)))
        if not splits or estimators[0].n_samples() < 2:
            raise InputError(
                f"batches held {estimators[0].n_samples()} samples; at least 2 are needed to estimate the "
                "features' distribution, and about 5000 are advised"
            )
        for part, layer, estimator, split in zip(parts, layers, estimators, splits, strict=True):
            part._take_over(layer, estimator, input_shape, part._format(split))
        return self

    def _take_over(
        self,
        layer: Any,
        estimator: WelfordEstimator,
        input_shape: InputShape | None,
        data_format: DataFormat | None,
    ) -> None:
        self._layer, self.estimator, self._input_shape = layer, estimator, input_shape
        self._estimated_format = data_format

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
        states = [part.estimator.state_dict() for part in self.parts]
        facts = [part._facts() for part in self.parts]
        if not self._parts:
            write_state(path, states[0], KIND, {**(metadata or {}), **facts[0]})
        else:
            write_state(path, put_together(states), KIND, {**(metadata or {}), "layers": facts})

    def _facts(self) -> dict[str, Any]:
        """What a file says beside the distribution."""
        split = self._split_at(None)
        return {
            "layer": split.layer_name,
            "data_format": self._estimated_format or self._format(split),
            "input_shape": self._input_shape,
            "input_format": split.input_format,
            "framework": self.adapter.framework.name,
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
        entries = _read_distributions(path)
        parts = self.parts
        if not self._parts and self._layer is None and len(entries) > 1:
            parts = self._parts_of([facts.get("layer") for facts, _ in entries])
        found = [part._matching(path, entries) for part in parts]
        for part, state in zip(parts, found, strict=True):
            part._take_over(*state)
        if len(parts) > 1:
            self._parts = parts
        return self

    def _matching(self, path: str | PathLike[str], entries: Sequence[_Distribution]) -> tuple[Any, ...]:
        """What to take over of the distributions in a file."""
        named = [facts.get("layer") for facts, _ in entries]
        layer = self._layer
        if layer is None:
            metadata, estimator = entries[0]
            if named[0] is None:
                raise StateError(f"{path} names no layer, and neither does the explainer; give layer=")
            layer = named[0]
        else:
            fitting = [entry for entry in entries if entry[0].get("layer") in (None, self.layer)]
            if not fitting:
                described = f"the layer {named[0]!r}" if len(named) == 1 else f"the layers {named}"
                raise StateError(f"{path} describes {described}, but the explainer's layer is {self.layer!r}")
            metadata, estimator = fitting[0]
        split = self.adapter.split(layer, data_format=self.data_format)
        input_shape = self._input_shape
        if (known := metadata.get("input_shape")) is not None:
            # A model of the same framework takes them as they were.
            is_own = metadata.get("framework") == self.adapter.framework.name
            saved = split.input_format if is_own else metadata["input_format"]
            input_shape = tuple(known[axis] for axis in _permutation(known, saved, split.input_format))
        return layer, estimator, input_shape, metadata.get("data_format")

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
                per row; a `ConceptEmbedding`, at the model's output or at a layer after the bottleneck; or
                a `Target`.
            seed: makes the result reproducible, across frameworks too, and independent of the other
                inputs of the batch.
            pass_mask: True where features pass unchanged and carry no capacity, of the shape of a feature
                map or of a batch of them.
            max_batch: the most feature maps that pass the tail of the model at once, to bound the memory.
                If None, all of the batch; on a processor, those of as many images as its caches hold, see
                `Framework.preferred_batch`. The copies of one image are then never divided.
            progbar: show the progress.
            preset: name of a set of hyperparameters, in place of the explainer's own. With ``"fast"``, an
                explanation takes about two fifths of the time. A preset holds `steps` and the `learning_rate`
                that fits them, and overrides what the constructor was given.
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
        return self._explain(x, as_target(target), _Options(chosen, seed, pass_mask, max_batch, progbar))

    def explain_seeds(self, x: Inputs, target: Any = None, *, seeds: int = 8, **options: Any) -> Repeats:
        """Explain the same inputs with several seeds, to see how sure the maps and their bits are.

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
                yield self._explain(inputs, wanted, _Options(chosen, seed, passing, max_batch))
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
        if batch_size(inputs) != len(attribution):
            raise InputError(
                f"x holds {batch_size(inputs)} inputs, but the attribution {len(attribution)}; give the same"
            )
        settings = attribution.settings
        with framework.randomness(seed), split.head(inputs) as tail:
            split.require_seeded(seed)
            statistics = self._statistics(split, settings.active_neurons_threshold)
            optimizer = self._optimizer(first_output, self._layout(split, statistics))
            problem = optimizer.problem(tail, statistics, settings=settings, pass_mask=pass_mask)
            passed = framework.asarray(attribution.mask, like=problem.features)
            (noise,) = optimizer.noise(problem, (samples,), seed, step=settings.steps)
            z = optimizer.restricted(problem, Mask(passed, 1.0 - passed), noise)
            outputs = framework.to_numpy(first_output(tail(z), self.output))
        return outputs.reshape(len(attribution), samples, *outputs.shape[1:])

    # -- helpers ----------------------------------------------------------------------------------

    def _explain(self, x: Inputs, whole: Target, options: _Options) -> Attribution:
        if self._parts and options.pass_mask is not None:
            raise InputError("pass_mask= is of the feature map of one layer; leave it out for several layers")
        found: list[Attribution] = []
        for part in self.parts:
            found.append(part._explain_at_layer(x, whole, options))
            if isinstance(whole, ClassTarget):
                # The class predicted may differ by rounding.
                whole = replace(whole, classes=found[0].classes)
        result = CombinedAttribution(found, self.combine) if self._parts else found[0]
        _warn_of_lost(result)
        return result

    def _explain_at_layer(self, x: Inputs, whole: Target, options: _Options) -> Attribution:
        settings, framework, split = options.settings, self.adapter.framework, self._split_at(whole.layer)
        inputs = self._checked(x, split)
        images = batch_size(inputs)
        if settings.precision is not None:  # refused at once, if at all
            framework.reduced_precision(settings.precision, next(arrays_of(inputs)))
        if (whole.layer, self._layer) not in self._complete:
            self._look_around(split, take(inputs, 0, 1), (whole.layer, self._layer))
        known: list[_Known] = []

        def task(tail: Tail, start: int, stop: int) -> Task:
            statistics = self._statistics(split, settings.active_neurons_threshold)
            layout = self._layout(split, statistics)
            raw = self._run(tail.run, tail.features, tail.carry)
            choose = main_output if whole.needs_main_output else first_output
            outputs = framework.to_numpy(choose(raw, self.output))
            # Only numbers from 0 to 1 leave it open what they are.
            is_open = outputs.ndim == 2 and outputs.min() >= 0 and outputs.max() <= 1
            activation = self._activation(tail, raw, whole) if is_open else "other"
            wanted = whole.ending_in(activation)
            loss, rows = wanted.select(start, stop, images).resolve(outputs)
            if self.output is not None:
                loss = OfOutput(loss, self.output)
            # The user's word counts more than what the model tells.
            known.append(_Known(outputs, rows, layout, getattr(wanted, "activation", None) or activation))
            ordered = layout if tail.axes is None else layout.permuted(tail.axes)
            optimizer = self._optimizer(loss, ordered, settings.precision, whole.log_likelihood)
            like = full_precision(tail.features)
            tensors = tuple([framework.asarray(row, like=like) for row in rows])
            return Task(optimizer, statistics, tensors, whole=loss(raw, *tensors))

        shape = self.estimator.shape or ()
        chunks = explain_in_chunks(framework, split, inputs, shape, task=task, **options._asdict())
        parts = [
            self._attribution(chunk.result, known[-1], inputs, split, whole, options) for chunk in chunks
        ]
        return parts[0] if len(parts) == 1 else Attribution.concatenate(parts)

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
                stacklevel=5,
            )

    def _activation(self, tail: Tail, raw: Any, whole: Target) -> str:
        """The function that the output ends in, which the model is asked once."""
        key = (self._layer, whole.layer)
        if key not in self._activations:
            found, index = tail.activations(), main_index(raw, self.output)
            self._activations[key] = found[index] if index < len(found) else None
        return self._activations[key] or "unknown"

    def _attribution(
        self,
        result: BottleneckResult,
        known: _Known,
        inputs: Inputs,
        split: Split,
        whole: Target,
        options: _Options,
    ) -> Attribution:
        framework = self.adapter.framework
        capacity = framework.to_numpy(result.capacity)
        map_shape = self._map_shape(inputs, split, known.layout.places(capacity.shape[1:]))
        return Attribution(
            saliency=saliency_maps(capacity, known.layout, map_shape),
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
            class_names=self._names(known.rows[0]) if isinstance(whole, ClassTarget) else None,
            survival=None if result.shares is None else result.shares.mean(axis=1),
            survival_std=None if result.shares is None else result.shares.std(axis=1),
            betas=options.settings.beta
            * (np.ones(len(capacity)) if result.factors is None else result.factors),
            complete=self._complete[whole.layer, self._layer],
        )

    def _chosen(self, preset: str | None, settings: dict[str, Any]) -> BottleneckSettings:
        """Given hyperparameters, else those of the preset, else the explainer's own."""
        if preset is None and not settings:
            return self.settings
        return self.settings.override(**preset_settings(preset)).override(**settings)

    def _statistics(self, split: Split, threshold: float) -> Statistics:
        """Distribution of the features in the split's data format, which is certain once its head has run."""
        wanted, moments = self._format(split), self.estimator.moments
        # Gathered once for all explanations, as long as the estimator sees nothing new.
        known = self._known
        if known is not None and known[0] is moments and known[1:3] == (threshold, wanted):
            return known[3]
        statistics = Statistics.of(self.estimator, threshold)
        if self._estimated_format not in (None, wanted):
            axes = _permutation(statistics.mean.shape, self._estimated_format, wanted)
            statistics = statistics.permuted(axes)
        if moments is not None:
            self._known = (moments, threshold, wanted, statistics)
        return statistics

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
            check_shape(tuple(inputs.shape[1:]), self._input_shape, split.input_format == "channels_first")
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

    def _names(self, classes: npt.NDArray[np.integer]) -> tuple[str, ...] | None:
        """Names of classes (B,), if all have one."""
        names = self.class_names
        if names is None:
            return None
        if (highest := int(classes.max(initial=0))) >= len(names):
            raise InputError(f"class_names has {len(names)} names, none of class {highest}")
        return tuple(names[number] for number in classes.tolist())

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


_MOST_SEEDS = 10**4
"""Most explanations of the same inputs. More are a slip of the pen."""

_LOST = ".* maps do not explain their target"


def _warn_of_lost(found: Attribution) -> None:
    """Say so where the target does not survive on the bits of its map."""
    survival = found.survival
    if survival is None or not (lost := np.flatnonzero(survival < LEAST)).size:
        return
    worst = int(lost[np.argmin(survival[lost])])
    warnings.warn(
        f"{lost.size} of {len(found)} maps do not explain their target: when only the bits of image {worst} "
        f"pass, {100 * survival[worst]:.0f} % of the target is left; give a smaller beta, or beta='auto'",
        stacklevel=4,
    )


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


def _read_distributions(path: str | PathLike[str]) -> list[_Distribution]:
    """The facts and the estimator of each layer in a file that `Explainer.save` wrote."""
    arrays, metadata = read_state(path, KIND)
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
            found.append((facts, estimator))
        if not found:
            raise StateError("it is of no layer")
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
