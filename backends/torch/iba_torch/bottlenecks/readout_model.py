"""A PyTorch model with the layers that a readout needs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import numpy as np
import torch
from torch import nn

from iba_core.errors import LayerError
from iba_core.framework.adapter import Inputs
from iba_core.framework.inputs import batch_size
from iba_core.framework.layout import DataFormat
from iba_core.readout.model import NestedPass, ReadoutModel
from iba_torch.adapter import TorchAdapter
from iba_torch.tail.frozen import frozen
from iba_torch.tail.precision import without_autocast
from iba_torch.tail.split import LayerCall, TorchCut
from iba_torch.tail.trees import first_tensor, replace_first, tree_map

Features = tuple[torch.Tensor, ...]


@dataclass(frozen=True)
class ReadoutLayers:
    """The layers of a readout.

    Attributes:
        bottleneck: the layer of the bottleneck.
        where: whether the bottleneck acts on the layer's output or its input.
        readout_layers: the layers whose features the network takes.
    """

    bottleneck: LayerCall
    where: Literal["output", "input"]
    readout_layers: tuple[LayerCall, ...]

    @property
    def all(self) -> tuple[LayerCall, ...]:
        """All layers, that of the bottleneck first."""
        return (self.bottleneck, *self.readout_layers)


class TorchReadoutModel(ReadoutModel):
    """An `nn.Module` with the layers that a readout needs.

    Args:
        model: the module.
        layers: the layers, which are part of the module.
        passing: gives a context in which the bottleneck's own hook passes everything.
        device: where to bring the data; that of the model's first parameter if None.
    """

    def __init__(
        self,
        model: nn.Module,
        layers: ReadoutLayers,
        passing: Callable[[], AbstractContextManager[None]],
        device: torch.device | str | None = None,
    ) -> None:
        self.framework: Any = TorchAdapter(model)
        self.names = [layer.name for layer in layers.all]
        self._adapter, self._layers, self._passing, self._device = self.framework, layers, passing, device

    def to_inputs(self, inputs: Inputs) -> Inputs:
        """See `ReadoutModel.to_inputs`."""
        return self._adapter.to_inputs(inputs, self._device)

    def to_targets(self, values: tuple[Any, ...]) -> tuple[Any, ...]:
        """See `ReadoutModel.to_targets`."""
        targets: tuple[Any, ...] = self._adapter.to_inputs(values, self._device)
        return targets

    def data_formats(self, inputs: Inputs) -> list[DataFormat]:
        """See `ReadoutModel.data_formats`. It also shows how often the layers run."""
        found = []
        for layer in self._layers.all:
            where = self._layers.where if layer is self._layers.bottleneck else "output"
            split = TorchCut(
                self._adapter.call, layer.module, layer_name=layer.name, where=where, call=layer.call
            )
            with self._passing():
                split.features(inputs)
            found.append(split.data_format)
        return found

    def features(self, inputs: Inputs) -> Features:
        """See `ReadoutModel.features`."""
        with self._evaluating():
            return self._record(lambda: self._call(inputs), batch_size(inputs))

    def features_of_call(self, args: tuple[Any, ...], kwargs: dict[str, Any], images: int) -> Features:
        """Run the model once on given arguments, see `features`."""
        args, kwargs = tree_map(lambda tensor: tensor.clone(), (args, kwargs))
        with self._evaluating():
            return self._record(lambda: self._adapter.model(*args, **kwargs), images)

    @contextmanager
    def nested_pass(self, inputs: Inputs) -> Iterator[NestedPass]:
        """See `ReadoutModel.nested_pass`."""
        with self._evaluating():
            features, *readout_features = self._record(lambda: self._call(inputs), batch_size(inputs))
            with without_autocast(features.device) as outside:

                def run(z: torch.Tensor, carry: tuple[torch.Tensor, ...]) -> Any:
                    with outside, self._replaced(z.to(features.dtype)):
                        return self._call(inputs)

                yield NestedPass(features, tuple(readout_features), run)

    @contextmanager
    def seeded(self, seed: Sequence[int], like: torch.Tensor) -> Iterator[None]:
        """Context with PyTorch's generators seeded; afterwards they are as before."""
        with torch.random.fork_rng(devices=[like.device] if like.is_cuda else []):
            torch.manual_seed(int(np.random.SeedSequence(seed).generate_state(1, np.uint64)[0] >> 1))
            yield

    # -- passes of the model --------------------------------------------------------------------------

    @contextmanager
    def _evaluating(self) -> Iterator[None]:
        """Context in which the model runs in evaluation mode, without a graph, and unrestricted."""
        with frozen() as still, torch.no_grad(), self._passing():
            still.add(self._adapter.model)
            yield

    def _call(self, inputs: Inputs) -> Any:
        # The pass may write into its inputs, and they are needed twice.
        return self._adapter.call(tree_map(lambda tensor: tensor.detach().clone(), inputs))

    def _record(self, run: Callable[[], Any], images: int) -> Features:
        """The features of all layers in one pass."""
        seen: list[list[torch.Tensor | None]] = [[] for _ in self._layers.all]

        def note(index: int, tree: Any) -> None:
            found = first_tensor(tree)
            # A copy, since the next layers may work in place.
            seen[index].append(None if found is None else found.detach().clone())

        with self._hooked([partial(note, index) for index in range(len(seen))]):
            run()
        return tuple(
            _of_call(layer, found, images) for layer, found in zip(self._layers.all, seen, strict=True)
        )

    def _replaced(self, z: torch.Tensor) -> AbstractContextManager[None]:
        """Context in which `z` stands for the features at the bottleneck."""
        return self._hooked([lambda tree: replace_first(tree, z)])

    @contextmanager
    def _hooked(self, hooks: Sequence[Callable[[Any], Any]]) -> Iterator[None]:
        """Context in which hooks see what the first of the layers give, and may return something else."""
        with ExitStack() as stack:
            for layer, hook in zip(self._layers.all, hooks, strict=False):
                is_input = layer is self._layers.bottleneck and self._layers.where == "input"
                stack.enter_context(_hook(layer.module, hook, is_input))
            yield


def _hook(module: nn.Module, hook: Callable[[Any], Any], is_input: bool) -> Any:
    """A hook on a module's output, or its input, that gets nothing else; a context that removes it."""
    if is_input:
        return module.register_forward_pre_hook(
            lambda module, args, kwargs: hook((args, kwargs)), with_kwargs=True
        )
    return module.register_forward_hook(lambda module, args, output: hook(output))


def _of_call(layer: LayerCall, found: Sequence[torch.Tensor | None], images: int) -> torch.Tensor:
    """The feature maps of the call that counts."""
    if len(found) <= (layer.call or 0):
        raise LayerError(f"layer {layer.name!r} runs {len(found)} time(s) when the model is called")
    if layer.call is None and len(found) > 1:
        raise LayerError(f"layer {layer.name!r} runs {len(found)} times in a pass of the model")
    features = found[layer.call or 0]
    if features is None or features.ndim < 2 or len(features) != images:
        given = "no tensor" if features is None else f"the shape {tuple(features.shape)}"
        raise LayerError(
            f"layer {layer.name!r} gives {given} for a batch of {images}; "
            f"a feature map has the shape ({images}, ...)"
        )
    return features


class ModelHooks:
    """Hooks on the user's model: they keep what it is called with, and show readout layers' features.

    They do so in passes that the user runs. All of them are methods, so a copy of the model has hooks that
    belong to the copy.

    Args:
        model: the model.
        layers: the readout layers.
        keeps_inputs: whether a pass has to be repeated unrestricted, so that its inputs are needed.
        observe: gets the number of a layer and the features of the call that counts.
    """

    def __init__(
        self,
        model: nn.Module,
        layers: Sequence[LayerCall],
        keeps_inputs: Callable[[], bool],
        observe: Callable[[int, Any], None],
    ) -> None:
        self.inputs: tuple[tuple[Any, ...], dict[str, Any]] | None = None
        self._numbers = [layer.call or 0 for layer in layers]
        self._keeps_inputs, self._observe = keeps_inputs, observe
        self._calls: dict[int, int] = {}
        self._handles = [
            model.register_forward_pre_hook(self._before_model, with_kwargs=True),
            model.register_forward_hook(self._after_model, always_call=True),
        ]
        for index, layer in enumerate(layers):
            self._handles.append(layer.module.register_forward_hook(partial(self._after_layer, index)))

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
        self._calls = {}
        if self._keeps_inputs():
            # A copy, since the pass may write into its inputs before it gets to the bottleneck.
            self.inputs = tree_map(lambda tensor: tensor.detach().clone(), (args, kwargs))

    def _after_model(self, model: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        if self._keeps_inputs():
            self.inputs = None

    def _after_layer(self, index: int, layer: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        number = self._calls.get(index, 0)
        self._calls[index] = number + 1
        if number == self._numbers[index]:
            self._observe(index, first_tensor(output))
