"""Where the channels of a tensor are: learnt from the operations that make it and take it.

A convolution, a normalisation, a dense layer or a pooling says which axis of a tensor holds channels. A
tensor that comes of such a node, or goes to one, by operations that only move, add or drop axes, has its
channels on the same axis. No size tells it, since axes of different meaning may be of one size.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Iterable, Iterator
from typing import Any, Protocol

from iba_core.errors import LayerError

Axes = tuple[int | None, ...]
"""For each axis of a tensor, the axis of the tensor in question that it is; None for an axis of its own."""

Reached = tuple[str, Axes]
"""A tensor, and its axes."""


class AxisGraph(Protocol):
    """What the search needs of a graph."""

    def rank(self, tensor: str) -> int | None:
        """Number of axes of a tensor; None where it is not known."""

    def neighbours(self, tensor: str, backwards: bool) -> list[Any]:
        """The node that makes a tensor, or those that take it."""

    def is_end(self, tensor: str, backwards: bool) -> bool:
        """Whether a tensor is an input, or an output, of the graph."""

    def stated_channels(self, node: Any, tensor: str) -> int | None:
        """The axis of a tensor that holds channels, if a node that makes or takes it says so."""

    def carried(self, node: Any, tensor: str, axes: Axes, backwards: bool) -> Found:
        """What is found beyond a node, or where the axes of a tensor are there."""


Found = tuple[int | None, list[Reached]]
"""An axis that holds channels, if one is found; else the tensors that are reached."""


def channel_axis(graph: AxisGraph, name: str, made: str, used: str) -> int | None:
    """The axis of a tensor that holds channels; None where nothing says so.

    Args:
        graph: the graph of the tensor.
        name: of the layer, for the error.
        made: the tensor.
        used: the tensor that stands for it in what follows; mostly the same.

    Raises:
        LayerError: what makes the tensor and what takes it say different things.
    """
    rank = graph.rank(made)
    if rank is None or rank < 3:
        return None if rank is None else rank - 1
    own: Axes = tuple(range(rank))
    before, _ = nearest(graph, [(made, own)], backwards=True)
    after, _ = nearest(graph, [(used, own)], backwards=False)
    if None not in (before, after) and before != after:
        raise LayerError(
            f"what comes before layer {name!r} has its channels on axis {before} of the layer's output, and "
            f"what comes after it on axis {after}; say where they are by data_format="
        )
    return after if before is None else before


def nearest(graph: AxisGraph, start: Iterable[Reached], backwards: bool) -> Found:
    """The nearest statement about channels in one direction, by axes of the tensor in question.

    Args:
        graph: where to look.
        start: tensors to start from.
        backwards: whether to look at the operations that make them, instead of those that take them.

    Returns:
        The axis if one is stated; else the ends of the graph that are reached.
    """
    queue: deque[Reached] = deque(start)
    seen = {tensor for tensor, _ in queue}
    ends: list[Reached] = []
    while queue:
        tensor, axes = queue.popleft()
        if graph.is_end(tensor, backwards):
            ends.append((tensor, axes))
            if backwards:
                continue
        for node in graph.neighbours(tensor, backwards):
            stated = graph.stated_channels(node, tensor)
            if stated is not None and axes[stated] is not None:
                return axes[stated], []
            found, reached = graph.carried(node, tensor, axes, backwards)
            if found is not None:
                return found, []
            for near, moved in reached:
                if near not in seen and any(moved):
                    seen.add(near)
                    queue.append((near, moved))
    return None, ends


_STATING_LAST = (
    "Dense",
    "Embedding",
    "RNN",
    "Bidirectional",
    "MultiHeadAttention",
    "GroupedQueryAttention",
    "BaseDenseAttention",
    "Attention",
)
_NORMALIZING = (
    "BatchNormalization",
    "GroupNormalization",
    "LayerNormalization",
    "Normalization",
    "RMSNormalization",
    "SyncBatchNormalization",
)
_OF_NO_MEANING = ("Flatten",)
"""Layers whose data format says nothing about their arguments: it is mostly Keras' default."""


def channels_of_layer(layer: Any) -> int | None:
    """The axis of a Keras layer's output that holds channels, if the layer says so; it may be negative."""
    kinds = {cls.__name__ for cls in _keras_classes(type(layer))}
    if kinds.intersection(_OF_NO_MEANING):
        return None
    if "Wrapper" in kinds and "Bidirectional" not in kinds:
        axis = channels_of_layer(layer.layer)
        # The steps come before the axes of what is wrapped.
        return axis + 1 if "TimeDistributed" in kinds and axis is not None and axis > 0 else axis
    if kinds.intersection(_NORMALIZING):
        axis = getattr(layer, "axis", None)
        axes = list(axis) if isinstance(axis, (list, tuple)) else [axis]
        return axes[0] if len(axes) == 1 and isinstance(axes[0], int) else None
    stated = getattr(layer, "data_format", None)
    if kinds and stated in ("channels_first", "channels_last"):
        if stated == "channels_last":
            return -1
        return -layer.rank - 1 if "ConvLSTM" in kinds else 1
    return -1 if kinds.intersection(_STATING_LAST) else None


_KEEPING_PACKAGES = {
    "activations",
    "convolutional",
    "merging",
    "normalization",
    "pooling",
    "regularization",
    "rnn",
}
"""Packages of Keras' layers whose results have the axes of their arguments at the same positions."""

_KEEPING = re.compile(r"(UpSampling|ZeroPadding|Cropping)\dD|Dense|Identity|Rescaling")
"""Further such layers."""


def keeps_axes(layer: Any) -> bool:
    """Whether a Keras layer is known to keep axes at their positions, if their number stays."""
    kind = next(_keras_classes(type(layer)), None)
    # What a recurrent layer reads from the end, it may give from the end.
    if kind is None or kind.__name__ == "Dot" or getattr(layer, "go_backwards", False):
        return False
    packages = _KEEPING_PACKAGES.intersection(kind.__module__.split("."))
    return bool(packages) or _KEEPING.fullmatch(kind.__name__) is not None


def _keras_classes(cls: type) -> Iterator[type]:
    """The classes of Keras, 3 or 2, that a class inherits from; none if it has a call of its own."""
    for base in cls.__mro__:
        if base.__module__.partition(".")[0] in ("keras", "tf_keras"):
            yield base
        elif "call" in vars(base):
            return
