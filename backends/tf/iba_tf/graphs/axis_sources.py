"""What has become of the axes of a graph's input in a tensor that is computed from it."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from math import prod
from typing import Any, Protocol

from iba_core.framework.layout import AxisPart

Parts = tuple[AxisPart, ...]
"""The parts of an axis, from the outermost to the innermost; none where nothing is known of it."""

TracedAxes = tuple[Parts, ...]
"""For each axis of a tensor, its parts."""

Known = Mapping[str, TracedAxes]
"""The axes of tensors, by name."""


Shapes = Mapping[str, Sequence[int | None]]
"""Shapes of tensors that the graph does not tell; None for lengths that depend on the number of images."""


class TracedGraph(Protocol):
    """What is asked of a graph."""

    def needed_for(self, tensors: Iterable[str]) -> list[Any]:
        """The nodes that lead to some tensors, in order."""

    def axes_after(self, node: Any, known: Known, shapes: Shapes) -> Known:
        """The axes of the results of a node, as far as those of its arguments tell."""


def axes_of_input(shape: Sequence[int | None]) -> TracedAxes:
    """The axes of the input itself, counted without that of the images."""
    return tuple((AxisPart(size, frozenset({(axis - 1, False)})),) for axis, size in enumerate(shape))


def traced_axes(graph: TracedGraph, start: Known, ends: Sequence[str], shapes: Shapes | None = None) -> Known:
    """The axes of tensors that follow from those of others."""
    known = dict(start)
    for node in graph.needed_for(ends):
        if not known.keys().isdisjoint(node.inputs):
            known.update(graph.axes_after(node, known, shapes or {}))
    return known


def joined(arguments: Iterable[TracedAxes], shape: Sequence[int | None]) -> TracedAxes:
    """The axes of a result whose arguments have theirs at the same positions, perhaps of another length."""
    found: list[Parts] = [() for _ in shape]
    for axes in arguments:
        for index, (own, more) in enumerate(zip(found, axes, strict=True)):
            found[index] = _merged(own, more)
    return tuple(_resized(parts, size) for parts, size in zip(found, shape, strict=True))


def _merged(own: Parts, more: Parts) -> Parts:
    if [part.size for part in own] == [part.size for part in more]:
        pairs = zip(own, more, strict=True)
        return tuple(part._replace(sources=part.sources | other.sources) for part, other in pairs)
    if own and more and len(own) == len(more) == 1:
        return (AxisPart(None, own[0].sources | more[0].sources),)
    # The one that is known to consist of several says more.
    return max(own, more, key=len)


def _resized(parts: Parts, size: int | None) -> Parts:
    """The parts of an axis that may have another length now; it stays where the new one is open."""
    sizes = [part.size for part in parts]
    if not parts:
        return (AxisPart(size),)
    if size is None or (None not in sizes and prod(each or 1 for each in sizes) == size):
        return parts
    return (AxisPart(size, frozenset().union(*(part.sources for part in parts))),)


def reversed_at(axes: TracedAxes, against: Collection[int]) -> TracedAxes:
    """The axes of a tensor, some of which run the other way."""
    return tuple(
        tuple(
            part._replace(sources=frozenset((axis, not runs) for axis, runs in part.sources))
            for part in parts
        )
        if index in against
        else parts
        for index, parts in enumerate(axes)
    )


def regrouped(axes: TracedAxes, shape: Sequence[int | None]) -> TracedAxes:
    """The axes after a reshape, which groups their parts anew, in their order.

    Example:
        >>> image = axes_of_input((None, 6, 4, 3))
        >>> flat = regrouped(image, (None, 24, 3))
        >>> [len(parts) for parts in flat], regrouped(flat, (None, 6, 4, 3)) == image
        ([1, 2, 1], True)
    """
    rest = [part for parts in axes for part in parts if part.size != 1]
    found: list[Parts] = [() for _ in shape]
    for index in reversed(range(len(shape))):
        size = shape[index]
        if size is None:
            # The outermost takes all that is left; of another one, it is not known how much it takes.
            found[index] = () if index else tuple(rest)
            break
        taken = _taken(rest, size)
        if taken is None:
            break
        found[index] = taken
    return tuple(found)


def _taken(rest: list[AxisPart], size: int) -> Parts | None:
    """Take parts of a size from the end of a list; None where they do not fit."""
    group: list[AxisPart] = []
    while size > 1:
        if not rest or rest[-1].size is None:
            return None
        part = rest.pop()
        own = part.size or 1
        if size % own == 0:
            size //= own
        elif own % size == 0:
            rest.append(part._replace(size=own // size))
            part, size = part._replace(size=size), 1
        else:
            return None
        group.insert(0, part)
    return tuple(group)
