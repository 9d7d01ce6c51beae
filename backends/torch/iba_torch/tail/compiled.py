"""Functions as machine code, made by PyTorch's compiler."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils import _pytree as pytree

from iba_torch.tail.split import circumstances


class Compiled:
    """A function of tensors, gradients inside of it included, compiled once for each shape.

    What the function does is recorded as one graph of operations, through all that stands in for modules
    while the tail of a model runs, and `torch.compile` makes machine code of that. The parameters and buffers
    of the model may change their values between calls. What the tail of an open cut depends on besides is
    recorded anew for each value of it: autocast, and inputs of the model that are no arrays. Nothing else may
    change: where the recording holds any other tensor, such as a skip connection around the bottleneck that
    the next image has another one of, or where it fails, as on control flow that depends on values, the
    function runs as it is, with a warning.

    Args:
        function: takes and returns nested tuples and dicts of tensors; may write into those it takes.
        model: whose parameters it may use.
    """

    def __init__(self, function: Callable[..., Any], model: nn.Module) -> None:
        self._function = function
        self._model = model
        self._known: dict[Any, Callable[..., Any] | None] = {}

    def __call__(self, *arguments: Any) -> Any:
        """What the function returns."""
        leaves, structure = pytree.tree_flatten(arguments)
        state = [*self._model.parameters(), *self._model.buffers()]
        key = (structure, tuple(map(_signature, leaves)), tuple(map(id, state)), circumstances())
        if key not in self._known:
            self._known[key] = self._compile(leaves, structure, {id(tensor) for tensor in state})
        compiled = self._known[key]
        return self._function(*arguments) if compiled is None else compiled(*leaves)

    def _compile(
        self, leaves: list[Any], structure: pytree.TreeSpec, state: set[int]
    ) -> Callable[..., Any] | None:
        outputs: list[pytree.TreeSpec] = []

        def flat(*leaves: Any) -> list[Any]:
            found, output = pytree.tree_flatten(self._function(*pytree.tree_unflatten(leaves, structure)))
            outputs.append(output)
            return found

        try:
            # Fake tensors have no values, so that no decision that depends on them is recorded.
            module = make_fx(flat, tracing_mode="fake", _allow_non_fake_inputs=True)(*leaves)
        except Exception as error:  # Whatever the first operation that cannot be recorded leads to.
            return _refused(f"its operations cannot be recorded: {_line(error)}")
        module.graph.eliminate_dead_code()
        module.recompile()
        held = [getattr(module, node.target) for node in module.graph.nodes if node.op == "get_attr"]
        if any(tensor.ndim and id(tensor) not in state for tensor in held):
            return _refused("features of the image reach the tail around the bottleneck")
        run = torch.compile(module, dynamic=False)

        def compiled(*leaves: Any) -> Any:
            with torch.no_grad():
                return pytree.tree_unflatten(run(*leaves), outputs[0])

        try:
            # The function may write into what it is given, which is to serve the first true call yet.
            compiled(*(leaf.clone() if isinstance(leaf, torch.Tensor) else leaf for leaf in leaves))
        except Exception as error:  # Such as that there is no compiler for C++.
            return _refused(f"no machine code could be made of it: {_line(error)}")
        return compiled


def _signature(leaf: Any) -> Any:
    if not isinstance(leaf, torch.Tensor):
        return leaf
    return (tuple(leaf.shape), leaf.stride(), leaf.dtype, leaf.device)


def _line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:200]


def _refused(reason: str) -> None:
    warnings.warn(f"the model runs uncompiled: {reason}", stacklevel=4)
