"""Branches of TensorFlow 1 that read variables, in graphs that are imported into functions.

In a TensorFlow 1 graph, ``Switch`` passes a tensor into one of two branches, and ``Merge`` takes the result
of the one that has run. A variable that a branch reads is passed into it as a handle, with which a
`tf.function` cannot deal. It can if the variable is read before, and its value passed into the branch.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

from tensorflow.core.framework.graph_pb2 import GraphDef
from tensorflow.core.framework.node_def_pb2 import NodeDef
from tensorflow.core.framework.types_pb2 import DT_RESOURCE

_READ = "ReadVariableOp"


def pass_values_into_branches(graph_def: GraphDef) -> None:
    """Read variables before the branches that read them, in place.

    Operations of a branch that take a variable along with a tensor of the branch get the variable itself:
    they run if that tensor is there. Where a branch uses a variable in yet another way, its handle stays.

    Args:
        graph_def: a graph without function calls.
    """
    switches = [node for node in graph_def.node if node.op == "Switch" and node.attr["T"].type == DT_RESOURCE]
    if not switches:
        return
    takers: dict[str, list[NodeDef]] = defaultdict(list)
    for node in graph_def.node:
        for source in _data(node):
            takers[source.partition(":")[0]].append(node)
    inner = {taker.name for switch in switches for taker in takers[switch.name]}
    for switch in switches:
        # One within a branch is dealt with along with the branch's own.
        if switch.name not in inner:
            _pass_value(graph_def, switch, takers)


def _pass_value(graph_def: GraphDef, first: NodeDef, takers: dict[str, list[NodeDef]]) -> None:
    """Let a switch of a handle, and those within its branches, pass the variable's value."""
    handle = first.input[0]
    switches = [first]
    reads: list[NodeDef] = []
    others: list[NodeDef] = []
    for switch in switches:
        for taker in takers[switch.name]:
            kind = {"Switch": switches, _READ: reads}.get(taker.op, others)
            kind.append(taker)
    names = {switch.name for switch in switches}
    if not all(_takes_more(other, names) for other in others):
        return
    for other in others:
        for index, source in enumerate(other.input):
            if source.partition(":")[0] in names:
                other.input[index] = handle
    if reads:
        _pass(graph_def, switches, reads)


def _pass(graph_def: GraphDef, switches: list[NodeDef], reads: list[NodeDef]) -> None:
    """Let switches pass the value that some operations read after them."""
    dtype = reads[0].attr["dtype"].type
    value = graph_def.node.add(name=f"{switches[0].name}/value", op=_READ, input=[switches[0].input[0]])
    value.attr["dtype"].type = dtype
    switches[0].input[0] = value.name
    for switch in switches:
        switch.attr["T"].type = dtype
    for read in reads:
        read.op = "Identity"
        read.attr.clear()
        read.attr["T"].type = dtype


def _takes_more(node: NodeDef, switches: set[str]) -> bool:
    return any(source.partition(":")[0] not in switches for source in _data(node))


def _data(node: NodeDef) -> Iterable[str]:
    return (source for source in node.input if not source.startswith("^"))
