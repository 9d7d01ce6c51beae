"""What the head of a model has done in one pass, kept so that it need not be done again."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import count
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import nn

from iba_torch.tail.calls import is_watched
from iba_torch.tail.rewrites.memory_order import MemoryOrder
from iba_torch.tail.rewrites.unread import Missing
from iba_torch.tail.trees import is_transparent, tensors, tree_map


class Lender:
    """Lends tensors to passes of a model that may or may not write into them.

    The first pass gets a copy, on which is then seen whether it wrote. If not, later passes share the memory.
    """

    def __init__(self) -> None:
        self.written: bool | None = None
        """Whether the passes write into what they are lent; None before the first."""
        self._loan: tuple[torch.Tensor, int] | None = None

    def lend(self, tensor: torch.Tensor) -> torch.Tensor:
        """A tensor like `tensor` that may be written into without harm to it."""
        if self.written is False:
            return tensor
        lent = tensor.clone()
        if self.written is None:
            self._loan = (lent, lent._version)
        return lent

    def settle(self, broken: bool = False) -> None:
        """Take the loan back at the end of a pass; one that broke off shows nothing."""
        if self._loan is not None and not broken:
            lent, version = self._loan
            self.written = lent._version != version
        self._loan = None


class Value:
    """Leaf of a result: a tensor that the head has computed.

    Args:
        tensor: the tensor; kept as it is, not copied.
        batch_axis: its axis of the images, None if it has none.
    """

    def __init__(self, tensor: torch.Tensor, batch_axis: int | None) -> None:
        self.tensor = tensor
        self.batch_axis = batch_axis
        self.lender = Lender()
        self._dropped: tuple[int, ...] | None = None

    def drop(self) -> None:
        """Let go of the tensor, which nothing reads."""
        self._dropped = tuple(self.tensor.shape)
        self.tensor = self.tensor.new_empty(())

    def lend(self, copies: int) -> torch.Tensor:
        """The tensor with each image repeated `copies` times in place."""
        axis = self.batch_axis
        if self._dropped is not None:
            repeated = (size * copies if i == axis else size for i, size in enumerate(self._dropped))
            return Missing.like(self.tensor, tuple(repeated))
        if axis is None or copies == 1:
            return self.lender.lend(self.tensor)
        if self.tensor.shape[axis] != 1:
            return self.tensor.repeat_interleave(copies, dim=axis)
        shape = list(self.tensor.shape)
        shape[axis] = copies
        return self.lender.lend(self.tensor.expand(shape))


@dataclass(frozen=True)
class Given:
    """Leaf of a result: the call gives back one of its arguments, the tensor with this index."""

    index: int


@dataclass(frozen=True)
class Shape:
    """Leaf of a result that nothing reads: a tensor of the right shape without memory of its own."""

    shape: tuple[int, ...]
    batch_axis: int | None
    like: torch.Tensor

    def make(self, copies: int) -> torch.Tensor:
        """A tensor of one repeated zero."""
        shape = list(self.shape)
        if self.batch_axis is not None:
            shape[self.batch_axis] *= copies
        return self.like.expand(shape)


@dataclass(frozen=True)
class Feature:
    """Leaf of a result: the feature map, in whose place the tail gets `z`."""


LEAVES = (Value, Given, Shape, Feature)


@dataclass
class Result:
    """What a call did: its output, and what it wrote into its arguments.

    Attributes:
        output: structure of `LEAVES` where the tensors were.
        writes: pairs of an argument (index among the tensors) and the leaf that is to be written there.
    """

    output: Any
    writes: list[tuple[int, Value | Feature]] = field(default_factory=list)

    @property
    def reads_arguments(self) -> bool:
        """Whether a repetition of the call touches its arguments."""
        return bool(self.writes) or any(isinstance(leaf, Given) for leaf in leaves(self.output))

    def repeat(self, args: tuple[Any, ...], kwargs: dict[str, Any], copies: int, z: torch.Tensor) -> Any:
        """Do to the arguments what the call did, and return what it returned, for all copies.

        Args:
            args: positional arguments of the repeated call.
            kwargs: its keyword arguments.
            copies: copies of each image.
            z: the feature map to put in, where the result holds it.
        """
        given = tensors((args, kwargs)) if self.reads_arguments else []

        def fill(leaf: Value | Given | Shape | Feature) -> torch.Tensor:
            if isinstance(leaf, Value):
                return leaf.lend(copies)
            if isinstance(leaf, Given):
                return given[leaf.index]
            return leaf.make(copies) if isinstance(leaf, Shape) else z

        for index, leaf in self.writes:
            given[index].copy_(fill(leaf))
        return tree_map(fill, self.output, LEAVES)

    def own(self) -> None:
        """Make the result independent of its arguments, where nobody else sees those."""
        written = dict(self.writes)
        self.output = tree_map(
            lambda leaf: written.get(leaf.index, leaf) if isinstance(leaf, Given) else leaf,
            self.output,
            LEAVES,
        )
        self.writes = []

    def strip(self) -> None:
        """Keep only the shapes of the output, where nobody reads it."""

        def bare(leaf: Any) -> Any:
            if not isinstance(leaf, Value):
                return leaf
            return Shape(tuple(leaf.tensor.shape), leaf.batch_axis, leaf.tensor.new_zeros(()))

        self.output = tree_map(bare, self.output, LEAVES)


def leaves(tree: Any) -> list[Any]:
    """The leaves of a result's output, in order."""
    found: list[Any] = []
    tree_map(found.append, tree, LEAVES)
    return found


@dataclass(eq=False)
class Call:
    """One call of a module in a pass of the head.

    Attributes:
        module: the called module; an empty one for the pass as a whole.
        number: which of the module's calls in the pass, from 0.
        calls: the calls made inside of it; once it has a result, only those that its hooks make.
        result: what it did, if it has ended and can be repeated from memory.
        opened: whether the calls made inside of it are remembered as well.
        takes_z: whether the feature map is its input.
        gives_z: whether the feature map is part of its output, though it cannot be repeated from memory.
    """

    module: nn.Module
    number: int = 0
    calls: list[Call] = field(default_factory=list)
    result: Result | None = None
    opened: bool = False
    takes_z: bool = False
    gives_z: bool = False

    def plan(self, steps: dict[nn.Module, deque[Call]]) -> None:
        """Collect the calls of each module that take place when the pass is repeated, in their order.

        Calls inside of one that is repeated from memory do not, except for those made by its hooks.
        """
        for call in self.within():
            steps.setdefault(call.module, deque()).append(call)

    def within(self) -> Iterator[Call]:
        """The calls made inside of it, and those made in them."""
        for call in self.calls:
            yield call
            yield from call.within()

    def values(self) -> Iterator[Value]:
        """The tensors that are remembered of this call and those in it."""
        for call in (self, *self.within()):
            if call.result is not None:
                kept = [*leaves(call.result.output), *(leaf for _, leaf in call.result.writes)]
                yield from (leaf for leaf in kept if isinstance(leaf, Value))

    def prune(self) -> bool:
        """Drop what no repetition of the open call reads; return whether it reads its own input.

        The calls in a plain `nn.Sequential` see nothing but each other's outputs, so only the last
        output before the cut can matter.
        """
        if self.takes_z:
            return False
        if self.result is not None:
            return self.result.reads_arguments
        if not is_sequential(self.module):
            for call in self.calls[-1:]:
                call.prune()
            return True
        private = False
        for call in self.calls:
            watched = is_watched(call.module)
            if call.result is not None:
                if private and not watched:
                    call.result.own()
                private = private or not call.result.reads_arguments
            # A hook may have handed the output to somebody.
            private = private and not watched
        needed = self.calls[-1].prune() if self.calls else True
        for call in reversed(self.calls[:-1]):
            if call.result is None:
                needed = True
            else:
                if not needed and not is_watched(call.module):
                    call.result.strip()
                needed = call.result.reads_arguments
        return needed


def is_sequential(module: nn.Module) -> bool:
    """Whether `module` does what `nn.Sequential` does and nothing else."""
    return (
        isinstance(module, nn.Sequential)
        and type(module).forward is nn.Sequential.forward
        and "forward" not in vars(module)
    )


class Arguments:
    """The tensors a call was given, watched for what becomes of them.

    Args:
        args: positional arguments of the call.
        kwargs: its keyword arguments.
    """

    def __init__(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.tensors = tensors((args, kwargs))
        self.transparent = is_transparent((args, kwargs))
        self._versions = [_version(tensor) for tensor in self.tensors]

    def written(self) -> list[int]:
        """Indices of the tensors that have been written into."""
        return [
            index
            for index, (tensor, version) in enumerate(zip(self.tensors, self._versions, strict=True))
            if _version(tensor) != version
        ]

    def index(self, tensor: torch.Tensor) -> int | None:
        """Index of this very tensor, None if it is not among them."""
        return next((index for index, given in enumerate(self.tensors) if given is tensor), None)


class Place(NamedTuple):
    """Where in a pass tensors are given or returned."""

    module: nn.Module
    number: int
    """Which of its calls, from 0."""
    side: str = "output"
    """``"output"`` or ``"input"``."""


@dataclass
class Habits:
    """What passes have shown of the two parts of a model that is cut at a place."""

    head_order: MemoryOrder = field(default_factory=MemoryOrder)
    tail_order: MemoryOrder = field(default_factory=MemoryOrder)
    tail_writes: bool | None = None
    """Whether the tail writes into the feature map that it is given; None if that is not known."""


class Shapes:
    """Shapes of tensors at places of a model, and habits of the model that is cut there, as passes showed.

    Of shapes, those in passes on two different numbers of images: what changes with the number is the axis
    of the images, which a single pass cannot tell from another axis of the same size.
    """

    def __init__(self) -> None:
        # The model's modules are not to be kept alive by what is known of them.
        self._habits: WeakKeyDictionary[nn.Module, dict[tuple[int, str], Habits]] = WeakKeyDictionary()
        self._seen: WeakKeyDictionary[nn.Module, dict[tuple[int, str], dict[int, list[tuple[int, ...]]]]] = (
            WeakKeyDictionary()
        )

    def __reduce__(self) -> tuple[type[Shapes], tuple[()]]:
        # A copy belongs to copies of the modules.
        return Shapes, ()

    def habits(self, place: Place) -> Habits:
        """What is known of the model that is cut at a place."""
        known = self._habits.setdefault(place.module, {})
        return known.setdefault((place.number, place.side), Habits())

    def note(self, place: Place, batch: int, found: list[torch.Tensor]) -> None:
        """Keep the shapes of the tensors that a pass on `batch` images has `found` at a place."""
        known = self._seen.setdefault(place.module, {}).setdefault((place.number, place.side), {})
        if len(known) < 2:
            known.setdefault(batch, [tuple(tensor.shape) for tensor in found])

    def axis(self, place: Place, index: int, shape: tuple[int, ...], batch: int) -> tuple[int | None] | None:
        """Axis of the images in the tensor at `index`, of the given shape for `batch` images.

        Returns:
            The axis, or None for a tensor without one, in a tuple; None if it is not known.
        """
        for other, shapes in self._seen.get(place.module, {}).get((place.number, place.side), {}).items():
            if other == batch or index >= len(shapes) or len(shapes[index]) != len(shape):
                continue
            changed = [axis for axis, size in enumerate(shape) if size != shapes[index][axis]]
            if not changed:
                return (None,)
            if len(changed) == 1:
                (axis,) = changed
                return (axis if (shape[axis], shapes[index][axis]) == (batch, other) else None,)
        return None


class BatchAxes:
    """Finds the axis of the images in the tensors that a call returned.

    Where passes on two numbers of images have been seen, it is the axis that has changed between them.
    Otherwise it is the first axis, or, where the call's arguments are sequences of batches or the module's
    type says so, the second.

    Args:
        place: where the tensors are.
        arguments: what the call was given.
        batch: number of images.
        shapes: what has been seen in other passes.
    """

    def __init__(self, place: Place, arguments: Arguments, batch: int, shapes: Shapes) -> None:
        self._batch = batch
        self._shapes = shapes
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
        known = self._shapes.axis(self._place, index, tuple(tensor.shape), self._batch)
        return self.guess(tensor, index) if known is None else known[0]

    def guess(self, tensor: torch.Tensor, index: int = 0) -> int | None:
        """Likewise, but for any tensor that has to do with the call, from its shape alone."""
        second_first = self._second_first or (self._recurrent and index > 0)
        axes = (1, 0) if second_first else (0,)
        shape = tensor.shape
        return next((axis for axis in axes if len(shape) > axis and shape[axis] == self._batch), None)

    def all_found(self, output: Any) -> bool:
        """Whether the number of images is the size of an axis of every tensor of the output."""
        return all(self.find(tensor, index) is not None for index, tensor in enumerate(tensors(output)))


def record(
    output: Any, arguments: Arguments, axes: BatchAxes, feature: torch.Tensor | None = None
) -> Result | None:
    """What a call has done, in a form that can be repeated.

    Args:
        output: what it returned.
        arguments: what it was given.
        axes: finds the axis of the images.
        feature: the tensor of the output that is the feature map.

    Returns:
        None if the call must be run again instead: its output holds things whose tensors cannot be reached,
        or tensors that have no axis of the images, such as windows cut from them or a table of positions.
    """
    if not (is_transparent(output) and axes.depends_on_images and axes.all_found(output)):
        return None
    written = arguments.written()
    indices = count()

    def keep(tensor: torch.Tensor, axis: int | None) -> Value:
        return Value(tensor.detach().clone(), axis)

    def leaf(tensor: torch.Tensor) -> Value | Given | Feature:
        index, argument = next(indices), arguments.index(tensor)
        if argument is not None and (tensor is not feature or argument in written):
            return Given(argument)
        return Feature() if tensor is feature else keep(tensor, axes.find(tensor, index))

    def write(tensor: torch.Tensor) -> Value | Feature:
        return Feature() if tensor is feature else keep(tensor, axes.guess(tensor))

    return Result(tree_map(leaf, output), [(index, write(arguments.tensors[index])) for index in written])


def _version(tensor: torch.Tensor) -> int:
    # Inference tensors keep no count of the writes into them.
    return 0 if tensor.is_inference() else tensor._version
