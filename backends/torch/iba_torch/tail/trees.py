"""Nested structures of tensors: what models take and give."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Iterable, Iterator, MutableMapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch.nn.utils.rnn import PackedSequence

_PLAIN = (type(None), bool, int, float, complex, str, bytes, torch.dtype, torch.device)


def tree_map(function: Callable[[Any], Any], tree: Any, leaf: type | tuple[type, ...] = torch.Tensor) -> Any:
    """`tree` with `function` applied to each of its leaves, in order.

    Args:
        function: maps a leaf to what takes its place.
        tree: a leaf, or tuples, named tuples, lists, dicts (Hugging Face outputs too) and dataclasses of
            leaves and other things, nested as they like. Other things are kept as they are.
        leaf: types of the leaves.
    """
    if isinstance(tree, leaf):
        return function(tree)
    if isinstance(tree, PackedSequence):
        return tree
    if isinstance(tree, tuple):
        items = [tree_map(function, item, leaf) for item in tree]
        return tree._make(items) if hasattr(tree, "_make") else type(tree)(items)
    if isinstance(tree, list):
        return [tree_map(function, item, leaf) for item in tree]
    mapped: Any
    if isinstance(tree, MutableMapping):
        mapped = copy.copy(tree)
        for key, item in tree.items():
            mapped[key] = tree_map(function, item, leaf)
        return mapped
    if dataclasses.is_dataclass(tree) and not isinstance(tree, type):
        mapped = copy.copy(tree)
        for field in dataclasses.fields(tree):
            object.__setattr__(mapped, field.name, tree_map(function, getattr(tree, field.name), leaf))
        return mapped
    return tree


def tensors(tree: Any) -> list[torch.Tensor]:
    """The tensors of a nested structure, in order."""
    return [item for item in items_of(tree) if isinstance(item, torch.Tensor)]


def constant(item: Any) -> tuple[type, Any]:
    """What an item of a nested structure is, hashable; of a tensor with axes, its shape."""
    if isinstance(item, torch.Tensor):
        item = tuple(item.shape) if item.ndim else item.item()
    elif not isinstance(item, _PLAIN):
        item = id(item)
    return type(item), item


def replace_first(tree: Any, tensor: torch.Tensor) -> Any:
    """`tree` with `tensor` in the place of its first tensor."""
    waiting = [tensor]
    return tree_map(lambda old: waiting.pop() if waiting else old, tree)


def first_tensor(tree: Any) -> torch.Tensor | None:
    """The first tensor of `tree`; None if there is none, or something opaque comes before it."""
    for item in items_of(tree):
        if isinstance(item, torch.Tensor):
            return item
        if not isinstance(item, _PLAIN):
            return None
    return None


def examine(tree: Any) -> tuple[list[torch.Tensor], bool]:
    """The tensors of a nested structure, and whether there are no others that `tree_map` would miss."""
    found: list[torch.Tensor] = []
    is_transparent = True
    for item in items_of(tree):
        if isinstance(item, torch.Tensor):
            found.append(item)
        elif not isinstance(item, _PLAIN):
            is_transparent = False
    return found, is_transparent


def not_inferring() -> AbstractContextManager[Any]:
    """Context whose tensors can take part in a gradient, also within `torch.inference_mode`."""
    return torch.inference_mode(False) if torch.is_inference_mode_enabled() else nullcontext()


def version_of(tensor: torch.Tensor) -> int:
    """How often a tensor has been written into, as far as PyTorch counts that."""
    # Inference tensors keep no count of the writes into them.
    return 0 if tensor.is_inference() else tensor._version


def versions_of(found: Iterable[torch.Tensor]) -> list[int]:
    """Of each tensor its `version_of`."""
    return [version_of(tensor) for tensor in found]


def items_of(tree: Any, leaf: type = torch.Tensor) -> Iterator[Any]:
    """Everything in a nested structure that is no container of the kinds that `tree_map` looks into.

    Args:
        tree: the structure.
        leaf: a type of containers that count as one thing.
    """
    if isinstance(tree, (torch.Tensor, leaf)):
        yield tree
    elif isinstance(tree, (tuple, list)) and not isinstance(tree, PackedSequence):
        for item in tree:
            yield from items_of(item, leaf)
    elif isinstance(tree, MutableMapping):
        for item in tree.values():
            yield from items_of(item, leaf)
    elif dataclasses.is_dataclass(tree) and not isinstance(tree, type):
        for field in dataclasses.fields(tree):
            yield from items_of(getattr(tree, field.name), leaf)
    else:
        yield tree
