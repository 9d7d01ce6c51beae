"""The Readout Bottleneck: a network, trained once, gives the mask of every image in one pass."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from os import PathLike
from typing import Any, NamedTuple, Self

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from iba_core.bottleneck.estimator import STATE
from iba_core.bottleneck.statistics import Statistics
from iba_core.bottleneck.saliency import saliency_maps
from iba_core.errors import InputError, LayerError, NotEstimatedError, OptimizationError, StateError
from iba_core.framework.adapter import Inputs
from iba_core.framework.inputs import arrays_of, batch_size, inputs_of_batch, take
from iba_core.framework.layout import DataFormat, Layout
from iba_core.framework.namespace import host_array
from iba_core.readout.formulas import Place, Readout, ReadoutConstants
from iba_core.readout.state import (
    GIVEN,
    SETTINGS,
    ReadoutState,
    from_channels_first,
    settings_of,
    to_channels_first,
)
from iba_core.readout.training import (
    BETA,
    LEARNING_RATE,
    WARM_UP,
    EpochReport,
    NestedPass,
    ReadoutModel,
    ReadoutTrainer,
    TrainingSettings,
)
from iba_torch.adapter import TorchAdapter
from iba_torch.bottlenecks.estimator import TorchWelfordEstimator
from iba_torch.bottlenecks.iba import IBA, Mode
from iba_torch.bottlenecks.nested import Reader
from iba_torch.tail.channels import channel_hint, data_format_of
from iba_torch.tail.frozen import frozen
from iba_torch.tail.precision import without_autocast
from iba_torch.tail.split import TorchCut
from iba_torch.tail.trees import tree_map


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
        robust: normalise the features that are read by mean and standard deviation of their channel over all
            places, not of each feature, and bound them: for training on few images.
        kwargs: further arguments of `IBA`. Of those, `beta` is the weight of the information in `fit`, and 1
            if not given; those of an optimisation (`optimization_steps`, `lr`, `batch_size`) have no effect.

    Attributes:
        network: the readout network, over (B, channels, places); None before it is made.
        estimators: one for each of the readout layers, in their order.
        outputs: what the model made of what passed the bottleneck, for the last input analysed.
        history: an `EpochReport` for each epoch of the last training.

    Raises:
        InputError: an argument is out of its range.
        LayerError: the model has no such layer.

    Example:
        >>> iba = IBAReadout(model.conv2, [model.conv2, model.conv4, model.fc], model)  # doctest: +SKIP
        >>> iba.estimate(model, loader)  # doctest: +SKIP
        >>> optimizer = torch.optim.Adam(iba.parameters(), lr=3e-4)  # doctest: +SKIP
        >>> for x, target in loader:  # doctest: +SKIP
        ...     with iba.restrict_flow():
        ...         loss = functional.cross_entropy(model(x), target) + iba.capacity().mean()
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
        *,
        robust: bool = False,
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
        super().__init__(cut.module, **{"beta": BETA, **kwargs})
        self.estimators = nn.ModuleList(estimators)
        self.network: nn.Sequential | None = None
        self.outputs: Any = None
        self.history: list[EpochReport] = []
        self.robust = robust
        self._layer_name = cut.layer_name
        self._adapter = adapter
        self._reader = Reader(
            adapter.model, cut.layer_name, reads, lambda: self._restricting, self._observe_read
        )
        self._formats: list[DataFormat | None] = [None] * len(reads)
        self._replacement: torch.Tensor | None = None
        self._known: _Known | None = None

    @property
    def model(self) -> nn.Module:
        """The model that is read."""
        return self._reader.model

    def detach(self) -> None:
        """Take the bottleneck and everything that records features off the model.

        Raises:
            InputError: that has been done before.
        """
        super().detach()
        self._reader.detach()

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
        if self._reader.recording is not None:
            self._reader.recording.bottleneck.append(x.detach().clone())
            return x
        if self._replacement is not None:
            return self._replacement.to(x.dtype)
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
        for name, estimator in zip(self._reader.names, self.estimators, strict=True):
            if not bool(torch.isfinite(estimator.std()).all()):
                self.reset_estimate()
                raise InputError(
                    f"dataloader holds images on which the features of {name!r} are NaN or infinite"
                )
        self._make_network()

    # -- explaining -----------------------------------------------------------------------------------

    def analyze(  # type: ignore[override]  # the seed's signature: a model in the place of a loss
        self,
        input_t: Inputs,
        model: nn.Module | None = None,
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
            model: the model that contains the bottleneck; the constructor's if None.
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
        model = self.model if model is None else model
        _require_module(model)
        self._require_attached()
        place = self._knowledge().readout.place
        images = self._check_input(input_t)
        passing = None if pass_mask is None else place.passing(host_array(pass_mask), images)
        self._capacity = None
        with (
            self._passing_all(),
            self._switched(_pass_mask=passing),
            self.restrict_flow(),
            frozen() as still,
            torch.no_grad(),
        ):
            still.add(model)
            self.outputs = TorchAdapter(model).call(tree_map(lambda tensor: tensor.detach().clone(), input_t))
        if self._capacity is None:
            raise LayerError(f"layer {self._layer_name!r} does not run when the model is called")
        nats = host_array(self._capacity)
        if not np.isfinite(nats).all():
            raise OptimizationError(
                "the capacity is not finite: train the readout network anew, or look for features that are "
                "not finite for this input"
            )
        if mode == "capacity":
            return nats if images > 1 else nats[0]
        spatial = tuple(next(arrays_of(input_t)).shape[2:])
        fits = len(spatial) == len(place.layout.places(place.shape))
        maps = saliency_maps(nats, place.layout, spatial if fits else None)
        return maps if images > 1 else maps[0]

    # -- training -------------------------------------------------------------------------------------

    def fit(
        self,
        loader: Iterable[Any],
        loss: Callable[..., torch.Tensor],
        *,
        epochs: int = 10,
        lr: float = LEARNING_RATE,
        beta: float | None = None,
        validation: Iterable[Any] | None = None,
        patience: int = 3,
        checkpoint: str | PathLike[str] | None = None,
        seed: int | None = None,
        device: torch.device | str | None = None,
        progbar: bool | None = None,
        warm_up: int = WARM_UP,
        beta_steps: int | None = None,
    ) -> list[EpochReport]:
        """Train the readout network by Adam; the model is left as it was.

        The objective is ``loss + beta * mean(capacity)``, as in the paper's section 3.3, with the model in
        evaluation mode and no gradients for its parameters. How the mask is kept from closing at first,
        `iba_core.readout.training` tells.

        Args:
            loader: the data, to be gone through once an epoch: batches of inputs, or tuples (inputs, ...).
            loss: ``loss(output, ...)``, a loss for each image or the mean over the batch: it gets the model's
                output and what follows the inputs in a batch, such as
                ``torch.nn.functional.cross_entropy``.
            epochs: how often to go through the data, those before an interruption included.
            lr: learning rate of Adam.
            beta: weight of the mean information, in nats per feature; the constructor's if None, which is 1
                unless given. A network that has to do for all images needs more information than a mask
                made for one, and at the per-sample bottleneck's 10 it would soon give up the loss.
            validation: data like those of `loader`. The objective on them, always under the same noise,
                decides which epoch's weights are kept at the end, and when to stop.
            patience: stop after so many epochs without improvement on the validation data.
            checkpoint: a safetensors file, written after each epoch. If it exists, training resumes from
                it: the network, its optimiser, the features' distribution and the history are taken over.
            seed: makes noise, and the order of a shuffling loader, a function of it and the epoch, so that a
                resumed training ends as an uninterrupted one.
            device: where to bring the data; that of the model's first parameter if None.
            progbar: show the progress; the constructor's choice if None.
            warm_up: number of first steps in which nothing but the level of the mask is trained; 0 for a
                readout that starts half open.
            beta_steps: number of first steps over which `beta` rises from 3 % of its value; those of the
                warm-up if None.

        Returns:
            A report for each epoch, also kept as `history`.

        Raises:
            NotEstimatedError: `estimate` has not been called.
            InputError: an argument is out of its range, the data are empty, or the loss is neither a scalar
                nor one for each image.
            StateError: the checkpoint is truncated, of another kind or of another network.
            OptimizationError: the objective turned NaN or infinite.
        """
        self._require_attached()
        beta = self.beta if beta is None else beta
        settings = TrainingSettings(epochs, lr, beta, patience, seed, warm_up, beta_steps)
        show = self.progbar if progbar is None else progbar
        trainer = ReadoutTrainer(_TrainedModel(self, device), loss, settings, checkpoint, show)
        try:
            with frozen() as still, self._passing_all():
                still.add(self.model)
                trainer.run(loader, validation)
        finally:
            self.history = trainer.reports
        return list(self.history)

    # -- the network ----------------------------------------------------------------------------------

    def _restrict(self, x: torch.Tensor) -> torch.Tensor:
        known = self._knowledge()
        _, reads = self._run_nested(len(x))
        known.readout.check(x, reads, [self._layer_name or "", *self._reader.names])
        features, *reads = (each.to(known.constants.mean.dtype) for each in (x, *reads))
        alpha = known.readout.alpha(self._weights(), reads, known.constants)
        passing = None if self._pass_mask is None else torch.as_tensor(self._pass_mask, device=x.device)
        noise = torch.randn_like(features)
        restricted = known.readout.restrict(alpha, features, noise, known.constants, passing)
        self.alpha, self._capacity = alpha.detach(), restricted.capacity
        return restricted.z.to(x.dtype)

    def _run_nested(self, images: int) -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
        """Features of one unrestricted pass of the model on the input of the present one."""
        if self._reader.inputs is None:
            raise LayerError(
                f"layer {self._layer_name!r} runs outside of the model that the readout was made for; "
                "call the model as a whole"
            )
        args, kwargs = tree_map(lambda tensor: tensor.clone(), self._reader.inputs)
        with frozen() as still, torch.no_grad(), self._passing_all(), self._reader.record() as recording:
            still.add(self.model)
            self.model(*args, **kwargs)
        return self._reader.features(recording, images)

    def _weights(self) -> list[torch.Tensor]:
        return [
            parameter[..., 0] if parameter.ndim == 3 else parameter for parameter in self.network.parameters()
        ]

    def _knowledge(self) -> _Known:
        """The formulas and their constants, made anew where something that they depend on has changed.

        No value is asked of a device as long as nothing has.
        """
        given = [each for each in (self.feature_mean, self.feature_std) if each is not None]
        buffers = [buffer for module in (self.estimator, *self.estimators) for buffer in module.buffers()]
        used = [*given, *buffers, *(() if self.network is None else self.network.parameters())]
        versions = tuple((id(each), each._version) for each in (*given, *buffers))
        key = (
            self._settings(),
            self.relu,
            self.robust,
            self.tokens,
            self._channels,
            tuple(self._formats),
            versions,
        )
        places = {(each.device, each.dtype) for each in used}
        if self._known is None or self._known.key != (key, places):
            self._require_estimated()
            self._known = _Known((key, places), used, *self._make_known())
        return self._known

    def _make_known(self) -> tuple[Readout, ReadoutConstants]:
        settings = self._settings()
        statistics = self._statistics(settings.active_neurons_threshold)
        readout = self._make_readout()
        read_statistics = []
        for estimator in self.estimators:
            mean, std = host_array(estimator.mean()), host_array(estimator.std())
            read_statistics.append(Statistics(mean, std, np.ones(mean.shape, bool)))
        return readout, readout.constants(statistics, read_statistics, settings, self._tensor)

    def _tensor(self, array: npt.ArrayLike) -> torch.Tensor:
        """`array` in the precision of the bottleneck and on its device."""
        weight = next(self.network.parameters())
        tensor = torch.from_numpy(np.array(array))
        precision = torch.float64 if weight.dtype == torch.float64 else torch.float32
        return tensor.to(precision if tensor.is_floating_point() else tensor.dtype).to(weight.device)

    def _make_readout(self) -> Readout:
        mean = self.estimator.mean() if self.feature_mean is None else self.feature_mean
        place = Place(tuple(mean.shape), self._layout(mean.shape))
        reads = []
        for index, estimator in enumerate(self.estimators):
            shape = tuple(estimator.mean().shape)
            reads.append(Place(shape, self._readout_layout(index, shape)))
        return Readout(place, tuple(reads), self.relu, self.robust)

    def _make_network(self) -> None:
        readout = self._make_readout()
        if self.network is None:
            mean = self.estimator.mean() if self.feature_mean is None else self.feature_mean
            # One number of PyTorch's own generator, so that its seed governs the network.
            seed = int(torch.randint(2**62, ()))
            self.network = _make_layers(readout.initial_weights(self.initial_alpha, seed))
            self.network.to(mean.device, mean.dtype if mean.dtype == torch.float64 else torch.float32)
        elif _sizes_of(self.network) != readout.sizes:
            raise InputError(
                f"the layers now have the channels {readout.sizes}, but the readout network was made for "
                f"{_sizes_of(self.network)}; make a new IBAReadout"
            )

    def _layout(self, shape: Sequence[int]) -> Layout:
        return Layout.of(shape, self._channels, self.tokens)

    def _readout_layout(self, index: int, shape: Sequence[int]) -> Layout:
        known, hint = self._formats[index], channel_hint(self._reader.reads[index].module)
        return Layout.of(shape, known or data_format_of(shape, hint))

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
        if not self._reader.is_attached:
            raise InputError("the readout bottleneck is detached from its model; make a new one")

    def _observe_read(self, index: int, features: torch.Tensor) -> None:
        if self._estimating:
            self.estimators[index](features)

    def _make_cut(self, run: Callable[[Inputs], Any], names: dict[nn.Module, str] | None = None) -> TorchCut:
        """The cut that `estimate` takes the features from: it sees to the readout layers on the way."""
        return _ReadoutCut(self, run, super()._make_cut(run, names))

    # -- state ----------------------------------------------------------------------------------------

    def save(self, path: str | PathLike[str]) -> None:
        """Write everything that has been learnt and estimated, and the settings, to a safetensors file.

        `iba_tf.IBAReadout` reads it, too.

        Args:
            path: the file; its folder must exist.

        Raises:
            NotEstimatedError: there is no network yet.
            InputError: the folder does not exist, or an estimator is of a type of your own; `state_dict`
                keeps those.
        """
        self._state().save(path)

    def load(self, path: str | PathLike[str]) -> Self:
        """Take over what `save` wrote, here or in `iba_tf.IBAReadout`, in place of what is there.

        Args:
            path: the file of a readout of the same layers.

        Returns:
            The readout.

        Raises:
            StateError: the file is missing, truncated, of another kind or of other layers; nothing is
                changed then.
        """
        self._load_state(ReadoutState.read(path))
        return self

    def _state(self) -> ReadoutState:
        self._require_estimated()
        readout = self._make_readout()
        formats = [_format_of(place) for place in (readout.place, *readout.reads)]
        estimators = []
        for estimator, data_format in zip((self.estimator, *self.estimators), formats, strict=True):
            moments = _moments(estimator)
            estimators.append(None if moments is None else to_channels_first(moments, data_format))
        given = None
        if self.feature_mean is not None:
            arrays = {name: host_array(getattr(self, name)) for name in GIVEN}
            mean, std = to_channels_first(arrays, formats[0]).values()
            given = mean, std
        return ReadoutState(
            weights=tuple(host_array(weight) for weight in self._weights()),
            estimators=tuple(estimators),
            given=given,
            facts={
                "framework": self._adapter.name,
                "layer": self._layer_name,
                "readout_layers": self._reader.names,
                "data_formats": formats,
                "input_shape": self._input_shape,
                "settings": settings_of(self),
            },
        )

    def _load_state(self, state: ReadoutState) -> None:
        state.check(self._adapter.name, self._layer_name or "", self._reader.names)
        own = state.facts["framework"] == self._adapter.name
        settings, tokens = state.settings, state.tokens
        modules = [self.layer, *(read.module for read in self._reader.reads)]
        formats = state.facts["data_formats"] if own else list(map(_format_in, modules, state.shapes()))
        if tokens is not None:
            formats[0] = "channels_last"
        like = next(self.model.parameters(), torch.zeros(()))
        estimators = (self.estimator, *self.estimators)
        for estimator in estimators:
            _require_known(estimator)
        for estimator, moments, data_format in zip(estimators, state.estimators, formats, strict=True):
            if moments is None:
                estimator.reset()
            else:
                _set_moments(estimator, from_channels_first(moments, data_format), state.weights[0].dtype)
        given = None if state.given is None else dict(zip(GIVEN, state.given, strict=True))
        for name in GIVEN:
            array = None if given is None else from_channels_first(given, formats[0])[name]
            setattr(self, name, None if array is None else torch.tensor(array, device=like.device))
        for name in SETTINGS:
            setattr(self, name, settings[name])
        self.network, self.tokens = _make_layers(state.weights).to(like.device), tokens
        self._channels, self._formats = formats[0], list(formats[1:])
        shape = state.facts["input_shape"] if own else None
        self._input_shape = None if shape is None else tuple(shape)

    def get_extra_state(self) -> torch.Tensor:
        """What the layers' names, layouts and input are, as JSON in bytes."""
        facts = {
            "layer_name": self._layer_name,
            "channels": self._channels,
            "input_shape": self._input_shape,
            "readout_layers": self._reader.names,
            "formats": self._formats,
            "robust": self.robust,
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
        if (own, names) != (self._layer_name, self._reader.names):
            raise StateError(
                f"the state is that of a bottleneck at {own!r} reading {names}, "
                f"not of one at {self._layer_name!r} reading {self._reader.names}"
            )
        self._channels, self._formats = channels, formats
        self._input_shape = None if shape is None else tuple(shape)
        # States that do not say were made before there was another way to read.
        self.robust = facts.get("robust", False)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        facts = state_dict.get(f"{prefix}_extra_state")
        if facts is not None:
            # First of all, so that a state of other layers changes nothing.
            self.set_extra_state(facts)
        kept = [
            state_dict.get(f"{prefix}network.{index}.{kind}")
            for index in (0, 2, 4)
            for kind in ("weight", "bias")
        ]
        if self.network is None and all(isinstance(each, torch.Tensor) for each in kept):
            like = next(self.model.parameters(), kept[0])
            self.network = _make_layers([each.detach().cpu().numpy() for each in kept]).to(like.device)
        for name in GIVEN:
            given = state_dict.get(prefix + name)
            setattr(self, name, None if given is None else torch.empty_like(given))
        super()._load_from_state_dict(state_dict, prefix, *args)


class _Known(NamedTuple):
    """The formulas of a readout and their constants."""

    key: Any
    """What they depend on."""
    used: list[torch.Tensor]
    """The tensors that they are made from, kept so that no other tensor can come to bear their ids."""
    readout: Readout
    constants: ReadoutConstants


class _TrainedModel(ReadoutModel):
    """A model with a readout in it, as the training sees it; inside of `frozen`."""

    def __init__(self, bottleneck: IBAReadout, device: torch.device | str | None) -> None:
        self.adapter = TorchAdapter(bottleneck.model)
        self._bottleneck = bottleneck
        self._device = device
        self._inputs: Inputs = None
        self._outside: AbstractContextManager[Any] = nullcontext()

    @property
    def readout(self) -> Readout:
        return self._bottleneck._knowledge().readout

    def to_batch(self, batch: Any) -> tuple[Inputs, tuple[Any, ...]]:
        inputs = self.adapter.to_inputs(inputs_of_batch(batch), self._device)
        rest = tuple(batch[1:]) if isinstance(batch, (tuple, list)) else ()
        return inputs, self.adapter.to_inputs(rest, self._device)

    @contextmanager
    def open(self, inputs: Inputs) -> Iterator[NestedPass]:
        reader = self._bottleneck._reader
        with reader.record() as recording, torch.no_grad():
            self._run(inputs)
        features, reads = reader.features(recording, batch_size(inputs))
        self.readout.check(features, reads, [reader.layer_name, *reader.names])
        with without_autocast(features.device) as outside:
            self._inputs, self._outside = inputs, outside
            try:
                yield NestedPass(features, reads)
            finally:
                self._inputs = None

    def tail(self, z: torch.Tensor, carry: tuple[Any, ...]) -> Any:
        with self._outside, self._bottleneck._switched(_replacement=z):
            return self._run(self._inputs)

    def _run(self, inputs: Inputs) -> Any:
        # The pass may write into its inputs, and they are needed twice.
        return self.adapter.call(tree_map(lambda tensor: tensor.detach().clone(), inputs))

    def tensor(self, array: npt.ArrayLike) -> torch.Tensor:
        return self._bottleneck._tensor(array)

    def constants(self) -> ReadoutConstants:
        return self._bottleneck._knowledge().constants

    def state(self) -> ReadoutState:
        return self._bottleneck._state()

    def load(self, state: ReadoutState) -> None:
        self._bottleneck._load_state(state)

    def set_weights(self, weights: Sequence[npt.NDArray[np.floating]]) -> None:
        with torch.no_grad():
            for own, weight in zip(self._bottleneck.network.parameters(), weights, strict=True):
                own.copy_(torch.from_numpy(weight).reshape(own.shape))

    @contextmanager
    def seeded(self, seed: Sequence[int]) -> Iterator[None]:
        """Context with PyTorch's generators seeded, and afterwards as they were."""
        device = next(self._bottleneck.network.parameters()).device
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            torch.manual_seed(int(np.random.SeedSequence(seed).generate_state(1, np.uint64)[0] >> 1))
            yield


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
        with torch.no_grad(), readout._reader.record() as recording:
            self.run(tree_map(lambda tensor: tensor.detach().clone(), inputs))
        features, reads = readout._reader.features(recording, batch_size(inputs))
        for estimator, read in zip(readout.estimators, reads, strict=True):
            estimator(read)
        return features

    def _look(self, one: Inputs) -> None:
        """Find out on one image how often the layers run and where their channels are."""
        super().features(one)
        for index, read in enumerate(self._readout._reader.reads):
            cut = TorchCut(self.run, read.module, layer_name=read.layer_name, call=read.call)
            cut.features(one)
            self._readout._formats[index] = cut.data_format
        self._looked = True


def _require_module(model: object) -> None:
    if not isinstance(model, nn.Module):
        raise InputError(f"model is of type {type(model).__name__}; a torch.nn.Module was expected")


def _make_layers(weights: Sequence[npt.NDArray[np.floating]]) -> nn.Sequential:
    """1x1 convolutions over flattened places, with ReLUs between."""
    layers: list[nn.Module] = []
    for weight, bias in zip(weights[::2], weights[1::2], strict=True):
        layer = nn.Conv1d(weight.shape[1], weight.shape[0], 1, dtype=torch.from_numpy(weight[:0]).dtype)
        with torch.no_grad():
            layer.weight.copy_(torch.from_numpy(np.array(weight)).reshape(layer.weight.shape))
            layer.bias.copy_(torch.from_numpy(np.array(bias)))
        layers += [layer, nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def _sizes_of(network: nn.Sequential) -> tuple[tuple[int, int], ...]:
    return tuple((layer.in_channels, layer.out_channels) for layer in network if isinstance(layer, nn.Conv1d))


def _format_of(place: Place) -> DataFormat:
    return "channels_first" if place.layout.channel_axis == 0 else "channels_last"


def _format_in(module: nn.Module, shape: Sequence[int]) -> DataFormat:
    """Where `module` has the channels of a feature map whose shape is given with channels first."""
    return data_format_of((*shape[1:], shape[0]), channel_hint(module))


def _require_known(estimator: nn.Module) -> None:
    if not isinstance(estimator, TorchWelfordEstimator):
        raise InputError(
            f"the estimator is of type {type(estimator).__name__}, whose state no other framework can read; "
            "keep the state_dict instead"
        )


def _moments(estimator: nn.Module) -> dict[str, npt.NDArray[Any]] | None:
    """State of an estimator by the names of `estimator.STATE`; None if it has seen nothing."""
    _require_known(estimator)
    state = estimator.state_dict()
    return {name: host_array(state[f"_{name}"]) for name in STATE} if estimator.n_samples() else None


def _set_moments(estimator: nn.Module, moments: Mapping[str, npt.NDArray[Any]], dtype: Any) -> None:
    state = {f"_{name}": torch.from_numpy(np.array(array)) for name, array in moments.items()}
    estimator.load_state_dict(state | {"_dtype_of": torch.from_numpy(np.empty(0, dtype))})
