"""Nested structures of tensors: what models take and give."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, MutableMapping
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


def replace_first(tree: Any, tensor: torch.Tensor) -> Any:
    """`tree` with `tensor` in the place of its first tensor."""
    waiting = [tensor]
    return tree_map(lambda old: waiting.pop() if waiting else old, tree)


def is_transparent(tree: Any) -> bool:
    """Whether `tree_map` reaches every tensor that `tree` may hold."""
    if isinstance(tree, PackedSequence):
        return False
    if isinstance(tree, (tuple, list)):
        return all(is_transparent(item) for item in tree)
    if isinstance(tree, MutableMapping):
        return all(is_transparent(item) for item in tree.values())
    if dataclasses.is_dataclass(tree) and not isinstance(tree, type):
        return all(is_transparent(getattr(tree, field.name)) for field in dataclasses.fields(tree))
    return isinstance(tree, (torch.Tensor, *_PLAIN))
