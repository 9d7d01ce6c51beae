"""Function calls of a graph, replaced by the operations of the functions.

A `tf.function` inside a model, and everything in a SavedModel, is a call of a function that the graph
defines. A graph can be split, and differentiated after it has been imported, only where its operations are
its own. The bodies of loops and branches stay functions, but the calls within them are replaced, too.

The operations of a function called by ``scope/PartitionedCall`` go to ``scope/``, so that wrappers do not
show in the names. If a name is taken, a number makes it unique.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

from tensorflow.core.framework.function_pb2 import FunctionDef
from tensorflow.core.framework.graph_pb2 import GraphDef
from tensorflow.core.framework.node_def_pb2 import NodeDef
from tensorflow.core.framework.op_def_pb2 import OpDef
from tensorflow.python.framework import op_def_registry  # nothing public tells an operation's outputs
from tensorflow.python.framework.ops import gradient_registry  # nor which gradients are registered

from iba_core.errors import InputError

_CALLS = ("PartitionedCall", "StatefulPartitionedCall")
_CALL_NAME = re.compile(r"(^|/)(Stateful)?PartitionedCall(_\d+)?$")

_DROPPED = ("_class", "_output_shapes", "_XlaMustCompile")
"""Attributes that tie an operation to others that need not be there, such as the devices of neighbours."""

OWN_GRADIENT = "IbaGradientOfItsOwn"
"""Name of the gradient of an operation that carries its gradient with it, see `custom_gradients`."""

LOST = "_iba_lost_gradient"
"""Attribute of an operation that had a gradient of its own in the program that made the graph."""


def inline_calls(graph_def: GraphDef) -> tuple[GraphDef, Callable[[str], str]]:
    """Remove function calls and devices from a graph.

    Only the bodies of loops and branches remain functions. Their names follow from their contents, so that
    graphs of several origins can be imported into one program.

    Returns:
        The graph, and a function that maps the name of a tensor to its name in that graph. The two differ if
        the tensor was the result of a call.
    """
    definitions = _Definitions({function.signature.name: function for function in graph_def.library.function})
    nodes, replaced = _expand(graph_def.node, definitions, nested=False)
    inlined = GraphDef(versions=graph_def.versions)
    inlined.node.extend(nodes)
    inlined.library.function.extend(definitions.used())
    return inlined, replaced.data


@dataclass
class _Definitions:
    """The functions that a graph calls, and what they are without calls of their own."""

    functions: dict[str, FunctionDef]
    _bodies: dict[str, FunctionDef] = field(default_factory=dict)
    _renamed: dict[str, FunctionDef] = field(default_factory=dict)

    def called_by(self, node: NodeDef) -> str | None:
        """Name of the function that a node calls; None for a node that does anything else."""
        if node.op in _CALLS:
            return str(node.attr["f"].func.name)
        return str(node.op) if node.op in self.functions else None

    def body(self, name: str) -> FunctionDef:
        """A function without calls."""
        if name not in self._bodies:
            original = self.functions[name]
            nodes, replaced = _expand(original.node_def, self, nested=True)
            body = FunctionDef()
            body.CopyFrom(original)
            del body.node_def[:]
            body.node_def.extend(nodes)
            for result, reference in original.ret.items():
                body.ret[result] = replaced.data(reference)
            body.control_ret.clear()
            known = {node.name for node in nodes}
            kept = {node for node in original.control_ret.values() if node in known}
            body.control_ret.update({node: node for node in kept})
            del body.signature.control_output[:]
            body.signature.control_output.extend(sorted(kept))
            body.attr.pop("_XlaMustCompile", None)
            self._bodies[name] = body
        return self._bodies[name]

    def rename_functions(self, node: NodeDef) -> None:
        """Let a node refer to the bodies of a loop or branch by their new names."""
        for value in node.attr.values():
            for function in [value.func] if value.HasField("func") else value.list.func:
                if function.name in self.functions:
                    function.name = self._rename(function.name)

    def _rename(self, name: str) -> str:
        if name not in self._renamed:
            body = FunctionDef()
            body.CopyFrom(self.body(name))
            content = hashlib.sha256(body.SerializeToString(deterministic=True)).hexdigest()
            body.signature.name = f"{name}_{content[:16]}"
            self._renamed[name] = body
        return str(self._renamed[name].signature.name)

    def used(self) -> Iterator[FunctionDef]:
        """The functions that have been renamed."""
        return iter(self._renamed.values())


@dataclass
class _Replaced:
    """The tensors and operations that replace the calls."""

    outputs: dict[str, str] = field(default_factory=dict)
    controls: dict[str, list[str]] = field(default_factory=dict)

    def data(self, reference: str) -> str:
        """Follow the reference to a tensor through the calls that pass it on."""
        while (found := self.outputs.get(_canonical(reference))) is not None:
            reference = found
        return reference

    def control(self, reference: str) -> list[str]:
        """References to the operations that stand for a call which others wait for."""
        if reference not in self.controls:
            return [reference]
        return [deeper for found in self.controls[reference] for deeper in self.control(found)]


def _canonical(reference: str) -> str:
    return reference.removesuffix(":0") if reference.count(":") == 1 else reference


def _expand(
    nodes: Iterable[NodeDef], definitions: _Definitions, nested: bool
) -> tuple[list[NodeDef], _Replaced]:
    """Replace the calls among `nodes`: the operations that result, and what replaces each call.

    Args:
        nodes: of a graph or of a function.
        definitions: the functions that they call.
        nested: whether the nodes refer to tensors as within a function, ``"node:output:0"``, in place of
            ``"node:0"``.
    """
    nodes = list(nodes)
    taken = {node.name for node in nodes if definitions.called_by(node) is None}
    replaced = _Replaced()
    expanded: list[NodeDef] = []
    for node in nodes:
        name = definitions.called_by(node)
        if name is None:
            copied = NodeDef()
            copied.CopyFrom(node)
            expanded.append(copied)
        else:
            expanded.extend(_called(node, definitions.body(name), taken, replaced, nested))
    for node in expanded:
        inputs = [
            followed
            for reference in node.input
            for followed in (
                replaced.control(reference) if reference.startswith("^") else [replaced.data(reference)]
            )
        ]
        del node.input[:]
        node.input.extend(_controls_last(inputs))
        node.device = ""
        for attribute in _DROPPED:
            node.attr.pop(attribute, None)
        _check_gradient(node)
        definitions.rename_functions(node)
    return expanded, replaced


def _check_gradient(node: NodeDef) -> None:
    """Drop the name of a gradient that is not there, and mark the operation if that was a user's own."""
    if "_gradient_op_type" not in node.attr:
        return
    name = node.attr["_gradient_op_type"].s.decode()
    # The number in the name is that of another program, or of another graph.
    is_bound = name.startswith(("CustomGradient-", "PartitionedCall-", "StatefulPartitionedCall-"))
    if not is_bound:
        try:
            gradient_registry.lookup(name)
        except LookupError:
            is_bound = True
    if is_bound:
        del node.attr["_gradient_op_type"]
        node.attr[LOST].b = "PartitionedCall-" not in name


def _called(
    call: NodeDef, body: FunctionDef, taken: set[str], replaced: _Replaced, nested: bool
) -> Iterator[NodeDef]:
    """The operations of a function, for one call of it."""
    arguments = [reference for reference in call.input if not reference.startswith("^")]
    waits_for = [reference for reference in call.input if reference.startswith("^")]
    scope = _CALL_NAME.sub("", call.name)
    names = {
        node.name: _unique(f"{scope}/{node.name}" if scope else node.name, taken) for node in body.node_def
    }
    nodes = {node.name: node for node in body.node_def}
    given = {arg.name: value for arg, value in zip(body.signature.input_arg, arguments, strict=True)}

    def moved(reference: str) -> str:
        name, _, output = reference.partition(":")
        if name in given:
            return str(given[name])
        return f"{names[name]}:{output if nested else _flat_index(nodes[name], output)}"

    for node in body.node_def:
        copied = NodeDef()
        copied.CopyFrom(node)
        copied.name = names[node.name]
        data = [moved(reference) for reference in node.input if not reference.startswith("^")]
        after = [
            f"^{names[reference[1:]]}"
            for reference in node.input
            if reference.startswith("^") and reference[1:] in names
        ]
        del copied.input[:]
        # An operation without inputs would otherwise no longer wait for what the call waits for.
        copied.input.extend([*data, *after, *([] if data else waits_for)])
        yield copied
    for index, result in enumerate(body.signature.output_arg):
        output = "output" if call.op in _CALLS else result.name
        number = index if call.op in _CALLS else 0
        key = f"{call.name}:{output}:{number}" if nested else _canonical(f"{call.name}:{index}")
        replaced.outputs[key] = moved(body.ret[result.name])
    replaced.controls[f"^{call.name}"] = [f"^{names[node]}" for node in body.control_ret.values()]


def _controls_last(inputs: list[str]) -> list[str]:
    controls = dict.fromkeys(reference for reference in inputs if reference.startswith("^"))
    return [reference for reference in inputs if not reference.startswith("^")] + list(controls)


def _unique(name: str, taken: set[str]) -> str:
    found, number = name, 0
    while found in taken:
        number += 1
        found = f"{name}_{number}"
    taken.add(found)
    return found


def _flat_index(node: NodeDef, output: str) -> int:
    """Number of an output among all of its operation, given ``"name of the output:number"``."""
    name, _, number = output.partition(":")
    index = 0
    for argument in _definition(node.op).output_arg:
        if argument.name == name:
            return index + int(number)
        index += _length(argument, node)
    raise ValueError(f"operation {node.name!r} of type {node.op} has no output {name!r}")


def named_output(node: NodeDef, index: int) -> str:
    """An output of an operation as functions refer to it, ``"name of the output:number"``."""
    for argument in _definition(node.op).output_arg:
        length = _length(argument, node)
        if index < length:
            return f"{argument.name}:{index}"
        index -= length
    raise ValueError(f"operation {node.name!r} of type {node.op} has no such output")


def output_count(node: NodeDef) -> int:
    """How many tensors an operation gives."""
    return sum(_length(argument, node) for argument in _definition(node.op).output_arg)


def _length(argument: OpDef.ArgDef, node: NodeDef) -> int:
    if argument.number_attr:
        return int(node.attr[argument.number_attr].i)
    if argument.type_list_attr:
        return len(node.attr[argument.type_list_attr].list.type)
    return 1


def _definition(op: str) -> OpDef:
    definition = op_def_registry.get(op)
    if definition is None:
        raise InputError(f"this TensorFlow knows no operation of type {op!r}")
    return definition
