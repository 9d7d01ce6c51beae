"""The per-sample bottleneck as a PyTorch layer."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from functools import partial
from typing import Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from iba_core.arguments import (
    given,
    require_bool,
    require_callable,
    require_choice,
    require_data_format,
    require_seed,
    require_type,
    require_whole,
)
from iba_core.bottleneck.chunks import AtLayer, Chunk, Task, explain_in_chunks
from iba_core.bottleneck.formulas import Mask, mask_from_alpha
from iba_core.bottleneck.optimization import (
    BottleneckOptimizer,
    Callback,
    Problem,
    masked_capacity,
)
from iba_core.bottleneck.saliency import saliency_maps
from iba_core.bottleneck.saliency import to_saliency_map as _to_saliency_map
from iba_core.bottleneck.settings import BottleneckSettings, plain_settings
from iba_core.bottleneck.statistics import Statistics
from iba_core.errors import InputError, LayerError, NotEstimatedError
from iba_core.framework.adapter import Inputs, Tail
from iba_core.framework.arrays import require_array, require_mask
from iba_core.framework.framework import require_finite
from iba_core.framework.inputs import (
    InputShape,
    arrays_of,
    check_shape,
    common_shape,
    require_batches,
    require_inputs,
    samples_of,
)
from iba_core.framework.layout import DataFormat, Layout, MapOrder, Tokens
from iba_core.framework.namespace import host_array
from iba_core.undo import undoing
from iba_torch.adapter import TorchAdapter
from iba_torch.bottlenecks.estimator import TorchWelfordEstimator
from iba_torch.framework import require_device
from iba_torch.tail.calls import CallsEveryModule, not_redirected, uncompiled
from iba_torch.tail.places import Knowledge
from iba_torch.tail.precision import in_mode, keeps_settings, without_autocast
from iba_torch.tail.shadow import Shadows
from iba_torch.tail.split import TorchSplit
from iba_torch.tail.trees import replace_first, tensors, tree_map

Mode = Literal["saliency", "capacity"]

_THRESHOLD = 0.01

_NAMES = {
    "steps": "optimization_steps",
    "samples": "batch_size",
    "learning_rate": "lr",
    "smooth_std": "sigma",
}
"""What an `IBA` calls the settings of the core."""

_Switches = Mapping[str, bool]

_switched: ContextVar[Mapping[object, _Switches]] = ContextVar("switched", default={})  # noqa: B039
"""The switches that are set in this thread or task, for each bottleneck by its key. Never written into."""


def to_saliency_map(
    capacity: npt.ArrayLike | torch.Tensor,
    shape: Sequence[int] | None = None,
    data_format: DataFormat = "channels_first",
    *,
    order: MapOrder | None = None,
) -> npt.NDArray[np.floating]:
    """Saliency map, in bits per pixel, from the capacity of a layer's features, in nats.

    See `iba_core.to_saliency_map`; tensors, of any device, are taken as well.

    Example:
        >>> to_saliency_map(torch.full((4, 2, 2), float(np.log(2)))).tolist()
        [[4.0, 4.0], [4.0, 4.0]]
    """
    return _to_saliency_map(capacity, shape, data_format, order=order)


class IBA(nn.Module):
    """Finds the features that a model needs, by putting noise in the place of the others.

    The bottleneck acts on what a layer gives to the next. It hangs on the layer as a hook, or stands in the
    model as a layer of its own. Until it is told to restrict the flow it passes everything on unaltered.

    Args:
        layer: the layer after which the bottleneck goes; None where the `IBA` itself is put into the
            model, at the place where it is to act.
        sigma: standard deviation of the Gaussian that smooths the mask, in features; None or 0 for no
            smoothing.
        beta: weight of the mean information, in nats per feature, against the model's loss.
        min_std: floor of the features' standard deviation.
        optimization_steps: optimiser steps.
        lr: learning rate of Adam. High, since the steps are few.
        batch_size: noisy copies of the input that a step's gradient is averaged over.
        initial_alpha: start value of the mask's parameter; at 5 almost everything passes.
        active_neurons_threshold: a neuron that is nonzero in no more than this share of the estimation
            samples is set to 0 and carries no information.
        feature_mean: mean of the features, of the shape of one feature map, in place of an estimator.
        feature_std: standard deviation of the features, likewise.
        estimator: estimates both; a `TorchWelfordEstimator` by default.
        progbar: show the progress.
        input_or_output: ``"output"`` of the layer, or its ``"input"``.
        relu: clip the restricted features at 0.
        call: which call of the layer, from 0, where it runs more than once in a pass of the model.
        tokens: how to read features that are a sequence of tokens, such as
            ``Tokens(prefix=1, grid=(14, 14))`` for a vision transformer.
        data_format: where the channels of the feature map are; None to conclude it from what the model
            does with its axes, or that they are last where `tokens` are given.

    Attributes:
        alpha: parameter of the mask after the last analysis, (B, *feature map); None before.
        model_losses: the closure's loss before each step of the last analysis, (steps, B).
        informations: beta times the mean information in nats before each step, likewise.

    Raises:
        InputError: an argument is out of its range.
        LayerError: the layer is scripted.

    Example:
        >>> iba = IBA(model.relu, optimization_steps=2)
        >>> iba.estimate(model, batches)
        >>> def loss(x):
        ...     return torch.nn.functional.cross_entropy(model(x), torch.ones(len(x)).long())
        >>> saliency = iba.analyze(x[:1], loss)
        >>> saliency.shape
        (8, 8)
        >>> iba.detach()
    """

    shared_by_shadows: ClassVar[bool] = True
    """Shadows of the model call the bottleneck itself, not a copy."""

    def __init__(
        self,
        layer: nn.Module | None = None,
        sigma: float | None = 1.0,
        beta: float = 10,
        min_std: float = 0.01,
        optimization_steps: int = 10,
        lr: float = 1,
        batch_size: int = 10,
        initial_alpha: float = 5.0,
        active_neurons_threshold: float = _THRESHOLD,
        feature_mean: npt.ArrayLike | torch.Tensor | None = None,
        feature_std: npt.ArrayLike | torch.Tensor | None = None,
        estimator: nn.Module | Any = None,
        progbar: bool = False,
        input_or_output: Literal["input", "output"] = "output",
        relu: bool = False,
        *,
        call: int | None = None,
        tokens: Tokens | None = None,
        data_format: DataFormat | None = None,
    ) -> None:
        super().__init__()
        _require_layer(layer)
        require_choice("input_or_output", input_or_output, ("input", "output"))
        require_bool("progbar", progbar)
        require_bool("relu", relu)
        if call is not None:
            require_whole("call", call)
        require_type("tokens", tokens, Tokens, "iba_core.Tokens", optional=True)
        require_data_format("data_format", data_format, optional=True)
        require_estimator("estimator", estimator)
        if (feature_mean is None) != (feature_std is None):
            raise InputError("feature_mean and feature_std go together; give both or neither")
        self.sigma = sigma
        self.beta = beta
        self.min_std = min_std
        self.optimization_steps = optimization_steps
        self.lr = lr
        self.batch_size = batch_size
        self.initial_alpha = initial_alpha
        self.active_neurons_threshold = active_neurons_threshold
        self.estimator: Any = TorchWelfordEstimator() if estimator is None else estimator
        self.progbar = progbar
        self.input_or_output = input_or_output
        self.relu = relu
        self.call = call
        self.tokens = tokens
        self.data_format = data_format or (None if tokens is None else "channels_last")
        mean = _as_buffer("feature_mean", feature_mean)
        std = _as_buffer("feature_std", feature_std, least=0)
        if mean is not None and std is not None and mean.shape != std.shape:
            raise InputError(
                f"feature_mean has shape {tuple(mean.shape)} and feature_std {tuple(std.shape)}; both must "
                "have that of one feature map"
            )
        self.register_buffer("feature_mean", mean)
        self.register_buffer("feature_std", std)
        self._settings()

        self.alpha: torch.Tensor | None = None
        self.model_losses: npt.NDArray[np.floating] = np.empty((0, 1))
        self.informations: npt.NDArray[np.floating] = np.empty((0, 1))

        # Not as an attribute: the layer belongs to the model, and would become a child of this one.
        self._layer = [] if layer is None else [layer]
        self._layer_name: str | None = None
        self._input_shape: InputShape | None = None
        self._mask: Mask | None = None
        self._pass_mask: npt.NDArray[np.bool_] | None = None
        self._last_settings: BottleneckSettings | None = None
        self._capacity: torch.Tensor | None = None
        self._channels: DataFormat = self.data_format or "channels_first"
        self._images_axis = 0
        self._estimated_axis: int | None = None
        """The axis that `enable_estimation` has taken for that of the images; None if it was not used."""
        # Names the bottleneck among those that switches are set of; a copy gets one of its own.
        self._key = object()
        self._knowledge = Knowledge()
        self._shadows = Shadows()
        self._handle = None if layer is None else self._hook(layer)

    # -- in the model ---------------------------------------------------------------------------------

    def _hook(self, layer: nn.Module) -> RemovableHandle:
        if self.input_or_output == "output":
            return layer.register_forward_hook(self._on_output)
        return layer.register_forward_pre_hook(self._on_input, with_kwargs=True)

    @property
    def layer(self) -> nn.Module | None:
        """The layer that the bottleneck hangs on; None if it stands in the model by itself."""
        return self._layer[0] if self._layer else None

    def detach(self) -> None:
        """Take the bottleneck off its layer, so that the model is as it was before.

        Raises:
            InputError: it hangs on no layer.
        """
        if self._handle is None:
            raise InputError("the bottleneck cannot be detached: it hangs on no layer, or not any more")
        self._handle.remove()
        self._handle = None
        self._shadows = Shadows()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The features as the next layer gets them. There is no need to call this method yourself.

        Args:
            x: (B, *feature map).

        Returns:
            `x` itself; inside of `restrict_flow`, the restricted features, of the shape and dtype of `x`.

        Raises:
            NotEstimatedError: the flow is to be restricted, and the features' distribution is not known.
            InputError: the shape differs from that of the estimated distribution.
        """
        if not _switched.get():
            return x
        axis = self._images_axis
        with not_redirected():
            if self._estimating:
                self._estimated_axis = axis
                self._estimate_batch(x.movedim(axis, 0))
            if self._interrupting:
                raise _Interruption(self)
            if not self._restricting:
                return x
            with without_autocast(x.device):
                return self._restrict(x.movedim(axis, 0)).movedim(0, axis)

    @contextmanager
    def interrupt_execution(self) -> Iterator[None]:
        """Context in which the model runs up to the bottleneck and no further.

        Example:
            >>> iba = IBA(model.relu)
            >>> with iba.interrupt_execution():
            ...     out = model(x)
            ...     print("this is not reached, and out is not defined")
            >>> iba.detach()
        """
        with self._switched(interrupting=True):
            try:
                yield
            except _Interruption as interruption:
                if interruption.bottleneck is not self:
                    raise

    @contextmanager
    def enable_estimation(self) -> Iterator[None]:
        """Context in which the mean and standard deviation of what passes are estimated.

        `estimate` does all that is needed for a data set. It also finds out which axis is that of the images,
        here the first one unless an earlier `estimate` or `analyze` has found another. Where that turns out
        to be wrong, `analyze` refuses.
        """
        with self._switched(estimating=True):
            yield

    @contextmanager
    def restrict_flow(self) -> Iterator[None]:
        """Context in which the model gets no more than the information that passes the bottleneck.

        The mask is that of the last analysis; before the first, it is the one at `initial_alpha`.

        Example:
            >>> iba = IBA(model.relu)
            >>> iba.estimate(model, batches)
            >>> with iba.restrict_flow():
            ...     out = model(x)
            >>> iba.detach()
        """
        with self._switched(restricting=True):
            yield

    # -- the distribution of the features -------------------------------------------------------------

    def reset_estimate(self) -> None:
        """Forget the features' distribution, such as after further training of the model.

        The estimator stays the object that it was. A given `feature_mean` and `feature_std` are dropped.
        """
        _reset(self.estimator)
        self.feature_mean = self.feature_std = self._estimated_axis = None

    @keeps_settings
    def estimate(
        self,
        model: nn.Module,
        dataloader: Iterable[Any],
        device: torch.device | str | None = None,
        n_samples: int = 10000,
        progbar: bool | None = None,
        reset: bool = True,
    ) -> None:
        """Estimate mean and standard deviation of the features. Only the layers up to the bottleneck run.

        Args:
            model: the model with the bottleneck. It runs in evaluation mode and is left as it was.
            dataloader: an iterable of batches, each a tensor or a tuple with the images first. (A dict is
                taken for keyword arguments of the model.)
            device: where to bring the images; that of the model's first parameter if None.
            n_samples: stop after exactly so many; fewer are used where the data end before. 10 000
                usually do.
            progbar: show the progress; the constructor's choice if None.
            reset: forget what has been estimated before; otherwise go on from there.

        Raises:
            InputError: the data hold fewer than two samples, or features that are not finite.
            LayerError: the layer never runs in the model, or more than once.
        """
        n_samples = require_whole("n_samples", n_samples, 2)
        dataloader = require_batches("dataloader", dataloader)
        require_bool("reset", reset)
        if progbar is not None:
            require_bool("progbar", progbar)
        device = None if device is None else require_device("device", device)
        adapter = TorchAdapter(model)
        split = self._make_split(adapter.model, {m: name for name, m in adapter.model.named_modules()})
        show = self.progbar if progbar is None else progbar
        # A copy, so that nothing has changed if the data or the model fail.
        estimator = copy.deepcopy(self.estimator)
        if reset:
            _reset(estimator)
        input_shape = None if reset else self._input_shape
        for samples in samples_of(dataloader, n_samples, show, "dataloader"):
            inputs = require_inputs("dataloader", samples, partial(adapter.to_inputs, device=device))
            with self._passing_all():
                features = split.features(inputs)
            _take_in(estimator, features)
            input_shape = common_shape(input_shape, tuple(next(arrays_of(inputs)).shape[1:]))
        total = int(estimator.n_samples())
        if total < 2:
            raise InputError(
                f"dataloader held {total} samples; at least 2 are needed to estimate the features' "
                "distribution, and about 10000 are advised"
            )
        if not np.isfinite(host_array(estimator.std())).all():
            raise InputError("dataloader holds images on which the layer's features are NaN or infinite")
        if reset:
            self.feature_mean = self.feature_std = None
        # The estimator stays the object that it was.
        vars(self.estimator).update(vars(estimator))
        self._input_shape = input_shape
        self._layer_name, self._channels = split.layer_name, split.data_format
        self._images_axis, self._estimated_axis = split.images_axis, None

    # -- explaining -----------------------------------------------------------------------------------

    @keeps_settings
    def analyze(
        self,
        input_t: Inputs,
        model_loss_fn: Callable[[Any], torch.Tensor],
        mode: Mode = "saliency",
        beta: float | None = None,
        optimization_steps: int | None = None,
        min_std: float | None = None,
        lr: float | None = None,
        batch_size: int | None = None,
        active_neurons_threshold: float = _THRESHOLD,
        *,
        seed: int | None = None,
        pass_mask: npt.ArrayLike | torch.Tensor | None = None,
        max_batch: int | None = None,
    ) -> npt.NDArray[np.floating]:
        """Explain an input: which of its features does the loss need?

        The model is left as it was. Its layers before the bottleneck run once.

        Args:
            input_t: (1, C, H, W), an image on the model's device; or, in general, whatever the closure
                takes with tensors whose first axis is the batch. Of B images, each is explained by
                itself.
            model_loss_fn: closure that maps copies of each image, one image's after the other's, to the loss
                of the model on them: a scalar, their mean, or one loss for each. The number of copies can
                change between calls: there are `batch_size` of each image, or fewer, see `max_batch`.
                Where each image has a target, repeat the targets with
                ``targets.repeat_interleave(len(x) // len(targets))``.
            mode: ``"saliency"`` for a map of the input, ``"capacity"`` for the features.
            beta: replaces the constructor's value; None keeps it.
            optimization_steps: likewise.
            min_std: likewise.
            lr: likewise.
            batch_size: likewise.
            active_neurons_threshold: likewise, unless it is 0.01, the default.
            seed: makes the result reproducible, across frameworks too.
            pass_mask: True where features pass unchanged and carry no capacity, of the shape of a feature
                map or of a batch of them. For padding.
            max_batch: the most feature maps that pass the model at once, to bound the memory; the closure
                then gets fewer copies of each image at a time. If None, all pass at once; only on a CPU,
                which is slower with more than its caches hold, a batch of images goes in parts of as many
                as `iba_core.framework.framework.rows_in_cache` says.

        Returns:
            For ``"saliency"``, an array (H, W) in bits per pixel whose sum is the total of bits, (B, H, W)
            for more than one image. For ``"capacity"``, an array of the shape of the feature map in nats,
            (B, *feature map) for more than one image.

        Raises:
            NotEstimatedError: `estimate` has not been called.
            InputError: an argument is out of its range, of the wrong rank or not finite.
            LayerError: the closure never runs the layer, or runs it more than once.
            OptimizationError: the objective turned NaN or infinite.
        """
        require_choice("mode", mode, ("saliency", "capacity"))
        require_callable("model_loss_fn", model_loss_fn, "a function of copies of the input")
        require_seed("seed", seed)
        overrides = {
            "beta": beta,
            "steps": optimization_steps,
            "min_std": min_std,
            "learning_rate": lr,
            "samples": batch_size,
            "active_neurons_threshold": (
                None if _is_default(active_neurons_threshold) else active_neurons_threshold
            ),
        }
        overrides = {name: value for name, value in overrides.items() if value is not None}
        settings = self._settings().override(**plain_settings(overrides, _NAMES))
        statistics = self._statistics(settings.active_neurons_threshold)
        images = self._check_input(input_t)
        split = self._make_split(model_loss_fn)

        def task(tail: Tail, start: int, stop: int) -> Task:
            if self._estimated_axis not in (None, split.images_axis):
                raise LayerError(
                    f"enable_estimation took axis {self._estimated_axis} of the features of layer "
                    f"{split.layer_name!r} for that of the images, which is axis {split.images_axis}; "
                    "estimate them with estimate(model, dataloader)"
                )
            layout = self._layout(tail.features.shape[1:], split.data_format, tail.axes)
            optimizer = BottleneckOptimizer(
                TorchAdapter.framework, _checked_loss, layout, relu=self.relu, by_image=False
            )
            # A row for each image, so that the loss knows how many copies there are.
            rows = (torch.arange(start, stop, device=tail.features.device),)
            return Task(optimizer, statistics, rows, self._step_callback())

        passing = None if pass_mask is None else require_mask("pass_mask", pass_mask)
        with self._passing_all():
            (chunk,) = explain_in_chunks(
                TorchAdapter.framework,
                [AtLayer(split, statistics.mean.shape, task, passing)],
                input_t,
                settings,
                together=True,
                seed=seed,
                max_batch=max_batch,
                progbar=self.progbar,
            )
        self._keep(chunk, split, settings, passing)
        nats = host_array(chunk.result.capacity)
        maps = nats if mode == "capacity" else self._saliency(nats, input_t, split)
        return maps if images > 1 else maps[0]

    def _saliency(
        self, nats: npt.NDArray[np.floating], input_t: Inputs, split: TorchSplit
    ) -> npt.NDArray[np.floating]:
        """Maps of the inputs where these have the spatial axes of the features, else of the features."""
        image = tuple(next(arrays_of(input_t)).shape[1:])
        spatial = image[1:] if split.input_format == "channels_first" else image[:-1]
        layout = self._layout(nats.shape[1:], split.data_format)
        fits = len(spatial) == len(layout.places(nats.shape[1:]))
        return saliency_maps(nats, layout, spatial if fits else None, split.map_order(layout))

    def capacity(self) -> torch.Tensor:
        """Information that each feature carries, in nats, of the shape of the feature map.

        It is that of the last input which was analysed or passed in `restrict_flow`, averaged over the
        batch, and differentiable where that input or the mask was.

        Raises:
            NotEstimatedError: there has been no such input.
        """
        if self._capacity is None:
            raise NotEstimatedError(
                "no input has passed the bottleneck yet: call analyze, or run the model in restrict_flow()"
            )
        return self._capacity.mean(dim=0)

    # -- helpers --------------------------------------------------------------------------------------

    def _on_output(self, layer: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        return self._on(output)

    def _on_input(self, layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return self._on((args, kwargs))

    def _on(self, tree: Any) -> Any:
        found = tensors(tree)
        if not found:
            return None
        # Not as a module, since the calls of modules are those of the model.
        passed = self.forward(found[0])
        return None if passed is found[0] else replace_first(tree, passed)

    @property
    def _restricting(self) -> bool:
        return self._is_on("restricting")

    @property
    def _estimating(self) -> bool:
        return self._is_on("estimating")

    @property
    def _interrupting(self) -> bool:
        return self._is_on("interrupting")

    def _is_on(self, switch: str) -> bool:
        return _switched.get().get(self._key, {}).get(switch, False)

    @contextmanager
    def _set(self, **switches: bool) -> Iterator[None]:
        """Context in which some of the switches are set in this thread or task, whatever they were."""
        known = _switched.get()
        with undoing(lambda: _switched.set(known)):
            _switched.set({**known, self._key: {**known.get(self._key, {}), **switches}})
            yield

    @contextmanager
    def _switched(self, **switches: bool) -> Iterator[None]:
        """Likewise, where the user runs the model: then all of its modules are called."""
        with uncompiled(), in_mode(CallsEveryModule()), self._set(**switches):
            yield

    def _passing_all(self) -> AbstractContextManager[None]:
        return self._set(restricting=False, estimating=False, interrupting=False)

    def __getstate__(self) -> dict[str, Any]:
        # Tensors with a graph cannot be copied.
        return {**vars(self), "_capacity": tree_map(torch.Tensor.detach, self._capacity)}

    def _make_split(
        self, model: nn.Module | Callable[[Inputs], Any], names: dict[nn.Module, str] | None = None
    ) -> TorchSplit:
        module = self if self.layer is None else self.layer
        return TorchSplit(
            model,
            module,
            layer_name=(names or {}).get(module) or self._layer_name,
            where="output" if self.layer is None else self.input_or_output,
            call=self.call,
            data_format=self.data_format,
            knowledge=self._knowledge,
            shadows=self._shadows,
        )

    def _layout(
        self, shape: Sequence[int], data_format: DataFormat, axes: Sequence[int] | None = None
    ) -> Layout:
        layout = Layout.of(shape, data_format, self.tokens)
        return layout if axes is None else layout.permuted(axes)

    def _keep(
        self,
        chunk: Chunk,
        split: TorchSplit,
        settings: BottleneckSettings,
        passing: npt.NDArray[np.bool_] | None,
    ) -> None:
        """Keep what an analysis has found: all of it, or nothing if an interrupt comes."""
        result = chunk.result
        found = {
            "_mask": result.mask,
            "_capacity": result.capacity,
            "_pass_mask": passing,
            "_last_settings": settings,
            "_channels": split.data_format,
            "_images_axis": split.images_axis,
            "model_losses": result.model_losses,
            "informations": result.informations,
        }
        # In a single call, in the midst of which none comes.
        vars(self).update(found | self._kept_alpha(result.alpha))

    def _step_callback(self) -> Callback | None:
        """What is called after each step of an analysis."""
        return None

    def _kept_alpha(self, alpha: torch.Tensor) -> dict[str, Any]:
        """Attributes that keep the parameter of the mask that an analysis has found, (B, *feature map)."""
        return {"alpha": alpha}

    def _present_mask(self, problem: Problem, layout: Layout, settings: BottleneckSettings) -> Mask:
        """The mask of the last analysis, or the one to start from."""
        if self._mask is not None:
            return self._mask
        start = torch.full_like(problem.mean, settings.initial_alpha)
        return mask_from_alpha(start, problem.matrices, layout)

    def _settings(self) -> BottleneckSettings:
        return BottleneckSettings(
            **plain_settings(
                {
                    "beta": self.beta,
                    "steps": self.optimization_steps,
                    "samples": self.batch_size,
                    "learning_rate": self.lr,
                    "initial_alpha": self.initial_alpha,
                    "min_std": self.min_std,
                    "smooth_std": self.sigma,
                    "active_neurons_threshold": self.active_neurons_threshold,
                },
                _NAMES,
            )
        )

    def _statistics(self, threshold: float) -> Statistics:
        if self.feature_mean is not None:
            mean = host_array(self.feature_mean)
            return Statistics(mean, host_array(self.feature_std), np.ones(mean.shape, bool))
        if int(self.estimator.n_samples()) < 2:
            raise NotEstimatedError(
                "the features' distribution is not estimated; call estimate(model, dataloader) first, "
                "or give feature_mean and feature_std"
            )
        return Statistics(
            host_array(self.estimator.mean()),
            host_array(self.estimator.std()),
            host_array(self.estimator.active_neurons(threshold)).astype(bool),
        )

    def _estimate_batch(self, features: torch.Tensor) -> None:
        _take_in(self.estimator, features)

    def _check_input(self, input_t: Inputs) -> int:
        """Number of images, after a look at everything that can be seen before the model runs."""
        found = tensors(input_t)
        if not found:
            raise InputError(f"{given('input_t', input_t)} must be a tensor, or a tuple or dict of tensors")
        if isinstance(input_t, torch.Tensor):
            shape, known = tuple(input_t.shape), self._input_shape
            if known is not None and len(shape) == len(known):
                raise InputError(f"input_t has shape {shape} and no batch axis; {(1, *shape)} was expected")
            if len(shape) < 2:
                raise InputError(f"input_t has shape {shape}; a batch axis and one of features are needed")
            if known is not None:
                check_shape(shape[1:], known, self._knowledge.input_format != "channels_last")
        if not found[0].ndim or not found[0].shape[0]:
            raise InputError(f"input_t has shape {tuple(found[0].shape)}, which is no image")
        for tensor in found:
            if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
                require_finite(host_array(tensor), "input_t")
        return int(found[0].shape[0])

    def _restrict(self, x: torch.Tensor) -> torch.Tensor:
        """Restricted features, each with noise of its own, and as a side effect their capacity."""
        settings = self._last_settings or self._settings()
        layout = self._layout(x.shape[1:], self._channels)
        optimizer = BottleneckOptimizer(TorchAdapter.framework, _checked_loss, layout, relu=self.relu)
        statistics = self._statistics(settings.active_neurons_threshold)
        problem = optimizer.problem(
            Tail(x, _no_tail), statistics, settings=settings, pass_mask=self._pass_mask
        )
        mask = self._present_mask(problem, layout, settings)
        if mask.passed.shape[1:] != x.shape[1:]:
            raise InputError(
                f"the features have shape {tuple(x.shape[1:])}, but the mask of the last analysis has "
                f"{tuple(mask.passed.shape[1:])}: analyze an input of this size first"
            )
        if len(mask.passed) not in (1, len(x)):
            raise InputError(
                f"{len(x)} feature maps do not go with the {len(mask.passed)} masks of an analysis"
            )
        mask = Mask(*(part.to(problem.features) for part in mask))
        self._capacity = masked_capacity(problem, mask)
        noise = torch.randn_like(problem.features)
        z: torch.Tensor = optimizer.restricted(problem, mask, noise[:, None])
        return z.to(x.dtype)


def _take_in(estimator: Any, features: torch.Tensor) -> None:
    """Let an estimator of any kind see features."""
    estimator(features if isinstance(estimator, nn.Module) else host_array(features))


def _reset(estimator: Any) -> None:
    """Let an estimator forget what it has seen; one that has no `reset` becomes as new."""
    if callable(getattr(estimator, "reset", None)):
        estimator.reset()
        return
    kind = type(estimator)
    try:
        new = kind()
    except TypeError as error:
        raise InputError(
            f"estimator of type {kind.__name__} has no method reset, and cannot be made anew: {error}"
        ) from error
    vars(estimator).clear()
    vars(estimator).update(vars(new))


def _no_tail(z: torch.Tensor, carry: tuple[Any, ...]) -> torch.Tensor:
    raise AssertionError("a bottleneck that is only applied has no tail")


class _Interruption(BaseException):
    """Ends a pass at the bottleneck. No `Exception`, so that no model that catches those catches it."""

    def __init__(self, bottleneck: IBA) -> None:
        super().__init__("the pass ends at the bottleneck")
        self.bottleneck = bottleneck


def _checked_loss(loss: Any, rows: torch.Tensor) -> torch.Tensor:
    """What the closure returned: losses, one for each of the rows, or their mean."""
    if not isinstance(loss, torch.Tensor) or not loss.is_floating_point():
        raise InputError(f"model_loss_fn returned {loss!r}; a floating-point tensor was expected")
    if loss.numel() == 1 and len(rows) != 1:
        return loss.reshape(())
    if loss.numel() == 1:
        return loss.reshape(1)
    if loss.ndim == 0 or loss.shape[0] != len(rows):
        raise InputError(
            f"model_loss_fn returned a loss of shape {tuple(loss.shape)} for {len(rows)} inputs; "
            f"a scalar or shape ({len(rows)},) was expected"
        )
    return loss


def _require_layer(layer: Any) -> None:
    if layer is not None and not isinstance(layer, nn.Module):
        raise InputError(f"{given('layer', layer)} must be a module of the model")
    if isinstance(layer, torch.jit.ScriptModule):
        raise LayerError(
            f"layer is a scripted {layer.original_name}, on which PyTorch allows no hooks; put it into "
            "an nn.Sequential and give that, or use the module that it was scripted from"
        )


def _is_default(threshold: Any) -> bool:
    return isinstance(threshold, float) and threshold == _THRESHOLD


def require_estimator(name: str, estimator: Any) -> None:
    """Check an estimator: None, or an object with the methods of `TorchWelfordEstimator`.

    It may lack `reset` if it can be made without arguments.

    Raises:
        InputError: it is something else.
    """
    methods = ("mean", "std", "active_neurons", "n_samples")
    fits = callable(estimator) and all(callable(getattr(estimator, method, None)) for method in methods)
    if estimator is not None and (not fits or isinstance(estimator, type)):
        raise InputError(f"{given(name, estimator)} must be an estimator, such as TorchWelfordEstimator()")


def _as_buffer(
    name: str, array: npt.ArrayLike | torch.Tensor | None, least: float | None = None
) -> torch.Tensor | None:
    if array is None:
        return None
    checked = require_array(name, array, least=least)
    tensor = array.detach() if isinstance(array, torch.Tensor) else torch.from_numpy(checked.copy())
    return tensor.clone() if tensor.is_floating_point() else tensor.to(torch.get_default_dtype())
