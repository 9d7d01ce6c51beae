"""Passes of a model in which nothing is restricted, for the features of several layers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn

from iba_core.errors import LayerError
from iba_torch.tail.split import TorchSplit
from iba_torch.tail.trees import first_tensor, tree_map


@dataclass
class Recording:
    """What a pass of the model has shown, call by call.

    Attributes:
        bottleneck: feature maps at the bottleneck.
        reads: for each layer read, the features of its calls; None where a call gave no tensor.
    """

    bottleneck: list[torch.Tensor]
    reads: list[list[torch.Tensor | None]]


class Reader:
    """Hooks on a model that see the features of some layers, and what the model is called with.

    Args:
        model: the model.
        layer_name: the bottleneck's place, for messages.
        reads: the layers to see, cut there.
        wants_inputs: whether what the model is called with is to be kept for a nested pass.
        observe: gets the number of a layer and the features of the call that counts, of passes that are not
            recorded.
    """

    def __init__(
        self,
        model: nn.Module,
        layer_name: str,
        reads: Sequence[TorchSplit],
        wants_inputs: Callable[[], bool],
        observe: Callable[[int, Any], None],
    ) -> None:
        self.model = model
        self.layer_name = layer_name
        self.reads = list(reads)
        self.inputs: tuple[tuple[Any, ...], dict[str, Any]] | None = None
        self.recording: Recording | None = None
        self._wants_inputs = wants_inputs
        self._observe = observe
        self._calls: dict[int, int] = {}
        self._handles = [
            model.register_forward_pre_hook(self._before_model, with_kwargs=True),
            model.register_forward_hook(self._after_model, always_call=True),
            *(
                read.module.register_forward_hook(partial(self._on_layer, index))
                for index, read in enumerate(reads)
            ),
        ]

    @property
    def names(self) -> list[str]:
        """Names of the layers read."""
        return [read.layer_name for read in self.reads]

    @property
    def is_attached(self) -> bool:
        """Whether the hooks are there."""
        return bool(self._handles)

    def detach(self) -> None:
        """Remove the hooks."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    @contextmanager
    def record(self) -> Iterator[Recording]:
        """Context in which passes of the model are recorded. Whoever runs one sees to it that it is whole."""
        outer, inputs = self.recording, self.inputs
        self.recording, self.inputs = Recording([], [[] for _ in self.reads]), None
        try:
            yield self.recording
        finally:
            self.recording, self.inputs = outer, inputs

    def features(self, recording: Recording, images: int) -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
        """The feature maps of one pass: at the bottleneck, and of the layers read.

        Args:
            recording: of the pass.
            images: that it was of.

        Raises:
            LayerError: a layer did not run, or more than once with no call named, or gave no feature maps.
        """
        own = self._of_call(self.layer_name, None, recording.bottleneck, images)
        reads = zip(self.reads, recording.reads, strict=True)
        return own, tuple(self._of_call(read.layer_name, read.call, found, images) for read, found in reads)

    @staticmethod
    def _of_call(
        name: str, call: int | None, found: Sequence[torch.Tensor | None], images: int
    ) -> torch.Tensor:
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
        return feature

    def _before_model(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._calls = {}
        if self._wants_inputs():
            # A copy, since the pass may write into its inputs before it gets to the bottleneck.
            self.inputs = tree_map(lambda tensor: tensor.detach().clone(), (args, kwargs))

    def _after_model(self, model: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        if self.recording is None:
            self.inputs = None

    def _on_layer(self, index: int, layer: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        if self.recording is not None:
            found = first_tensor(output)
            # A copy, since the layers behind may work in place.
            self.recording.reads[index].append(None if found is None else found.detach().clone())
            return
        number = self._calls.get(index, 0)
        self._calls[index] = number + 1
        if number == (self.reads[index].call or 0):
            self._observe(index, first_tensor(output))
