"""The Readout Bottleneck: a network, trained once, gives the mask of every image in one pass."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from iba_core.adapter import Inputs
from iba_core.bottleneck import mask_from_alpha
from iba_core.errors import InputError, LayerError, NotEstimatedError, OptimizationError, StateError
from iba_core.inputs import arrays_of, batch_size, inputs_of_batch, take
from iba_core.layout import DataFormat, Layout
from iba_core.readout import readout_alpha, readout_features, readout_sizes, resizing_matrices
from iba_core.saliency import saliency_maps
from iba_core.smoothing import smoothing_matrices
from iba_core.state import read_state, write_state
from iba_core.utils import get_tqdm
from iba_torch.adapter import TorchAdapter
from iba_torch.bottleneck import IBA, Mode
from iba_torch.channels import channel_hint, data_format_of
from iba_torch.cut import TorchCut
from iba_torch.estimator import TorchWelfordEstimator
from iba_torch.frozen import frozen
from iba_torch.readout_training import EpochReport, Training, copy_into
from iba_torch.trees import first_tensor, tree_map

KIND = "readout training"
"""Kind of the checkpoints."""

_GIVEN = ("feature_mean", "feature_std")


class IBAReadout(IBA):
    """A bottleneck whose mask is read out of the feature maps of several layers.

    The per-sample bottleneck optimises its mask anew for every image. Here a network of three 1x1
    convolutions learns to give the mask's parameter alpha. It reads the features of some layers, which a
    nested, unrestricted pass of the model brings about; layers behind the bottleneck may be among them, and
    dense ones. Explaining an image then costs that pass and one restricted pass.

    The network is made once the features' distribution is known: first `estimate`, then `fit`, or a loop of
    your own over `parameters()`, which are those of the network alone. At the start alpha is
    `initial_alpha` everywhere.

    Args:
        attach_layer: the layer after which the bottleneck goes; a module of the model or its dotted name.
        readout_layers: the layers to read, likewise. Of one that runs more than once in a pass, name the
            call: ``"relu:2"``.
        model: the model that all of them are part of.
        estimator_type: class of the estimators, of the bottleneck's too unless `estimator` is given; an
            `nn.Module` to be made without arguments. `TorchWelfordEstimator` if None.
        kwargs: further arguments of `IBA`.

    Attributes:
        network: the readout network, over (B, channels, places); None before it is made.
        estimators: one for each of the readout layers, in their order.
        history: an `EpochReport` for each epoch of the last training.

    Raises:
        InputError: an argument is out of its range.
        LayerError: the model has no such layer.

    Example:
        >>> iba = IBAReadout(model.conv2, [model.conv2, model.conv4, model.fc], model)  # doctest: +SKIP
        >>> iba.estimate(model, loader)  # doctest: +SKIP
        >>> optimizer = torch.optim.Adam(iba.parameters(), lr=1e-3)  # doctest: +SKIP
        >>> for x, target in loader:  # doctest: +SKIP
        ...     with iba.restrict_flow():
        ...         loss = functional.cross_entropy(model(x), target) + 0.1 * iba.capacity().mean()
        ...     optimizer.zero_grad()
        ...     loss.backward()
        ...     optimizer.step()
        >>> saliency = iba.analyze(image[None], model)  # doctest: +SKIP
    """

    def __init__(
        self,
        attach_layer: nn.Module | str,
        readout_layers: Sequence[nn.Module | str],
        model: nn.Module,
        estimator_type: type[nn.Module] | None = None,
        **kwargs: Any,
    ) -> None:
        _require_module(model)
        if isinstance(readout_layers, (str, nn.Module)) or not len(readout_layers):
            raise InputError(f"readout_layers={readout_layers!r} must be a list of one layer or more")
        make_estimator = TorchWelfordEstimator if estimator_type is None else estimator_type
        adapter = TorchAdapter(model)
        cut = adapter.cut(attach_layer)
        if cut.call is not None or kwargs.get("call") is not None:
            raise LayerError(f"the bottleneck at {cut.layer_name!r} needs a layer that runs once in a pass")
        reads = [adapter.cut(layer) for layer in readout_layers]
        estimators = [make_estimator() for _ in reads]
        if kwargs.get("estimator") is None:
            kwargs["estimator"] = make_estimator()
        for estimator in (kwargs["estimator"], *estimators):
            if not isinstance(estimator, nn.Module):
                raise InputError(
                    f"the estimator is of type {type(estimator).__name__}; an nn.Module was expected, "
                    "whose buffers are saved with the readout network"
                )
        super().__init__(cut.module, **kwargs)
        self.estimators = nn.ModuleList(estimators)
        self.network: nn.Sequential | None = None
        self.history: list[EpochReport] = []
        self._layer_name = cut.layer_name
        # In containers, since the model and its layers must not become children of this module.
        self._model = [adapter.model]
        self._reads = reads
        self._formats: list[DataFormat | None] = [None] * len(reads)
        self._passed: tuple[tuple[Any, ...], dict[str, Any]] | None = None
        self._recorded: _Recording | None = None
        self._hand_calls: dict[int, int] = {}
        self._readout_handles = [
            self.model.register_forward_pre_hook(self._before_model, with_kwargs=True),
            self.model.register_forward_hook(self._after_model, always_call=True),
            *(
                read.module.register_forward_hook(partial(self._on_readout, index))
                for index, read in enumerate(reads)
            ),
        ]

    @property
    def model(self) -> nn.Module:
        """The model that is read."""
        return self._model[0]

    def detach(self) -> None:
        """Take the bottleneck and everything that records features off the model.

        Raises:
            InputError: that has been done before.
        """
        super().detach()
        for handle in self._readout_handles:
            handle.remove()
        self._readout_handles.clear()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The features as the next layer gets them. There is no need to call this method yourself.

        Inside of `restrict_flow` the model runs a second time on the same input, nested and unrestricted,
        for the readout network to see its features.

        Args:
            x: (B, *feature map).

        Returns:
            `x` itself; inside of `restrict_flow`, the restricted features, of the shape and dtype of `x`.

        Raises:
            NotEstimatedError: the flow is to be restricted, and a layer's distribution is not known.
            InputError: a shape differs from that of the estimated distribution.
            LayerError: a layer never runs in the model, or more than once.
        """
        if self._recorded is not None:
            self._recorded.bottleneck.append(x.detach().clone())
            return x
        return super().forward(x)

    # -- the distribution of the features -------------------------------------------------------------

    def reset_estimate(self) -> None:
        """Forget the distribution of the features, of the bottleneck and of every readout layer.

        The estimators stay the objects that they were, and so does the network.
        """
        super().reset_estimate()
        for estimator in self.estimators:
            estimator.reset()

    @contextmanager
    def enable_estimation(self) -> Iterator[None]:
        """Context in which the distribution of what passes is estimated, at all layers.

        On leaving, the network is made, if it is not there. `estimate` does all that is needed for a data
        set.
        """
        with super().enable_estimation():
            yield
        if self._is_estimated():
            self._make_network()

    def estimate(
        self,
        model: nn.Module,
        dataloader: Iterable[Any],
        device: torch.device | str | None = None,
        n_samples: int = 10000,
        progbar: bool | None = None,
        reset: bool = True,
    ) -> None:
        """Estimate mean and standard deviation of the bottleneck's and of all readout layers' features.

        One pass of the model serves all of them. The network is made, if it is not there; one that is there
        stays as it is.

        Args:
            model: the model with the bottleneck. It runs in evaluation mode and is left as it was.
            dataloader: an iterable of batches, each a tensor or a tuple with the images first. (A dict is
                taken for keyword arguments of the model.)
            device: where to bring the images; that of the model's first parameter if None.
            n_samples: stop after exactly so many; fewer are used where the data end before.
            progbar: show the progress; the constructor's choice if None.
            reset: forget what has been estimated before; otherwise go on from there.

        Raises:
            InputError: the data hold fewer than two samples, or features that are not finite; or there is a
                network already, made for other numbers of channels.
            LayerError: a layer never runs in the model, or more than once.
        """
        self._require_attached()
        _require_module(model)
        with frozen() as still:
            still.add(model)
            super().estimate(model, dataloader, device, n_samples, progbar, reset)
        for read, estimator in zip(self._reads, self.estimators, strict=True):
            if not bool(torch.isfinite(estimator.std()).all()):
                name = read.layer_name
                self.reset_estimate()
                raise InputError(
                    f"dataloader holds images on which the features of {name!r} are NaN or infinite"
                )
        self._make_network()

    # -- explaining -----------------------------------------------------------------------------------

    def analyze(  # type: ignore[override]  # the seed's signature: a model in the place of a loss
        self,
        input_t: Inputs,
        model: nn.Module,
        mode: Mode = "saliency",
        *,
        pass_mask: npt.ArrayLike | torch.Tensor | None = None,
        **kwargs: Any,
    ) -> npt.NDArray[np.floating]:
        """Explain an input: what does the trained network let pass?

        One nested and one restricted pass of the model; nothing is optimised. The model is left as it was.

        Args:
            input_t: (B, C, H, W), images on the model's device; or a tuple or dict of inputs, whose first
                axis is the batch.
            model: the model that contains the bottleneck.
            mode: ``"saliency"`` for a map of the input, ``"capacity"`` for the features.
            pass_mask: True where features pass unchanged and carry no capacity, of the shape of a feature
                map or of a batch of them. For padding.
            kwargs: ignored, so that calls written for the per-sample bottleneck can stay.

        Returns:
            For ``"saliency"``, an array (H, W) in bits per pixel whose sum is the total of bits, (B, H, W)
            for more than one image. For ``"capacity"``, an array of the shape of the feature map in nats,
            (B, *feature map) for more than one image.

        Raises:
            NotEstimatedError: `estimate` has not been called.
            InputError: an argument is out of its range, of the wrong rank or not finite.
            LayerError: the model does not run the bottleneck's layer or a readout layer.
            OptimizationError: the network's output is not finite.
        """
        if mode not in ("saliency", "capacity"):
            raise InputError(f"mode={mode!r} is neither 'saliency' nor 'capacity'")
        _require_module(model)
        self._require_attached()
        self._require_estimated()
        images = self._check_input(input_t)
        passing = None if pass_mask is None else _host(pass_mask)
        self._capacity = None
        with (
            self._passing_all(),
            self._switched(_pass_mask=passing),
            self.restrict_flow(),
            frozen() as still,
            torch.no_grad(),
        ):
            still.add(model)
            TorchAdapter(model).call(tree_map(lambda tensor: tensor.detach().clone(), input_t))
        if self._capacity is None:
            raise LayerError(f"layer {self._layer_name!r} does not run when the model is called")
        nats = _host(self._capacity)
        if not np.isfinite(nats).all():
            raise OptimizationError("the readout network gives masks that are not finite; train it anew")
        if mode == "capacity":
            return nats if images > 1 else nats[0]
        layout = self._layout(nats.shape[1:])
        spatial = tuple(next(arrays_of(input_t)).shape[2:])
        fits = len(spatial) == len(layout.places(nats.shape[1:]))
        maps = saliency_maps(nats, layout, spatial if fits else None)
        return maps if images > 1 else maps[0]

    # -- training -------------------------------------------------------------------------------------

    def fit(
        self,
        loader: Iterable[Any],
        loss: Callable[..., torch.Tensor],
        *,
        epochs: int = 10,
        lr: float = 1e-3,
        beta: float | None = None,
        validation: Iterable[Any] | None = None,
        patience: int = 3,
        checkpoint: str | PathLike[str] | None = None,
        seed: int | None = None,
        device: torch.device | str | None = None,
        progbar: bool | None = None,
    ) -> list[EpochReport]:
        """Train the readout network by Adam; the model is left as it was.

        The objective is ``loss + beta * mean(capacity)``, as in the paper's section 3.3, with the model in
        evaluation mode and no gradients for its parameters.

        Args:
            loader: the data, to be gone through once an epoch: batches of inputs, or tuples (inputs, ...).
            loss: ``loss(output, ...)``, the mean over the batch as a scalar: it gets the model's output and
                what follows the inputs in a batch, such as ``torch.nn.functional.cross_entropy``.
            epochs: how often to go through the data, those before an interruption included.
            lr: learning rate of Adam.
            beta: weight of the mean information, in nats per feature; the constructor's if None.
            validation: data like those of `loader`. The objective on them, always under the same noise,
                decides which epoch's weights are kept at the end, and when to stop.
            patience: stop after so many epochs without improvement on the validation data.
            checkpoint: a safetensors file, written after each epoch. If it exists, training resumes from
                it: the network, its optimiser, the features' distribution and the history are taken over.
            seed: makes noise, and the order of a shuffling loader, a function of it and the epoch, so that a
                resumed training ends as an uninterrupted one.
            device: where to bring the data; that of the model's first parameter if None.
            progbar: show the progress; the constructor's choice if None.

        Returns:
            A report for each epoch, also kept as `history`.

        Raises:
            NotEstimatedError: `estimate` has not been called.
            InputError: an argument is out of its range, the data are empty, or the loss is no scalar.
            StateError: the checkpoint is truncated, of another kind or of another network.
            OptimizationError: the objective turned NaN or infinite.
        """
        self._require_attached()
        for name, least in (("epochs", 0), ("patience", 1)):
            value = {"epochs": epochs, "patience": patience}[name]
            if isinstance(value, bool) or int(value) != value or value < least:
                raise InputError(f"{name}={value!r} must be a whole number, {least} or more")
        settings = self._settings().override(learning_rate=lr, beta=beta)
        for name, data in (("loader", loader), ("validation", validation)):
            if isinstance(data, Iterator):
                raise InputError(f"{name} can be gone through only once; give a list or a DataLoader")
        if checkpoint is not None and not Path(checkpoint).parent.is_dir():
            raise InputError(f"checkpoint={str(checkpoint)!r} cannot be written: its folder does not exist")
        if checkpoint is not None and Path(checkpoint).exists():
            training = self._resume(checkpoint)
        else:
            training = self._start()
        run = partial(self._run_epoch, training, loss=loss, beta=settings.beta, device=device)
        show = self.progbar if progbar is None else progbar
        try:
            with frozen() as still, self._passing_all():
                still.add(self.model)
                self.network.requires_grad_(True)
                for epoch in range(len(training.reports), epochs):
                    if training.stalled >= patience:
                        break
                    bar = get_tqdm()(loader, desc=f"Epoch {epoch + 1}/{epochs}", disable=not show)
                    with self._seeded(None if seed is None else [seed, epoch]):
                        means = run(bar, learning_rate=settings.learning_rate)
                    held_out = None
                    if validation is not None:
                        with self._seeded([0]), torch.no_grad():
                            held_out = run(validation, learning_rate=None)[0]
                        training.compare(held_out)
                    training.reports.append(EpochReport(epoch, *means, held_out))
                    if checkpoint is not None:
                        self._save(checkpoint, training)
        finally:
            # The last step's graph would otherwise live on in the capacity.
            self._capacity = None if self._capacity is None else self._capacity.detach()
            self.history = list(training.reports)
        if training.best is not None:
            copy_into(training.parameters, training.best)
        return list(self.history)

    def _run_epoch(
        self,
        training: Training,
        data: Iterable[Any],
        *,
        loss: Callable[..., torch.Tensor],
        beta: float,
        device: torch.device | str | None,
        learning_rate: float | None,
    ) -> tuple[float, float, float]:
        """Go through the data once, training if there is a learning rate.

        Returns:
            Means over the images: objective, loss, information.
        """
        adapter = TorchAdapter(self.model)
        sums, seen = np.zeros(3), 0
        for batch in data:
            inputs = adapter.to_inputs(inputs_of_batch(batch), device)
            rest = adapter.to_inputs(tuple(batch[1:]), device) if isinstance(batch, (tuple, list)) else ()
            self._capacity = None
            with nullcontext() if learning_rate is None else torch.enable_grad(), self.restrict_flow():
                value = loss(adapter.call(inputs), *rest)
                if not isinstance(value, torch.Tensor) or value.numel() != 1:
                    raise InputError("loss returned no scalar tensor; give the mean over the batch")
                if self._capacity is None:
                    raise LayerError(f"layer {self._layer_name!r} does not run when the model is called")
                information = self.capacity().mean()
                objective = value.reshape(()) + beta * information
            terms = [float(term.detach()) for term in (objective, value, information)]
            if not np.isfinite(terms).all():
                raise OptimizationError(
                    f"the objective became {terms[0]} in epoch {len(training.reports) + 1} after "
                    f"{training.steps} steps; likely lr is too high or the loss overflows"
                )
            if learning_rate is not None:
                training.step(objective, learning_rate)
            images = batch_size(inputs)
            sums, seen = sums + np.multiply(terms, images), seen + images
        if not seen:
            raise InputError("the data hold no images")
        objective_mean, loss_mean, information_mean = (float(mean) for mean in sums / seen)
        return objective_mean, loss_mean, information_mean

    @contextmanager
    def _seeded(self, seed: list[int] | None) -> Iterator[None]:
        """Context with PyTorch's generators seeded, and afterwards as they were."""
        if seed is None:
            yield
            return
        device = next(self.network.parameters()).device
        cuda = [device] if device.type == "cuda" else []
        with torch.random.fork_rng(devices=cuda):
            torch.manual_seed(int(np.random.SeedSequence(seed).generate_state(1, np.uint64)[0] >> 1))
            yield

    def _start(self) -> Training:
        self._require_estimated()
        return Training(list(self.network.parameters()))

    def _save(self, path: str | PathLike[str], training: Training) -> None:
        arrays = {f"state.{name}": _host(tensor) for name, tensor in self.state_dict().items()}
        arrays |= {f"training.{name}": _host(tensor) for name, tensor in training.tensors().items()}
        write_state(path, arrays, KIND, training.numbers())

    def _resume(self, path: str | PathLike[str]) -> Training:
        arrays, numbers = read_state(path, KIND)
        groups: dict[str, dict[str, torch.Tensor]] = {"state": {}, "training": {}}
        for key, array in arrays.items():
            group, _, name = key.partition(".")
            groups.setdefault(group, {})[name] = torch.from_numpy(array)
        try:
            self.load_state_dict(groups["state"])
            training = Training(list(self.network.parameters()))
            training.load(groups["training"], numbers)
        except (AttributeError, KeyError, RuntimeError, TypeError) as error:
            raise StateError(
                f"path={str(path)!r} is a checkpoint of another readout network ({error})"
            ) from error
        return training

    # -- the network ----------------------------------------------------------------------------------

    def _restrict(self, x: torch.Tensor) -> torch.Tensor:
        self._require_estimated()
        recording = self._run_nested(len(x))
        layout = self._layout(x.shape[1:])
        alpha = self._read(recording.features, tuple(x.shape[1:]), layout)
        matrices = [
            torch.from_numpy(matrix).to(alpha)
            for matrix in smoothing_matrices(x.shape[1:], layout, self.sigma)
        ]
        self.alpha = alpha.detach()
        # The mask carries the graph of the network, which nothing but the features and the capacity may keep.
        with self._switched(_mask=mask_from_alpha(alpha, matrices, layout)):
            return super()._restrict(x)

    def _run_nested(self, images: int) -> _Recording:
        """One unrestricted pass of the model on the input of the present one."""
        if self._passed is None:
            raise LayerError(
                f"layer {self._layer_name!r} runs outside of the model that the readout was made for; "
                "call the model as a whole"
            )
        args, kwargs = tree_map(lambda tensor: tensor.clone(), self._passed)
        with frozen() as still, torch.no_grad(), self._recording() as recording:
            still.add(self.model)
            self.model(*args, **kwargs)
        self._check(recording, images)
        return recording

    def _read(self, features: list[torch.Tensor], shape: tuple[int, ...], layout: Layout) -> torch.Tensor:
        """Alpha (B, *shape), differentiable in the parameters of the network."""
        read: list[torch.Tensor] = []
        weight = next(self.network.parameters())
        for index, (feature, estimator) in enumerate(zip(features, self.estimators, strict=True)):
            mean = estimator.mean().to(weight)
            std = torch.clamp(estimator.std().to(weight), min=self.min_std)
            if feature.shape[1:] != mean.shape:
                raise InputError(
                    f"the features of {self._reads[index].layer_name!r} have shape "
                    f"{tuple(feature.shape[1:])}, but the estimated distribution has {tuple(mean.shape)}: "
                    "estimate it on inputs of the same size"
                )
            own = self._readout_layout(index, mean.shape)
            matrices = resizing_matrices(tuple(mean.shape), own, layout.spatial_shape(shape))
            resizing = [torch.from_numpy(matrix).to(weight) for matrix in matrices]
            read.append(readout_features(feature.to(weight), mean, std, own, resizing))
        alpha: torch.Tensor = readout_alpha(self.network(torch.cat(read, dim=1)), shape, layout)
        return alpha if alpha.dtype == torch.float64 else alpha.float()

    def _make_network(self) -> None:
        mean = self.estimator.mean() if self.feature_mean is None else self.feature_mean
        shape = tuple(mean.shape)
        layout = self._layout(shape)
        channels = 0
        for index, estimator in enumerate(self.estimators):
            read = tuple(estimator.mean().shape)
            own = self._readout_layout(index, read)
            resizing_matrices(read, own, layout.spatial_shape(shape))
            channels += read[own.channel_axis]
        sizes = readout_sizes(channels, shape[layout.channel_axis])
        if self.network is None:
            dtype = mean.dtype if mean.dtype == torch.float64 else torch.float32
            self.network = _make_layers(sizes, self.initial_alpha).to(mean.device, dtype)
        elif _sizes_of(self.network) != sizes:
            raise InputError(
                f"the layers now have the channels {sizes}, but the readout network was made for "
                f"{_sizes_of(self.network)}; make a new IBAReadout"
            )

    def _layout(self, shape: Sequence[int]) -> Layout:
        return Layout.of(shape, self._channels, self.tokens)

    def _readout_layout(self, index: int, shape: Sequence[int]) -> Layout:
        known = self._formats[index]
        return Layout.of(shape, known or data_format_of(shape, channel_hint(self._reads[index].module)))

    def _is_estimated(self) -> bool:
        own = self.feature_mean is not None or int(self.estimator.n_samples()) > 1
        return own and all(int(estimator.n_samples()) > 1 for estimator in self.estimators)

    def _require_estimated(self) -> None:
        if self.network is None or not self._is_estimated():
            raise NotEstimatedError(
                "the features' distribution at the bottleneck and the readout layers is not estimated; "
                "call estimate(model, dataloader) first"
            )

    def _require_attached(self) -> None:
        if not self._readout_handles:
            raise InputError("the readout bottleneck is detached from its model; make a new one")

    # -- recording ------------------------------------------------------------------------------------

    @contextmanager
    def _recording(self) -> Iterator[_Recording]:
        """Context in which passes of the model are unrestricted, and their features recorded."""
        recording = _Recording([], [[] for _ in self._reads])
        with self._passing_all(), self._switched(_recorded=recording, _passed=None):
            yield recording

    def _check(self, recording: _Recording, images: int) -> None:
        """Compare what a pass has recorded with what one pass is to give."""
        places = [(self._layer_name, None, recording.bottleneck)]
        places += [
            (read.layer_name, read.call, found)
            for read, found in zip(self._reads, recording.readouts, strict=True)
        ]
        for name, call, found in places:
            if len(found) <= (call or 0):
                raise LayerError(f"layer {name!r} runs {len(found)} time(s) when the model is called")
            if call is None and len(found) > 1:
                raise LayerError(f"layer {name!r} runs {len(found)} times in a pass of the model")
            feature = found[call or 0]
            if feature is None or feature.ndim < 2 or len(feature) != images:
                given = "no tensor" if feature is None else f"the shape {tuple(feature.shape)}"
                raise LayerError(
                    f"layer {name!r} gives {given} for a batch of {images}; "
                    f"a feature map has the shape ({images}, ...)"
                )
        recording.features = [
            found[read.call or 0] for read, found in zip(self._reads, recording.readouts, strict=True)
        ]

    def _before_model(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._hand_calls = {}
        if self._restricting:
            # A copy, since the pass may write into its inputs before it gets to the bottleneck.
            self._passed = tree_map(lambda tensor: tensor.detach().clone(), (args, kwargs))

    def _after_model(self, model: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        if self._recorded is None:
            self._passed = None

    def _on_readout(self, index: int, layer: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        if self._recorded is not None:
            found = first_tensor(output)
            # A copy, since the layers behind may work in place.
            self._recorded.readouts[index].append(None if found is None else found.detach().clone())
        elif self._estimating:
            number = self._hand_calls.get(index, 0)
            self._hand_calls[index] = number + 1
            if number == (self._reads[index].call or 0):
                self.estimators[index](first_tensor(output))

    def _make_cut(self, run: Callable[[Inputs], Any], names: dict[nn.Module, str] | None = None) -> TorchCut:
        """The cut that `estimate` takes the features from: it sees to the readout layers on the way."""
        return _ReadoutCut(self, run, super()._make_cut(run, names))

    # -- state ----------------------------------------------------------------------------------------

    def get_extra_state(self) -> torch.Tensor:
        """What the layers' names, layouts and input are, as JSON in bytes."""
        facts = {
            "layer_name": self._layer_name,
            "channels": self._channels,
            "input_shape": self._input_shape,
            "readout_layers": [read.layer_name for read in self._reads],
            "formats": self._formats,
        }
        return torch.tensor(list(json.dumps(facts).encode()), dtype=torch.uint8)

    def set_extra_state(self, state: torch.Tensor) -> None:
        """Take over what `get_extra_state` gave.

        Raises:
            StateError: it is of another kind, or of a readout of other layers.
        """
        try:
            facts = json.loads(bytes(state.tolist()))
            names, formats, shape = facts["readout_layers"], facts["formats"], facts["input_shape"]
            own, channels = facts["layer_name"], facts["channels"]
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise StateError(f"the state is not that of a readout bottleneck ({error})") from error
        known = [read.layer_name for read in self._reads]
        if (own, names) != (self._layer_name, known):
            raise StateError(
                f"the state is that of a bottleneck at {own!r} reading {names}, "
                f"not of one at {self._layer_name!r} reading {known}"
            )
        self._channels, self._formats = channels, formats
        self._input_shape = None if shape is None else tuple(shape)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        facts = state_dict.get(f"{prefix}_extra_state")
        if facts is not None:
            # First of all, so that a state of other layers changes nothing.
            self.set_extra_state(facts)
        weights = [state_dict.get(f"{prefix}network.{index}.weight") for index in (0, 2, 4)]
        if self.network is None and all(isinstance(weight, torch.Tensor) for weight in weights):
            sizes = tuple((weight.shape[1], weight.shape[0]) for weight in weights)
            like = next(self.model.parameters(), weights[0])
            self.network = _make_layers(sizes, self.initial_alpha).to(like.device, weights[0].dtype)
        for name in _GIVEN:
            given = state_dict.get(prefix + name)
            setattr(self, name, None if given is None else torch.empty_like(given))
        super()._load_from_state_dict(state_dict, prefix, *args)


class _ReadoutCut(TorchCut):
    """A cut that runs the model to its end and lets a readout's estimators see the features."""

    def __init__(self, readout: IBAReadout, run: Callable[[Inputs], Any], cut: TorchCut) -> None:
        super().__init__(
            run, cut.module, layer_name=cut.layer_name, where=cut.where, data_format=readout.data_format
        )
        self._readout = readout
        self._looked = False

    def features(self, inputs: Inputs) -> torch.Tensor:
        """Feature maps of the bottleneck; those of the readout layers go to their estimators."""
        readout = self._readout
        if not self._looked:
            self._look(take(inputs, 0, 1))
        with torch.no_grad(), readout._recording() as recording:
            self.run(tree_map(lambda tensor: tensor.detach().clone(), inputs))
        readout._check(recording, batch_size(inputs))
        for estimator, feature in zip(readout.estimators, recording.features, strict=True):
            estimator(feature)
        return recording.bottleneck[0]

    def _look(self, one: Inputs) -> None:
        """Find out on one image how often the layers run and where their channels are."""
        super().features(one)
        for index, read in enumerate(self._readout._reads):
            cut = TorchCut(self.run, read.module, layer_name=read.layer_name, call=read.call)
            cut.features(one)
            self._readout._formats[index] = cut.data_format
        self._looked = True


@dataclass
class _Recording:
    """What a pass of the model has shown, call by call."""

    bottleneck: list[torch.Tensor]
    readouts: list[list[torch.Tensor | None]]
    features: Any = ()
    """The feature maps to be read, a tensor for each readout layer, once they are checked."""


def _require_module(model: object) -> None:
    if not isinstance(model, nn.Module):
        raise InputError(f"model is of type {type(model).__name__}; a torch.nn.Module was expected")


def _make_layers(sizes: tuple[tuple[int, int], ...], initial_alpha: float) -> nn.Sequential:
    """1x1 convolutions over flattened places, with ReLUs between; they give `initial_alpha` at first."""
    layers: list[nn.Module] = []
    for inputs, outputs in sizes:
        layers += [nn.Conv1d(inputs, outputs, 1), nn.ReLU()]
    last = layers[-2]
    nn.init.zeros_(last.weight)
    nn.init.constant_(last.bias, initial_alpha)
    return nn.Sequential(*layers[:-1])


def _sizes_of(network: nn.Sequential) -> tuple[tuple[int, int], ...]:
    return tuple((layer.in_channels, layer.out_channels) for layer in network if isinstance(layer, nn.Conv1d))


def _host(array: npt.ArrayLike | torch.Tensor) -> npt.NDArray[Any]:
    tensor = torch.as_tensor(array).detach().cpu()
    return (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy()
