"""Functions as machine code, made by PyTorch's compiler."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils import _pytree as pytree

from iba_core.framework.cache import Cache
from iba_torch.tail.precision import keeps_settings

_SIZE = 16
"""How many compiled forms of a function are kept, for shapes and constants."""


class Compiled:
    """A function of tensors, gradients inside of it included, compiled once for each shape.

    What the function does is recorded as one graph of operations, through all that takes the place of modules
    while the tail of a model runs, and `torch.compile` makes machine code of that. The parameters and buffers
    of the model may change their values between calls. Arguments that are no tensors are constants, for each
    value of which the function is recorded; two tails of a model count as the same if their ``trace_key`` is.
    Nothing else may change. If the recording holds any other tensor, such as a skip connection around the
    bottleneck, or if it fails, as on control flow that depends on values, the function runs as it is, with a
    warning.

    Args:
        function: takes and returns nested tuples and dicts of tensors; may write into those it takes.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function
        self._known: Cache[Callable[..., Any] | None] = Cache(_SIZE)

    @keeps_settings
    def __call__(self, *arguments: Any) -> Any:
        """What the function returns."""
        leaves, structure = pytree.tree_flatten(arguments)
        state = [tensor for leaf in leaves if hasattr(leaf, "trace_key") for tensor in leaf.state()]
        key = (structure, tuple(map(_signature, leaves)), tuple(map(id, state)))
        compiled = self._known.get(key, lambda: self._compile(leaves, structure, state))
        if compiled is None:
            return self._function(*arguments)
        return compiled(*(leaf for leaf in leaves if isinstance(leaf, torch.Tensor)))

    def _compile(
        self, leaves: list[Any], structure: pytree.TreeSpec, state: list[torch.Tensor]
    ) -> Callable[..., Any] | None:
        outputs: list[pytree.TreeSpec] = []
        found = [leaf for leaf in leaves if isinstance(leaf, torch.Tensor)]

        def flat(*given: Any) -> list[Any]:
            waiting = iter(given)
            filled = [next(waiting) if isinstance(leaf, torch.Tensor) else leaf for leaf in leaves]
            results, output = pytree.tree_flatten(self._function(*pytree.tree_unflatten(filled, structure)))
            outputs.append(output)
            return results

        try:
            # Fake tensors have no values, so that no decision that depends on them is recorded.
            module = make_fx(flat, tracing_mode="fake", _allow_non_fake_inputs=True)(
                # Clones, since a tensor that is given twice would count as one argument.
                *(tensor.clone() for tensor in found)
            )
        except Exception as error:  # Whatever the first operation that cannot be recorded leads to.
            _warn(f"its operations cannot be recorded: {_line(error)}")
            return None
        module.graph.eliminate_dead_code()
        module.recompile()
        held = [getattr(module, node.target) for node in module.graph.nodes if node.op == "get_attr"]
        known = set(map(id, state))
        if any(tensor.ndim and id(tensor) not in known for tensor in held):
            _warn("features of the image reach the tail around the bottleneck")
            return None
        run = torch.compile(module, dynamic=False)

        def compiled(*given: Any) -> Any:
            with torch.no_grad():
                return pytree.tree_unflatten(run(*given), outputs[0])

        try:
            # The function may write into what it is given, which the first true call needs yet.
            compiled(*(leaf.clone() for leaf in found))
        except Exception as error:  # Such as that there is no compiler for C++.
            _warn(f"no machine code could be made of it: {_line(error)}")
            return None
        # The ids in the key belong to these tensors while the code is known.
        compiled.state = state  # type: ignore[attr-defined]
        return compiled


def _signature(leaf: Any) -> Any:
    if not isinstance(leaf, torch.Tensor):
        return getattr(leaf, "trace_key", leaf)
    return (tuple(leaf.shape), leaf.stride(), leaf.dtype, leaf.device)


def _line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:200]


def _warn(reason: str) -> None:
    warnings.warn(f"the model runs uncompiled: {reason}", stacklevel=4)
