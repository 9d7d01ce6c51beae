"""The Readout Bottleneck: a network, trained once, gives the mask of every image in one pass."""

from __future__ import annotations

import json
from collections.abc import Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from iba_core.arguments import given, require_callable, require_sequence
from iba_core.bottleneck.estimator import STATE
from iba_core.bottleneck.settings import BottleneckSettings
from iba_core.errors import InputError, LayerError, StateError
from iba_core.framework.adapter import Inputs
from iba_core.framework.layout import DataFormat
from iba_core.framework.namespace import host_array
from iba_core.readout.bottleneck import Known, ReadoutBottleneck
from iba_core.readout.formulas import WEIGHTS
from iba_core.readout.state import GIVEN, require_layers
from iba_core.readout.training import BETA
from iba_torch.adapter import TorchAdapter
from iba_torch.bottlenecks.estimator import TorchWelfordEstimator
from iba_torch.bottlenecks.iba import IBA
from iba_torch.bottlenecks.readout_model import ModelHooks, TorchReadoutModel, layers_of
from iba_torch.framework import require_device
from iba_torch.tail.precision import keeps_settings, without_gradients
from iba_torch.tail.trees import tree_map

_CHANNELS_LAST = (nn.Linear, nn.Bilinear, nn.LayerNorm, nn.Embedding, nn.RNNBase, nn.MultiheadAttention)


class IBAReadout(ReadoutBottleneck, IBA):  # type: ignore[misc]  # `analyze` takes a model, not a loss
    """A bottleneck for PyTorch models whose mask is computed from the features of several layers.

    `iba_core.readout.bottleneck.ReadoutBottleneck` describes it. For a training loop of your own,
    `parameters()` are those of the network alone.

    Args:
        attach_layer: the layer after which the bottleneck goes; a module of the model or its dotted name.
        readout_layers: the readout layers, likewise. For one that runs more than once in a pass, name the
            call: ``"relu:2"``.
        model: the model that has all of these layers.
        estimator_type: class of the estimators, also of the bottleneck's unless `estimator` is given; an
            `nn.Module` that is made without arguments. `TorchWelfordEstimator` if None.
        robust: normalise the readout layers' features by mean and standard deviation of their channel over
            all places, instead of each feature's own, and limit them. Useful for training on few images.
        gradients: let the network read the gradient of the model's own answer, too, at eight noisy copies of
            each image. Maps then follow what the answer rests on, at the cost of eight passes of the tail,
            forward and backward. The model's output must be the scores of classes, (images, classes).
        kwargs: further arguments of `IBA`. Of those, `beta` is the weight of the information in `fit`, 1
            if not given; those of an optimisation (`optimization_steps`, `lr`, `batch_size`) have no effect.

    Attributes:
        network: the readout network, an `nn.Sequential` over (B, channels, places); None before it is made.

    Raises:
        InputError: an argument is out of its range.
        LayerError: the model has no such layer.

    Example:
        >>> iba = IBAReadout("conv", ["conv", "pool", "logits"], model)
        >>> iba.estimate(model, batches)
        >>> pairs = [(images, model(images).argmax(1)) for images in batches]
        >>> history = iba.fit(pairs, nn.functional.cross_entropy, epochs=2)
        >>> iba.analyze(x, model).shape
        (2, 8, 8)

        A training loop of your own:

        >>> optimizer = torch.optim.Adam(iba.parameters(), lr=3e-4)
        >>> for images, target in pairs:
        ...     with iba.restrict_flow():
        ...         loss = nn.functional.cross_entropy(model(images), target) + iba.capacity().mean()
        ...     optimizer.zero_grad()
        ...     loss.backward()
        ...     optimizer.step()
    """

    def __init__(
        self,
        attach_layer: nn.Module | str,
        readout_layers: Sequence[nn.Module | str],
        model: nn.Module,
        estimator_type: type[nn.Module] | None = None,
        *,
        robust: bool = False,
        gradients: bool = False,
        **kwargs: Any,
    ) -> None:
        _require_module(model)
        if isinstance(readout_layers, nn.Module):
            raise InputError(f"{given('readout_layers', readout_layers)} must be a list of one layer or more")
        require_sequence("readout_layers", readout_layers, "layers")
        require_callable("estimator_type", estimator_type, "a class of estimators", optional=True)
        make_estimator = TorchWelfordEstimator if estimator_type is None else estimator_type
        adapter = TorchAdapter(model)
        own, *others = layers_of(adapter, [attach_layer, *readout_layers])
        if own.call is not None or kwargs.get("call") is not None:
            raise LayerError(f"the bottleneck at {own.name!r} needs a layer that runs once in a pass")
        estimators = [make_estimator() for _ in others]
        if kwargs.get("estimator") is None:
            kwargs["estimator"] = make_estimator()
        for estimator in (kwargs["estimator"], *estimators):
            if not isinstance(estimator, nn.Module):
                found = type(estimator).__name__
                raise InputError(f"the estimator is of type {found}; an nn.Module with buffers was expected")
        super().__init__(own.module, **{"beta": BETA, **kwargs})
        self._set_up(robust, gradients)
        self.estimators = nn.ModuleList(estimators)
        # In a tuple, so that neither the model nor a layer becomes a child of this module.
        self._models: tuple[nn.Module, ...] = (adapter.model,)
        self._layers = (own, *others)
        self._hooks = ModelHooks(adapter.model, others, self._is_restricting, self._observe)

    @property
    def model(self) -> nn.Module:
        """The model that has the layers."""
        return self._models[0]

    def detach(self) -> None:
        """Take the bottleneck and everything that records features off the model.

        Raises:
            InputError: that has been done before.
        """
        super().detach()
        self._hooks.remove()

    @contextmanager
    def enable_estimation(self) -> Iterator[None]:
        """Context in which the distribution of what passes is estimated, at all layers.

        On leaving, the network is made if there is none. `estimate` does all that is needed for a data set.
        """
        with super().enable_estimation():
            yield
        if self._is_estimated():
            self._make_network()

    @property
    def _device(self) -> torch.device:
        return next(self.model.parameters(), torch.zeros(())).device

    # -- passes that the user runs --------------------------------------------------------------------

    def _is_restricting(self) -> bool:
        return self._restricting

    def _observe(self, index: int, features: torch.Tensor) -> None:
        if self._estimating:
            self.estimators[index](features)

    def _restrict(self, x: torch.Tensor) -> torch.Tensor:
        known, model = self._what_is_known(), self._readout_model()
        if self._hooks.inputs is None:
            name = model.names[0]
            raise LayerError(f"layer {name!r} runs outside of the readout's model; call the model as a whole")
        if self._foreign is not None:
            args, kwargs = self._hooks.inputs
            self._confirm_formats(model, args or kwargs)
            known = self._what_is_known()
        with model.nested_pass_of_call(*self._hooks.inputs) as nested:
            known.readout.check(x, nested.readout_features, model.names)
            evidence = self._evidence(model, known, nested)
        noise = torch.randn_like(x, dtype=known.constants.mean.dtype)
        restricted = known.readout.restricted(
            self._weights(), x, nested.readout_features, noise, known.constants, evidence=evidence
        )
        self.alpha, self._capacity = restricted.alpha.detach(), restricted.capacity
        z: torch.Tensor = restricted.z.to(x.dtype)
        return z

    # -- what the core asks for -----------------------------------------------------------------------

    def _readout_model(self, model: nn.Module | None = None, device: Any = None) -> TorchReadoutModel:
        if not self._hooks.are_there:
            raise InputError("the readout bottleneck is detached from its model; make a new one")
        model = self.model if model is None else model
        _require_module(model)
        device = None if device is None else require_device("device", device)
        return TorchReadoutModel(
            model,
            self._layers,
            self.input_or_output,
            self._shadows,
            self._knowledge,
            self._passing_all,
            self.data_format,
            device,
        )

    def _settings(self) -> BottleneckSettings:
        return IBA._settings(self)

    def _checked_input(self, input_t: Inputs) -> Inputs:
        self._check_input(input_t)
        return input_t

    def _weights(self) -> list[torch.Tensor]:
        return [weight[..., 0] if weight.ndim == 3 else weight for weight in self.network.parameters()]

    @keeps_settings
    def _set_weights(self, weights: Sequence[npt.NDArray[np.floating]]) -> None:
        with without_gradients():
            for own, weight in zip(self.network.parameters(), weights, strict=True):
                own.copy_(torch.from_numpy(np.array(weight)).reshape(own.shape))

    def _make_layers(self, weights: Sequence[npt.NDArray[np.floating]]) -> nn.Sequential:
        layers: list[nn.Module] = []
        for weight, bias in zip(weights[::2], weights[1::2], strict=True):
            layer = nn.Conv1d(weight.shape[1], weight.shape[0], 1)
            layer.weight = nn.Parameter(torch.from_numpy(np.array(weight))[..., None])
            layer.bias = nn.Parameter(torch.from_numpy(np.array(bias)))
            layers += [layer, nn.ReLU()]
        return nn.Sequential(*layers[:-1]).to(self._device)

    def _precision(self) -> str:
        mean = self.estimator.mean() if self.feature_mean is None else self.feature_mean
        return "float64" if mean.dtype == torch.float64 else "float32"

    def _draw_seed(self) -> int:
        return int(torch.randint(2**62, ()))

    def _sources(self) -> tuple[Hashable, list[Any]]:
        given = [each for each in (self.feature_mean, self.feature_std) if each is not None]
        buffers = [buffer for estimator in self._all_estimators() for buffer in estimator.buffers()]
        used = [*given, *buffers, *(() if self.network is None else self.network.parameters())]
        # No value is asked of a device.
        versions = tuple((id(each), each._version) for each in (*given, *buffers))
        return (versions, frozenset((each.device, each.dtype) for each in used)), used

    @keeps_settings
    def _make_known(self, sources: Sequence[Any]) -> Known:
        # The constants outlive the caller's inference mode.
        with torch.inference_mode(False):
            return super()._make_known(sources)

    @keeps_settings
    def _attributes_of(self, estimator: Any) -> dict[str, Any]:
        # PyTorch's tensors are copied without gradients.
        return super()._attributes_of(estimator)

    def _take_in(self, estimator: nn.Module, features: torch.Tensor) -> None:
        estimator(features)

    def _used_by(self, estimator: nn.Module) -> Sequence[Any]:
        return self._models

    def _moments_of(self, estimator: nn.Module) -> Mapping[str, npt.ArrayLike]:
        state = _known_estimator(estimator).state_dict()
        return {name: host_array(state[f"_{name}"]) for name in STATE}

    def _set_moments(
        self, estimator: nn.Module, moments: Mapping[str, npt.NDArray[Any]], dtype: np.dtype[Any]
    ) -> None:
        state = {f"_{name}": torch.from_numpy(np.array(array)) for name, array in moments.items()}
        dtype_of = torch.from_numpy(np.empty(0, dtype))
        _known_estimator(estimator).load_state_dict(state | {"_dtype_of": dtype_of})

    def _given(self, array: npt.NDArray[np.floating]) -> torch.Tensor:
        return torch.tensor(array, device=self._device)

    _guesses_formats = True

    def _guessed_formats(self, shapes: Sequence[tuple[int, ...]]) -> list[DataFormat]:
        modules = [layer.module for layer in self._layers]
        return [
            "channels_last" if len(shape) > 1 and isinstance(module, _CHANNELS_LAST) else "channels_first"
            for shape, module in zip(shapes, modules, strict=True)
        ]

    # -- state ----------------------------------------------------------------------------------------

    def __getstate__(self) -> dict[str, Any]:
        # Tensors with a graph cannot be copied.
        return {**super().__getstate__(), "outputs": tree_map(torch.Tensor.detach, self.outputs)}

    def get_extra_state(self) -> torch.Tensor:
        """What the layers' names, layouts and input are, as JSON in bytes."""
        name, *names = (layer.name for layer in self._layers)
        channels, *formats = self._formats or (None, *(None for _ in names))
        facts: dict[str, Any] = {"layer_name": name, "readout_layers": names, "robust": self.robust}
        facts |= {"channels": channels, "formats": formats, "input_shape": self._input_shape}
        facts |= {"foreign": self._foreign, "corners": self.corners, "alpha_bound": self.alpha_bound}
        facts["gradients"] = self.gradients
        return torch.tensor(list(json.dumps(facts).encode()), dtype=torch.uint8)

    def set_extra_state(self, state: torch.Tensor) -> None:
        """Restore what `get_extra_state` gave.

        Raises:
            StateError: it is of another kind, or of a readout of other layers.
        """
        try:
            facts = json.loads(bytes(state.tolist()))
            theirs = [facts["layer_name"], *facts["readout_layers"]]
            formats, shape = [facts["channels"], *facts["formats"]], facts["input_shape"]
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise StateError(f"the state is not that of a readout bottleneck ({error})") from error
        require_layers(theirs, [layer.name for layer in self._layers])
        self._formats = None if None in formats else formats
        self._foreign = facts.get("foreign")
        self._input_shape = None if shape is None else tuple(shape)
        # States without an entry are older than the setting.
        self.robust, self.corners = facts.get("robust", False), facts.get("corners", False)
        self.alpha_bound, self.gradients = facts.get("alpha_bound"), facts.get("gradients", False)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        facts = state_dict.get(f"{prefix}_extra_state")
        if facts is not None:
            # First of all, so that a state of other layers changes nothing.
            self.set_extra_state(facts)
        # The network's layers are its modules 0, 2 and 4.
        kept = [state_dict.get(f"{prefix}network.{2 * int(name[0])}{name[1:]}") for name in WEIGHTS]
        if self.network is None and all(isinstance(each, torch.Tensor) for each in kept):
            weights = [host_array(each) for each in kept]
            self.network = self._make_layers([w[..., 0] if w.ndim == 3 else w for w in weights])
        for name in GIVEN:
            given = state_dict.get(prefix + name)
            setattr(self, name, None if given is None else torch.empty_like(given))
        super()._load_from_state_dict(state_dict, prefix, *args)


def _require_module(model: object) -> None:
    if not isinstance(model, nn.Module):
        raise InputError(f"model is of type {type(model).__name__}; a torch.nn.Module was expected")


def _known_estimator(estimator: nn.Module) -> TorchWelfordEstimator:
    if not isinstance(estimator, TorchWelfordEstimator):
        raise InputError(
            f"the estimator is of type {type(estimator).__name__}, whose state no other framework can read; "
            "keep the state_dict instead"
        )
    return estimator
