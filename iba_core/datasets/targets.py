"""The targets of a data set: each with a label, and with what makes it differ from others."""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from iba_core.arguments import given, is_whole_number
from iba_core.errors import InputError, closest
from iba_core.targets import ClassTarget, Target, as_target

PREDICTED = "predicted"
"""Label of the class that the model predicts."""


@dataclass(frozen=True, eq=False)
class LabelledTarget:
    """A target of all inputs of a data set.

    Attributes:
        label: as it is shown: ``"predicted"``, the index of a class, or a name.
        target: the target.
        identity: what makes its results differ from those of others, as JSON can store it.
    """

    label: str
    target: Target
    identity: tuple[Any, ...]


def labelled(targets: Any, class_names: Sequence[str] | None = None) -> list[LabelledTarget]:
    """Label the targets that a user gives to `explain_dataset`.

    Args:
        targets: None for the predicted class; the index or the name of a class, or a `ClassTarget`; a list of
            these; or a dict of any targets by name.
        class_names: names of the classes.

    Raises:
        InputError: a target is none of these, or there is none.

    Example:
        >>> [each.label for each in labelled([None, 1, "dog"], ("cat", "tiger", "dog"))]
        ['predicted', '1', '2']
    """
    if isinstance(targets, Mapping):
        found = [_named(name, target) for name, target in targets.items()]
    elif isinstance(targets, (list, tuple)):
        found = [_class(target, class_names) for target in targets]
    else:
        found = [_class(targets, class_names)]
    if not found:
        raise InputError("targets is empty; give at least one, or None for the predicted class")
    known: dict[str, LabelledTarget] = {}
    for each in found:
        if known.setdefault(each.label, each).identity != each.identity:
            raise InputError(
                f"targets holds different ones that are called {each.label!r}; give them as a dict by name"
            )
    return list(known.values())


def _named(name: Any, target: Any) -> LabelledTarget:
    if not isinstance(name, str) or not name:
        raise InputError(f"{given('targets', name)} must be a dict of targets by name")
    wanted = as_target(target, "targets")
    plain = isinstance(wanted, ClassTarget) and (wanted.classes is None or _is_index(wanted.classes))
    what = repr(wanted) if plain else type(wanted).__qualname__
    return LabelledTarget(name, wanted, (name, what))


def _class(target: Any, class_names: Sequence[str] | None) -> LabelledTarget:
    if isinstance(target, str):
        target = find_class(target, class_names, "targets")
    wanted = target if isinstance(target, Target) else None
    if target is None or _is_index(target):
        wanted = ClassTarget(None if target is None else int(target))
    if isinstance(wanted, ClassTarget) and (wanted.classes is None or _is_index(wanted.classes)):
        index = None if wanted.classes is None else int(wanted.classes)  # type: ignore[arg-type]  # it is whole
        label = PREDICTED if index is None else str(index)
        return LabelledTarget(label, wanted, (label, index, wanted.activation))
    raise InputError(f"{given('targets', target)} is no single class; give other targets as a dict by name")


def _is_index(value: Any) -> bool:
    """Whether it is a whole number; one below 0 is refused where the classes are known."""
    return is_whole_number(value, -sys.maxsize)


def find_class(text: str, class_names: Sequence[str] | None, argument: str = "target") -> int:
    """Find the index of the class that a user gives by index or name, in upper or lower case.

    Args:
        text: the index or the name.
        class_names: the names; None if the classes have none.
        argument: name of the argument, for the message.

    Raises:
        InputError: no class has that name, or several have.

    Example:
        >>> find_class("Tiger cat", ["tabby", "tiger cat"]), find_class("7", None)
        (1, 7)
    """
    if re.fullmatch(r"[+-]?\d+", text.strip()):
        return int(text)
    if class_names is None:
        raise InputError(
            f"{argument}={text!r} is a name, but the network's classes have no names; give an index"
        )
    wanted = text.strip().casefold()
    found = [index for index, name in enumerate(class_names) if name.casefold() == wanted]
    if not found:
        near = closest(wanted, dict.fromkeys(name.casefold() for name in class_names))
        raise InputError(f"{argument}={text!r} is not a class of the network; {near}")
    if len(found) > 1:
        indices = " and ".join(map(str, found))
        raise InputError(f"{argument}={text!r} is the name of the classes {indices}; give the index")
    return found[0]
