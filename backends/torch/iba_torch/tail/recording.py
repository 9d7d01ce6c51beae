"""What the head of a model has done in one pass, kept so that it need not be done again."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch

from iba_torch.tail.calls import is_watched
from iba_torch.tail.places import Arguments, BatchAxes
from iba_torch.tail.rewrites.conditions import is_sequential
from iba_torch.tail.rewrites.copy_on_write import Loan
from iba_torch.tail.rewrites.unread import Placeholder
from iba_torch.tail.shadow import Site
from iba_torch.tail.trees import not_inferring, tensors, tree_map


class Filling(NamedTuple):
    """What a pass puts in the place of leaves."""

    z: torch.Tensor
    """The feature maps of all copies."""
    copies: int
    """How many there are of each image."""
    always_copy: bool
    """Give tensors that the pass may do anything with, see `Loan.lend`."""
    compare: bool
    """Let loans see tensors that are the pass's own, too."""


class Value:
    """Leaf of a result: a tensor that the head has computed.

    Args:
        tensor: the tensor; kept as it is, not copied.
        batch_axis: its axis of the images, None if it has none.
    """

    def __init__(self, tensor: torch.Tensor, batch_axis: int | None) -> None:
        self.tensor = tensor
        self.batch_axis = batch_axis
        self.loan = Loan()
        self._dropped: tuple[int, ...] | None = None

    def drop(self) -> None:
        """Let go of the tensor, which nothing reads."""
        self._dropped = tuple(self.tensor.shape)
        self.tensor = self.tensor.new_empty(())

    def fill(self, using: Filling) -> torch.Tensor:
        """The tensor with each image repeated in place, once for each copy."""
        if torch.is_inference_mode_enabled():
            # Out here, so that the tensor can take part in a gradient.
            with torch.inference_mode(False):
                return self.fill(using)
        axis, copies, always_copy = self.batch_axis, using.copies, using.always_copy
        if self._dropped is not None:
            sizes = (size * copies if i == axis else size for i, size in enumerate(self._dropped))
            return Placeholder.like(self.tensor, tuple(sizes))
        if axis is None or copies == 1:
            return self.loan.lend(self.tensor, always_copy)
        if self.tensor.shape[axis] != 1:
            repeated = self.tensor.repeat_interleave(copies, dim=axis)
            return self.loan.lend(repeated) if using.compare else repeated
        shape = list(self.tensor.shape)
        shape[axis] = copies
        return self.loan.lend(self.tensor.expand(shape), always_copy)


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

    def fill(self, using: Filling) -> torch.Tensor:
        """A tensor of one repeated zero."""
        shape = list(self.shape)
        if self.batch_axis is not None:
            shape[self.batch_axis] *= using.copies
        return self.like.expand(shape)


@dataclass(frozen=True)
class Feature:
    """Leaf of a result: the feature map, in whose place the tail gets `z`."""

    def fill(self, using: Filling) -> torch.Tensor:
        """`z`."""
        return using.z


_FILLED = (Value, Shape, Feature)

LEAVES = (*_FILLED, Given)


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

    def repeat(self, args: tuple[Any, ...], kwargs: dict[str, Any], using: Filling) -> Any:
        """Repeat the call for all copies: write into the arguments, and return the output.

        Args:
            args: positional arguments of the repeated call.
            kwargs: its keyword arguments.
            using: what takes the place of leaves.
        """
        if isinstance(self.output, _FILLED) and not self.writes:
            return self.output.fill(using)
        given = tensors((args, kwargs)) if self.reads_arguments else []
        for index, leaf in self.writes:
            given[index].copy_(leaf.fill(using))
        return tree_map(
            lambda leaf: given[leaf.index] if isinstance(leaf, Given) else leaf.fill(using),
            self.output,
            LEAVES,
        )

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
    if isinstance(tree, LEAVES):
        return [tree]
    found: list[Any] = []
    tree_map(found.append, tree, LEAVES)
    return found


@dataclass(eq=False)
class Call:
    """One call of a module in a pass of the head.

    Attributes:
        site: of the called module; None for the pass as a whole.
        number: which of the module's calls in the pass, from 0.
        calls: the calls made inside of it; none once it has a result.
        result: what it did, if it has ended and can be repeated from memory.
        opened: whether the calls made inside of it are remembered as well.
        takes_z: whether the feature map is its input.
        gives_z: whether the feature map is part of its output, though it cannot be repeated from memory.
    """

    site: Site | None
    number: int = 0
    calls: list[Call] = field(default_factory=list)
    result: Result | None = None
    opened: bool = False
    takes_z: bool = False
    gives_z: bool = False

    @property
    def is_watched(self) -> bool:
        """Whether hooks see the call."""
        if self.site is None:
            return False
        module = self.site.module
        return bool(module._forward_hooks or module._forward_pre_hooks) and is_watched(module)

    @property
    def has_watched(self) -> bool:
        """Whether hooks see a call inside of it."""
        return any(call.is_watched for call in self.within())

    def plan(self) -> dict[Site, list[Call]]:
        """The calls of each module that take place when the pass is repeated, in their order.

        Calls inside of one that is repeated from memory do not.
        """
        steps: dict[Site, list[Call]] = {}
        for call in self.within():
            assert call.site is not None, "only the pass as a whole has none"
            steps.setdefault(call.site, []).append(call)
        return steps

    def within(self) -> list[Call]:
        """The calls made inside of it, and those made in them."""
        found = []
        for call in self.calls:
            found.append(call)
            found += call.within()
        return found

    def values(self) -> list[Value]:
        """The tensors that are remembered of this call and those in it."""
        found: list[Any] = []
        for call in (self, *self.within()):
            if call.result is not None:
                found += leaves(call.result.output)
                found += [leaf for _, leaf in call.result.writes]
        return [leaf for leaf in found if isinstance(leaf, Value)]

    def prune(self) -> bool:
        """Drop what no repetition of the open call reads; return whether it reads its own input.

        The calls in a plain `nn.Sequential` see nothing but each other's outputs, so only the last
        output before the split can matter.
        """
        if self.takes_z:
            return False
        if self.result is not None:
            return self.result.reads_arguments
        if self.site is None or not is_sequential(self.site.module):
            for call in self.calls[-1:]:
                call.prune()
            return True
        private = False
        for call in self.calls:
            watched = call.is_watched
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
                if not needed and not call.is_watched:
                    call.result.strip()
                needed = call.result.reads_arguments
        return needed


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
        or tensors that have no axis of the images, such as windows cut from them or a table of positions; or
        it writes into a tensor whose axis of the images is not certain.
    """
    found = axes.of_all(output)
    if found is None:
        return None
    written = arguments.written()
    waiting = iter(found)
    axes_of_written: dict[int, int | None] = {}
    for index in written:
        tensor = arguments.tensors[index]
        places = [place for place, each in enumerate(tensors(output)) if each is tensor]
        if not places and tensor is not feature and axes.is_ambiguous(tensor):
            return None
        axes_of_written[index] = found[places[0]] if places else axes.guess(tensor)

    def keep(tensor: torch.Tensor, axis: int | None) -> Value:
        with not_inferring():
            return Value(tensor.detach().clone(), axis)

    def leaf(tensor: torch.Tensor) -> Value | Given | Feature:
        axis, argument = next(waiting), arguments.index(tensor)
        if argument is not None and (tensor is not feature or argument in written):
            return Given(argument)
        return Feature() if tensor is feature else keep(tensor, axis)

    def write(index: int) -> Value | Feature:
        tensor = arguments.tensors[index]
        return Feature() if tensor is feature else keep(tensor, axes_of_written[index])

    kept = leaf(output) if isinstance(output, torch.Tensor) else tree_map(leaf, output)
    return Result(kept, [(index, write(index)) for index in written])
