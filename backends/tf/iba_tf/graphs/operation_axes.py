"""What operations of TensorFlow say about the axes of their tensors."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import tensorflow as tf
from tensorflow.core.framework.attr_value_pb2 import AttrValue

from iba_tf.graphs.axis_sources import Known, Shapes, TracedAxes, joined, regrouped, reversed_at

Sources = tuple[int | None, ...]
"""For each axis of a result, the axis of an argument that it is; None for one of its own."""

_FIRST = ("NCHW", "NCDHW", "NCHW_VECT_C")
_LAST = (
    "CropAndResize",
    "Dilation2D",
    "ExtractImagePatches",
    "LRN",
    "ResizeArea",
    "ResizeBicubic",
    "ResizeBilinear",
    "ResizeNearestNeighbor",
)
"""Operations on images whose channels are last."""

_PRODUCTS = ("MatMul", "BatchMatMul", "BatchMatMulV2", "BatchMatMulV3")
_REDUCTIONS = ("Mean", "Max", "Sum", "Min", "Prod")
_BINARY = ("AddV2", "Add", "Sub", "Mul", "RealDiv", "Div", "Maximum", "Minimum")
_MIXING = ("CudnnRNN", "CudnnRNNV2", "CudnnRNNV3", "GatherNd", "GatherV2", "ScatterNd", "TensorListStack")
_SHAPES = ("Shape", "ShapeN", "Size", "Rank")
_OUT_OF_PLACE = 2
"""Which argument of a transposed convolution holds the images."""


class OperationAxes:
    """The meaning of axes around the operations of a graph.

    Args:
        tensor: gives a symbolic tensor by its name.
        moving: whether the value of a tensor depends on the inputs.
    """

    def __init__(self, tensor: Callable[[str], tf.Tensor], moving: Callable[[str], bool]) -> None:
        self._tensor, self._moving = tensor, moving

    def _shape(self, name: str) -> tf.TensorShape:
        return self._tensor(name).shape

    def _static(self, name: str) -> Any:
        return tf.get_static_value(self._tensor(name))

    # -- channels -----------------------------------------------------------------------------------

    def stated(self, node: Any, name: str) -> int | None:
        """The axis of an argument or a result of an operation that holds channels, if that is certain."""
        rank: int | None = self._shape(name).rank
        if rank is None:
            return None
        op, data = node.op, self._data(node)
        if "data_format" in node.definition.attr and name in (data, node.outputs[0]):
            first = _attribute(node, "data_format").s.decode() in _FIRST
            if rank < 3 or (op == "BiasAdd" and (self._moving(node.inputs[1]) or (first and rank < 4))):
                # Keras adds anything of the shape (1, size, 1, ...) as if it were a bias.
                return None
            return 1 if first else rank - 1
        if op in _LAST:
            return rank - 1 if rank > 2 and name in (data, node.outputs[0]) else None
        if op in _PRODUCTS and not self._moving(node.inputs[1]):
            return None if name == node.inputs[0] and _turns(node) else rank - 1
        if op == "Einsum":
            return self._of_einsum(node, name)
        if op in _REDUCTIONS and name == data:
            return self._of_reduction(node, rank)
        if op in _BINARY:
            return self._of_broadcast(node, rank)
        if op == "GatherV2" and not self._moving(node.inputs[0]) and name == node.outputs[0]:
            return rank - 1
        return None

    @staticmethod
    def _data(node: Any) -> str:
        transposed = "Backprop" in node.op and len(node.inputs) > _OUT_OF_PLACE
        found: str = node.inputs[_OUT_OF_PLACE if transposed else 0] if node.inputs else ""
        return found

    def _of_einsum(self, node: Any, name: str) -> int | None:
        """Channels are what is summed with a weight, and what a weight adds."""
        moving = [self._moving(source) for source in node.inputs]
        letters = _letters(node)
        if letters is None or len(moving) != 2 or all(moving):
            return None
        index = moving.index(True)
        (of_images, of_weight), result = (letters[0][index], letters[0][1 - index]), letters[1]
        own = of_images if name == node.inputs[index] else result
        other = result if own is of_images else of_images
        found = [axis for axis, letter in enumerate(own) if letter in of_weight and letter not in other]
        return found[0] if len(found) == 1 else None

    def _of_reduction(self, node: Any, rank: int) -> int | None:
        """What is left of an image that is reduced over all of its places."""
        reduced = self._reduced(node, rank)
        if reduced is None or len(reduced) < 2 or 0 in reduced or len(reduced) != rank - 2:
            return None
        return next(axis for axis in range(1, rank) if axis not in reduced)

    def _of_broadcast(self, node: Any, rank: int) -> int | None:
        """Where there is a number for each channel, and none for anything else."""
        fixed = [source for source in node.inputs if not self._moving(source)]
        if len(fixed) != 1 or self._shape(node.outputs[0]).rank != rank:
            return None
        shape = self._shape(fixed[0])
        if not shape.rank or shape.rank > rank:
            return None
        wide = [axis - shape.rank for axis, size in enumerate(shape) if size != 1]
        # A number for each step of a sequence, (T, 1), would look like one for each channel.
        if len(wide) != 1 or shape[wide[0]] is None or (rank < 4 and wide[0] != -1):
            return None
        return int(wide[0]) + rank

    # -- axes ---------------------------------------------------------------------------------------

    def sources(self, node: Any, argument: str, result: str) -> Sources | None:
        """Which axes of an argument those of a result are; None where that is not known."""
        taken, given = self._shape(argument), self._shape(result)
        if taken.rank is None or given.rank is None or _runs_functions(node):
            return None
        op = node.op
        if op in (*_MIXING, *_SHAPES):
            return None
        if op == "Reshape":
            return _kept_by_reshape(taken, given) if argument == node.inputs[0] else None
        if op == "Transpose":
            order = self._static(node.inputs[1])
            return None if order is None else tuple(int(axis) for axis in order)
        if op == "Einsum":
            return self._through_einsum(node, argument)
        if op in _PRODUCTS:
            if argument != node.inputs[0] or _turns(node) or given.rank != taken.rank:
                return None
            return (*range(taken.rank - 1), None)
        if op in _REDUCTIONS and given.rank != taken.rank:
            reduced = self._reduced(node, taken.rank)
            return None if reduced is None else tuple(x for x in range(taken.rank) if x not in reduced)
        if op in ("ExpandDims", "Pack"):
            return self._added(node, taken.rank)
        if op in ("Squeeze", "Unpack"):
            return self._dropped(node, taken, given)
        if op == "StridedSlice":
            kept = self._of_slices(node, taken.rank)
            return kept if kept is None or len(kept) == given.rank else None
        return tuple(range(taken.rank)) if taken.rank == given.rank else None

    def results(self, node: Any, known: Known, shapes: Shapes) -> dict[str, TracedAxes]:
        """What the axes of a node's results come of, from those of its arguments."""
        found: dict[str, TracedAxes] = {}
        for result in node.outputs:
            static = self._shape(result)
            if static.rank is None:
                continue
            shape = shapes.get(result) or static.as_list()
            arguments = [name for name in dict.fromkeys(node.inputs) if name in known]
            moved = [self._moved(node, name, known[name], result, shape) for name in arguments]
            axes = joined([each for each in moved if each and len(each) == len(shape)], shape)
            found[result] = reversed_at(axes, self._against(node, static.rank))
        return found

    def _moved(
        self, node: Any, argument: str, axes: TracedAxes, result: str, shape: Sequence[int | None]
    ) -> TracedAxes | None:
        """The axes of an argument where they are in a result."""
        if node.op == "Reshape":
            return regrouped(axes, shape) if argument == node.inputs[0] else None
        sources = self.sources(node, argument, result)
        if sources is None:
            return None
        return tuple(() if source is None else axes[source] for source in sources)

    def _against(self, node: Any, rank: int) -> set[int]:
        """The axes of a result that run against those of what a node takes."""
        if node.op == "ReverseV2":
            return self._reduced(node, rank) or set()
        if node.op != "StridedSlice" or (steps := self._static(node.inputs[3])) is None:
            return set()
        slices = self._of_slices(node, self._shape(node.inputs[0]).rank or 0) or ()
        places = _places_of_slices(node, len(steps), self._shape(node.inputs[0]).rank or 0)
        turned = {axis for place, axis in places if place is not None and steps[place] < 0}
        return {index for index, axis in enumerate(slices) if axis in turned}

    def _of_slices(self, node: Any, rank: int) -> Sources | None:
        """The axes that a strided slice keeps and adds, in order."""
        count = self._shape(node.inputs[3]).rank and self._shape(node.inputs[3])[0]
        if count is None:
            return None
        new, shrink = (_attribute(node, f"{kind}_axis_mask").i for kind in ("new", "shrink"))
        found: list[int | None] = []
        for place, axis in _places_of_slices(node, count, rank):
            if place is None or not (new | shrink) >> place & 1:
                found.append(axis)
            elif new >> place & 1:
                found.append(None)
        return tuple(found)

    def _reduced(self, node: Any, rank: int) -> set[int] | None:
        axes = self._static(node.inputs[1])
        return None if axes is None else {int(axis) % rank for axis in axes.reshape(-1)}

    def _through_einsum(self, node: Any, argument: str) -> Sources | None:
        letters = _letters(node)
        if letters is None or list(node.inputs).count(argument) != 1:
            return None
        own = letters[0][list(node.inputs).index(argument)]
        return tuple(own.index(letter) if letter in own else None for letter in letters[1])

    def _added(self, node: Any, rank: int) -> Sources | None:
        axis = _attribute(node, "axis").i if node.op == "Pack" else self._static(node.inputs[1])
        if axis is None:
            return None
        place = int(axis) % (rank + 1)
        return (*range(place), None, *range(place, rank))

    def _dropped(self, node: Any, taken: tf.TensorShape, given: tf.TensorShape) -> Sources | None:
        rank = int(taken.rank)
        if node.op == "Unpack":
            dropped = {int(_attribute(node, "axis").i) % rank}
        else:
            dropped = {int(axis) % rank for axis in _attribute(node, "squeeze_dims").list.i}
            dropped = dropped or {axis for axis, size in enumerate(taken) if size == 1}
        kept = tuple(axis for axis in range(rank) if axis not in dropped)
        return kept if len(kept) == given.rank else None


def _attribute(node: Any, name: str) -> AttrValue:
    """An attribute of an operation. Reading one that is not there would add it."""
    attributes = node.definition.attr
    return attributes[name] if name in attributes else AttrValue()


def _places_of_slices(node: Any, count: int, rank: int) -> list[tuple[int | None, int]]:
    """For each entry of a strided slice, its number and the axis; None for axes that no entry is about."""
    new, ellipsis = (_attribute(node, f"{kind}_mask").i for kind in ("new_axis", "ellipsis"))
    about = sum(not (new | ellipsis) >> place & 1 for place in range(count))
    found: list[tuple[int | None, int]] = []
    axis = 0
    for place in range(count):
        if ellipsis >> place & 1:
            found += [(None, axis + number) for number in range(rank - about)]
            axis += rank - about
        else:
            found.append((place, axis))
            axis += not new >> place & 1
    return [*found, *((None, rest) for rest in range(axis, rank))]


def _letters(node: Any) -> tuple[list[str], str] | None:
    """The letters of an einsum's arguments and of its result; None where some axes have none."""
    equation = _attribute(node, "equation").s.decode().replace(" ", "")
    if "." in equation or "->" not in equation:
        return None
    taken, _, given = equation.partition("->")
    return taken.split(","), given


def _turns(node: Any) -> bool:
    return any(_attribute(node, name).b for name in ("adj_x", "transpose_a"))


def _runs_functions(node: Any) -> bool:
    return any(value.HasField("func") or value.list.func for value in node.definition.attr.values())


def _kept_by_reshape(taken: Sequence[int | None], given: Sequence[int | None]) -> Sources:
    """The last axes that two shapes have in common, which keep their numbers of elements and their order."""
    before, after = list(taken), list(given)
    kept = 0
    while kept < min(len(before), len(after)) and before[-1 - kept] == after[-1 - kept] is not None:
        kept += 1
    shift = len(before) - len(after)
    return tuple(axis + shift if axis >= len(after) - kept else None for axis in range(len(after)))
