"""Find and replace modules inside a model."""

from __future__ import annotations

from collections.abc import Callable, Collection

from torch import nn


def replace_layer_recursive(model: nn.Module, old_layer: nn.Module, new_layer: nn.Module) -> bool:
    """Put a module into the first place where another one is.

    Returns:
        Whether it was found.

    Example:
        >>> model = nn.Sequential(nn.Sequential(nn.ReLU()))
        >>> replace_layer_recursive(model, model[0][0], nn.Tanh()), model[0][0]
        (True, Tanh())
    """
    for name, child in model.named_children():
        if child is old_layer:
            setattr(model, name, new_layer)
            return True
        if replace_layer_recursive(child, old_layer, new_layer):
            return True
    return False


def replace_all_layer_type_recursive(
    model: nn.Module, old_layer_type: type[nn.Module], new_layer: nn.Module
) -> None:
    """Put one module into every place where a module of a class is."""
    for name, child in model.named_children():
        if isinstance(child, old_layer_type):
            setattr(model, name, new_layer)
        replace_all_layer_type_recursive(child, old_layer_type, new_layer)


def find_layer_types_recursive(model: nn.Module, layer_types: Collection[type[nn.Module]]) -> list[nn.Module]:
    """List the modules of some classes, without those of derived classes, from outside in.

    Example:
        >>> find_layer_types_recursive(nn.Sequential(nn.ReLU(), nn.Tanh()), [nn.Tanh])
        [Tanh()]
    """
    return find_layer_predicate_recursive(model, lambda layer: type(layer) in layer_types)


def find_layer_predicate_recursive(
    model: nn.Module, predicate: Callable[[nn.Module], bool]
) -> list[nn.Module]:
    """List the modules for which a function is true, from outside in."""
    found = []
    for child in model.children():
        if predicate(child):
            found.append(child)
        found += find_layer_predicate_recursive(child, predicate)
    return found
