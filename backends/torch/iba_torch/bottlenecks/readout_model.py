"""A PyTorch model with the layers that a readout needs."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import nn

from iba_core.errors import LayerError
from iba_core.framework.adapter import Inputs
from iba_core.framework.inputs import arrays_of, take
from iba_core.framework.layout import DataFormat, Layout, MapOrder
from iba_core.readout.model import NestedPass, ReadoutModel
from iba_torch.adapter import TorchAdapter
from iba_torch.tail.effects import Stream
from iba_torch.tail.places import Arguments, BatchAxes, Knowledge, LayerCall, Place, kind_of
from iba_torch.tail.precision import restores_settings, without_autocast
from iba_torch.tail.shadow import Handler, Shadow, Shadows, Site
from iba_torch.tail.split import TorchSplit, call_with, owned
from iba_torch.tail.trees import first_tensor, replace_first, tree_map

Features = tuple[torch.Tensor, ...]

_Seen = tuple[torch.Tensor, int | None] | None
"""A layer's first tensor and its axis of the images."""


class TorchReadoutModel(ReadoutModel):
    """An `nn.Module` with the layers that a readout needs. What runs is a shadow of it.

    Args:
        model: the module.
        layers: the layers, which are part of the module; that of the bottleneck first.
        where: whether the bottleneck acts on its layer's output or on its input.
        shadows: where to take shadows from.
        knowledge: what passes have shown of the module.
        passing: gives a context in which the bottleneck's own hook passes everything.
        data_format: where the channels at the bottleneck are; None to find that out.
        device: where to bring the data; that of the model's first parameter if None.
    """

    framework = TorchAdapter.framework

    def __init__(
        self,
        model: nn.Module,
        layers: Sequence[LayerCall],
        where: Literal["output", "input"],
        shadows: Shadows,
        knowledge: Knowledge,
        passing: Callable[[], AbstractContextManager[None]],
        data_format: DataFormat | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        self.names = [layer.name for layer in layers]
        self._adapter = TorchAdapter(model)
        self._layers, self._where, self._shadows = tuple(layers), where, shadows
        self._knowledge, self._passing = knowledge, passing
        self._data_format, self._device = data_format, device

    def to_inputs(self, inputs: Inputs) -> Inputs:
        """See `ReadoutModel.to_inputs`."""
        return self._adapter.to_inputs(inputs, self._device)

    def to_targets(self, values: tuple[Any, ...]) -> tuple[Any, ...]:
        """See `ReadoutModel.to_targets`."""
        targets: tuple[Any, ...] = self._adapter.to_inputs(values, self._device)
        return targets

    def data_formats(self, inputs: Inputs) -> list[DataFormat]:
        """See `ReadoutModel.data_formats`. It also finds out how often the layers run."""
        found = []
        for index, (_, name, _) in enumerate(self._layers):
            split = self._split(index)
            with self._passing(), self.looking_at(name) if index else nullcontext():
                split.features(inputs)
            if split.mixes_images:
                raise LayerError(
                    f"the model normalises the images of a batch by the statistics of the batch; its layer "
                    f"{name!r} cannot be read for several images at once"
                )
            found.append(split.data_format)
        return found

    def map_order(self, layout: Layout, inputs: Inputs) -> MapOrder:
        """See `ReadoutModel.map_order`."""
        split = self._split(0)
        if split.feature_axes() is None:
            with self._passing():
                split.features(take(inputs, 0, 1))
        return split.map_order(layout)

    def spatial_shape(self, inputs: Inputs) -> tuple[int, ...]:
        """See `ReadoutModel.spatial_shape`."""
        shape = tuple(next(arrays_of(inputs)).shape[1:])
        return shape[:-1] if self._split(0).input_format == "channels_last" else shape[1:]

    def _split(self, index: int) -> TorchSplit:
        """The model split at one of the layers."""
        module, name, call = layer = self._layers[index]
        return TorchSplit(
            self._adapter.model,
            module,
            layer_name=name,
            where="output" if index else self._where,
            call=call,
            data_format=self._data_format if layer == self._layers[0] else None,
            knowledge=self._knowledge,
            shadows=self._shadows,
        )

    def features(self, inputs: Inputs) -> Features:
        """See `ReadoutModel.features`."""
        self._look_around(inputs)
        with self._running() as (shadow, model):
            return tuple(features for features, _ in self._record(shadow, partial(_call, model), inputs))

    @contextmanager
    def nested_pass(self, inputs: Inputs) -> Iterator[NestedPass]:
        """See `ReadoutModel.nested_pass`."""
        self._look_around(inputs)
        with (
            self._running() as (shadow, model),
            self._nested(shadow, partial(_call, model), inputs) as nested,
        ):
            yield nested

    @contextmanager
    def nested_pass_of_call(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Iterator[NestedPass]:
        """Run the model once on given arguments, see `nested_pass`."""
        if not (args and kwargs):
            self._look_around(args or kwargs)

        def run(inputs: tuple[tuple[Any, ...], dict[str, Any]]) -> Any:
            args, kwargs = tree_map(torch.Tensor.clone, inputs)
            return model(*args, **kwargs)

        with self._running() as (shadow, model), self._nested(shadow, run, (args, kwargs)) as nested:
            yield nested

    @contextmanager
    def _nested(self, shadow: Shadow, call: Callable[[Any], Any], inputs: Any) -> Iterator[NestedPass]:
        """`nested_pass` by a call that leaves its inputs as they are."""
        (features, axis), *others = self._record(shadow, call, inputs)
        with without_autocast(features.device) as outside:

            def run(z: torch.Tensor, carry: tuple[torch.Tensor, ...]) -> Any:
                # The next layer may work in place, which a leaf of the graph forbids.
                z = z.clone() if z.is_leaf else z
                placed = z.to(features.dtype).movedim(0, axis)
                with outside:
                    return shadow.run(partial(call, inputs), self._replacing(shadow, placed))

            yield NestedPass(features, tuple(maps for maps, _ in others), run)

    @contextmanager
    def seeded(self, seed: Sequence[int], like: torch.Tensor) -> Iterator[None]:
        """Context with PyTorch's generators seeded; afterwards they are as before."""
        key = int(np.random.SeedSequence(seed).generate_state(1, np.uint64)[0] >> 1)
        with Stream(key).drawn_from():
            yield

    # -- passes of the model --------------------------------------------------------------------------

    @contextmanager
    @restores_settings
    def _running(self) -> Iterator[tuple[Shadow, nn.Module]]:
        """Context with a shadow in which the model runs without a graph and unrestricted."""
        with self._shadows.lease() as shadow, torch.no_grad(), self._passing():
            yield shadow, shadow.of(self._adapter.model)

    def _sites(self, shadow: Shadow) -> list[Site]:
        return [shadow.sites[shadow.of(layer.module)] for layer in self._layers]

    def _look_around(self, inputs: Inputs) -> None:
        """Find out which axes are those of the images, if no pass has shown it."""
        if not all(self._knowledge.knows(layer.module) for layer in self._layers):
            self.data_formats(take(inputs, 0, 1))

    def _record(
        self, shadow: Shadow, run: Callable[[Any], Any], inputs: Any
    ) -> list[tuple[torch.Tensor, int]]:
        """The features of all layers in one pass, the images first, with the images' axis in the model."""
        sites, (images, _, signature, _) = self._sites(shadow), kind_of(inputs)
        given: list[_Seen] = []
        returned: dict[Site, list[_Seen]] = {site: [] for site in sites}

        def seen(site: Site, side: str, tree: Any, arguments: Arguments) -> _Seen:
            features = first_tensor(tree)
            place = Place(site.original() or site.module, len(returned[site]), side)
            axes = BatchAxes(place, arguments, images, signature, self._knowledge)
            # A copy, since the next layers may work in place.
            return None if features is None else (features.detach().clone(), axes.find(features))

        def note(site: Site, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            arguments = Arguments(args, kwargs)
            if self._where == "input" and site is sites[0]:
                given.append(seen(site, "input", (args, kwargs), arguments))
            output = site.run(args, kwargs)
            returned[site].append(seen(site, "output", output, arguments))
            return output

        shadow.run(partial(run, inputs), dict.fromkeys(sites, note))
        found = [returned[site] for site in sites]
        if self._where == "input":
            found[0] = given
        return [_of_call(layer, each, images) for layer, each in zip(self._layers, found, strict=True)]

    def _replacing(self, shadow: Shadow, z: torch.Tensor) -> dict[Site, Handler]:
        """Handlers that put `z` in the place of the features at the bottleneck."""

        def replace(site: Site, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            if self._where == "output":
                return replace_first(site.run(args, kwargs), z)
            return site.run(*replace_first((args, kwargs), z))

        return {self._sites(shadow)[0]: replace}


def layers_of(adapter: TorchAdapter, layers: Sequence[nn.Module | str]) -> list[LayerCall]:
    """The calls that modules or their names stand for.

    Raises:
        LayerError: the model has no such layer.
    """
    splits = [adapter.split(layer) for layer in layers]
    return [LayerCall(split.module, split.layer_name, split.call) for split in splits]


def _call(model: nn.Module, inputs: Inputs) -> Any:
    # The pass may write into its inputs, and they are needed twice.
    return call_with(model, owned(inputs))


def _of_call(layer: LayerCall, found: Sequence[_Seen], images: int) -> tuple[torch.Tensor, int]:
    """The feature maps of the call that counts, the images first, and the images' axis in the model."""
    if len(found) <= (layer.call or 0):
        raise LayerError(f"layer {layer.name!r} runs {len(found)} time(s) when the model is called")
    if layer.call is None and len(found) > 1:
        raise LayerError(f"layer {layer.name!r} runs {len(found)} times in a pass of the model")
    features, axis = found[layer.call or 0] or (None, None)
    if features is None or axis is None or features.ndim < 2:
        given = "no tensor" if features is None else f"the shape {tuple(features.shape)}"
        raise LayerError(
            f"layer {layer.name!r} gives {given} for a batch of {images}; "
            f"a feature map has the shape ({images}, ...)"
        )
    return features.movedim(axis, 0), axis


class _OwnPass(threading.local):
    """What is known of the pass that a thread is in. A copy knows of none."""

    def __init__(self) -> None:
        self.inputs: tuple[tuple[Any, ...], dict[str, Any]] | None = None
        self.calls: dict[int, int] = {}

    def __reduce__(self) -> tuple[type[_OwnPass], tuple[()]]:
        return _OwnPass, ()


class ModelHooks:
    """Hooks on the user's model, for passes that the user runs.

    They keep what the model is called with where the flow is restricted, and show the readout layers'
    features where the distribution is estimated. Each hook is a method, so that the hooks of a copied model
    belong to the copied readout.

    Args:
        model: the model.
        layers: the readout layers.
        is_restricting: whether the flow is restricted.
        observe: gets the number of a layer and the features of the call that counts.
    """

    shared_by_shadows: ClassVar[bool] = True

    def __init__(
        self,
        model: nn.Module,
        layers: Sequence[LayerCall],
        is_restricting: Callable[[], bool],
        observe: Callable[[int, Any], None],
    ) -> None:
        self._pass = _OwnPass()
        self._numbers = [layer.call or 0 for layer in layers]
        self._is_restricting, self._observe = is_restricting, observe
        self._handles = [
            model.register_forward_pre_hook(self._before_model, with_kwargs=True),
            model.register_forward_hook(self._after_model, always_call=True),
        ]
        for index, layer in enumerate(layers):
            self._handles.append(layer.module.register_forward_hook(partial(self._after_layer, index)))

    @property
    def inputs(self) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        """What the model was called with in this thread's restricted pass; None outside of one."""
        return self._pass.inputs

    @property
    def are_there(self) -> bool:
        """Whether the hooks have not been removed."""
        return bool(self._handles)

    def remove(self) -> None:
        """Remove the hooks."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def _before_model(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._pass.calls = {}
        if self._is_restricting():
            # A copy, since the pass may write into its inputs before it gets to the bottleneck.
            self._pass.inputs = tree_map(lambda tensor: tensor.detach().clone(), (args, kwargs))

    def _after_model(self, model: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        if self._is_restricting():
            self._pass.inputs = None

    def _after_layer(self, index: int, layer: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        number = self._pass.calls.get(index, 0)
        self._pass.calls[index] = number + 1
        if number == self._numbers[index]:
            self._observe(index, first_tensor(output))
