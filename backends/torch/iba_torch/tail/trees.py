"""Nested structures of tensors: what models take and give."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Iterator, MutableMapping
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
    found: list[torch.Tensor] = []
    tree_map(found.append, tree)
    return found


def constants(tree: Any) -> tuple[Any, ...]:
    """What a nested structure holds, in order and hashable; of tensors with axes, their shapes."""
    found: list[Any] = []
    for item in _items(tree):
        if isinstance(item, torch.Tensor):
            found.append(tuple(item.shape) if item.ndim else item.item())
        else:
            found.append(item if isinstance(item, _PLAIN) else id(item))
    return tuple((type(item), item) for item in found)


def replace_first(tree: Any, tensor: torch.Tensor) -> Any:
    """`tree` with `tensor` in the place of its first tensor."""
    waiting = [tensor]
    return tree_map(lambda old: waiting.pop() if waiting else old, tree)


def first_tensor(tree: Any) -> torch.Tensor | None:
    """The first tensor of `tree`; None if there is none, or something opaque comes before it."""
    for item in _items(tree):
        if isinstance(item, torch.Tensor):
            return item
        if not isinstance(item, _PLAIN):
            return None
    return None


def is_transparent(tree: Any) -> bool:
    """Whether `tree_map` reaches every tensor that `tree` may hold."""
    return all(isinstance(item, (torch.Tensor, *_PLAIN)) for item in _items(tree))


def examine(tree: Any) -> tuple[list[torch.Tensor], bool]:
    """The tensors of a nested structure, and whether there are no others that `tree_map` would miss."""
    if isinstance(tree, torch.Tensor):
        return [tree], True
    return tensors(tree), is_transparent(tree)


def not_inferring() -> AbstractContextManager[Any]:
    """Context whose tensors can take part in a gradient, also within `torch.inference_mode`."""
    return torch.inference_mode(False) if torch.is_inference_mode_enabled() else nullcontext()


def version_of(tensor: torch.Tensor) -> int:
    """How often a tensor has been written into, as far as PyTorch counts that."""
    # Inference tensors keep no count of the writes into them.
    return 0 if tensor.is_inference() else tensor._version


def _items(tree: Any) -> Iterator[Any]:
    """Everything in a nested structure that is no container of the kinds that `tree_map` looks into."""
    if isinstance(tree, (tuple, list)) and not isinstance(tree, PackedSequence):
        for item in tree:
            yield from _items(item)
    elif isinstance(tree, MutableMapping):
        for item in tree.values():
            yield from _items(item)
    elif dataclasses.is_dataclass(tree) and not isinstance(tree, type):
        for field in dataclasses.fields(tree):
            yield from _items(getattr(tree, field.name))
    else:
        yield tree
