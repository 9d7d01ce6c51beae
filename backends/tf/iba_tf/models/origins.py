"""Where the graphs of graph models come from: graphs that are given, and calls that are traced."""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import count
from typing import Any, get_args

import keras
import numpy.typing as npt
import tensorflow as tf

from iba_core.errors import InputError, LayerError, closest
from iba_core.framework.adapter import Inputs
from iba_core.framework.cache import Cache
from iba_core.framework.inputs import Shared
from iba_core.framework.layout import DataFormat
from iba_tf.framework import eagerly, traced
from iba_tf.graphs.custom_gradients import graph_def_of
from iba_tf.graphs.dataflow import TensorName
from iba_tf.graphs.graph_inputs import Fed, GraphInput, as_tensor, plain
from iba_tf.graphs.operations import Binding, OperationGraph
from iba_tf.models.layer_tracing import LayerRecord

_KEPT = 32
"""How many shapes of inputs a model keeps graphs for."""


class Origin(ABC):
    """The model that a graph model stands for."""

    why_not_stored: str | None = None
    """Why it cannot be pickled; None if it can."""

    @property
    @abstractmethod
    def graph(self) -> OperationGraph | None:
        """The graph, if it is the same for all inputs."""

    @property
    def latest(self) -> OperationGraph | None:
        """The graph that was traced last, where it follows from the inputs."""
        return None

    @property
    def data_format(self) -> DataFormat:
        """Where the channels of the inputs are, as far as it is known before a model has run."""
        found: DataFormat = keras.config.image_data_format()
        return found

    @abstractmethod
    def variables(self) -> dict[str, tf.Variable]:
        """The variables that the model reads unless it is a copy, by name."""

    def values(self) -> dict[str, npt.NDArray[Any]]:
        """The values that the original's variables have now."""
        return {name: value_of(variable) for name, variable in self.variables().items()}

    def traced_for(self, inputs: Inputs) -> tuple[OperationGraph, Fed]:
        """The graph for some inputs, and the inputs in the order of the graph's own."""
        raise NotImplementedError

    def to_inputs(self, inputs: Inputs) -> Inputs:
        """Inputs as the model takes them, where it does not declare any."""
        raise NotImplementedError

    def check_layer(self, layer: Any) -> str:
        """See `Source.check_layer`."""
        raise NotImplementedError


class FixedOrigin(Origin):
    """A graph that is the same for all inputs.

    Args:
        graph: the graph.
        names: names of its variables, by their references.
        holder: what must live as long as the graph is used.
    """

    def __init__(
        self, graph: OperationGraph, names: Mapping[Any, str] | None = None, holder: Any = None
    ) -> None:
        self._graph = graph
        self._names = names or {}
        self._holder = holder

    @property
    def graph(self) -> OperationGraph:
        """See `Origin.graph`."""
        return self._graph

    def variables(self) -> dict[str, tf.Variable]:
        """See `Origin.variables`."""
        return named(
            (binding for binding in self.graph.bindings.values() if isinstance(binding, tf.Variable)),
            self._names,
        )


class TracedOrigin(Origin):
    """A callable that is traced for each shape of inputs.

    Args:
        call: what is traced, taking the inputs in the structure in which they are given.
        holder: what has the variables: a Keras model or a module, or None.
        layers: the layers that may run; None where they are not known.
        floating: dtype of floating-point inputs.
    """

    why_not_stored = (
        "its graph follows from its inputs; pickle the Keras model or the module that it stands for"
    )

    def __init__(
        self,
        call: Callable[[Any], Any],
        holder: Any = None,
        layers: Sequence[Any] | None = None,
        floating: tf.DType = tf.float32,
    ) -> None:
        self._call, self._holder, self._layers = call, holder, layers
        self._floating = floating
        self._graphs: Cache[OperationGraph] = Cache(_KEPT)
        self._found: dict[Any, tf.Variable] = {}
        self._latest: OperationGraph | None = None

    @property
    def graph(self) -> None:
        """See `Origin.graph`."""
        return None

    @property
    def latest(self) -> OperationGraph | None:
        """See `Origin.latest`."""
        return self._latest

    @property
    def data_format(self) -> DataFormat:
        """See `Origin.data_format`: that of its layers, if they all have the same."""
        stated = {layer.data_format for layer in self._layers or () if hasattr(layer, "data_format")}
        found = stated.intersection(get_args(DataFormat))
        return found.pop() if len(found) == 1 else super().data_format

    def variables(self) -> dict[str, tf.Variable]:
        """See `Origin.variables`: those of the holder, and any others that a trace has found."""
        variables, names = variables_of(self._holder)
        return named([*variables, *list(self._found.values())], names)

    def to_inputs(self, inputs: Inputs) -> Inputs:
        """See `Origin.to_inputs`."""
        if isinstance(inputs, list) and not any(_is_array(value) for value in inputs):
            return as_tensor("x", inputs, self._floating)
        if isinstance(inputs, Mapping):
            return {key: as_tensor(key, value, self._floating) for key, value in inputs.items()}
        if isinstance(inputs, (tuple, list)):
            return tuple(
                as_tensor(f"inputs[{index}]", value, self._floating) for index, value in enumerate(inputs)
            )
        return as_tensor("x", inputs, self._floating)

    def traced_for(self, inputs: Inputs) -> tuple[OperationGraph, Fed]:
        """See `Origin.traced_for`."""
        structure = self.to_inputs(inputs)
        flat: Fed = tf.nest.flatten(structure)
        tensors: list[Any] = plain(flat)
        specs = [tf.TensorSpec([None, *x.shape[1:]] if x.shape.rank else [], x.dtype) for x in tensors]
        key = (*specs, tuple(structure) if isinstance(structure, dict) else type(structure))
        graph = self._graphs.get(key, lambda: self._traced(structure, specs))
        self._latest = graph
        return graph, flat

    def _traced(self, structure: Any, specs: Sequence[tf.TensorSpec]) -> OperationGraph:
        packed = tf.nest.pack_sequence_as(structure, specs)
        graph = traced_graph(self._call, packed, _input_names(structure))
        for binding in graph.bindings.values():
            if isinstance(binding, tf.Variable):
                self._found[binding.ref()] = binding
        return graph

    def check_layer(self, layer: Any) -> str:
        """See `Source.check_layer`."""
        name: str = layer if isinstance(layer, str) else getattr(layer, "name", type(layer).__name__)
        if self._layers is None:
            return name
        if isinstance(layer, str):
            last = layer.rstrip("/").rpartition("/")[2].partition("[")[0].partition(":")[0]
            if any(known.name == last for known in self._layers):
                return name
        elif any(known is layer for known in self._layers):
            return name
        names = list(dict.fromkeys(known.name for known in self._layers))
        raise LayerError(f"the model has no layer {name!r}; {closest(name, names)}")


def _is_array(value: Any) -> bool:
    return hasattr(value, "shape") or isinstance(value, Shared)


def keras_origin(model: Any) -> Origin:
    """A Keras model as the origin of a graph model, see `GraphModel.from_keras`."""
    if not model.built:
        raise LayerError(f"the model {model.name!r} is not built: call it on a batch once")
    inputs = getattr(model, "inputs", None)
    parameters = list(inspect.signature(model.call).parameters.values())
    training = {"training": False} if any(p.name == "training" for p in parameters) else {}

    def run(*args: Any) -> Any:
        if isinstance(model, keras.layers.Layer):
            # What the model would store while it runs, such as a moving average, stays in the scope.
            with keras.StatelessScope():
                return model(*args, **training)
        return model(*args, **training)

    run = run if isinstance(model, keras.layers.Layer) else tf.function(run)
    if inputs:
        structure = _structure(model, inputs)
        specs = tf.nest.map_structure(lambda x: tf.TensorSpec([None, *x.shape[1:]], x.dtype), structure)
        graph = traced_graph(run, specs, [x.name.partition(":")[0] for x in tf.nest.flatten(structure)])
        return FixedOrigin(graph, variables_of(model)[1], model)
    required = [
        p
        for p in parameters
        if p.default is p.empty
        and p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)
        and p.name not in ("training", "mask")
    ]

    def call(inputs: Any) -> Any:
        return run(*inputs) if isinstance(inputs, tuple) and len(required) > 1 else run(inputs)

    return TracedOrigin(call, model, list(_layers_of(model)), floating_of(variables_of(model)[0]))


def function_origin(function: Any, specs: Sequence[Any]) -> Origin:
    """A function of tensors as the origin of a graph model, see `GraphModel.from_function`."""
    if isinstance(function, tf.types.experimental.ConcreteFunction):
        return concrete_origin(function)
    if not callable(function):
        raise InputError(f"model of type {type(function).__name__} is not served, and cannot be called")
    called = _called_by(function)
    if not specs:
        specs = tf.nest.flatten(getattr(called, "input_signature", None) or ())
    python = getattr(called, "python_function", called)
    # A user's own code may branch on tensors, which AutoGraph makes branches of the graph.
    converted = tf.function(python)
    if specs:
        names = [spec.name or name for spec, name in zip(specs, _parameters(python), strict=False)]
        graph = traced_graph(lambda inputs: converted(*inputs), tuple(specs), names)
        return FixedOrigin(graph, variables_of(function)[1], function)

    def call(inputs: Any) -> Any:
        return converted(*inputs) if isinstance(inputs, tuple) else converted(inputs)

    return TracedOrigin(call, function, floating=floating_of(variables_of(function)[0]))


def _called_by(function: Any) -> Any:
    """What a call of a module calls, which may be a `tf.function` itself."""
    return function.__call__ if isinstance(function, tf.Module) else function


def _parameters(function: Callable[..., Any]) -> Iterator[str]:
    """Names for the arguments of a function, as many as are wanted."""
    try:
        parameters = list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError):
        parameters = []
    taken = [p.name for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    yield from taken
    yield from (f"input_{index}" for index in count(len(taken)))


def concrete_origin(concrete: Any, holder: Any = None, *, is_signature: bool = False) -> Origin:
    """A concrete function as the origin of a graph model.

    Args:
        concrete: the function.
        holder: what must live as long as the function is used.
        is_signature: whether it is a signature of a SavedModel, whose outputs have names of their own.
    """
    captured = concrete.captured_inputs
    taken = concrete.inputs[: len(concrete.inputs) - len(captured)]
    names = _argument_names(concrete, taken)
    entries = [
        GraphInput(name, x.name, x.dtype, None if x.shape.rank is None else tuple(x.shape))
        for name, x in zip(names, taken, strict=True)
    ]
    graph = OperationGraph(
        graph_def_of(concrete.graph),
        entries,
        by_number(_output_names(concrete)) if is_signature else _output_names(concrete),
        _bindings(concrete.inputs[len(taken) :], captured, concrete.variables),
    )
    return FixedOrigin(graph, holder=(concrete, holder))


def _output_names(concrete: Any) -> Any:
    """Names of the tensors that a function returns, nested as it returns them.

    Where the outputs of a signature are numbered, because its author gave a tuple or list, they are one here.
    A file keeps no order of others, so they come in that of their names.
    """
    tensors = iter(concrete.outputs)
    structure = concrete.structured_outputs
    names = [None if leaf is None else next(tensors).name for leaf in tf.nest.flatten(structure)]
    return alone(tf.nest.pack_sequence_as(structure, names))


def by_number(outputs: Any) -> Any:
    """The outputs of a signature, in order: a tuple if they are numbered, else by name."""
    if not isinstance(outputs, Mapping):
        return outputs
    numbered = [f"output_{index}" for index in range(len(outputs))]
    if set(numbered) == set(outputs):
        return alone(tuple(outputs[name] for name in numbered))
    return dict(sorted(outputs.items()))


def _argument_names(concrete: Any, placeholders: Sequence[tf.Tensor]) -> list[str]:
    args, kwargs = concrete.structured_input_signature
    names = [spec.name for spec in tf.nest.flatten(args) if isinstance(spec, tf.TypeSpec)]
    for key in sorted(kwargs):
        specs = [spec for spec in tf.nest.flatten(kwargs[key]) if isinstance(spec, tf.TypeSpec)]
        names += [key] if len(specs) == 1 else [spec.name for spec in specs]
    if len(names) != len(placeholders):
        names = [None] * len(placeholders)
    return [name or x.op.name for name, x in zip(names, placeholders, strict=True)]


def traced_graph(call: Callable[..., Any], specs: Any, names: Sequence[str]) -> OperationGraph:
    """What a call leaves in a traced function.

    Args:
        call: takes the inputs.
        specs: of the inputs, nested as `call` takes them.
        names: of the inputs, in order.
    """
    flat = [
        tf.TensorSpec(spec.shape, spec.dtype, name=name)
        for spec, name in zip(tf.nest.flatten(specs), names, strict=True)
    ]

    record = LayerRecord()

    def run(*inputs: tf.Tensor) -> Any:
        return record.of(lambda: call(tf.nest.pack_sequence_as(specs, list(inputs))))

    concrete = traced(run).get_concrete_function(*flat)
    captured = concrete.captured_inputs
    entries = [
        GraphInput(name, x.name, x.dtype, None if x.shape.rank is None else tuple(x.shape))
        for name, x in zip(names, concrete.inputs, strict=False)
    ]
    return OperationGraph(
        graph_def_of(concrete.graph),
        entries,
        _output_names(concrete),
        _bindings(concrete.inputs[len(flat) :], captured, concrete.variables),
        record.layers,
    )


def _bindings(
    placeholders: Sequence[tf.Tensor], captured: Sequence[tf.Tensor], variables: Iterable[tf.Variable]
) -> dict[TensorName, Binding]:
    """What the placeholders of a function stand for that closes over tensors and variables."""
    by_handle = {id(variable.handle): variable for variable in variables}
    return {
        placeholder.name: by_handle.get(id(tensor), tensor)
        for placeholder, tensor in zip(placeholders, captured, strict=True)
    }


def _input_names(structure: Any) -> list[str]:
    """Names for inputs that have none of their own: their keys, or their numbers."""
    if isinstance(structure, Mapping):
        return [str(key) for key in sorted(structure)]
    number = len(tf.nest.flatten(structure))
    return ["x"] if number == 1 else [f"input_{index}" for index in range(number)]


def alone(outputs: Any) -> Any:
    """Outputs without those that are None, and a single one by itself."""
    if isinstance(outputs, Mapping):
        kept = {key: found for key, value in outputs.items() if (found := alone(value)) is not None}
        return next(iter(kept.values())) if len(kept) == 1 else kept or None
    if isinstance(outputs, (list, tuple)):
        entries = [found for value in outputs if (found := alone(value)) is not None]
        if len(entries) < 2:
            return entries[0] if entries else None
        if hasattr(outputs, "_fields"):
            return type(outputs)(*entries) if len(entries) == len(outputs) else tuple(entries)
        return type(outputs)(entries)
    return outputs


def _structure(model: Any, inputs: Any) -> Any:
    """The symbolic inputs of a model, nested as it takes them."""
    structure = getattr(model, "_inputs_struct", getattr(model, "_nested_inputs", None))
    structure = inputs if structure is None else structure
    while isinstance(structure, (list, tuple)) and len(structure) == 1:
        structure = structure[0]
    return structure


def _layers_of(model: Any) -> Iterable[Any]:
    layers = list(model._flatten_layers(include_self=False, recursive=True))
    return dict.fromkeys(layers) if layers else []


def floating_of(variables: Iterable[tf.Variable]) -> tf.DType:
    """Dtype in which a model of these variables takes numbers, if it does not say so."""
    dtypes = {variable.dtype for variable in variables}
    return (
        tf.float64
        if dtypes and dtypes <= {tf.float64, tf.int32, tf.int64} and tf.float64 in dtypes
        else tf.float32
    )


def variables_of(holder: Any) -> tuple[list[tf.Variable], dict[Any, str]]:
    """The variables of a Keras model, a module or a function, and their names."""
    found: list[tf.Variable] = []
    names: dict[Any, str] = {}
    for variable in getattr(holder, "variables", ()):
        path = getattr(variable, "path", None)
        inner = variable if path is None else getattr(variable, "value", variable)
        if isinstance(inner, tf.Variable):
            found.append(inner)
            names[inner.ref()] = path or inner.name.partition(":")[0]
    return found, names


def named(variables: Iterable[tf.Variable], names: Mapping[Any, str]) -> dict[str, tf.Variable]:
    """Variables by name; a number tells apart those of the same name."""
    named: dict[str, tf.Variable] = {}
    for reference in dict.fromkeys(variable.ref() for variable in variables):
        variable = reference.deref()
        name = found = names.get(reference, variable.name.partition(":")[0])
        number = 0
        while found in named:
            number += 1
            found = f"{name}_{number}"
        named[found] = variable
    return named


def value_of(variable: tf.Variable) -> npt.NDArray[Any]:
    """The value that a variable has now."""
    with eagerly():
        value: npt.NDArray[Any] = variable.numpy()
    return value
