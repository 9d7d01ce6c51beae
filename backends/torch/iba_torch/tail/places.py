"""Where tensors are in a pass of a model, and what passes have shown of them."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Collection, Hashable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import nn

from iba_core.errors import InputError
from iba_core.framework.inputs import Shared
from iba_core.framework.layout import DataFormat
from iba_core.framework.locks import fork_safe_lock
from iba_torch.tail.channels import Axes
from iba_torch.tail.effects import Effects, random_numbers
from iba_torch.tail.precision import in_mode
from iba_torch.tail.rewrites.assumptions import Assumption, State
from iba_torch.tail.trees import constant, examine, items_of, versions_of

_SIGNATURES = 4
"""Of so many shapes of inputs the shapes of tensors are kept."""


class Arguments:
    """The tensors a call was given, watched for what becomes of them.

    Args:
        args: positional arguments of the call.
        kwargs: its keyword arguments.
        compare: also compare the numbers, for writes that PyTorch does not count.
    """

    def __init__(self, args: tuple[Any, ...], kwargs: dict[str, Any], compare: bool = False) -> None:
        self.tensors, self.transparent = examine((args, kwargs))
        self._versions = versions_of(self.tensors)
        self._before = [tensor.clone() for tensor in self.tensors] if compare else []
        self.are_written_unseen = False
        """Whether `written` has found a write that PyTorch does not count."""

    def written(self) -> list[int]:
        """Indices of the tensors that have been written into."""
        versions = versions_of(self.tensors)
        if versions == self._versions and not self._before:
            return []
        found = [i for i, pair in enumerate(zip(versions, self._versions, strict=True)) if pair[0] != pair[1]]
        for index, before in enumerate(self._before):
            if index not in found and not torch.equal(before, self.tensors[index]):
                found.append(index)
                self.are_written_unseen = True
        return found

    def index(self, tensor: torch.Tensor) -> int | None:
        """Index of this very tensor, None if it is not among them."""
        return next((index for index, given in enumerate(self.tensors) if given is tensor), None)


class Place(NamedTuple):
    """Where in a pass tensors are given or returned."""

    module: nn.Module
    """The model's own module."""
    number: int
    """Which of its calls, from 0."""
    side: str = "output"
    """``"output"`` or ``"input"``."""


class LayerCall(NamedTuple):
    """One of the calls of a module in a pass of a model."""

    module: nn.Module
    """The model's own module."""
    name: str
    """The module's name, for messages."""
    call: int | None = None
    """Which of its calls, from 0; None if there is only one."""


@dataclass
class Learnt:
    """What passes have shown of a model that is split at a place.

    Attributes:
        is_counted: whether a whole pass has shown how often the layers run.
        axes: axes of the tensor at the place, that of the images included.
        moved: those of tensors before it that are others in another order, or reversed.
        input_axes: those of the model's first input.
        data_format: where the channels of the feature map are.
        mixes: whether the images are known to be normalised by the statistics of their batch. What a closure
            returns for the batch as a whole would not show it.
        mixing: whether the model mixes the images of a batch, for each shape of the inputs.
    """

    is_counted: bool = False
    axes: Axes | None = None
    moved: Sequence[Axes] = ()
    input_axes: Axes | None = None
    data_format: DataFormat | None = None
    mixes: bool = False
    mixing: dict[Any, bool] = field(default_factory=dict)


@dataclass(frozen=True)
class AssumptionsAtPlace:
    """Assumptions about the two parts of a model that is split at a place, and what is known of them."""

    head_takes_order: Assumption = field(
        default_factory=lambda: Assumption("the head takes maps in any order in memory")
    )
    tail_takes_order: Assumption = field(
        default_factory=lambda: Assumption("the tail takes maps in any order in memory")
    )
    features_unwritten: Assumption = field(
        default_factory=lambda: Assumption("the tail does not write into the features")
    )
    memory_unreached: Assumption = field(
        default_factory=lambda: Assumption("nothing writes into tensors without PyTorch's knowledge")
    )
    draws_nothing: Assumption = field(default_factory=lambda: Assumption("passes draw no random numbers"))
    weights_unwritten: Assumption = field(
        default_factory=lambda: Assumption("passes write into no weights that belong to the model")
    )
    state_stays: Assumption = field(
        default_factory=lambda: Assumption("passes leave the state of the modules as it is")
    )
    unchanging: set[Hashable] = field(default_factory=set)
    """Kinds of passes that have left it so."""
    learnt: Learnt = field(default_factory=Learnt)

    @cached_property
    def effects(self) -> tuple[Assumption, Assumption]:
        """Those that end a pass before they turn out to be broken."""
        return self.draws_nothing, self.weights_unwritten

    def watching(self, weights: Callable[[], Collection[int]]) -> AbstractContextManager[None]:
        """Context for a pass, which ends with an `Effect` where one is new.

        Args:
            weights: gives the addresses of those that the pass may not write into.
        """
        if all(each.state is State.HOLDS for each in self.effects):
            return nullcontext()
        return self._watching(weights)

    @contextmanager
    def _watching(self, weights: Callable[[], Collection[int]]) -> Iterator[None]:
        drawing = random_numbers() if self.draws_nothing.is_broken else nullcontext()
        is_watched = any(each.is_unknown for each in self.effects)
        watch = in_mode(Effects(self.draws_nothing.is_broken, weights)) if is_watched else nullcontext()
        with drawing, watch:
            yield


Signature = tuple[Any, ...]
"""Shapes of a model's inputs, without the axes of the images."""

Shapes = list[tuple[int, ...]]


@dataclass
class _Seen:
    """What has been seen at one place.

    Attributes:
        shapes: of the tensors there, by the inputs' signature and the number of images.
        axes: the axis of the images, by a tensor's index and its number of axes; None for one without.
    """

    shapes: OrderedDict[Signature, dict[int, Shapes]] = field(default_factory=OrderedDict)
    axes: dict[tuple[int, int], int | None] = field(default_factory=dict)


class Knowledge:
    """Where the axis of the images is in the tensors of a model, as passes have shown it.

    It is what changes with the number of images, where nothing else does. A single pass cannot tell it from
    another axis of the same size. Threads may share the object. A copy or a pickle of it is empty.
    """

    def __init__(self) -> None:
        # What is known must not keep the model's modules alive.
        self._seen: WeakKeyDictionary[nn.Module, dict[tuple[int, str], _Seen]] = WeakKeyDictionary()
        self._lock = fork_safe_lock()
        self.input_format: DataFormat | None = None
        """Where the channels of the model's first input are."""
        self.input_has_channels = True
        """Whether it has any, or only places."""

    def __reduce__(self) -> tuple[type[Knowledge], tuple[()]]:
        # A copy belongs to copies of the modules.
        return Knowledge, ()

    def knows(self, module: nn.Module) -> bool:
        """Whether whole passes on two numbers of images have come to a module."""
        return any(seen.axes for seen in self._seen.get(module, {}).values())

    def note(self, place: Place, batch: int, signature: Signature, found: list[torch.Tensor]) -> bool:
        """Keep the shapes of the tensors that a pass on `batch` images has `found` at a place.

        Returns:
            Whether their axes of the images are known.
        """
        shapes = [tuple(tensor.shape) for tensor in found]
        with self._lock:
            seen = self._seen.setdefault(place.module, {}).setdefault((place.number, place.side), _Seen())
            seen.shapes.setdefault(signature, {})[batch] = shapes
            if len(seen.shapes) > _SIGNATURES:
                seen.shapes.popitem(last=False)
        axes = [self.axis(place, index, shape, batch, signature) for index, shape in enumerate(shapes)]
        return None not in axes

    def axis(
        self, place: Place, index: int, shape: tuple[int, ...], batch: int, signature: Signature
    ) -> tuple[int | None] | None:
        """Axis of the images in the tensor at `index`, of the given shape for `batch` images.

        Returns:
            The axis, or None for a tensor without one, in a tuple; None if it is not known.
        """
        seen = self._seen.get(place.module, {}).get((place.number, place.side))
        if seen is None:
            return None
        key = index, len(shape)
        for other, shapes in list(seen.shapes.get(signature, {}).items()):
            if other == batch or index >= len(shapes) or len(shapes[index]) != len(shape):
                continue
            changed = [axis for axis, size in enumerate(shape) if size != shapes[index][axis]]
            if len(changed) < 2:
                axis = changed[0] if changed else None
                is_images = axis is not None and (shape[axis], shapes[index][axis]) == (batch, other)
                seen.axes[key] = axis if is_images else None
        if key not in seen.axes:
            return None
        axis = seen.axes[key]
        # The axis of the images is the same for inputs of other shapes.
        return None if axis is not None and shape[axis] != batch else (axis,)


class BatchAxes:
    """Finds the axis of the images in the tensors that a call returned.

    Where passes on two numbers of images have been seen, it is the axis that has changed between them.
    Otherwise it is the first axis, or, where the call's arguments are sequences of batches or the module's
    type says so, the second.

    Args:
        place: where the tensors are.
        arguments: what the call was given.
        batch: number of images.
        signature: of the model's inputs.
        knowledge: what other passes have shown.
    """

    def __init__(
        self, place: Place, arguments: Arguments, batch: int, signature: Signature, knowledge: Knowledge
    ) -> None:
        self._batch = batch
        self._signature = signature
        self._knowledge = knowledge
        self._place = place
        module = place.module
        self._recurrent = isinstance(module, nn.RNNBase)
        self.depends_on_images = not arguments.transparent or any(
            batch in tensor.shape[:2] for tensor in arguments.tensors
        )
        batch_first = getattr(module, "batch_first", None)
        if not isinstance(batch_first, bool):
            batch_first = not any(
                tensor.ndim > 1 and tensor.shape[0] != batch and tensor.shape[1] == batch
                for tensor in arguments.tensors
            )
        self._second_first = not batch_first

    def find(self, tensor: torch.Tensor, index: int = 0) -> int | None:
        """Axis of the images in the tensor at `index` of the place, None if it has none."""
        shape = tuple(tensor.shape)
        known = self._knowledge.axis(self._place, index, shape, self._batch, self._signature)
        return self.guess(tensor, index) if known is None else known[0]

    def guess(self, tensor: torch.Tensor, index: int = 0) -> int | None:
        """Likewise, but for any tensor that has to do with the call, from its shape alone."""
        second_first = self._second_first or (self._recurrent and index > 0)
        axes = (1, 0) if second_first else (0,)
        shape = tensor.shape
        return next((axis for axis in axes if len(shape) > axis and shape[axis] == self._batch), None)

    def is_ambiguous(self, tensor: torch.Tensor) -> bool:
        """Whether several axes of a tensor may be that of the images, from its shape alone."""
        return list(tensor.shape).count(self._batch) > 1

    def of_all(self, output: Any) -> list[int] | None:
        """The axes of the images in all tensors of the output.

        Returns:
            None where one has no such axis, or where the output may hold tensors that cannot be reached.
        """
        if not self.depends_on_images:
            return None
        found, transparent = examine(output)
        axes = [self.find(tensor, index) for index, tensor in enumerate(found)]
        known = [axis for axis in axes if axis is not None]
        return known if transparent and len(known) == len(axes) else None


class InputKind(NamedTuple):
    """What inputs of a model are, apart from their numbers.

    Attributes:
        batch: number of images.
        shape: of the first tensor that is not shared.
        signature: shapes of all tensors, without the axes of the images.
        constants: everything that the inputs hold, see `constant`.
    """

    batch: int
    shape: torch.Size
    signature: Signature
    constants: tuple[Any, ...]


def kind_of(inputs: Any) -> InputKind:
    """The kind of inputs. The images lie along the first axis of the first tensor that is not shared.

    Raises:
        InputError: there is no tensor, or the first has no axis or no images.
    """
    found = [*items_of(inputs, Shared)]
    shape = next((item.shape for item in found if isinstance(item, torch.Tensor)), torch.Size())
    if not shape:
        raise InputError(f"inputs of type {type(inputs).__name__} hold no tensor with a batch axis first")
    batch = shape[0]
    if not batch:
        raise InputError(f"inputs hold no images: their shape is {tuple(shape)}")
    signature, constants = [], []
    for item in found:
        tensor = item.array if isinstance(item, Shared) else item
        constants.append(constant(tensor))
        if isinstance(tensor, torch.Tensor):
            has_images = tensor is item and tensor.shape[:1] == (batch,)
            signature.append((has_images, tuple(tensor.shape[has_images:])))
    return InputKind(batch, shape, tuple(signature), tuple(constants))
