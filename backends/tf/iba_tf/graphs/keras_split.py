"""A Keras model cut at a layer."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import keras
import tensorflow as tf

from iba_core.errors import LayerError
from iba_core.framework.adapter import Inputs, Split, Tail
from iba_tf.framework import eagerly, traced
from iba_tf.graphs.calls import CallGraph, Place, Slot, Values
from iba_tf.graphs.normalization import merged


class KerasSplit(Split):
    """The graph of a Keras model, cut at one of its tensors.

    The *tail* is every call between that tensor and the model's outputs, over the model's own layers. It
    may take other tensors than the one at the cut, as a skip connection does: this *frontier* is
    computed by the head, once per image, and carried around the bottleneck.

    Args:
        graph: the model.
        place: where to cut.
        slot: the tensor of the place that is the feature map.
        replace: put the bottleneck in the place itself: the argument of its call is the feature map, and
            the tensor in `slot`, its result, is replaced.

    Attributes:
        layer_name: name of the place.
        feature_shape: shape of one feature map as far as the symbolic graph tells, None where it does not.

    Raises:
        LayerError: the tensor is no batch of floating-point feature maps, or no output depends on it.
    """

    def __init__(
        self,
        graph: CallGraph,
        place: Place,
        slot: Slot,
        replace: bool = False,
    ) -> None:
        self.layer_name = place.name
        self._graph = graph
        self._cut = slot
        self._source = place.inputs[0] if replace else slot
        self._check_features()

        dependent = graph.dependents(self._cut)
        tail_calls = [
            call
            for call in graph.needed_for(graph.flat_outputs, given=[self._cut])
            if not dependent.isdisjoint(call.inputs)
        ]
        if dependent.isdisjoint(graph.flat_outputs):
            raise LayerError(
                f"no output of the model depends on layer {place.name!r}, so there is nothing to explain"
            )
        taken = [slot for call in tail_calls for slot in call.inputs] + graph.flat_outputs
        self._frontier = [slot for slot in dict.fromkeys(taken) if slot not in dependent]
        self._tail_calls = merged(tail_calls, kept=graph.flat_outputs)
        self._tails: dict[tuple[bool, ...], Any] = {}
        head_calls = graph.needed_for([self._source], given=graph.inputs)
        reached = {self._source, *(slot for call in head_calls for slot in call.inputs)}
        self._feature_inputs = [slot for slot in graph.inputs if slot in reached]

        # A smaller last batch of a data set must not cost one more trace for each of its sizes.
        self._run_features = traced(self._trace_features, reduce_retracing=True)
        self._run_head = traced(self._trace_head, reduce_retracing=True)

        self.data_format = graph.data_format(self._source)
        self.input_format = graph.data_format(graph.inputs[0])

    @property
    def feature_shape(self) -> tuple[int | None, ...]:
        """Shape of one feature map as far as the symbolic graph tells, None where it does not."""
        return tuple(self._graph.tensors[self._source].shape[1:])

    def features(self, inputs: Inputs) -> tf.Tensor:
        """See `Split.features`; inputs that the features do not depend on may be left out of a dict."""
        return self._run_features(self._graph.prepare(inputs, self._feature_inputs))

    @contextmanager
    def head(self, inputs: Inputs) -> Iterator[Tail]:
        """See `Split.head`."""
        with eagerly():
            values, masks = self._run_head(self._graph.prepare(inputs))
            masked = tuple(mask is not None for mask in masks)
            features, *frontier = values
            run = self._tails.setdefault(masked, partial(self._run_tail, masked))
            yield Tail(features, run, (*frontier, *(mask for mask in masks if mask is not None)))

    def _run_tail(self, masked: tuple[bool, ...], z: tf.Tensor, carry: tuple[tf.Tensor, ...]) -> Any:
        """Outputs of the model; `masked` says which of the tensors have a mask of Keras."""
        masks = iter(carry[len(self._frontier) :])
        slots = [self._cut, *self._frontier]
        tensors = [tf.cast(z, self._graph.tensors[self._source].dtype)]
        tensors += [self._repeated(slot, x, z) for slot, x in zip(self._frontier, carry, strict=False)]
        values = {}
        for slot, tensor, has_mask in zip(slots, tensors, masked, strict=True):
            # The mask is an attribute of the tensor, and the tensor may be the caller's.
            values[slot] = tf.identity(tensor)
            if has_mask:
                values[slot]._keras_mask = _repeat(next(masks), z)
        self._graph.run(self._tail_calls, values)
        return keras.tree.map_structure(values.__getitem__, self._graph.outputs)

    def _trace_features(self, inputs: list[tf.Tensor]) -> tf.Tensor:
        values = dict(zip(self._feature_inputs, inputs, strict=True))
        return self._compute(values, [self._source])[self._source]

    def _trace_head(self, inputs: list[tf.Tensor]) -> tuple[list[tf.Tensor], list[tf.Tensor | None]]:
        slots = [self._source, *self._frontier]
        values = self._compute(dict(zip(self._graph.inputs, inputs, strict=True)), slots)
        tensors = [values[self._source]]
        tensors += [self._as_rows(slot, values[slot], tensors[0]) for slot in self._frontier]
        return tensors, [getattr(values[slot], "_keras_mask", None) for slot in slots]

    def _compute(self, values: Values, slots: Iterable[Slot]) -> Values:
        return self._graph.run(self._graph.needed_for(slots, given=self._graph.inputs), values)

    def _is_batched(self, slot: Slot) -> bool:
        """Whether the tensor has a row for each image."""
        batch = self._graph.tensors[self._graph.inputs[0]].shape[0]
        return self._graph.tensors[slot].shape[:1] == (batch,)

    def _as_rows(self, slot: Slot, x: tf.Tensor, features: tf.Tensor) -> tf.Tensor:
        """`x` with a row for each image, also where it is one for all, such as a position code."""
        if self._is_batched(slot):
            return x
        return tf.repeat(x[None], tf.shape(features)[0], axis=0)

    def _repeated(self, slot: Slot, x: tf.Tensor, z: tf.Tensor) -> tf.Tensor:
        return _repeat(x, z) if self._is_batched(slot) else x[0]

    def _check_features(self) -> None:
        tensor = self._graph.tensors[self._source]
        if (
            not tf.as_dtype(tensor.dtype).is_floating
            or not self._is_batched(self._source)
            or len(tensor.shape) < 2
        ):
            raise LayerError(
                f"layer {self.layer_name!r} gives {tensor.dtype} of shape {tuple(tensor.shape)}, and a "
                "bottleneck needs a batch of floating-point feature maps"
            )


def _repeat(x: tf.Tensor, z: tf.Tensor) -> tf.Tensor:
    """Each row of `x` as often as `z` has copies of it."""
    return tf.repeat(x, _rows(z) // _rows(x), axis=0)


def _rows(x: tf.Tensor) -> int | tf.Tensor:
    return tf.shape(x)[0] if x.shape[0] is None else x.shape[0]
