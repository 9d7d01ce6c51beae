"""Where tensors keep their channels, as a pass of the model shows it.

A convolution takes the channels first, a linear layer last. A sum has the axes of its terms, and a
permutation moves them. So every operation says something about the axes of what it takes and gives, and that
holds for all tensors that have an axis in common: before it, after it, and on a skip connection around it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import nn
from torch.nn.modules.conv import _ConvNd
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.weak import WeakTensorKeyDictionary

from iba_core.errors import InputError
from iba_core.framework.layout import DataFormat
from iba_torch.tail.trees import tensors

Meaning = Literal["channels", "places", "mixed"]
"""What an operation takes an axis for. Linear layers only mix an axis, be it the channels or another."""


class Kind:
    """All axes that are known to mean the same, such as the channels of a residual stream.

    Args:
        whole: the kind that this one is a part of, such as the heads of the channels; it means the same where
            nothing else is known.
    """

    def __init__(self, whole: Kind | None = None) -> None:
        self._same: Kind | None = None
        self._whole = whole
        self._meanings: set[Meaning] = set()

    @property
    def root(self) -> Kind:
        """The object that stands for all that are the same."""
        kind = self
        while kind._same is not None:
            kind = kind._same
        return kind

    @property
    def meanings(self) -> set[Meaning]:
        """What operations take such axes for."""
        kind: Kind | None = self.root
        while kind is not None and not kind._meanings:
            kind = kind._whole and kind._whole.root
        return set() if kind is None else kind._meanings

    def note(self, meaning: Meaning) -> None:
        """Note what an operation takes such an axis for."""
        self.root._meanings.add(meaning)

    def unite(self, other: Kind) -> None:
        """Note that two kinds are one."""
        own, other = self.root, other.root
        if own is not other:
            other._same = own
            own._meanings |= other._meanings


class Factor(NamedTuple):
    """A part of an axis: one of the axes that were merged into it."""

    kind: Kind
    size: int
    sources: frozenset[tuple[int, bool]] = frozenset()
    """The axes of the model's first input that it comes of, each with whether it runs against it. Places that
    a convolution or a pooling gives come of those that it takes."""


Axis = tuple[Factor, ...]
"""An axis, with its factors from the outermost to the innermost."""

Axes = list[Axis]

_PERMUTING = frozenset({"permute", "transpose", "t"})
_MOVING = _PERMUTING | {"flip", "rot90"}
_DERIVING = frozenset({"index_select", "repeat", "_fft_r2c", "_fft_c2r"})
"""Operations that may change the length of axes, besides those on places and `_RESIZING`."""
_REGROUPING = frozenset({"view", "_unsafe_view", "reshape", "_reshape_alias", "unsqueeze", "squeeze"})
_RESIZING = frozenset({"cat", "slice", "split", "split_with_sizes", "unsafe_split", "constant_pad_nd"})
_PRODUCTS = frozenset({"mm", "addmm", "bmm", "baddbmm"})
_ON_PLACES = re.compile(
    r"conv|pool|upsample|(reflection|replication)_pad|grid_sampler|(batch|group)_norm|(pixel|channel)_.*shuffle"
)
_LINEAR = re.compile(r"linear|rnn|lstm|gru")
_ON_CHANNELS = re.compile(r"(layer|rms)_norm")


class ChannelTracker(TorchDispatchMode):  # type: ignore[no-untyped-call]  # PyTorch's own
    """Context of a pass that finds out what the axes of its tensors mean.

    Attributes:
        normalized_rows: the most rows of a batch that was normalised by its own statistics; 0 if none was.
        moved: the axes of tensors that are others in another order, or reversed.
    """

    supports_higher_order_operators = True

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # PyTorch's own
        self.normalized_rows = 0
        self.moved: list[Axes] = []
        self._known: Any = WeakTensorKeyDictionary()

    def follow(self, tensor: torch.Tensor, is_source: bool = False) -> Axes:
        """Follow a tensor, such as an input of the model, and all that is computed from it.

        Args:
            tensor: what to follow.
            is_source: whether it is the input whose axes are the `sources` of others.
        """
        axes = _new(tensor.shape)
        if is_source:
            axes = [
                tuple(part._replace(sources=frozenset({(index, False)})) for part in axis)
                for index, axis in enumerate(axes)
            ]
        self._known[tensor] = axes
        return axes

    def axes(self, tensor: torch.Tensor) -> Axes:
        """The axes of a tensor, of which more may be known later in the pass."""
        axes: Axes | None = self._known.get(tensor)
        return self.follow(tensor) if axes is None else axes

    def keep_steps(self, given: torch.Tensor, output: torch.Tensor) -> None:
        """Note that the axes of a recurrent layer's output are those of its input, but for the last.

        It may run step by step, which leaves no trace of them.
        """
        own, origin = self.axes(output), self.axes(given)
        if len(own) == len(origin):
            self._known[output] = [*_derived(own[:-1], origin[:-1]), own[-1]]

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        # Looked up before an operation that changes a shape in place.
        given = [self._known.get(tensor) for tensor in tensors(args)]
        output = func(*args, **(kwargs or {}))
        if any(axes is not None for axes in given):
            name = str(getattr(func, "_opname", func)).rstrip("_")
            if "batch_norm" in name and any(arg is True for arg in args):
                self.normalized_rows = max(self.normalized_rows, len(args[0]))
            for tensor in tensors(output):
                if tensor.is_nested:
                    continue  # It has no shape.
                self._known[tensor] = axes = _of_output(name, args, given, tensor.shape)
                if name in _MOVING:
                    self.moved.append(axes)
        return output


def read_format(axes: Axes) -> DataFormat | None:
    """Where the channels are; None where the operations do not say it, or contradict each other.

    Args:
        axes: of a tensor, without that of the images.
    """
    if len(axes) == 1:
        return "channels_first"
    first, last = _meanings(axes[0]), _meanings(axes[-1])
    if "channels" in first & last:
        return None
    for says_first, says_last in (
        ("channels" in first, "channels" in last),
        ("places" in last, "places" in first),
        ("mixed" in first, "mixed" in last),
    ):
        if says_first != says_last:
            return "channels_first" if says_first else "channels_last"
    return None


def positions(axes: Axes, among: Axes) -> list[int | None]:
    """For each axis, where the same axis is among others; None where it is not, or more than once."""
    places = [[index for index, other in enumerate(among) if _is_same(axis, other)] for axis in axes]
    return [found[0] if len(found) == 1 else None for found in places]


def _is_same(axis: Axis, other: Axis) -> bool:
    return [(part.kind.root, part.size) for part in axis] == [(part.kind.root, part.size) for part in other]


def are_places(axes: Axes) -> bool:
    """Whether operations take all axes for places, and none for channels, as those of a spectrogram."""
    return all("places" in (found := _meanings(axis)) and "channels" not in found for axis in axes)


def _of_output(name: str, args: tuple[Any, ...], given: Sequence[Axes | None], shape: torch.Size) -> Axes:
    """The axes of an operation's output. It may say something about those of its arguments."""
    tracked = [axes for axes in given if axes is not None]
    first = tracked[0]
    if name in _PERMUTING:
        return _permuted(name, first, args)
    if name in _REGROUPING:
        return _regrouped(first, shape)
    if name == "rot90":
        return _turned(first, *args[1:])
    if name in _PRODUCTS:
        return _multiplied(given[-2], given[-1], shape)
    if name == "embedding":
        return [*first, _noted(_new([shape[-1]])[0], "channels")]
    if _ON_PLACES.search(name):
        found = _elementwise(name, tracked[:1], args, shape)
        spatial = _spatial_axes(name, args, len(first))
        if spatial and len(found) == len(first):
            found[-spatial:] = _derived(found[-spatial:], first[-spatial:])
        for axes in (first, found) if len(found) == len(first) else (first,):
            places = len(axes) - spatial
            for axis in axes[places:]:
                _noted(axis, "places")
            if places > 0:
                _noted(axes[places - 1], "channels")
        return found
    found = _elementwise(name, tracked, args, shape)
    if name == "flip":
        against = {axis % len(found) for axis in args[1]}
        return [_reversed(axis) if index in against else axis for index, axis in enumerate(found)]
    if len(found) == len(first) and (name in _DERIVING or _takes_one_by_one(name, args)):
        found = _derived(found, first)
    if _LINEAR.search(name):
        _noted(first[-1], "mixed")
        _noted(found[-1], "mixed")
    elif _ON_CHANNELS.search(name) and isinstance(args[1], (list, tuple)) and len(args[1]) == 1:
        _noted(first[-1], "channels")
    return found


def _permuted(name: str, axes: Axes, args: tuple[Any, ...]) -> Axes:
    if name == "permute":
        return [axes[axis] for axis in args[1]]
    swapped = list(axes)
    if len(axes) > 1:
        a, b = args[1:3] if name == "transpose" else (0, 1)
        swapped[a], swapped[b] = axes[b], axes[a]
    return swapped


def _turned(axes: Axes, times: int = 1, plane: Sequence[int] = (0, 1)) -> Axes:
    """The axes after quarter turns."""
    (a, b), turned = plane, list(axes)
    if times % 4 in (1, 2):
        turned[b] = _reversed(turned[b])
    if times % 4 in (2, 3):
        turned[a] = _reversed(turned[a])
    if times % 2:
        turned[a], turned[b] = turned[b], turned[a]
    return turned


def _regrouped(axes: Axes, shape: Sequence[int]) -> Axes:
    """The axes after their factors, in their order, have been grouped anew."""
    factors = [factor for axis in axes for factor in axis if factor.size != 1]
    grouped: Axes = []
    for size in shape:
        group: list[Factor] = []
        missing = size
        while missing > 1 and factors:
            kind, own, sources = factors.pop(0)
            if missing % own == 0:
                group.append(Factor(kind, own, sources))
                missing //= own
            elif own % missing == 0:
                group.append(Factor(Kind(kind), missing, sources))
                factors.insert(0, Factor(Kind(kind), own // missing, sources))
                missing = 1
            else:
                return _new(shape)
        grouped.append(tuple(group) or _new([size])[0])
    return grouped


def _multiplied(left: Axes | None, right: Axes | None, shape: torch.Size) -> Axes:
    """The axes of a matrix product. What is not tracked is a weight."""
    found = _new(shape)
    if left is not None:
        found[:-1] = left[:-1]
    elif right is not None:
        found[:-2] = right[:-2]
        _noted(right[-2], "mixed")
        _noted(found[-2], "mixed")
    if right is not None:
        found[-1] = right[-1]
    elif left is not None:
        _noted(left[-1], "mixed")
        _noted(found[-1], "mixed")
    if left is not None and right is not None:
        _united(left[-1], right[-2])
    return found


def _elementwise(name: str, tracked: Sequence[Axes], args: tuple[Any, ...], shape: torch.Size) -> Axes:
    """The axes of what an operation gives that leaves axes where they are, or drops or inserts some."""
    found = _new(shape)
    for axes in tracked:
        aligned = _aligned(name, axes, args, len(shape))
        if len(aligned) != len(found):
            continue
        for index, (own, axis) in enumerate(zip(found, aligned, strict=True)):
            if _size(own) == _size(axis):
                found[index] = _united(axis, own)
            elif name in _RESIZING:
                (found[index],) = _derived([own], [axis])
                if len(own) == len(axis) == 1:
                    own[0].kind.unite(axis[0].kind)
    return found


def _aligned(name: str, axes: Axes, args: tuple[Any, ...], ndim: int) -> Axes:
    """Axes of an argument at their positions in the output."""
    dims = args[1] if len(args) > 1 else 0
    if name == "stack" and isinstance(dims, int):
        dims %= ndim
        return [*axes[:dims], *_new([0]), *axes[dims:]]
    if name == "expand":
        return [*_new([0] * (ndim - len(axes))), *axes]
    if len(axes) > ndim:
        dropped = [dims] if isinstance(dims, int) else dims
        if isinstance(dropped, (list, tuple)) and all(isinstance(dim, int) for dim in dropped):
            gone = {dim % len(axes) for dim in dropped}
            return [axis for index, axis in enumerate(axes) if index not in gone]
    return axes


def _united(axis: Axis, other: Axis) -> Axis:
    """An axis which is known to be the same as another."""
    if [factor.size for factor in axis] == [factor.size for factor in other]:
        for own, same in zip(axis, other, strict=True):
            own.kind.unite(same.kind)
        return _with_sources(axis, other)
    # The one that is known to consist of several says more.
    return max(axis, other, key=len)


def _with_sources(axis: Axis, other: Axis) -> Axis:
    """An axis that also comes of what another one comes of, part by part."""
    pairs = zip(axis, other, strict=True)
    return tuple(own._replace(sources=own.sources | same.sources) for own, same in pairs)


def _derived(axes: Axes, origins: Axes) -> Axes:
    """Axes that come of others at the same positions, which may have another length."""
    found = []
    for axis, origin in zip(axes, origins, strict=True):
        sources = frozenset[tuple[int, bool]]().union(*(part.sources for part in origin))
        alone = len(axis) == 1 and not axis[0].sources
        found.append((axis[0]._replace(sources=sources),) if alone else axis)
    return found


def _reversed(axis: Axis) -> Axis:
    return tuple(
        part._replace(sources=frozenset((source, not against) for source, against in part.sources))
        for part in axis
    )


def _takes_one_by_one(name: str, args: tuple[Any, ...]) -> bool:
    """Whether an indexing takes numbers along a single axis."""
    if name != "index":
        return False
    given = [index for index in args[1] if index is not None]
    return len(given) == 1 and given[0].ndim == 1


def _noted(axis: Axis, meaning: Meaning) -> Axis:
    if len(axis) == 1:
        axis[0].kind.note(meaning)
    return axis


def _meanings(axis: Axis) -> set[Meaning]:
    return set.intersection(*(factor.kind.meanings for factor in axis))


def _new(shape: Sequence[int]) -> Axes:
    return [(Factor(Kind(), size),) for size in shape]


def _size(axis: Axis) -> int:
    size = 1
    for factor in axis:
        size *= factor.size
    return size


def _spatial_axes(name: str, args: tuple[Any, ...], ndim: int) -> int:
    """How many of the last axes an operation takes for places."""
    if "conv" in name and isinstance(args[1], torch.Tensor):
        return args[1].ndim - 2
    dims = re.search(r"(\d)d", name)
    return int(dims[1]) if dims else ndim - 2


def require_channels(module: nn.Module, shape: Sequence[int]) -> None:
    """Explain why a layer cannot take the model's input, if its channels are the reason.

    Args:
        module: the layer.
        shape: of the input, with the batch axis.

    Raises:
        InputError: the layer is a convolution or linear, and takes another number of axes or channels.
    """
    if isinstance(module, _ConvNd):
        places = len(module.kernel_size)
        if len(shape) not in (places + 1, places + 2):
            raise InputError(
                f"the input has {len(shape)} axes, shape {tuple(shape)}, but the model's first layer, "
                f"{type(module).__name__}, takes {places + 2}: images, channels and {places} for the places"
            )
        wanted, given, other, right = module.in_channels, shape[-places - 1], shape[-1], "first"
    elif isinstance(module, nn.Linear):
        wanted, given, other, right = module.in_features, shape[-1], shape[1], "last"
    else:
        return
    if given != wanted:
        hint = f"; the channels must come {right}" * (other == wanted)
        sizes = ", ".join(map(str, shape[1:]))
        raise InputError(
            f"the input has shape (batch, {sizes}), but the model's first layer, {type(module).__name__}, "
            f"takes {wanted} channels{hint}"
        )
