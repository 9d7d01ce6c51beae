"""Records which Keras layers are called while a model is traced.

A layer's results are marked in the graph by operations that change nothing and have a name of their own. The
marks survive the inlining of function calls. So it is known which layer gave a tensor of the final graph,
however the model came to call the layer: from a method, a list, a branch, or a nested `tf.function`. Marks in
the body of a loop are not in the final graph, since no single tensor of it is the layer's result.

Keras has no hook for calls, so the classes' own `__call__` is wrapped, once and for good. Outside of a trace
of this library, the wrapper only passes calls on.
"""

from __future__ import annotations

import re
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import wraps
from typing import Any
from weakref import WeakKeyDictionary

import keras
import tensorflow as tf

from iba_tf.graphs.channels import channels_of_layer
from iba_tf.graphs.dataflow import Place, TensorName

_MARK = re.compile(r"(?:^|/)iba_layer_(\d+)_(\d+)(?:_\d+)?$")
_FUNCTION = type(tf.function(lambda: None))
_records: WeakKeyDictionary[tf.Graph, LayerRecord] = WeakKeyDictionary()
"""The record of each function that is being traced."""


@dataclass(eq=False)
class _Call:
    """One call of a layer, and the calls of layers within it."""

    layer: Any
    number: int
    results: int = 0
    children: list[_Call] = field(default_factory=list)


class LayerRecord:
    """The calls of layers while a model was traced."""

    def __init__(self) -> None:
        self._root = _Call(None, -1)
        self._stack = [self._root]
        self._count = 0

    def of(self, call: Callable[[], Any]) -> Any:
        """Call a model in the function that is being traced, and record its layers, in inference mode.

        The record belongs to the graph of that function. Graphs within it are found by it, and other threads
        have other graphs. So nothing has to be undone, wherever an interrupt strikes.
        """
        _wrap()
        graph = tf.compat.v1.get_default_graph()
        _records[graph] = self
        results = call()
        # TensorFlow never forgets the graph of a custom gradient, but the layers are to be forgotten.
        del _records[graph]
        return results

    def run(self, layer: Any, call: Callable[[], Any]) -> Any:
        """Call a layer, record the call, and mark the results."""
        recorded = _Call(layer, self._count)
        self._count += 1
        self._stack[-1].children.append(recorded)
        self._stack.append(recorded)
        try:
            results = call()
        finally:
            self._stack.pop()
        return tf.nest.map_structure(lambda result: self._marked(recorded, result), results)

    def _marked(self, recorded: _Call, result: Any) -> Any:
        if not isinstance(result, tf.Tensor) or tf.executing_eagerly():
            return result
        with tf.name_scope(""):
            marked = tf.identity(result, name=f"iba_layer_{recorded.number}_{recorded.results}")
        recorded.results += 1
        if (mask := getattr(result, "_keras_mask", None)) is not None:
            marked._keras_mask = mask
        return marked

    def layers(self, operations: Iterable[str]) -> list[Place]:
        """The layers that ran, each after those within it.

        Args:
            operations: names of all operations of the final graph, in order.
        """
        marks: dict[tuple[int, int], list[TensorName]] = {}
        for name in operations:
            if match := _MARK.search(name):
                marks.setdefault((int(match[1]), int(match[2])), []).append(f"{name}:0")
        # What the traced model itself gives is no layer to name.
        return [layer for model in self._root.children for layer in _inside(model, "", marks)]


def _inside(call: _Call, path: str, marks: dict[tuple[int, int], list[TensorName]]) -> Iterator[Place]:
    times = Counter(child.layer.name for child in call.children)
    seen: Counter[str] = Counter()
    for child in call.children:
        name = child.layer.name
        number = f":{seen[name]}" if times[name] > 1 else ""
        seen[name] += 1
        path_of_child = f"{path}{name}{number}"
        yield from _inside(child, f"{path_of_child}/", marks)
        results = [marks.get((child.number, index), []) for index in range(child.results)]
        # The results of a function that was traced once and called twice are there twice.
        copies = list(zip(*results, strict=False))
        for copy, tensors in enumerate(copies):
            again = f":{copy}" if len(copies) > 1 else ""
            yield Place(
                f"{path_of_child}{again}",
                type(child.layer).__name__,
                tuple(tensors),
                child.layer,
                channels=channels_of_layer(child.layer),
            )


def _wrap() -> None:
    """Wrap the calls of layers and functions that are not wrapped yet."""
    for cls in layer_classes():
        _wrap_once(cls, _recording)
    _wrap_once(_FUNCTION, _tracing_again)


def _wrap_once(cls: Any, wrap: Callable[[Callable[..., Any]], Callable[..., Any]]) -> None:
    if "_iba_records" not in vars(cls.__call__):
        cls.__call__ = wrap(cls.__call__)


def _record_here() -> LayerRecord | None:
    """The record of the function that is being traced, or of one that it is traced within."""
    if not _records or tf.executing_eagerly():
        return None
    graph = tf.compat.v1.get_default_graph()
    while graph is not None and graph not in _records:
        graph = getattr(graph, "outer_graph", None)
    return None if graph is None else _records[graph]


def _recording(call: Callable[..., Any]) -> Callable[..., Any]:
    """The call of a layer, recorded while a model is traced by this library."""

    @wraps(call)
    def wrapped(layer: Any, *args: Any, **kwargs: Any) -> Any:
        record = _record_here()
        if record is None:
            return call(layer, *args, **kwargs)
        if kwargs.get("training"):
            kwargs = {**kwargs, "training": False}
        return record.run(layer, lambda: call(layer, *args, **kwargs))

    wrapped._iba_records = True  # type: ignore[attr-defined]  # a mark, so that it is wrapped once
    return wrapped


def _tracing_again(call: Callable[..., Any]) -> Callable[..., Any]:
    """The call of a `tf.function`, which is traced again while a model is traced by this library.

    Its earlier traces say nothing about layers, and it must not keep a trace with marks.
    """

    @wraps(call)
    def wrapped(function: Any, *args: Any, **kwargs: Any) -> Any:
        if type(function) is _FUNCTION and _record_here() is not None:
            function = tf.function(
                function.python_function,
                input_signature=function.input_signature,
                autograph=function._autograph,
            )
        return call(function, *args, **kwargs)

    wrapped._iba_records = True  # type: ignore[attr-defined]  # a mark, so that it is wrapped once
    return wrapped


def layer_classes() -> list[type]:
    """The base classes of layers, of Keras 3 and, once it has been imported, of Keras 2."""
    legacy = sys.modules.get("tf_keras")
    return [keras.layers.Layer, *([legacy.layers.Layer] if legacy is not None else [])]


# At once, so that nothing is other after an explanation than before. Keras 2 may be imported later.
_wrap()
