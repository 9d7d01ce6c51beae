"""Gradients of a user's own, as by `tf.custom_gradient`, in graphs that are imported elsewhere.

TensorFlow keeps such a gradient as a Python function that is bound to the tensors of the graph that was
traced first. Here it is traced once, and goes with the operation as a graph of its own: the tensors that it
takes become further arguments of the operation.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf
from tensorflow.core.framework.graph_pb2 import GraphDef
from tensorflow.core.framework.node_def_pb2 import NodeDef
from tensorflow.python.framework import ops  # nothing public finds a registered gradient
from tensorflow.python.framework.func_graph import FuncGraph  # nor tells what a function has captured

from iba_tf.graphs.inlining import LOST, OWN_GRADIENT, inline_calls, named_output

_TYPE = "_gradient_op_type"
_BOUND = b"CustomGradient"
"""How the names of gradients begin that are bound to a graph."""


def graph_def_of(graph: tf.Graph) -> GraphDef:
    """The definition of a graph, whose gradients of a user's own stay when it is imported elsewhere.

    A gradient that cannot be kept is marked as lost.
    """
    graph_def: GraphDef = graph.as_graph_def()
    if not any(map(_has_bound_gradient, _all_nodes(graph_def))):
        return graph_def
    variables = _variables(graph, graph_def)
    for node in filter(_has_bound_gradient, graph_def.node):
        _keep(node, variables[""], lambda tensor: _name_in(graph, tensor))
    for function in graph_def.library.function:
        nodes = {node.name: node for node in function.node_def}
        arguments = [argument.name for argument in function.signature.input_arg]

        def reference(
            tensor: Any, nodes: dict[str, NodeDef] = nodes, arguments: Sequence[str] = arguments
        ) -> str:
            own = [id(x) for x in tensor.graph.inputs]
            if id(tensor) in own:
                return arguments[own.index(id(tensor))]
            return f"{tensor.op.name}:{named_output(nodes[tensor.op.name], tensor.value_index)}"

        for node in filter(_has_bound_gradient, nodes.values()):
            _keep(node, variables.get(function.signature.name, {}), reference)
    return graph_def


def _name_in(graph: tf.Graph, tensor: Any) -> str:
    # A graph that was imported may have the number of another program's gradient.
    if tensor.graph is not graph:
        raise ValueError(tensor.name)
    return str(tensor.name)


def _all_nodes(graph_def: GraphDef) -> Iterator[NodeDef]:
    yield from graph_def.node
    for function in graph_def.library.function:
        yield from function.node_def


def _variables(graph: Any, graph_def: GraphDef) -> dict[str, dict[int, str]]:
    """What stands for a variable in each function, by the ids of their handles; "" is the graph itself."""
    functions = {function.signature.name: function for function in graph_def.library.function}
    captures = getattr(graph, "captures", ())
    found = {"": {id(outer): inner.name.partition(":")[0] for outer, inner in captures}}
    queue = [("", graph_def.node)]
    while queue:
        name, nodes = queue.pop()
        own = {reference: handle for handle, reference in found[name].items()}
        for node in nodes:
            called = node.attr["f"].func.name if "f" in node.attr else node.op
            if called not in functions or called in found:
                continue
            data = [x.partition(":")[0] for x in node.input if not x.startswith("^")]
            arguments = [argument.name for argument in functions[called].signature.input_arg]
            pairs = zip(data, arguments, strict=True)
            found[called] = {own[given]: argument for given, argument in pairs if given in own}
            queue.append((called, functions[called].node_def))
    return found


def _has_bound_gradient(node: NodeDef) -> bool:
    return _TYPE in node.attr and node.attr[_TYPE].s.startswith(_BOUND)


def _keep(node: NodeDef, variables: Mapping[int, str], reference: Callable[[Any], str]) -> None:
    """Let a node carry its gradient with it."""
    name = node.attr[_TYPE].s.decode()
    try:
        gradient = ops.gradient_registry.lookup(name)
        part, given, results, captured = _traced(node, gradient)
        references = [
            variables[id(tensor)] if hasattr(tensor, "numpy") else reference(tensor) for tensor in captured
        ]
    except Exception:  # a user's own code, which may do anything with its arguments
        node.attr[LOST].b = True
        return
    controls = [x for x in node.input if x.startswith("^")]
    data = [x for x in node.input if not x.startswith("^")]
    del node.input[:]
    node.input.extend([*data, *references, *controls])
    node.attr["T"].list.type.extend(tensor.dtype.as_datatype_enum for tensor in captured)
    node.attr[_TYPE].s = OWN_GRADIENT.encode()
    node.attr["_iba_gradient"].s = part.SerializeToString()
    for key, names in (("_iba_given", given), ("_iba_results", results)):
        node.attr[key].list.s.extend(name.encode() for name in names)


def _traced(node: NodeDef, gradient: Any) -> tuple[GraphDef, list[str], list[str], list[Any]]:
    """A gradient as a graph: its arguments, those that it captures last; its results; what it captures."""
    if node.op != "IdentityN":
        raise TypeError(node.op)
    within = FuncGraph("gradient")
    with within.as_default():
        towards = [tf.compat.v1.placeholder(tf.as_dtype(kind)) for kind in node.attr["T"].list.type]
        found = gradient(None, *towards)
    captures = within.captures
    graph_def, followed = inline_calls(graph_def_of(within))
    if graph_def.library.function:
        raise TypeError("a loop")
    kept = []
    for tensor, inner in captures:
        if hasattr(tensor, "numpy") and tensor.dtype != tf.resource:
            _make_constant(next(x for x in graph_def.node if f"{x.name}:0" == inner.name), tensor)
        else:
            kept.append((tensor, inner.name))
    given = [x.name for x in towards] + [name for _, name in kept]
    results = ["" if x is None else followed(x.name) for x in found]
    return _without(graph_def, given), given, results, [tensor for tensor, _ in kept]


def _make_constant(node: NodeDef, value: tf.Tensor) -> None:
    node.op = "Const"
    node.attr.clear()
    node.attr["dtype"].type = value.dtype.as_datatype_enum
    node.attr["value"].tensor.CopyFrom(tf.make_tensor_proto(np.asarray(value)))


def _without(graph_def: GraphDef, given: Sequence[str]) -> GraphDef:
    """A graph without the nodes that stand for its arguments, which others need not wait for, either."""
    arguments = {name.partition(":")[0] for name in given}
    part = GraphDef(versions=graph_def.versions)
    for node in graph_def.node:
        if node.name not in arguments:
            kept = part.node.add()
            kept.CopyFrom(node)
            references = [x for x in node.input if not (x.startswith("^") and x[1:] in arguments)]
            del kept.input[:]
            kept.input.extend(references)
    return part


@tf.RegisterGradient(OWN_GRADIENT)  # type: ignore[untyped-decorator]
def _gradient(op: tf.Operation, *towards: tf.Tensor) -> list[tf.Tensor | None]:
    """The gradient that an operation carries with it."""
    given = [name.decode() for name in op.get_attr("_iba_given")]
    results = [name.decode() for name in op.get_attr("_iba_results")]
    captured = len(op.inputs) - len(results)
    values = [*towards[: len(results)], *(tf.identity(x) for x in op.inputs[len(results) :])]
    part = GraphDef.FromString(op.get_attr("_iba_gradient"))
    taken = {source for node in part.node for source in node.input}
    fetched = [name for name in results if name]
    replaced = dict(zip(given, values, strict=True))
    inner = {name: x for name, x in replaced.items() if name in taken or name.removesuffix(":0") in taken}
    imported = tf.compat.v1.import_graph_def(
        part, input_map=inner, return_elements=[name for name in fetched if name not in replaced], name="own"
    )
    found = iter(imported)
    of_results = [
        None if not name else replaced[name] if name in replaced else next(found) for name in results
    ]
    return [*of_results, *([None] * captured)]
