"""The one class most users need, the same for every framework."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import lru_cache, partial
from os import PathLike
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from iba_core.attribution import Attribution
from iba_core.bottleneck.estimator import KIND, STATE, Moments, WelfordEstimator
from iba_core.bottleneck.formulas import BottleneckSettings, Mask, Statistics, preset_settings
from iba_core.bottleneck.noise import require_seed
from iba_core.bottleneck.optimization import BottleneckOptimizer
from iba_core.bottleneck.saliency import saliency_maps
from iba_core.compilation import CompilationTrial
from iba_core.default_layer import default_layer
from iba_core.errors import InputError, NotEstimatedError, StateError
from iba_core.framework.adapter import Cut, Head, Inputs, Model, find_adapter, require_finite
from iba_core.framework.allocator import memory_kept
from iba_core.framework.inputs import (
    InputShape,
    arrays_of,
    batch_size,
    check_shape,
    common_shape,
    images_at_once,
    inputs_of_batch,
    of_images,
    take,
    targets_of_batch,
)
from iba_core.framework.layout import DataFormat, Layout, Tokens
from iba_core.framework.namespace import Array, array_namespace, full_precision
from iba_core.state import read_state, write_state
from iba_core.targets import ClassTarget, Loss, Target, as_target, main_output
from iba_core.utils import get_tqdm, ifnone


class Explainer:
    """Says which parts of an input a model needs for its output, and how many bits they carry.

    A bottleneck behind one layer replaces as much of the layer's features by noise as the output bears.
    Fit the explainer on inputs like those to be explained, so that it knows what the features look like in
    general; then explain any number of inputs.

    Args:
        model: a trained model of any framework that a backend serves. It is left as it was.
        layer: the layer behind which the bottleneck goes, an object or its name. If None, one of those
            that resolve the image in some 24 parts a side is taken on the first batch of `fit`, see
            `iba_core.default_layer`.
        backend: name of the backend, where it shall not follow from the model.
        estimator: statistics of the layer's features, gathered before, in place of `fit`.
        tokens: how to read a layer whose features are a sequence of tokens, such as
            ``Tokens(prefix=1, grid=(14, 14))`` for a vision transformer.
        preset: name of a set of hyperparameters, ``"default"`` (the paper's) or ``"fast"``, see
            `iba_core.bottleneck.formulas.PRESETS`. Hyperparameters that are given go before it.
        compile: let the framework's compiler make machine code of the steps, see `Adapter.jit_compile`. It
            takes seconds to minutes once for each shape. If None, `explain_iter` tries it where more than
            20 minutes of a data set of known length are left, and goes on with it if it is faster (without a
            seed, the trial draws noise, too); nothing else compiles then, unless the adapter was made so.
            False for never.
        **settings: hyperparameters, see `BottleneckSettings`.

    Raises:
        InputError: no backend serves the model, or a setting is wrong.
        LayerError: the model has no such layer; the message offers the closest names.

    Example:
        >>> explainer = Explainer(model, layer="blocks.10")  # doctest: +SKIP
        >>> explainer.fit(batches, n_samples=5000)  # doctest: +SKIP
        >>> explainer.explain(x, target=281).total_bits  # doctest: +SKIP
    """

    def __init__(
        self,
        model: Model,
        layer: Any = None,
        *,
        backend: str | None = None,
        estimator: WelfordEstimator | None = None,
        tokens: Tokens | None = None,
        preset: str | None = None,
        compile: bool | None = None,
        **settings: Any,
    ) -> None:
        self.adapter = find_adapter(model, backend)
        self._jit_compile = compile
        BottleneckSettings().override(**settings)  # names what is no setting
        self.settings = BottleneckSettings(**{**preset_settings(preset), **settings})
        if estimator is not None and not isinstance(estimator, WelfordEstimator):
            raise InputError(
                f"the estimator is of type {type(estimator).__name__}; a WelfordEstimator was expected"
            )
        self.estimator = estimator or WelfordEstimator()
        self._estimated_format: DataFormat | None = None
        self._known: tuple[Moments, float, Statistics] | None = None
        self.tokens = tokens
        self._input_shape: InputShape | None = None
        self._layer = layer
        self._cut: Cut | None = None if layer is None else self.adapter.cut(layer)
        # A handful of losses at a time, since each keeps a compiled step.
        self._optimizer = lru_cache(maxsize=4)(self._make_optimizer)
        self._compiled_tail = lru_cache(maxsize=4)(self._make_tail)
        self._cut_until = lru_cache(maxsize=4)(self._make_cut)

    @property
    def layer(self) -> str | None:
        """Name of the layer behind which the bottleneck is; None until it is chosen."""
        return None if self._cut is None else self._cut.layer_name

    # -- the distribution of the features ---------------------------------------------------------

    @memory_kept()
    def fit(self, batches: Iterable[Any], n_samples: int = 5000, progbar: bool = True) -> Self:
        """Estimate mean and standard deviation of the layer's features, from anew.

        Args:
            batches: an iterable of batches, each the inputs or a tuple (inputs, ...): a data loader, a
                generator, a list. Inputs are an array with a leading batch axis, or a tuple or dict of
                them.
            n_samples: stop after exactly so many; fewer are used where the batches end before.
            progbar: show the progress.

        Returns:
            The explainer.

        Raises:
            InputError: there are no batches, or fewer than two samples, or values that are not finite.
        """
        if n_samples < 2:
            raise InputError(f"n_samples={n_samples} is too few for a standard deviation; give 2 or more")
        estimator = WelfordEstimator()
        with get_tqdm()(total=n_samples, desc="Estimating", unit="img", disable=not progbar) as bar:
            for batch in batches:
                inputs = inputs_of_batch(batch)
                inputs = self.adapter.to_inputs(take(inputs, 0, n_samples - estimator.n_samples()))
                if self._cut is None:
                    self._cut_at(default_layer(self.adapter, take(inputs, 0, 1)))
                    assert self._cut is not None
                known = self._input_shape if estimator.n_samples() else None
                self._input_shape = common_shape(known, tuple(next(arrays_of(inputs)).shape[1:]))
                estimator.fit(self.adapter.to_numpy(self._cut.features(inputs)))
                bar.update(batch_size(inputs))
                if estimator.n_samples() >= n_samples:
                    break
        if estimator.n_samples() < 2:
            raise InputError(
                f"batches held {estimator.n_samples()} samples; at least 2 are needed to estimate the "
                "features' distribution, and about 5000 are advised"
            )
        self.estimator = estimator
        self._estimated_format = None if self._cut is None else self._format(self._cut)
        return self

    def save(self, path: str | PathLike[str], metadata: Mapping[str, Any] | None = None) -> None:
        """Write the estimated distribution, with the layer's name, to a safetensors file.

        Args:
            path: file to write.
            metadata: further facts to keep with it, such as how the inputs were prepared.

        Raises:
            NotEstimatedError: there is nothing to write.
        """
        cut = self._ready()
        state = self.estimator.state_dict()
        known = {
            "layer": cut.layer_name,
            "data_format": self._estimated_format or self._format(cut),
            "input_shape": self._input_shape,
            "input_format": cut.input_format,
        }
        write_state(path, state, KIND, {**(metadata or {}), **known})

    def load(self, path: str | PathLike[str]) -> Self:
        """Take over a distribution that `save` wrote, of this framework or another.

        If the explainer has no layer yet, it takes the one in the file.

        Raises:
            StateError: the file is missing, truncated, of another kind, or for another layer.
            LayerError: the model has no layer of the name in the file.
        """
        arrays, metadata = read_state(path, KIND, required=STATE)
        estimator = WelfordEstimator()
        estimator.load_state_dict(dict(arrays))
        saved = metadata.get("layer")
        if self._cut is None:
            if saved is None:
                raise StateError(f"{path} names no layer, and neither does the explainer; give layer=")
            self._cut_at(saved)
            assert self._cut is not None
        elif saved not in (None, self._cut.layer_name):
            raise StateError(
                f"{path} describes the layer {saved!r}, the explainer cuts at {self._cut.layer_name!r}"
            )
        if (known := metadata.get("input_shape")) is not None:
            axes = _permutation(known, metadata["input_format"], self._cut.input_format)
            self._input_shape = tuple(known[axis] for axis in axes)
        self.estimator = estimator
        self._estimated_format = metadata.get("data_format")
        return self

    # -- explaining -------------------------------------------------------------------------------

    def explain(
        self,
        x: Inputs,
        target: Any = None,
        *,
        seed: int | None = None,
        pass_mask: npt.NDArray[np.bool_] | None = None,
        max_batch: int | None = None,
        progbar: bool = False,
        preset: str | None = None,
        **settings: Any,
    ) -> Attribution:
        """Explain what the model answers for one input or a batch of them.

        Args:
            x: inputs with a leading batch axis, (B, ...); one input without it is taken as a batch of one.
                Arrays of NumPy or of the model's framework.
            target: what is to be kept of the output: the index of a class, one for all inputs or one
                each; None for the class predicted; a callable that maps the model's output to a score
                per row; a `ConceptEmbedding`, at the model's output or at a layer behind the bottleneck; or
                a `Target`.
            seed: makes the result reproducible, across frameworks too, and independent of the other
                inputs of the batch.
            pass_mask: True where features pass unchanged and carry no capacity, of the shape of a feature
                map or of a batch of them.
            max_batch: the most feature maps that pass the tail of the model at once, to bound the memory.
                If None, all of the batch, or on a CPU those of as many images as its caches hold, see
                `Adapter.preferred_batch`; the copies of one image are never split then.
            progbar: show the progress.
            preset: hyperparameters in place of the explainer's own by the name of their set: with
                ``"fast"``, an explanation takes about two fifths of the time. What a set holds goes before
                what the constructor was given, and it holds `steps` and the `learning_rate` that goes with
                them; `settings` go before both.
            **settings: hyperparameters other than the explainer's own, see `BottleneckSettings`.

        Returns:
            Saliency in bits per pixel, capacity in nats, and what goes with them.

        Raises:
            NotEstimatedError: the distribution of the features has not been estimated.
            InputError: inputs of the wrong shape or not finite, or a target that does not fit.
            OptimizationError: the objective turned NaN or infinite.
        """
        self._ready()
        chosen = self._chosen(preset, settings)
        require_seed(seed)
        return self._explain(
            x, as_target(target), chosen, seed=seed, pass_mask=pass_mask, max_batch=max_batch, progbar=progbar
        )

    def _explain(
        self,
        x: Inputs,
        whole: Target,
        chosen: BottleneckSettings,
        *,
        seed: int | None,
        pass_mask: npt.NDArray[np.bool_] | None,
        max_batch: int | None,
        progbar: bool = False,
        jit_compile: bool | None = None,
    ) -> Attribution:
        """`explain` with all that was chosen; `jit_compile` in place of what the explainer was made with."""
        inputs = self._checked(x)
        images = batch_size(inputs)
        cut = self._cut_until(whole.layer)
        tensor = next(arrays_of(inputs))
        self.adapter.reduced_precision(chosen.precision, tensor)  # refused at once, if at all
        feature_shape = self.estimator.mean().shape
        preferred = self.adapter.preferred_batch(feature_shape, tensor)
        at_once = images_at_once(images, chosen.samples, max_batch, preferred)
        starts = range(0, images, at_once)
        parts = []
        for start in get_tqdm()(starts, desc="Explaining", disable=not progbar or len(starts) == 1):
            stop = min(start + at_once, images)
            chunk = take(inputs, start, stop)
            with cut.open(chunk) as head:
                statistics = self._statistics(cut, chosen.active_neurons_threshold)
                outputs = self._outputs(cut, head)
                loss, rows = whole.select(start, stop, images).resolve(outputs)
                optimizer = self._optimizer(loss, whole.layer, chosen.precision, jit_compile)
                result = optimizer.run(
                    head,
                    statistics,
                    tuple(self.adapter.asarray(row, like=full_precision(head.features)) for row in rows),
                    settings=chosen,
                    seed=seed,
                    pass_mask=of_images(pass_mask, len(feature_shape), start, stop),
                    max_batch=max_batch,
                    progbar=progbar and len(starts) == 1,
                )
            capacity = self.adapter.to_numpy(result.capacity)
            part = Attribution(
                saliency=saliency_maps(capacity, optimizer.layout, self._map_shape(chunk, optimizer.layout)),
                capacity=capacity,
                mask=self.adapter.to_numpy(result.mask.passed),
                outputs=outputs,
                model_losses=result.model_losses,
                informations=result.informations,
                steps_taken=result.steps_taken,
                layer=cut.layer_name,
                data_format=self._format(cut),
                settings=chosen,
                classes=rows[0] if isinstance(whole, ClassTarget) else None,
                seed=seed,
            )
            parts.append(part)
        return parts[0] if len(parts) == 1 else Attribution.concatenate(parts)

    def explain_iter(
        self,
        batches: Iterable[Any],
        target: Any = None,
        *,
        seed: int | None = None,
        pass_mask: npt.NDArray[np.bool_] | Callable[[Inputs], npt.NDArray[np.bool_]] | None = None,
        max_batch: int | None = None,
        progbar: bool = True,
        preset: str | None = None,
        **settings: Any,
    ) -> Iterator[Attribution]:
        """Explain a data set batch by batch, each when it is asked for.

        One batch and its attribution are in memory at a time, unless the caller keeps more.

        Args:
            batches: an iterable of batches as `fit` takes them, each the inputs or a tuple or list (inputs,
                targets, ...): a data loader, a generator, a list. A model with several inputs takes them
                as a tuple or dict within the batch: ((a, b), targets).
            target: one for all batches, as `explain` takes it; what a batch holds beside its inputs is
                passed over then. If None, each batch brings its own, anything that `explain` takes, such
                as the labels of its images; where it brings none, it is the class predicted. To explain
                the class predicted for a data set with labels, give ``ClassTarget()``.
            seed: as of `explain`. An image gets the same noise in any batch, so that the result is that
                of `explain`.
            pass_mask: as of `explain`, for all batches; or a callable that gives it for a batch's inputs,
                such as where the padding of each sentence is.
            max_batch: as of `explain`.
            progbar: show how many batches are done.
            preset: as of `explain`.
            **settings: hyperparameters other than the explainer's own, see `BottleneckSettings`.

        Returns:
            An iterator of attributions, one for each batch.

        Raises:
            NotEstimatedError: the distribution of the features has not been estimated.
            InputError: a setting is wrong, at once; there are no batches, or one does not fit, when it is
                its turn.
            OptimizationError: the objective turned NaN or infinite.

        Example:
            >>> for attribution in explainer.explain_iter(loader, seed=0):  # doctest: +SKIP
            ...     print(attribution.total_bits)
        """
        self._ready()
        chosen = self._chosen(preset, settings)
        require_seed(seed)
        whole = None if target is None else as_target(target)

        def attributions() -> Iterator[Attribution]:
            tried = self._jit_compile is None and not self.adapter.jit_compile
            trial = CompilationTrial(batches if tried else (), forget=self._optimizer.cache_clear)
            count = 0
            for batch in get_tqdm()(batches, desc="Explaining", unit="batch", disable=not progbar):
                inputs = inputs_of_batch(batch)
                wanted = as_target(targets_of_batch(batch)) if whole is None else whole
                explained = partial(
                    self._explain,
                    inputs,
                    wanted,
                    seed=seed,
                    pass_mask=pass_mask(inputs) if callable(pass_mask) else pass_mask,
                    max_batch=max_batch,
                )
                # A target that a batch brings is another function for each, unless it is a class.
                repeats = whole is not None or isinstance(wanted, ClassTarget)
                shapes = [tuple(array.shape) for array in arrays_of(inputs)]
                yield trial.run(explained, chosen, shapes if repeats else None)
                count += 1
            if not count:
                raise InputError("batches is empty; give at least one batch of inputs")

        return attributions()

    def predict(self, x: Inputs) -> npt.NDArray[Any]:
        """The unaltered model's output, (B, ...)."""
        return self.adapter.to_numpy(main_output(self.adapter.predict(self._checked(x))))

    def predict_restricted(
        self,
        x: Inputs,
        attribution: Attribution,
        samples: int = 10,
        seed: int | None = None,
        pass_mask: npt.NDArray[np.bool_] | None = None,
    ) -> npt.NDArray[Any]:
        """What the model answers when only the information of an attribution passes.

        Args:
            x: the inputs that were explained.
            attribution: what `explain` gave for them.
            samples: noisy copies of each input.
            seed: makes the noise reproducible. It is other noise than the optimisation saw.
            pass_mask: as it was given to `explain`.

        Returns:
            The model's outputs (B, samples, ...).
        """
        cut, inputs = self._ready(), self._checked(x)
        if batch_size(inputs) != len(attribution):
            raise InputError(
                f"x holds {batch_size(inputs)} inputs, but the attribution {len(attribution)}; give the same"
            )
        settings = attribution.settings
        with cut.open(inputs) as head:
            statistics = self._statistics(cut, settings.active_neurons_threshold)
            optimizer = self._optimizer(main_output)
            problem = optimizer.problem(head, statistics, settings=settings, pass_mask=pass_mask)
            passed = self.adapter.asarray(attribution.mask, like=problem.features)
            (noise,) = optimizer.noise(problem, (samples,), seed, step=settings.steps)
            z = optimizer.restricted(problem, Mask(passed, 1.0 - passed), noise)
            outputs = self.adapter.to_numpy(main_output(cut.tail(z, head.carry)))
        return outputs.reshape(len(attribution), samples, *outputs.shape[1:])

    # -- helpers ----------------------------------------------------------------------------------

    def _chosen(self, preset: str | None, settings: dict[str, Any]) -> BottleneckSettings:
        """Given hyperparameters, else those of the preset, else the explainer's own."""
        return self.settings.override(**preset_settings(preset)).override(**settings)

    def _statistics(self, cut: Cut, threshold: float) -> Statistics:
        """Distribution of the features in the cut's data format, which an open cut knows for certain."""
        data_format = self._format(cut)
        if self._estimated_format not in (None, data_format):
            axes = _permutation(self.estimator.mean().shape, self._estimated_format, data_format)
            self.estimator = self.estimator.transpose(axes)
        self._estimated_format = data_format
        # Gathered once for all explanations, as long as the estimator sees nothing new.
        known = self._known
        if known is None or known[0] is not self.estimator.moments or known[1] != threshold:
            statistics = Statistics.of(self.estimator, threshold)
            assert self.estimator.moments is not None
            self._known = known = (self.estimator.moments, threshold, statistics)
        return known[2]

    def _format(self, cut: Cut) -> DataFormat:
        """Where the channels of the feature map are; of tokens, they are always last."""
        return cut.data_format if self.tokens is None else "channels_last"

    def _ready(self) -> Cut:
        if self._cut is None or self.estimator.n_samples() < 2:
            raise NotEstimatedError(
                "the distribution of the features is not estimated; call fit(batches), or give estimator="
            )
        return self._cut

    def _checked(self, inputs: Inputs) -> Inputs:
        """Inputs as tensors of the model's device, a batch axis in front, checked before any work."""
        if hasattr(inputs, "shape") and self._input_shape is not None:
            assert self._cut is not None
            if len(inputs.shape) == len(self._input_shape):
                inputs = inputs[None]
            check_shape(
                tuple(inputs.shape[1:]), self._input_shape, self._cut.input_format == "channels_first"
            )
        inputs = self.adapter.to_inputs(inputs)
        if not batch_size(inputs):
            raise InputError("x is an empty batch")
        for array in arrays_of(inputs):
            require_finite(self.adapter.to_numpy(array), "x")
        return inputs

    def _cut_at(self, layer: Any) -> None:
        self._cut = self.adapter.cut(layer)
        self._layer = layer

    def _make_cut(self, until: Any) -> Cut:
        """The cut at the explainer's layer, with a tail that ends at a layer; None for the model's end."""
        return self._ready() if until is None else self.adapter.cut(self._layer, until)

    def _make_optimizer(
        self,
        loss: Loss,
        until: Any = None,
        precision: str | None = None,
        jit_compile: bool | None = None,
    ) -> BottleneckOptimizer:
        cut = self._cut_until(until)

        def model_loss(z: Array, carry: tuple[Array, ...], rows: tuple[Array, ...]) -> Array:
            with self.adapter.reduced_precision(precision, z):
                outputs = cut.tail(z, carry)
            # The S copies of an image follow one another: so must its rows.
            repeated = (_repeat(row, int(z.shape[0]) // int(row.shape[0])) for row in rows)
            losses: Array = loss(outputs, *repeated)
            shape, rows_given = getattr(losses, "shape", None), int(z.shape[0])
            if shape is None or tuple(shape) != (rows_given,):
                given = type(losses).__name__ if shape is None else f"shape {tuple(shape)}"
                raise InputError(
                    f"the target's score has {given} for {rows_given} outputs; one score each is needed"
                )
            return losses

        layout = Layout.of(self.estimator.mean().shape, self._format(cut), self.tokens)
        compiled = ifnone(jit_compile, self._jit_compile)
        return BottleneckOptimizer(self.adapter, model_loss, layout, self.settings, jit_compile=compiled)

    def _make_tail(self, cut: Cut) -> Callable[..., Any]:
        if self._jit_compile is None:
            return self.adapter.compile(cut.tail)
        return self.adapter.compile(cut.tail, jit_compile=self._jit_compile)

    def _outputs(self, cut: Cut, head: Head) -> npt.NDArray[Any]:
        outputs = self._compiled_tail(cut)(head.features, head.carry)
        return self.adapter.to_numpy(main_output(outputs))

    def _map_shape(self, inputs: Inputs, layout: Layout) -> tuple[int, ...] | None:
        """Spatial shape of the input, where it has as many spatial axes as the features have places."""
        cut, shape = self._ready(), tuple(next(arrays_of(inputs)).shape[1:])
        if not 1 <= len(shape) <= 4:
            return None
        spatial = Layout.of(shape, cut.input_format).spatial_shape(shape)
        return spatial if len(spatial) == len(layout.places(self.estimator.mean().shape)) else None


def _repeat(row: Array, times: int) -> Array:
    return array_namespace(row).repeat(row, times, axis=0)


def _permutation(shape: Sequence[int], saved: DataFormat, wanted: DataFormat) -> tuple[int, ...]:
    """Axes that turn an array of `shape` from one data format into the other."""
    order = Layout.of(shape, saved).to_channels_first()
    return tuple(order[axis] for axis in Layout.of(shape, wanted).from_channels_first())
