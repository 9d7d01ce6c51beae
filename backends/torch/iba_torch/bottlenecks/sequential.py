"""Inserting a layer into `nn.Sequential`."""

from __future__ import annotations

import copy
from collections.abc import Sequence

from torch import nn

from iba_core.arguments import given, is_whole_number, require_type
from iba_core.errors import InputError


def insert_into_sequential(
    sequential: nn.Sequential, layer: nn.Module, idx: int | Sequence[int]
) -> nn.Sequential:
    """A copy of `sequential` with `layer` inserted at the position `idx`.

    The copy shares its layers with `sequential`, which is left as it is, and keeps its type, attributes
    and hooks. The layers keep their names; only names that are their layer's position follow it, and the
    new layer is named after its position or, among names, after its type.

    Args:
        sequential: the layers to insert into.
        layer: such as an `IBA`.
        idx: position of `layer` in the result, counted from the end if negative. For a sequential inside
            of this one, the positions that lead there: ``(2, 0)`` inserts at the front of layer 2.

    Raises:
        InputError: there is no such position, or it leads through a layer that is no `nn.Sequential`.

    Example:
        >>> net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU())
        >>> [type(child).__name__ for child in insert_into_sequential(net, nn.Identity(), 1)]
        ['Conv2d', 'Identity', 'ReLU']
    """
    if not isinstance(sequential, nn.Sequential):
        raise InputError(f"{given('sequential', sequential)} must be an nn.Sequential")
    require_type("layer", layer, nn.Module, "an nn.Module")
    steps = (idx,) if _is_index(idx) else idx
    if not isinstance(steps, (tuple, list)) or not steps or not all(_is_index(step) for step in steps):
        raise InputError(f"{given('idx', idx)} must be a position, a whole number, or a tuple of them")
    position, *deeper = map(int, steps)
    children = list(sequential._modules.items())
    places = len(children) + (not deeper)
    if not -places <= position < places:
        raise InputError(f"idx={idx} is outside of a sequential with {len(children)} layers")
    position %= places
    if deeper:
        name, inner = children[position]
        if not isinstance(inner, nn.Sequential):
            raise InputError(f"idx={idx} leads into {type(inner).__name__}, which is no nn.Sequential")
        children[position] = (name, insert_into_sequential(inner, layer, deeper))
        return _with_children(sequential, children)
    numbered = [name == str(i) for i, (name, _) in enumerate(children)]
    name = _new_name(layer, {name for name, _ in children}) if not all(numbered) else ""
    children.insert(position, (name, layer))
    numbered.insert(position, not name)
    renamed = [
        (str(i) if number else name, child)
        for i, ((name, child), number) in enumerate(zip(children, numbered, strict=True))
    ]
    return _with_children(sequential, renamed)


def _is_index(step: object) -> bool:
    return is_whole_number(step, -(2**31), 2**31)


def _new_name(layer: nn.Module, taken: set[str]) -> str:
    name = base = type(layer).__name__.lower()
    number = 2
    while name in taken:
        name, number = f"{base}{number}", number + 1
    return name


def _with_children(sequential: nn.Sequential, children: list[tuple[str, nn.Module]]) -> nn.Sequential:
    result = copy.copy(sequential)
    # The copy is shallow: hooks added to it later would else be added to the original as well.
    for name, value in vars(sequential).items():
        if isinstance(value, (dict, set)):
            vars(result)[name] = copy.copy(value)
    result._modules = dict(children)
    return result
